"""Looking at one entry of a workspace without ever following a link."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from qafila.agent.sandbox.workspace import Mark
from qafila.errors import SandboxError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def check_path(path: str) -> None:
    """Raise SandboxError for what is no relative path of plain names."""
    if not all(part not in ("", ".", "..") and "\0" not in part for part in path.split("/")):
        raise SandboxError(f"{path!r}: no path in a workspace")


@contextlib.contextmanager
def opened_root(workspace: Path) -> Iterator[int]:
    """The open folder of a workspace.

    Raises:
        SandboxError: it is no folder, or cannot be opened.
    """
    try:
        root = os.open(workspace.resolve(), os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SandboxError(f"{workspace}: cannot be a workspace: {error.strerror}") from None
    try:
        yield root
    finally:
        os.close(root)


@contextlib.contextmanager
def parent(root: int, path: str) -> Iterator[tuple[int, str]]:
    """The folder that holds an entry, opened step by step from the workspace, and the entry's name.

    Raises:
        SandboxError: something on the way is missing, a link, or no folder.
    """
    *folders, name = path.split("/")
    here = os.dup(root)
    try:
        for folder in folders:
            try:
                inner = os.open(folder, _FOLDER, dir_fd=here)
            except OSError:
                raise SandboxError(
                    f"{path}: not kept: {folder!r} on the way to it is no folder of the workspace (any more)"
                ) from None
            os.close(here)
            here = inner
        yield here, name
    finally:
        os.close(here)


def look(root: int, path: str, most: int) -> tuple[Mark, bytes | None] | None:
    """An entry's mark, and what a regular file or a link holds; None where there is none.

    Args:
        root: the open workspace. path: of the entry, in it.
        most: bytes; of a larger file, and of anything but files and links, the content is None.

    Raises:
        SandboxError: something on the way is a link or no folder, or the entry cannot be read.
    """
    check_path(path)
    *folders, _ = path.split("/")
    for depth in range(1, len(folders) + 1):
        if _stat(root, "/".join(folders[:depth])) is None:
            return None
    with parent(root, path) as (folder, name):
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                return Mark.of(status), os.fsencode(os.readlink(name, dir_fd=folder))
            if not stat.S_ISREG(status.st_mode):
                return Mark.of(status), None
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                content = file.read(most + 1) if status.st_size <= most else None
            return Mark.of(status), None if content is not None and len(content) > most else content
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SandboxError(f"{path}: cannot be read: {error.strerror}") from None


def _stat(root: int, path: str) -> os.stat_result | None:
    with parent(root, path) as (folder, name):
        try:
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
