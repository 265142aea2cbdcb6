"""Notes: text files in the folder ``notes`` of the workspace. They are read and searched as files are."""

from __future__ import annotations

import re
import stat

from qafila.agent.edits import MOST_BYTES, file_edit
from qafila.agent.sandbox.entries import look, opened_root
from qafila.agent.tool import Draft, Surroundings, Tool, ToolError, tool

FOLDER = "notes"
_MOST_NAME = 80


def add_note(place: Surroundings, name: str, text: str) -> Draft:
    """Write something down in a note, below what is there."""
    path = f"{FOLDER}/{_file_name(name)}"
    if not text.strip():
        raise ToolError("text: the note is empty")
    with opened_root(place.workspace) as root:
        found = look(root, path, MOST_BYTES)
    if found is not None and (not stat.S_ISREG(found[0].mode) or found[1] is None):
        raise ToolError(f"{path}: is no file, or one that is too large to be added to")
    before = (found[1] or b"") if found is not None else b""
    gap = b"" if not before or before.endswith(b"\n") else b"\n"
    added = text.strip("\n").encode("utf-8", "replace") + b"\n"
    return Draft(f"noted in {path}", file_edit(place.workspace, path, before + gap + added))


def _file_name(name: str) -> str:
    """The name of a note's file: its words, without what could lead elsewhere."""
    words = re.sub(r"[\s/\\:*?\"<>|\x00-\x1f\x7f]+", "-", name.strip()).strip("-. ")
    bare = words.removesuffix(".md").strip("-. ")
    if not bare or len(bare) > _MOST_NAME:
        raise ToolError(f"name: give the note a name of 1 to {_MOST_NAME} letters")
    return f"{bare}.md"


def tools() -> tuple[Tool, ...]:
    """The tools of this module."""
    return (tool(add_note, effect="write", origin="built-in", controls=("name",), self_contained=True),)
