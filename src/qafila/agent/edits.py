"""What a run is to do to its workspace, as data: shown before it is done, done once, and undone.

An `Edit` holds what an entry was and what it is to be. So whether it is done already can be told by looking, after a
crash too, and its reverse is an edit like any other.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qafila.agent.sandbox.changes import Change, What, unified
from qafila.agent.sandbox.entries import check_path, look, opened_root
from qafila.agent.sandbox.keep import keep
from qafila.agent.sandbox.workspace import Mark
from qafila.errors import SandboxError

#: Bytes of one file that are held for its edit: the journal keeps both of its sides.
MOST_BYTES = 4 << 20

State = Literal["before", "after", "other"]


class Edit(BaseModel):
    """One entry of a workspace, as it was and as it is to be.

    Attributes:
        path: in the workspace, with ``/``.
        what: the sort of entry: file, folder or link.
        before, after: what a file holds or where a link leads, ``b""`` for folders; None where there is no entry.
        mode: permissions of what is to be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    path: str
    what: Literal["file", "folder", "link"]
    before: bytes | None
    after: bytes | None
    mode: int = 0o644

    @property
    def kind(self) -> Literal["created", "changed", "deleted"]:
        """What happens to the entry."""
        if self.before is None:
            return "created"
        return "deleted" if self.after is None else "changed"

    def reversed(self) -> Edit:
        """The edit that takes this one back."""
        return self.model_copy(update={"before": self.after, "after": self.before})

    def diff(self) -> str:
        """What people are shown: a unified diff, or one line where there is none to show."""
        if self.what == "file":
            text = unified(self.path, self.before or b"", self.after or b"")
            if text is not None:
                return text or f"{self.kind}: {self.path} (empty)\n"
            size = len(self.after or b"")
            return f"{self.kind}: {self.path} (no text, {size} bytes)\n"
        return f"{self.kind}: {self.path} ({self.what})\n"


def file_edit(workspace: Path, path: str, after: bytes | None) -> tuple[Edit, ...]:
    """The edits that make a file hold ``after`` (None: be gone), the folders on the way to it among them.

    None where the file is so already.

    Raises:
        SandboxError: a link or no folder on the way, something other than a file there, or more than `MOST_BYTES`.
    """
    check_path(path)
    if after is not None and len(after) > MOST_BYTES:
        raise SandboxError(f"{path}: {len(after)} bytes are more than the {MOST_BYTES} that one edit may write")
    with opened_root(workspace) as root:
        edits = []
        folders = path.split("/")[:-1]
        if after is not None:
            for depth in range(1, len(folders) + 1):
                folder = "/".join(folders[:depth])
                if look(root, folder, 0) is None:
                    edits.append(Edit(path=folder, what="folder", before=None, after=b"", mode=0o755))
        found = look(root, path, MOST_BYTES)
    if found is None:
        return (*edits, Edit(path=path, what="file", before=None, after=after)) if after is not None else ()
    mark, before = found
    if not stat.S_ISREG(mark.mode):
        raise SandboxError(f"{path}: is a folder or a link, no file")
    if before is None:
        raise SandboxError(f"{path}: {mark.size} bytes are more than the {MOST_BYTES} that one edit may replace")
    if before == after:
        return ()
    return (Edit(path=path, what="file", before=before, after=after, mode=stat.S_IMODE(mark.mode) & 0o777),)


def edits_of(workspace: Path, changes: Iterable[Change]) -> tuple[Edit, ...]:
    """The changes of a sandboxed command as edits of the real workspace.

    Raises:
        SandboxError: an entry changed since it was copied, is too large to be undone, or cannot be kept at all.
    """
    edits = []
    with opened_root(workspace) as root:
        for change in changes:
            if change.what == "special":
                raise SandboxError(f"{change.path}: sockets, pipes and devices are not kept")
            found = look(root, change.path, MOST_BYTES) if change.base is not None else None
            before = None
            if change.base is not None:
                if found is None or not change.base.same_entry(found[0]):
                    raise SandboxError(f"{change.path}: was changed in the workspace since the command began")
                before = b"" if stat.S_ISDIR(found[0].mode) else found[1]
                if before is None:
                    raise SandboxError(f"{change.path}: too large to be changed so that it can be undone")
            after = None
            if change.kind != "deleted":
                after = b"" if change.what == "folder" else change.content
                if after is None or len(after) > MOST_BYTES:
                    raise SandboxError(f"{change.path}: {change.size_after} bytes are too many for an edit")
            edits.append(_edit(change.path, change.what, before, after, change.mode, found))
    return tuple(edits)


def _edit(
    path: str, what: What, before: bytes | None, after: bytes | None, mode: int, found: tuple[Mark, bytes | None] | None
) -> Edit:
    if found is not None and after is not None and _sort(found[0]) != what:
        raise SandboxError(f"{path}: a {_sort(found[0])} cannot become a {what} in one edit; delete it first")
    assert what != "special"
    return Edit(path=path, what=what, before=before, after=after, mode=mode)


def _sort(mark: Mark) -> What:
    if stat.S_ISDIR(mark.mode):
        return "folder"
    return "link" if stat.S_ISLNK(mark.mode) else "file"


def states(workspace: Path, edits: Sequence[Edit]) -> list[State]:
    """For each edit, whether its entry is as before it, as after it, or neither."""
    found: list[State] = []
    with opened_root(workspace) as root:
        for edit in edits:
            try:
                entry = look(root, edit.path, MOST_BYTES)
            except SandboxError:
                found.append("other")
                continue
            content = None if entry is None else b"" if stat.S_ISDIR(entry[0].mode) else entry[1]
            same_sort = entry is None or _sort(entry[0]) == edit.what
            # After comes first: an edit that changes permissions alone is done as soon as it may be.
            if same_sort and content == edit.after:
                found.append("after")
            else:
                found.append("before" if same_sort and content == edit.before else "other")
    return found


def apply(workspace: Path, edits: Sequence[Edit]) -> None:
    """Do what is not done yet; to apply edits twice is to apply them once.

    Raises:
        SandboxError: an entry is neither as before nor as after its edit (nothing is applied then), or it changed
            meanwhile.
    """
    where = states(workspace, edits)
    for edit, state in zip(edits, where, strict=True):
        if state == "other":
            raise SandboxError(f"{edit.path}: was changed by somebody else; it is left as it is")
    chosen = []
    with opened_root(workspace) as root:
        for edit, state in zip(edits, where, strict=True):
            if state == "after":
                continue
            entry = look(root, edit.path, 0)
            chosen.append(
                Change(
                    edit.path,
                    edit.kind,
                    edit.what,
                    None,
                    None,
                    content=None if edit.what == "folder" else edit.after,
                    mode=edit.mode,
                    base=entry[0] if entry is not None else None,
                )
            )
    keep(workspace, chosen)


def inside(path: str) -> str:
    """A path as a model wrote it, in the workspace: ``./a//b`` and ``/a/b`` are ``a/b``; the workspace itself is "".

    Raises:
        SandboxError: it leads out of the workspace.
    """
    clean = posixpath.normpath(path.strip().replace("\\", "/").lstrip("/") or ".")
    if "\0" in clean or clean == ".." or clean.startswith("../"):
        raise SandboxError(f"{path!r}: leads out of the workspace")
    try:
        os.fsencode(clean)
    except UnicodeEncodeError:
        raise SandboxError(f"{path!r}: is no name of a file") from None
    return "" if clean == "." else clean
