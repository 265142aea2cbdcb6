"""Notes: files of a folder of their own, added to and never written over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from agent_place import FILES, Place, told
from hypothesis import given
from hypothesis import strategies as st

from qafila.agent.edits import apply
from qafila.agent.sandbox.sandbox import find_sandbox
from qafila.agent.tool import Surroundings, ToolError
from qafila.agent.tools import notes
from qafila.agent.tools.notes import add_note
from qafila.agent.undo import undo
from qafila.errors import SandboxError


def test_notes_are_added_to(tmp_path: Path) -> None:
    here = Surroundings(tmp_path, find_sandbox)
    for name, text in (("رحلة القاهرة", "الفندق: ٣ ليال"), ("رحلة القاهرة.md", "second\nthird\n")):
        draft = add_note(here, name, text)
        assert draft.text == "noted in notes/رحلة-القاهرة.md"
        apply(tmp_path, draft.edits)
    assert (tmp_path / "notes" / "رحلة-القاهرة.md").read_text() == "الفندق: ٣ ليال\nsecond\nthird\n"
    (tmp_path / "notes" / "x.md").write_bytes(b"no end \xff")
    apply(tmp_path, add_note(here, "x", "more").edits)
    assert (tmp_path / "notes" / "x.md").read_bytes() == b"no end \xff\nmore\n"


@given(st.text(max_size=90))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    try:
        found = notes._file_name(name)
    except ToolError:
        return
    assert os.path.basename(found) == found  # noqa: PTH119 - as text
    assert not found.startswith(".")
    assert found.endswith(".md")


def test_mistakes_are_told(tmp_path: Path) -> None:
    here = Surroundings(tmp_path, find_sandbox)
    for name in ("", " .. ", "/", "-.-", "x" * 200):
        with pytest.raises(ToolError, match="name"):
            add_note(here, name, "text")
    with pytest.raises(ToolError, match="empty"):
        add_note(here, "x", " \n")
    (tmp_path / "notes").symlink_to("/tmp")
    with pytest.raises(SandboxError):
        add_note(here, "x", "text")


def test_a_run_writes_notes_that_are_read_as_files_and_can_be_undone(place: Place) -> None:
    script = [[("add_note", {"name": "plan", "text": "buy dates"})], [("search_files", {"text": "dates"})], "done"]
    run, events = place.begin(script, (*FILES, *notes.tools()))
    assert told(events)[1] == ("ok", "notes/plan.md:1: buy dates")
    undo(place.journal, run)
    assert not (place.workspace / "notes").exists()
