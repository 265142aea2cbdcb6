"""Walls of Landlock rules, for machines without bubblewrap: no namespaces, no privilege, no dependency.

Constants are those of <linux/landlock.h>; what each ABI brings is in landlock(7) and the kernel's
Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qafila.agent.sandbox import confinement
from qafila.agent.sandbox.confinement import LandlockRules, Spec

# Linux 6.12: before it, a command could send signals to every process of its user.
NEEDED_ABI = 6

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_ALL_FILES = (1 << 16) - 1
_ALL_NET = 0b11  # BIND_TCP, CONNECT_TCP
_ALL_SCOPES = 0b11  # ABSTRACT_UNIX_SOCKET, SIGNAL
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_CHANGE = _ALL_FILES & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

# Of cgroup v2, whose line in /proc/self/cgroup names no controller, and of v1.
_GROUP_FILES: Final[dict[str, tuple[str, ...]]] = {
    "": ("memory.max", "cpu.max"),
    "memory": ("memory.limit_in_bytes",),
    "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
}

_CREATE_RULESET = 444  # <asm-generic/unistd.h>
_CREATE_RULESET_VERSION = 1


def abi() -> int:
    """The version of Landlock that this kernel has; 0 where it has none, or it is switched off."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)))


def rules(writable: list[Path], readable: list[Path]) -> LandlockRules:
    """Everything that Landlock knows is refused, but for these folders, the system's, and a few devices."""
    paths: list[tuple[str, int]] = []

    def allow(path: Path, access: int) -> None:
        if path.exists():
            paths.append((str(path), access if path.is_dir() else access & _FILE_ONLY))

    for name in (*confinement.SYSTEM_FOLDERS, *confinement.SYSTEM_FILES, "/proc/cpuinfo", "/proc/meminfo"):
        allow(Path(name), _READ)
    for name in confinement.DEVICES:
        allow(Path(name), _READ_FILE | _WRITE_FILE)
    for path in (*readable, *_group_files()):
        allow(path, _READ)
    for path in writable:
        allow(path, _CHANGE)
    return {"fs": _ALL_FILES, "net": _ALL_NET, "scoped": _ALL_SCOPES, "paths": paths}


def _group_files() -> Iterator[Path]:
    """Files with what the command's own control group grants it (cgroups(7)), and no others of that kind.

    Rules hide no names: DuckDB sees that these files are there, reads them to begin with, and fails where it may not.
    """
    own, groups = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    yield own
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if ".." in path.split("/"):  # a group outside of what this namespace sees
            continue
        below = path.lstrip("/")
        for controller in controllers.split(","):
            for folder in (groups / controller, groups / controller / below):
                for name in _GROUP_FILES.get(controller, ()):
                    yield folder / name


def command(spec: Spec) -> list[str]:
    """The command line that runs the jail, which stays beside the command as its supervisor."""
    jail = Path(__file__).with_name("jail.py")
    return [str(confinement.interpreter()), "-I", "-S", str(jail), json.dumps(spec)]
