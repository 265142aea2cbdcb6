"""A private copy of a workspace: a command writes there, and nowhere else."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qafila.errors import SandboxError

MOST_BYTES = 512 << 20
MOST_ENTRIES = 50_000
_FICLONE = 0x40049409  # <linux/fs.h>, ioctl_ficlone(2)
_CHUNK = 1 << 20
_LONGEST_PATH = 3800  # bytes: PATH_MAX of <linux/limits.h> is 4096, and a name has at most 255


@dataclass(frozen=True)
class Mark:
    """What tells whether an entry is still the one that was seen: nobody can set its change time (inode(7))."""

    mode: int
    size: int
    inode: int
    device: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> Mark:
        """The mark of an entry, from lstat(2)."""
        return cls(status.st_mode, status.st_size, status.st_ino, status.st_dev, status.st_mtime_ns, status.st_ctime_ns)

    def same_entry(self, other: Mark) -> bool:
        """Whether nothing happened between the two; a folder stays itself when its entries change."""
        if stat.S_ISDIR(self.mode) and stat.S_ISDIR(other.mode):
            return (self.inode, self.device) == (other.inode, other.device)
        return self == other


@dataclass(frozen=True)
class Copy:
    """A copy on disk.

    Attributes:
        source: the real workspace.
        folder: its copy. temporary: an empty folder beside it, for temporary files.
        real: a mark of each entry of the workspace, by its path in it, as it was copied.
        copied: a mark of each entry of the copy before the command ran.
    """

    source: Path
    folder: Path
    temporary: Path
    real: dict[str, Mark]
    copied: dict[str, Mark]


def _copy_file(source: int, target: int) -> None:
    """Blocks are shared where the file system can, else bytes are copied."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        while chunk := os.read(source, _CHUNK):
            view = memoryview(chunk)
            while view:
                view = view[os.write(target, view) :]


class _Copier:
    """Copies a folder, entry by entry and relative to open folders, so that no link is ever followed."""

    def __init__(self, workspace: Path, most_bytes: int, most_entries: int) -> None:
        self.workspace = workspace
        self.most_bytes, self.most_entries = most_bytes, most_entries
        self.bytes = 0
        self.real: dict[str, Mark] = {}

    def folder(self, source: int, target: int, prefix: str) -> None:
        with os.scandir(source) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            path = prefix + name
            try:
                seen = os.stat(name, dir_fd=source, follow_symlinks=False)
                self._entry(source, target, name, path, seen)
            except FileNotFoundError:
                continue  # removed meanwhile: the copy is that of a moment later
            except OSError as error:
                raise SandboxError(
                    f"{self.workspace / path}: cannot be copied for the sandbox: {error.strerror}"
                ) from None

    def _entry(self, source: int, target: int, name: str, path: str, seen: os.stat_result) -> None:
        if len(self.real) >= self.most_entries:
            raise SandboxError(
                f"{self.workspace}: more than {self.most_entries} files: choose a smaller folder as the workspace"
            )
        if stat.S_ISDIR(seen.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=source)
            try:
                outer = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=target)
                try:
                    self.real[path] = Mark.of(os.fstat(inner))
                    self.folder(inner, outer, path + "/")
                    os.fchmod(outer, stat.S_IMODE(seen.st_mode) & 0o777 | 0o700)
                finally:
                    os.close(outer)
            finally:
                os.close(inner)
        elif stat.S_ISLNK(seen.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            self.real[path] = Mark.of(seen)
        elif stat.S_ISREG(seen.st_mode):
            self._file(source, target, name, path)
        # Sockets, pipes and devices are somebody else's doors.

    def _file(self, source: int, target: int, name: str, path: str) -> None:
        inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source)
        try:
            status = os.fstat(inner)
            if not stat.S_ISREG(status.st_mode):
                return
            self.bytes += status.st_size
            if self.bytes > self.most_bytes:
                raise SandboxError(
                    f"{self.workspace}: more than {self.most_bytes >> 20} MiB: choose a smaller folder as the workspace"
                )
            outer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=target)
            try:
                _copy_file(inner, outer)
                os.fchmod(outer, stat.S_IMODE(status.st_mode) & 0o777)
            finally:
                os.close(outer)
            # A file written to while it was copied is marked as it was before: keeping a change of it is refused.
            self.real[path] = Mark.of(status)
        finally:
            os.close(inner)


def walk(folder: Path, most_entries: int = 2 * MOST_ENTRIES) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry below a folder of ours with its lstat(2), by path in it; folders that forbid it are opened first.

    Raises:
        SandboxError: there are more entries than that, or they lie too deep for a path.
    """
    waiting = [""]
    count = 0
    _open(folder)
    while waiting:
        prefix = waiting.pop()
        if len(os.fsencode(folder / prefix)) > _LONGEST_PATH:
            raise SandboxError("the command left folders too deep to look into")
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                count += 1
                if count > most_entries:
                    raise SandboxError(f"the command left more than {most_entries} files")
                path = prefix + entry.name
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    _open(Path(entry.path))
                    waiting.append(path + "/")
                yield path, status


def _open(folder: Path) -> None:
    mode = folder.lstat().st_mode
    if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
        folder.chmod(stat.S_IMODE(mode) | 0o700)


def _remove(base: Path) -> None:
    """Remove a folder of any depth: what lies deep is moved up first, so that no path and no stack grows long."""
    waiting = [base]
    moved = 0
    while waiting:
        folder = waiting[-1]
        _open(folder)
        with os.scandir(folder) as entries:
            inner = [Path(entry.path) for entry in entries if _cleared(entry)]
        if folder == base:
            waiting += inner
            if not inner:
                base.rmdir()
                return
            continue
        waiting.pop()
        for path in inner:
            _open(path)  # moving a folder writes its ".."
            moved += 1
            up = base / f"moved-{moved}"
            path.rename(up)
            waiting.append(up)
        folder.rmdir()


def _cleared(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder; anything else is removed."""
    if entry.is_dir(follow_symlinks=False):
        return True
    Path(entry.path).unlink()
    return False


@contextlib.contextmanager
def copied(
    workspace: Path, owner: int | None, *, most_bytes: int = MOST_BYTES, most_entries: int = MOST_ENTRIES
) -> Iterator[Copy]:
    """A copy of the workspace in a private temporary folder, removed at the end.

    Links stay links and are never followed; sockets, pipes and devices are left out.

    Args:
        workspace: the real folder.
        owner: user and group that the copy is given to; None is the caller.
        most_bytes, most_entries: what a workspace may hold.

    Raises:
        SandboxError: it is no folder, too large, or cannot be read; or there is no room for a copy.
    """
    workspace = workspace.resolve()
    try:
        source = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SandboxError(f"{workspace}: cannot be a workspace: {error.strerror}") from None
    base = Path(tempfile.mkdtemp(prefix="qafila-sandbox-")).resolve()
    try:
        folder, temporary = base / "work", base / "tmp"
        copier = _Copier(workspace, most_bytes, most_entries)
        try:
            folder.mkdir(mode=0o700)
            temporary.mkdir(mode=0o700)
            target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                copier.folder(source, target, "")
            finally:
                os.close(target)
            if owner is not None:
                for path in (folder, temporary, *(folder / name for name, _ in walk(folder))):
                    os.chown(path, owner, owner, follow_symlinks=False)
                base.chmod(0o711)  # to pass through, not to look into
        except OSError as error:
            why = "no space left for it" if error.errno == errno.ENOSPC else error.strerror
            raise SandboxError(f"{workspace}: cannot be copied for the sandbox: {why}") from None
        yield Copy(workspace, folder, temporary, copier.real, {path: Mark.of(status) for path, status in walk(folder)})
    finally:
        os.close(source)
        with contextlib.suppress(OSError):
            _remove(base)
