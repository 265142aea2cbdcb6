"""Walls of namespaces, built by bubblewrap (https://github.com/containers/bubblewrap; options: bwrap(1))."""

from __future__ import annotations

import json
from pathlib import Path

from qafila.agent.sandbox import confinement
from qafila.agent.sandbox.confinement import Spec

JAIL = Path(__file__).with_name("jail.py")
_JAIL_INSIDE = "/run/jail.py"
_SHARED_MEMORY = 64 << 20  # bytes of /dev/shm, for multiprocessing's semaphores and small arrays


def command(bwrap: str, spec: Spec, info: int, writable: list[Path], readable: list[Path]) -> list[str]:
    """The command line that runs the jail inside bubblewrap.

    Args:
        bwrap: path of the program.
        spec: what the jail is told; where it names a user to become, bubblewrap must be started as root.
        info: a descriptor that is told the number of the namespace's first process.
        writable: folders that keep their paths and may be written.
        readable: folders beside the system's that keep their paths and may be read.
    """
    # With a user namespace root would stay root outside, whom RLIMIT_NPROC does not bind (setrlimit(2)): root takes
    # none, and the jail becomes another user.
    spaces = ["ipc", "pid", "net", "uts", "cgroup-try"]
    if spec["uid"] is None:
        spaces.insert(0, "user")
    line = [bwrap, *(f"--unshare-{space}" for space in spaces), "--die-with-parent", "--new-session", "--clearenv"]
    line += ["--info-fd", str(info)]
    # Folders on the way: bubblewrap of itself makes them for their owner alone.
    shown = (*readable, *writable, Path(_JAIL_INSIDE), *(Path(name) for name in confinement.SYSTEM_FILES))
    for parent in sorted({parent for path in shown for parent in path.parents}):
        line += ["--perms", "0755", "--dir", str(parent)]
    for name in confinement.SYSTEM_FOLDERS:
        path = Path(name)
        if path.is_symlink():
            line += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            line += ["--ro-bind", name, name]
    for name in confinement.SYSTEM_FILES:
        line += ["--ro-bind-try", name, name]
    line += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--size",
        str(_SHARED_MEMORY),
        "--perms",
        "1777",
        "--tmpfs",
        "/dev/shm",  # noqa: S108 - it is the command's own
    ]
    for path in readable:
        line += ["--ro-bind", str(path), str(path)]
    for path in writable:
        line += ["--bind", str(path), str(path)]
    line += ["--ro-bind", str(JAIL), _JAIL_INSIDE]
    # What bubblewrap itself made is memory without a bound.
    line += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--"]
    return [*line, str(confinement.interpreter()), "-I", "-S", _JAIL_INSIDE, json.dumps(spec)]
