"""What a command sees and may use, whichever wall is built around it: paths, environment, limits."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TypedDict

# Programs and libraries (hier(7)). Where one is a link into /usr, the link is what a command sees.
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# The linker's cache, the links of Debian's alternatives(8), names of services, time zone and file types: nothing
# that names users, hosts or secrets.
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/nsswitch.conf", "/etc/mime.types")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_MEGABYTE = 1 << 20


class LandlockRules(TypedDict):
    """Arguments of landlock_create_ruleset(2), and a mask of what is allowed for each path."""

    fs: int
    net: int
    scoped: int
    paths: list[tuple[str, int]]


class Spec(TypedDict):
    """What `jail.py` is told, as JSON."""

    argv: list[str]
    folder: str
    environment: dict[str, str]
    limits: dict[str, int]  # names in `resource`, and bytes, seconds or processes
    uid: int | None  # the user (and group) to become
    landlock: LandlockRules | None
    seccomp: str  # the program in hexadecimal
    report: int  # the descriptor that learns of success
    parent: int  # the process whose end ends the command
    supervised: bool  # whether the jail stays beside the command, to end what that leaves behind


def interpreter() -> Path:
    """The Python that starts the jail: the one that runs now, without its virtual environment."""
    return Path(sys.executable).resolve()


def prefixes() -> list[Path]:
    """Folders of the Python that runs now that are not the system's: its virtual environment and its installation."""
    home = Path.home().resolve()
    found: list[Path] = []
    for name in (sys.prefix, sys.base_prefix, sys.base_exec_prefix):
        path = Path(name).resolve()
        system = any(path.is_relative_to(folder) for folder in SYSTEM_FOLDERS)
        # A prefix that holds the user's home would open it.
        if not system and not home.is_relative_to(path) and path not in found:
            found.append(path)
    return found


def open_to_others(path: Path) -> bool:
    """Whether another user may walk to this folder and read it."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents)) and bool(path.stat().st_mode & 0o004)


def environment(home: Path, temporary: Path, readable: list[Path]) -> dict[str, str]:
    """The whole environment of a command: nothing of ours."""
    places = [str(prefix / "bin") for prefix in readable]
    return {
        "PATH": ":".join([*places, "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TMPDIR": str(temporary),
    }


def limits(*, seconds: float, memory_mb: int, processes: int, file_mb: int) -> dict[str, int]:
    """Resource limits (getrlimit(2)): memory and file size are those of each process."""
    return {
        "RLIMIT_CPU": int(seconds) + 1,
        "RLIMIT_AS": memory_mb * _MEGABYTE,
        "RLIMIT_FSIZE": file_mb * _MEGABYTE,
        "RLIMIT_NPROC": processes,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        "RLIMIT_MEMLOCK": 0,
    }


def tasks_of(uid: int) -> int:
    """How many processes and threads a user has now, for RLIMIT_NPROC counts them all."""
    count = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if folder.stat().st_uid == uid:
                    count += sum(1 for _ in (folder / "task").iterdir())
            except OSError:
                continue  # it ended meanwhile
    return count
