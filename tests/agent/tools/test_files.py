"""The tools for files: what a model reads, finds and changes in a workspace, and nothing outside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qafila.agent.edits import apply
from qafila.agent.observation import MOST_SHOWN
from qafila.agent.sandbox.sandbox import find_sandbox
from qafila.agent.tool import Draft, Options, Surroundings, Toolbox, ToolError
from qafila.agent.tools import files
from qafila.agent.tools.builtin import builtin
from qafila.agent.tools.files import delete_file, edit_file, list_files, read_file, search_files, write_file
from qafila.errors import SandboxError, UsageError


@pytest.fixture
def place(tmp_path: Path) -> Surroundings:
    (tmp_path / "outside.txt").write_text("secret needle\n")
    workspace = tmp_path / "workspace"
    (workspace / "b" / "c").mkdir(parents=True)
    (workspace / ".git").mkdir()
    (workspace / ".git" / "config").write_text("needle")
    (workspace / "a.txt").write_text("first\nNeedle here\nlast\n")
    (workspace / "b" / "c" / "ملف.txt").write_text("سطر فيه إبرة\n")
    (workspace / "blob").write_bytes(b"\0needle")
    (workspace / "out").symlink_to(tmp_path / "outside.txt")
    (workspace / "folder").symlink_to(tmp_path)
    os.mkfifo(workspace / "pipe")
    return Surroundings(workspace, find_sandbox)


def done(place: Surroundings, draft: Draft) -> str:
    apply(place.workspace, draft.edits)
    return draft.text


def test_files_are_listed_without_machinery_and_links(place: Surroundings) -> None:
    assert list_files(place).splitlines() == ["a.txt", "blob", "b/c/ملف.txt"]
    assert list_files(Surroundings(place.workspace / "b" / "none", find_sandbox)) == "(no files)"


def test_files_are_read_from_a_line_on_and_in_portions(place: Surroundings) -> None:
    assert read_file(place, "a.txt") == "first\nNeedle here\nlast"
    assert read_file(place, "/b/c/../c/ملف.txt") == "سطر فيه إبرة"
    assert read_file(place, "a.txt", 3) == "last"
    lines = [f"line {i}" for i in range(1, 1001)]
    (place.workspace / "long.txt").write_text("\n".join(lines))
    seen: list[str] = []
    while len(seen) < len(lines):
        text = read_file(place, "long.txt", len(seen) + 1)
        assert len(text) <= MOST_SHOWN
        portion = text.splitlines()
        if len(seen) + len(portion) < len(lines):
            assert (
                portion.pop()
                == f"[{len(lines) - len(seen) - len(portion)} more lines, from line {len(seen) + len(portion) + 1}]"
            )
        seen += portion
    assert seen == lines


def test_lines_are_found_whatever_their_case(place: Surroundings) -> None:
    assert search_files(place, "NEEDLE") == "a.txt:2: Needle here"
    assert search_files(place, "إبرة") == "b/c/ملف.txt:1: سطر فيه إبرة"
    assert search_files(place, "(a+)+$") == "(no line matches)"
    (place.workspace / "many.txt").write_text("hit\n" * 100)
    assert len(search_files(place, "hit").splitlines()) == 51


def test_what_cannot_be_searched_is_told_and_keeps_nothing_else_from_being_found(
    place: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.workspace / "large").write_text("needle" * 10)
    (place.workspace / "locked").write_text("needle")
    real = files.look

    def look(root: int, path: str, most: int) -> Any:
        if path == "locked":
            raise SandboxError("locked: cannot be read: Permission denied")
        return real(root, path, most)

    monkeypatch.setattr(files, "look", look)
    monkeypatch.setattr(files, "MOST_BYTES", 50)
    note = "[not searched, too large or not readable: large, locked]"
    assert search_files(place, "needle") == f"a.txt:2: Needle here\n{note}"
    assert search_files(place, "nothing") == f"(no line matches)\n{note}"


def test_files_are_written_changed_and_deleted(place: Surroundings) -> None:
    assert done(place, write_file(place, "new/d.txt", "text")) == "wrote new/d.txt"
    assert (place.workspace / "new/d.txt").read_text() == "text\n"
    assert done(place, edit_file(place, "a.txt", "Needle", "Haystack")) == "changed a.txt"
    assert (place.workspace / "a.txt").read_text() == "first\nHaystack here\nlast\n"
    assert done(place, delete_file(place, "a.txt")) == "deleted a.txt"
    assert not (place.workspace / "a.txt").exists()


def test_a_draft_changes_nothing(place: Surroundings) -> None:
    for draft in (
        write_file(place, "a.txt", "x"),
        edit_file(place, "a.txt", "first", "x"),
        delete_file(place, "a.txt"),
    ):
        assert draft.edits
    assert read_file(place, "a.txt") == "first\nNeedle here\nlast"
    assert write_file(place, "a.txt", "first\nNeedle here\nlast").edits == ()


def test_a_file_that_is_no_text_is_not_rewritten_by_an_edit(place: Surroundings) -> None:
    (place.workspace / "latin.txt").write_bytes(b"caf\xe9 old\n")
    assert "old" in read_file(place, "latin.txt")
    with pytest.raises(ToolError, match=r"latin\.txt: is no UTF-8 text"):
        edit_file(place, "latin.txt", "old", "new")
    (place.workspace / "crlf.txt").write_bytes(b"\xef\xbb\xbfa\r\nold\r\n")
    done(place, edit_file(place, "crlf.txt", "old", "new"))
    assert (place.workspace / "crlf.txt").read_bytes() == b"\xef\xbb\xbfa\r\nnew\r\n"


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (read_file, {"path": "none.txt"}, "there is no such file"), (read_file, {"path": "."}, "is no file"),
        (read_file, {"path": "b"}, "is a folder"), (read_file, {"path": "pipe"}, "no file"),
        (read_file, {"path": "a.txt", "line": 0}, "the first is 1"),
        (read_file, {"path": "a.txt", "line": 99}, "the last one is"), (write_file, {"path": "/", "text": ""}, "name"),
        (write_file, {"path": "b", "text": "x"}, "is a folder"), (delete_file, {"path": "none"}, "no such file"),
        (delete_file, {"path": "b"}, "is a folder"), (delete_file, {"path": ""}, "is not deleted"),
        (edit_file, {"path": "a.txt", "old": "", "new": "x"}, "0 times"),
        (edit_file, {"path": "a.txt", "old": "t", "new": "x"}, "2 times"),
        (edit_file, {"path": "a.txt", "old": "none", "new": "x"}, "0 times"),
        (write_file, {"path": "a.txt/b", "text": "x"}, "no folder"),
        *((function, {"path": path, **more}, None) for path in ("../outside.txt", "out", "folder/outside.txt")
          for function, more in ((read_file, {}), (write_file, {"text": "x"}), (delete_file, {}),
                                 (edit_file, {"old": "secret", "new": "x"}))),
    ],
)  # fmt: skip
def test_mistakes_are_told(
    place: Surroundings, function: Callable[..., Any], arguments: dict[str, Any], words: str | None
) -> None:
    with pytest.raises((ToolError, SandboxError), match=words):
        function(place, **arguments)
    assert (place.workspace.parent / "outside.txt").read_text() == "secret needle\n"


def options(place: Surroundings, *made: tuple[str, dict[str, Any]]) -> Options:
    return Toolbox(files.tools()).options(place, made)


def test_only_what_exists_can_be_named(place: Surroundings) -> None:
    every = ["a.txt", "blob", "b/c/ملف.txt"]
    found = options(place)
    assert {name: live["path"]["enum"] for name, live in found.live.items()} == {
        "read_file": every, "edit_file": every, "delete_file": every
    }  # fmt: skip
    (place.workspace / "long.txt").write_text("x" * MOST_SHOWN)
    again = options(place, ("read_file", {"path": "./a.txt"}), ("read_file", {"path": "long.txt"}), ("list_files", {}))
    assert again.live["read_file"]["path"]["enum"] == ["blob", "long.txt", "b/c/ملف.txt"]
    assert again.live["read_file"]["line"]["maximum"] == (place.workspace / "long.txt").stat().st_size
    assert again.barred == ("list_files",)
    empty = Surroundings(place.workspace / "b" / "none", find_sandbox)
    assert options(empty).barred == ("read_file", "edit_file", "delete_file")


def test_of_too_many_files_any_can_be_named(place: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_LIVE", 2)
    assert options(place) == Options()


def test_builtin_tools_by_name() -> None:
    assert [one.name for one in builtin(["calculate", "list_files", "calculate"]).tools] == ["calculate", "list_files"]
    assert builtin([]).tools == ()
    assert {one.origin for one in builtin().tools} == {"built-in"}
    with pytest.raises(UsageError, match="there is no tool 'fly'; there are list_files, "):
        builtin(["fly"])
