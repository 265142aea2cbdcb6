"""Taking over what a command did: chosen changes of a copy go to the real workspace, entry by entry."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from qafila.agent.sandbox.changes import Change
from qafila.agent.sandbox.entries import check_path, opened_root, parent
from qafila.agent.sandbox.workspace import Mark
from qafila.errors import SandboxError

#: Names of what is written beside a target until it takes the target's place.
LEFTOVER = re.compile(r"\.qafila-[0-9a-f]{16}")


def keep(workspace: Path, changes: Iterable[Change]) -> None:
    """Apply changes to the real workspace; a file is replaced whole or not at all, and no link is ever followed.

    All are checked before the first is applied. Folders come before what is in them, and are removed after it.

    Args:
        workspace: the folder that the command was run for.
        changes: of its outcome, all or some; a file in a created folder needs that folder's change.

    Raises:
        SandboxError: the real entry is not the one that was copied any more, a folder on the way is a link or missing,
            a link leads out of the workspace, or a content was too large to hold. What was applied before stays.
    """
    chosen = sorted(changes, key=lambda change: change.path)
    present = [change for change in chosen if change.kind != "deleted"]
    gone = [change for change in reversed(chosen) if change.kind == "deleted"]
    made = {change.path for change in present if change.what == "folder"}
    with opened_root(workspace) as root:
        for change in chosen:
            _check(change)
            if posixpath.dirname(change.path) not in made:
                with parent(root, change.path) as (folder, name):
                    _unchanged(folder, name, change)
        # A deleted entry may stand where a folder on the way to a created one is to be: deletions first.
        for change in (*gone, *present):
            with parent(root, change.path) as (folder, name):
                _apply(folder, name, change)


def _check(change: Change) -> None:
    check_path(change.path)
    if change.kind == "deleted":
        return
    if change.what == "special":
        raise SandboxError(f"{change.path}: sockets, pipes and devices are not kept")
    if change.what != "folder" and change.content is None:
        raise SandboxError(f"{change.path}: too large to be kept ({change.size_after} bytes)")
    if change.what == "link":
        content = change.content or b""
        if leads_out(change.path, content):
            target = os.fsdecode(content)
            raise SandboxError(f"{change.path}: a link that leads out of the workspace, to {target!r}, is not kept")


def leads_out(path: str, link: bytes) -> bool:
    """Whether a link at ``path`` that holds ``link`` leads out of the workspace."""
    target = os.fsdecode(link)
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return target.startswith("/") or inside == ".." or inside.startswith("../")


def _unchanged(folder: int, name: str, change: Change) -> None:
    try:
        now: Mark | None = Mark.of(os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        now = None
    same = now is None if change.base is None else now is not None and change.base.same_entry(now)
    if not same:
        raise SandboxError(f"{change.path}: not kept: it was changed in the workspace since the command began")


def _apply(folder: int, name: str, change: Change) -> None:
    try:
        _unchanged(folder, name, change)
        was_folder = change.base is not None and stat.S_ISDIR(change.base.mode)
        if change.kind == "deleted":
            (os.rmdir if was_folder else os.unlink)(name, dir_fd=folder)
        elif change.what == "folder":
            if change.base is not None:
                os.unlink(name, dir_fd=folder)
            os.mkdir(name, change.mode | 0o700, dir_fd=folder)
        else:
            if was_folder:
                os.rmdir(name, dir_fd=folder)
            _place(folder, name, change, replaces=change.base is not None and not was_folder)
    except OSError as error:
        raise SandboxError(f"{change.path}: not kept: {error.strerror}") from None


def _place(folder: int, name: str, change: Change, *, replaces: bool) -> None:
    """Write beside the target, then rename; rename(2) and link(2) follow no link that took the target's name."""
    assert change.content is not None
    temporary = f".qafila-{secrets.token_hex(8)}"
    try:
        if change.what == "link":
            os.symlink(change.content, os.fsencode(temporary), dir_fd=folder)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(change.content)
                file.flush()
                os.fchmod(file.fileno(), change.mode)
                os.fsync(file.fileno())
        if replaces:
            _unchanged(folder, name, change)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:  # link(2), unlike rename(2), never replaces what appeared meanwhile
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
