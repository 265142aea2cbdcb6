"""Commands and Python programs that a model writes: what it is told of them, and what they may leave behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from agent_place import Place, told

from qafila.agent.carry_out import outcome
from qafila.agent.edits import apply
from qafila.agent.observation import MOST_SHOWN, Observation, observation
from qafila.agent.sandbox.sandbox import Sandbox
from qafila.agent.tool import Draft, Surroundings
from qafila.agent.tools import commands
from qafila.agent.tools.commands import run_command, run_python
from qafila.errors import SandboxError


@pytest.fixture
def here(sandbox: Sandbox, tmp_path: Path) -> Surroundings:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "ملف.txt").write_text("سطر\n")
    return Surroundings(workspace, lambda: sandbox)


def test_output_and_status_are_told(here: Surroundings) -> None:
    assert run_command(here, "cat ملف.txt; echo done >&2") == Draft("سطر\ndone\n")
    assert run_python(here, "print(2**100, 'مرحبا')") == Draft("1267650600228229401496703205376 مرحبا\n")
    assert run_command(here, "exit 3").text == "[exit status 3]"
    assert run_command(here, "no-such-command").text.endswith("[exit status 127]")
    assert run_command(here, "kill -9 $$").text.endswith("[exit status 137]")
    failed = run_python(here, "import json\njson.loads('{')").text
    assert "JSONDecodeError" in failed
    assert failed.endswith("[exit status 1]")


def test_what_takes_too_long_is_stopped(here: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_SECONDS", 4.0)  # enough to begin on a busy machine
    assert run_command(here, "echo begun; sleep 60").text == "begun\n\n[stopped after 4 seconds]"
    assert run_python(here, "while True: pass").text == "[stopped after 4 seconds]"


def test_megabytes_are_told_by_their_beginning_and_end(here: Surroundings) -> None:
    text = run_python(here, "print('first'); print('x' * 5_000_000); print('last')").text
    assert len(text) < 70_000
    seen = observation(text)
    assert seen.text.startswith("first\nxxx")
    assert seen.text.endswith("xxx\nlast\n")
    assert "bytes left out" in (seen.whole or "")
    assert len(seen.text) < MOST_SHOWN + 100


def test_bytes_that_are_no_text_are_replaced(here: Surroundings) -> None:
    text = run_command(here, r"printf '\377\376 and \033[31mred \000 end'").text
    assert text == "�� and \x1b[31mred \0 end"
    assert observation(text).text == "�� and �[31mred � end"


def test_what_is_written_is_shown_before_it_is_kept(here: Surroundings) -> None:
    draft = run_command(here, "echo جديد >> ملف.txt; mkdir out; printf '\\0\\1' > out/blob; echo told")
    assert draft.text == "told\n"
    assert (here.workspace / "ملف.txt").read_text() == "سطر\n"
    assert [(edit.kind, edit.path) for edit in draft.edits] == [
        ("created", "out"),
        ("created", "out/blob"),
        ("changed", "ملف.txt"),
    ]
    assert draft.edits[2].diff() == "--- a/ملف.txt\n+++ b/ملف.txt\n@@ -1 +1,2 @@\n سطر\n+جديد\n"
    apply(here.workspace, draft.edits)
    assert (here.workspace / "ملف.txt").read_text() == "سطر\nجديد\n"
    assert (here.workspace / "out" / "blob").read_bytes() == b"\0\1"


def test_what_fails_may_leave_files_too(here: Surroundings) -> None:
    draft = run_python(here, "open('half.txt', 'w').write('x')\nraise SystemExit(2)")
    assert draft.text == "[exit status 2]"
    assert [edit.path for edit in draft.edits] == ["half.txt"]


def test_modules_of_the_workspace_do_not_take_the_place_of_pythons(here: Surroundings) -> None:
    (here.workspace / "json.py").write_text("print('taken')")
    assert run_python(here, "import json; print(json.dumps([1]))").text == "[1]\n"


def test_nothing_runs_without_walls(tmp_path: Path) -> None:
    def no_walls() -> Sandbox:
        raise SandboxError("no sandbox works here: install bubblewrap")

    (command, _) = commands.tools()
    marker = tmp_path / "ran"
    found = asyncio.run(outcome(command, {"command": f"touch {marker}"}, Surroundings(tmp_path, no_walls)))
    assert isinstance(found, Observation)
    assert (found.status, found.text) == ("error", "no sandbox works here: install bubblewrap")
    assert not marker.exists()


def test_a_run_keeps_what_a_command_wrote(place: Place) -> None:
    calls = [("run_command", {"command": "echo one > a.txt; cat a.txt"})]
    _, events = place.begin([calls], commands.tools())
    assert told(events) == [("ok", "one\n")]
    assert place.file("a.txt") == "one\n"
