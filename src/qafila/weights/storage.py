"""Untrusted files in, whole files out: mapping for readers, staging for writers, names that are safe to print."""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qafila.errors import FormatError, ModelNotFoundError, StorageError
from qafila.weights.tensor import LazyTensor


def quoted(name: str) -> str:
    """A name out of a file as it may stand in a message: escaped, on one line, at most about 80 characters."""
    text = repr(name[:81])
    return text if len(name) <= 80 and len(text) <= 200 else f"{text[:78]}...'"


def explain_start(start: bytes) -> str:
    """What a file with these first bytes probably is, as the end of a message; empty where nothing is known."""
    if start.startswith(b"version https://git-lfs"):
        return ": it is a Git LFS pointer, fetch the file itself with `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return ": it looks like a web page, download the file again"
    if start.startswith(b"PK\x03\x04"):
        return ": it is a zip archive, perhaps a PyTorch checkpoint (.pth)"
    if start.startswith(b"GGUF"):
        return ": it is a GGUF file"
    if start[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return ": it is in a format from before GGUF, convert it with an old llama.cpp first"
    if start[8:9] == b"{":
        return ": it is perhaps a safetensors file"
    return ""


def map_file(path: Path) -> mmap.mmap:
    """Map a regular, non-empty file read-only. The mapping lives as long as any array made from it.

    Raises:
        ModelNotFoundError: there is no such file.
        FormatError: it is a folder, a pipe, a device or empty, or it cannot be opened.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise FormatError(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise FormatError(path, "is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(path, "is not a regular file")
        if status.st_size == 0:
            raise FormatError(path, "is empty")
        try:
            return mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError) as error:
            raise FormatError(path, f"cannot be mapped into memory: {error}") from None
    finally:
        os.close(descriptor)


def is_there(path: Path) -> bool:
    """Whether ``path`` exists; also True where that cannot be told, so that opening it says why."""
    try:
        return path.exists()
    except OSError:
        return True


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; False where that cannot be told."""
    try:
        return path.is_dir()
    except OSError:
        return False


@contextmanager
def _as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        way_out = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}; {way_out}") from None


class Staging:
    """Files of one folder that appear together: written under temporary names, renamed when all are whole.

    Use it through :func:`staging`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staged: list[tuple[Path, Path]] = []

    def reserve(self, size: int) -> None:
        """Say no before the work rather than after it.

        Raises:
            StorageError: the disk has fewer than ``size`` bytes free.
        """
        with _as_storage_error(self._folder):
            free = shutil.disk_usage(self._folder).free
        if size > free:
            raise StorageError(
                f"{self._folder}: {size / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB free; "
                "free some space or choose another place"
            )

    @contextmanager
    def open(self, name: str) -> Iterator[Callable[[bytes | memoryview], object]]:
        """Write one file of the folder; gives the function that appends bytes to it.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        target = self._folder / name
        temporary = self._folder / f".qafila-{secrets.token_hex(8)}.part"
        if is_folder(target):
            raise StorageError(f"{target}: is a folder; choose another name")
        with _as_storage_error(target):
            file: BinaryIO = temporary.open("xb", buffering=1 << 20)
        self._staged.append((temporary, target))

        def write(data: bytes | memoryview) -> object:
            with _as_storage_error(target):
                return file.write(data)

        try:
            yield write
            with _as_storage_error(target):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with _as_storage_error(target):
                file.close()

    def commit(self) -> None:
        """Rename every staged file to its own name, in the order of writing."""
        for temporary, target in self._staged:
            with _as_storage_error(target):
                temporary.replace(target)

    def discard(self) -> None:
        """Remove what was staged and not committed."""
        for temporary, _ in self._staged:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def staging(folder: Path) -> Iterator[Staging]:
    """A :class:`Staging` that commits when the block ends well and leaves nothing behind when it does not."""
    if not is_folder(folder):
        raise StorageError(f"{folder}: is not a folder; create it first")
    stage = Staging(folder)
    try:
        yield stage
        stage.commit()
    finally:
        stage.discard()


def write_tensor(write: Callable[[bytes | memoryview], object], tensor: LazyTensor) -> None:
    """Read one tensor and append its bytes; only this tensor is in memory meanwhile."""
    data = tensor.read()
    assert (data.dtype, data.shape) == (tensor.dtype, tensor.shape), f"{tensor.origin}: not what was announced"
    write(np.ascontiguousarray(data.data).data)
