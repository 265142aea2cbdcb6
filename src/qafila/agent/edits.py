"""What a run is to do to its workspace, as data: shown before it is done, done once, and undone.

An `Edit` holds what an entry was and what it is to be. So whether it is done already can be told by looking, after a
crash too, and its reverse is an edit like any other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qafila.agent.sandbox.changes import Change, What, unified
from qafila.agent.sandbox.entries import check_path, look, opened_root, parent
from qafila.agent.sandbox.keep import LEFTOVER, keep, leads_out
from qafila.agent.sandbox.workspace import Mark
from qafila.errors import SandboxError

#: Bytes of one file that are held for its edit: the journal keeps both of its sides.
MOST_BYTES = 4 << 20
#: Characters of one file's diff that people are shown: whoever allows a change has to be able to see all of it.
_MOST_SHOWN = 1 << 20

State = Literal["before", "after", "other"]


class Edit(BaseModel):
    """One entry of a workspace, as it was and as it is to be.

    Attributes:
        path: in the workspace, with ``/``.
        what: the sort of entry: file, folder or link.
        before, after: what a file holds or where a link leads, ``b""`` for folders; None where there is no entry.
        mode: permissions of what is to be. mode_before: of what was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    path: str
    what: Literal["file", "folder", "link"]
    before: bytes | None
    after: bytes | None
    mode: int = 0o644
    mode_before: int = 0o644

    @property
    def kind(self) -> Literal["created", "changed", "deleted"]:
        """What happens to the entry."""
        if self.before is None:
            return "created"
        return "deleted" if self.after is None else "changed"

    def reversed(self) -> Edit:
        """The edit that takes this one back."""
        turned = {"before": self.after, "after": self.before, "mode": self.mode_before, "mode_before": self.mode}
        return self.model_copy(update=turned)

    def diff(self) -> str:
        """What people are shown: a unified diff, or one line where there is none to show."""
        if self.what == "file" and self.kind == "changed" and self.mode != self.mode_before:
            permissions = f"permissions: {self.path} from {self.mode_before:03o} to {self.mode:03o}\n"
            same = self.model_copy(update={"mode_before": self.mode})
            return permissions if self.before == self.after else permissions + same.diff()
        if self.what == "file":
            text = unified(self.path, self.before or b"", self.after or b"", _MOST_SHOWN)
            if text is not None:
                return text or f"{self.kind}: {self.path} (empty)\n"
            size = len(self.after or b"")
            return f"{self.kind}: {self.path} (no text, or too long to be shown; {size} bytes)\n"
        if self.what == "link":
            sides = [os.fsdecode(side) for side in (self.before, self.after) if side is not None]
            return f"{self.kind}: {self.path} (link to {', now to '.join(sides)})\n"
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
    mode = _permissions(mark)
    return (Edit(path=path, what="file", before=before, after=after, mode=mode, mode_before=mode),)


def edits_of(workspace: Path, changes: Iterable[Change]) -> tuple[Edit, ...]:
    """The changes of a sandboxed command as edits of the real workspace.

    Raises:
        SandboxError: an entry changed since it was copied, is too large to be undone, or cannot be kept at all.
    """
    edits = []
    with opened_root(workspace) as root:
        for change in changes:
            if not _is_text(change.path):
                raise SandboxError(f"{change.path!r}: its name is no text; rename it")
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
                if change.what == "link" and leads_out(change.path, before):
                    raise SandboxError(f"{change.path}: a link that leads out of the workspace could not be put back")
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
    mode_before = mode if found is None else _permissions(found[0])
    mode = mode_before if after is None else mode
    return Edit(path=path, what=what, before=before, after=after, mode=mode, mode_before=mode_before)


def _permissions(mark: Mark) -> int:
    return stat.S_IMODE(mark.mode) & 0o777


def _sort(mark: Mark) -> What:
    if stat.S_ISDIR(mark.mode):
        return "folder"
    return "link" if stat.S_ISLNK(mark.mode) else "file"


def states(workspace: Path, edits: Sequence[Edit]) -> list[State]:
    """For each edit, whether its entry is as before it, as after it, or neither."""
    return [state for state, _ in _look_at(workspace, edits)]


def _look_at(workspace: Path, edits: Sequence[Edit]) -> list[tuple[State, Mark | None]]:
    """The states, and the mark of each entry that was seen."""
    found: list[tuple[State, Mark | None]] = []
    with opened_root(workspace) as root:
        for edit in edits:
            try:
                entry = look(root, edit.path, MOST_BYTES)
            except SandboxError:
                found.append(("other", None))
                continue
            found.append((_state(edit, entry), entry[0] if entry is not None else None))
    return found


def _state(edit: Edit, entry: tuple[Mark, bytes | None] | None) -> State:
    if entry is None:
        return "after" if edit.after is None else "before" if edit.before is None else "other"
    mark, content = entry
    if stat.S_ISDIR(mark.mode):
        content = b""
    # What cannot be read (too large, a pipe) is neither: it is not what an edit knows, and not nothing.
    if content is None or _sort(mark) != edit.what:
        return "other"
    if edit.before == edit.after == content:
        modes: dict[int, State] = {edit.mode_before: "before", edit.mode: "after"}
        return modes.get(_permissions(mark), "other")
    return "after" if content == edit.after else "before" if content == edit.before else "other"


def apply(workspace: Path, edits: Sequence[Edit]) -> None:
    """Do what is not done yet; to apply edits twice is to apply them once.

    Raises:
        SandboxError: an entry is neither as before nor as after its edit (nothing is applied then), or it changed
            meanwhile.
    """
    where = _look_at(workspace, edits)
    for edit, (state, _) in zip(edits, where, strict=True):
        if state == "other":
            raise SandboxError(f"{edit.path}: was changed by somebody else; it is left as it is")
    chosen = [
        Change(
            edit.path,
            edit.kind,
            edit.what,
            None,
            None,
            content=None if edit.what == "folder" else edit.after,
            mode=edit.mode,
            base=mark,
        )
        for edit, (state, mark) in zip(edits, where, strict=True)
        if state == "before"
    ]
    keep(workspace, chosen)


@contextlib.contextmanager
def alone(workspace: Path) -> Iterator[None]:
    """Edits of one run at a time, whatever process it is in: what one leaves half done no other takes for its own.

    Raises:
        SandboxError: the workspace cannot be opened.
    """
    try:
        descriptor = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(f"{workspace}: cannot be a workspace: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sweep(workspace: Path, edits: Iterable[Edit]) -> None:
    """Remove what a process that was killed while it applied these edits may have left beside them."""
    with opened_root(workspace) as root:
        for folder in sorted({posixpath.dirname(edit.path) for edit in edits}):
            with contextlib.suppress(SandboxError), parent(root, posixpath.join(folder, "any")) as (here, _):
                for name in filter(LEFTOVER.fullmatch, os.listdir(here)):  # noqa: PTH208 - a descriptor
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=here)


def inside(path: str) -> str:
    """A path as a model wrote it, in the workspace: ``./a//b`` and ``/a/b`` are ``a/b``; the workspace itself is "".

    Raises:
        SandboxError: it leads out of the workspace.
    """
    clean = posixpath.normpath(path.strip().replace("\\", "/").lstrip("/") or ".")
    if "\0" in clean or clean == ".." or clean.startswith("../"):
        raise SandboxError(f"{path!r}: leads out of the workspace")
    if not _is_text(clean):
        raise SandboxError(f"{path!r}: is no name of a file")
    return "" if clean == "." else clean


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8: others cannot be written down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
