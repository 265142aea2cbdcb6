"""Files of the workspace: listed, read, searched, and changed by edits that are shown first."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qafila.agent.edits import file_edit, inside
from qafila.agent.observation import MOST_SHOWN, whole_letters
from qafila.agent.sandbox.entries import look, opened_root
from qafila.agent.tool import Draft, Surroundings, Tool, ToolError, tool
from qafila.errors import SandboxError

#: Bytes of a file that is read or searched, and files that are listed, searched, or offered to choose from.
MOST_BYTES, MOST_FILES, MOST_LIVE = 4 << 20, 2000, 64
_MOST_HITS = 50
_SKIPPED = {".git", "__pycache__", "node_modules", ".venv"}
#: Words by which a user asks for what changes files.
_WRITE = ("write", "save", "create", "store", "put", "اكتب", "احفظ", "أنشئ", "سجل", "ضع")
_EDIT = ("edit", "change", "replace", "correct", "fix", "update", "add", "عدل", "استبدل", "صحح", "حدث", "أضف")
_DELETE = ("delete", "remove", "erase", "احذف", "امسح", "أزل")


def files_in(place: Surroundings) -> Iterator[str]:
    """Paths of the regular files of the workspace, in order; hidden machinery and links are left out."""
    count = 0
    for folder, folders, names in os.walk(place.workspace):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(folder, name).relative_to(place.workspace).as_posix()
            # A name that is no text cannot be written by a model.
            if path == whole_letters(path) and _size(place, path) is not None:
                yield path
                count += 1
                if count >= MOST_FILES:
                    return


def _size(place: Surroundings, path: str) -> int | None:
    """Bytes of a regular file; None where there is none (any more)."""
    try:
        status = os.lstat(place.workspace / path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _content(place: Surroundings, path: str) -> tuple[str, bytes]:
    """The path as it is in the workspace, and what the file there holds."""
    clean = inside(path)
    if not clean:
        raise ToolError("path: the workspace itself is no file")
    with opened_root(place.workspace) as root:
        found = look(root, clean, MOST_BYTES)
    if found is None:
        raise ToolError(f"{clean}: there is no such file")
    if not stat.S_ISREG(found[0].mode):
        raise ToolError(f"{clean}: is a folder or a link, no file")
    if found[1] is None:
        raise ToolError(f"{clean}: {found[0].size} bytes are too many to read")
    return clean, found[1]


def list_files(place: Surroundings) -> str:
    """List the files."""
    return "\n".join(files_in(place)) or "(no files)"


def read_file(place: Surroundings, path: str, line: int = 1) -> str:
    """Read a text file from a line on."""
    text = _content(place, path)[1].decode("utf-8", "replace")
    if line < 1:
        raise ToolError("line: the first is 1")
    every = text.splitlines()
    if line > max(1, len(every)):
        raise ToolError(f"line: the last one is {len(every)}")
    chosen: list[str] = []
    size = 0
    for one in every[line - 1 :]:
        size += len(one) + 1
        if chosen and size > MOST_SHOWN - 100:
            break
        chosen.append(one)
    rest = len(every) - (line - 1) - len(chosen)
    return "\n".join(chosen) + (f"\n[{rest} more lines, from line {line + len(chosen)}]" if rest > 0 else "")


def search_files(place: Surroundings, text: str) -> str:
    """Find lines that hold a text."""
    wanted = text.casefold()  # no pattern: Python's would hold up the whole program for as long as a model likes
    hits: list[str] = []
    left: list[str] = []
    with opened_root(place.workspace) as root:
        for path in files_in(place):
            try:
                found = look(root, path, MOST_BYTES)
            except SandboxError:  # one file that may not be read is no reason to search none
                left.append(path)
                continue
            if found is not None and found[1] is None:
                left.append(path)
            if found is None or found[1] is None or b"\0" in found[1]:
                continue
            for number, line in enumerate(found[1].decode("utf-8", "replace").splitlines(), 1):
                if wanted in line.casefold():
                    hits.append(f"{path}:{number}: {line.strip()[:200]}")
                    if len(hits) == _MOST_HITS:
                        return "\n".join([*hits, "[more lines match]"])
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        hits.append(f"[not searched, too large or not readable: {', '.join(left[:5])}{more}]")
    return "\n".join(hits if len(hits) > bool(left) else ["(no line matches)", *hits])


def write_file(place: Surroundings, path: str, text: str) -> Draft:
    """Write a text file, new or replaced."""
    clean = inside(path)
    if not clean:
        raise ToolError("path: give the name of a file")
    edits = file_edit(place.workspace, clean, _with_end(text).encode("utf-8", "replace"))
    return Draft(f"wrote {clean}" if edits else f"{clean} holds this already", edits)


def edit_file(place: Surroundings, path: str, old: str, new: str) -> Draft:
    """Replace a text that a file holds once."""
    clean, content = _content(place, path)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ToolError(f"{clean}: is no UTF-8 text, and an edit would change more of it; write it anew") from None
    times = text.count(old) if old else 0
    if times != 1:
        raise ToolError(f"{clean}: the old text is there {times} times, not once")
    edits = file_edit(place.workspace, clean, text.replace(old, new).encode("utf-8", "replace"))
    return Draft(f"changed {clean}" if edits else f"{clean} holds this already", edits)


def delete_file(place: Surroundings, path: str) -> Draft:
    """Delete a file."""
    clean = inside(path)
    if not clean:
        raise ToolError("path: the workspace itself is not deleted")
    edits = file_edit(place.workspace, clean, None)
    if not edits:
        raise ToolError(f"{clean}: there is no such file")
    return Draft(f"deleted {clean}", edits)


def _with_end(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _existing(place: Surroundings, made: Sequence[Mapping[str, Any]]) -> Mapping[str, dict[str, Any]] | None:
    """Paths are of files that exist, where there are not too many to choose from."""
    found = list(files_in(place))
    if len(found) > MOST_LIVE:
        return {}
    return {"path": {"type": "string", "enum": found}} if found else None


def _unread(place: Surroundings, made: Sequence[Mapping[str, Any]]) -> Mapping[str, dict[str, Any]] | None:
    """As `_existing`, without files that were read already and shown whole."""
    found = list(files_in(place))
    if len(found) > MOST_LIVE:
        return {}
    read = {inside(str(arguments.get("path", ""))) for arguments in made}
    sizes = {path: _size(place, path) or 0 for path in found}
    left = [path for path in found if path not in read or sizes[path] > MOST_SHOWN // 2]
    if not left:
        return None
    # A file has no more lines than bytes, and of one that is shown whole there is nothing to go on with.
    last = max((sizes[path] for path in left if sizes[path] > MOST_SHOWN // 2), default=1)
    return {"path": {"type": "string", "enum": left}, "line": {"type": "integer", "minimum": 1, "maximum": last}}


def tools() -> tuple[Tool, ...]:
    """The tools of this module."""
    editing = partial(tool, effect="write", origin="built-in", controls=("path",), self_contained=True)
    return (
        tool(list_files, effect="read", origin="built-in"),
        tool(read_file, effect="read", live=_unread, origin="built-in"),
        tool(search_files, effect="read", origin="built-in"),
        editing(write_file, asked_by=_WRITE),
        editing(edit_file, live=_existing, asked_by=_EDIT),
        editing(delete_file, live=_existing, asked_by=_DELETE),
    )
