"""What a command did to its copy of a workspace."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qafila.agent.sandbox.workspace import Copy, Mark, walk

MOST_CONTENT = 64 << 20  # bytes of changed files that are held for keeping, over all of them
MOST_DIFF = 16 << 10  # characters of one file's diff
_MOST_TEXT = 1 << 20  # bytes of a file that is compared line by line
_MOST_PAIRS = 1 << 20  # lines compared with lines: difflib is quadratic, and what it reads is not ours

What = Literal["file", "link", "folder", "special"]


@dataclass(frozen=True)
class Change:
    """One entry of the workspace that a command created, changed or deleted.

    Attributes:
        path: in the workspace, with ``/``.
        kind: what happened. what: the sort of entry, afterwards (before, where it was deleted).
        size_before, size_after: in bytes; None where there is no file.
        diff: unified, cut at `MOST_DIFF`; None for what is no text or too large.
        content: the file, or the link's target, as it is now; None for folders, deletions, and beyond `MOST_CONTENT`.
        mode: permissions of the file or folder. base: the real entry that was copied; None where there was none.
    """

    path: str
    kind: Literal["created", "changed", "deleted"]
    what: What
    size_before: int | None
    size_after: int | None
    diff: str | None = None
    content: bytes | None = field(default=None, repr=False)
    mode: int = 0o644
    base: Mark | None = field(default=None, repr=False)


def _what(mode: int) -> What:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "special"


def _read(path: Path, most: int) -> bytes | None:
    """A regular file that is no longer than ``most``; links are not followed and pipes not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            return None
        content = file.read(most + 1)
        return content if len(content) <= most else None


def _text(content: bytes | None) -> list[str] | None:
    if content is None or len(content) > _MOST_TEXT or b"\0" in content:
        return None
    try:
        return re.findall(r"[^\n]*\n|[^\n]+", content.decode())  # a line ends where editors and compilers end it
    except UnicodeDecodeError:
        return None


def unified(path: str, before: bytes | None, after: bytes | None, most: int = MOST_DIFF) -> str | None:
    """The unified diff of two texts; None where one is no text.

    Where comparing would take long it is all old lines, then all new ones.

    Args:
        path: as it is to stand in the head.
        before, after: what was and what is; ``b""`` where there is no file, None where it cannot be shown.
        most: characters; the rest is left out, which it says.
    """
    old, new = _text(before), _text(after)
    if old is None or new is None:
        return None
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    # Only the part that differs is compared; the rest would cost time and add three lines of context.
    first, context = max(0, start - 3), min(3, end)
    cut_old = old[first : len(old) - end + context]
    cut_new = new[first : len(new) - end + context]
    pieces: list[str] = []
    size = 0
    long = len(cut_old) * len(cut_new) > _MOST_PAIRS
    for line in (_replaced if long else difflib.unified_diff)(cut_old, cut_new, f"a/{path}", f"b/{path}"):
        text = _shifted(line, first) if line.startswith("@@") else line
        text = text if text.endswith("\n") else text + "\n\\ No newline at end of file\n"
        size += len(text)
        if size > most:
            pieces.append("[the rest of the diff is left out]\n")
            break
        pieces.append(text)
    return "".join(pieces)


def _replaced(old: Sequence[str], new: Sequence[str], was: str, now: str) -> Iterator[str]:
    """A diff that takes all lines out and puts all others in."""
    yield from (f"--- {was}\n", f"+++ {now}\n", f"@@ -1,{len(old)} +1,{len(new)} @@\n")
    yield from (f"-{line}" for line in old)
    yield from (f"+{line}" for line in new)


def _shifted(head: str, lines: int) -> str:
    """``@@ -1,4 +1,4 @@`` with its line numbers moved."""
    if not lines:
        return head
    moved = []
    for part in head.split()[1:3]:
        number, comma, count = part[1:].partition(",")
        moved.append(f"{part[0]}{int(number) + lines}{comma}{count}")
    return f"@@ {' '.join(moved)} @@\n"


def _original(copy: Copy, path: str) -> bytes | None:
    """The real file as it was copied; None when it is another by now."""
    real = copy.source / path
    try:
        if Mark.of(real.lstat()) != copy.real[path]:
            return None
        return _read(real, _MOST_TEXT)
    except OSError:
        return None


def changes(copy: Copy) -> tuple[Change, ...]:
    """What was created, changed and deleted, in the order of the paths. The command must have ended."""
    after = dict(walk(copy.folder))
    found: list[Change] = []
    left = MOST_CONTENT
    for path in sorted(copy.copied.keys() | after.keys()):
        old, status = copy.copied.get(path), after.get(path)
        if status is None:
            assert old is not None
            found.append(_deleted(copy, path, old))
            continue
        new = Mark.of(status)
        what = _what(new.mode)
        if old is not None:
            same_kind = stat.S_IFMT(old.mode) == stat.S_IFMT(new.mode)
            if old == new or (what == "folder" and same_kind):
                continue
        change = _present(copy, path, old, new, left)
        if change is not None:
            found.append(change)
            left -= len(change.content or b"")
    return tuple(found)


def _deleted(copy: Copy, path: str, old: Mark) -> Change:
    what = _what(old.mode)
    diff = unified(path, _original(copy, path), b"") if what == "file" else None
    size = old.size if what == "file" else None
    return Change(path, "deleted", what, size, None, diff, base=copy.real[path])


def _present(copy: Copy, path: str, old: Mark | None, new: Mark, left: int) -> Change | None:
    """The change that made this entry; None where what it holds and its permissions are as they were."""
    what = _what(new.mode)
    content: bytes | None = None
    diff: str | None = None
    was_file = old is not None and stat.S_ISREG(old.mode)
    if what == "link":
        content = os.fsencode((copy.folder / path).readlink())
    elif what == "file":
        if not new.mode & stat.S_IRUSR:
            (copy.folder / path).chmod(0o600)  # a regular file, and nobody is left who could swap it
        content = _read(copy.folder / path, left)
        before = _original(copy, path) if was_file else b""
        if old is not None and content is not None and content == before and was_file and old.mode == new.mode:
            return None
        diff = unified(path, before, content)
    return Change(
        path,
        "created" if old is None else "changed",
        what,
        old.size if old is not None and was_file else None,
        new.size if what == "file" else None,
        diff,
        content,
        stat.S_IMODE(new.mode) & 0o777,
        copy.real.get(path),
    )
