"""`qafila memory`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from scripted_agent import Answer, ScriptedAgent

from qafila.agent.journal import Journal
from qafila.cli.main import main


class Shell:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.url, self.capsys = f"sqlite:///{folder}/agent.sqlite3", capsys
        patch.setenv("QAFILA_AGENT_DATABASE", self.url)
        patch.chdir(folder)

    def __call__(self, *args: str, status: int = 0) -> tuple[str, str]:
        found = main([*args])
        told = self.capsys.readouterr()
        assert found == status, told.err
        return told.out, told.err

    def entries(self, *args: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self("memory", *args, "--json")[0])
        return found


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def test_entries_are_added_listed_edited_and_forgotten(shell: Shell) -> None:
    assert shell("memory") == ("", "nothing is remembered yet\n")
    out, _ = shell("memory", "add", "اسمي سلمى", "--kind", "profile")
    assert "your words" in out
    shell("memory", "add", "my dentist is Amr")
    assert shell("memory")[0].count("\n") == 2
    (one,) = shell.entries("--search", "اسمى")
    assert (one["text"], one["kind"], one["trusted"]) == ("اسمي سلمى", "profile", True)
    assert [entry["text"] for entry in shell.entries("list", "--kind", "fact")] == ["my dentist is Amr"]
    shell("memory", "edit", one["id"], "اسمي ليلى")
    out, err = shell("memory", "forget", one["id"][:6])
    assert out.startswith(f"forgotten: {one['id']}")
    assert "اسمي ليلى" in out
    assert err == ""
    assert [entry["text"] for entry in shell.entries()] == ["my dentist is Amr"]


def test_what_a_run_proposed_is_approved_and_its_journal_named(shell: Shell) -> None:
    memory = Journal(shell.url).memory
    for text in ("the gate code is 7", "\x9bhostile"[1:]):
        memory.add("", "fact", text, source="remember in run abc", trusted=False, state="proposed", run="abc")
    assert shell("memory")[0].count("proposed") == 2
    one = shell.entries("--search", "gate")[0]
    shell("memory", "approve", one["id"])
    assert shell.entries("--search", "gate")[0]["state"] == "kept"
    _, err = shell("memory", "forget", one["id"])
    assert "the journal of run abc still holds it; `qafila audit erase abc` erases that" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("forget", "zz"), "no entry in the memory that begins with 'zz'; `qafila memory` lists them"),
        (("approve", "zz"), "no entry"), (("edit", "zz", "x"), "no entry"), (("forget", ""), "no entry"),
        (("add", " "), "the text is empty"), (("add", "x", "--kind", "wish"), "none of profile, fact, episode"),
        (("add", "x", "--kind", "episode"), "episodes are kept by runs"), (("--kind", "x"), "none of profile"),
        (("add", "x" * 601), "600 characters at most"), (("forgt", "a"), "forgt"),
    ],
)  # fmt: skip
def test_errors_are_one_clear_line(shell: Shell, args: tuple[str, ...], said: str) -> None:
    out, err = shell("memory", *args, status=2)
    assert out == ""
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_runs_are_told_and_keep_unless_they_are_not_to(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[ScriptedAgent] = []

    def open_client(model: str, **given: Any) -> ScriptedAgent:
        clients.append(ScriptedAgent([[("remember", {"text": "I like tea"})], "ok"], name=model))
        return clients[-1]

    monkeypatch.setattr("qafila.cli.agent.open_client", open_client)
    shell("memory", "add", "My name is Salma", "--kind", "profile")
    shell("agent", "remember that I like tea", "-y", "--tools", "remember,recall")
    assert "Salma" in clients[0].asked[0].messages[0].text
    assert sorted(entry["kind"] for entry in shell.entries()) == ["episode", "fact", "profile"]
    out, _ = shell("agent", "undo", "last")
    assert "-I like tea" in out
    shell("agent", "what is my name?", "--no-memory")
    assert "Salma" not in clients[1].asked[0].messages[0].text
    out, err = shell("agent", "hi", "--no-memory", "--tools", "remember", status=2)
    assert "there is no tool 'remember'" in err
    assert sorted(entry["kind"] for entry in shell.entries()) == ["episode", "profile"]


def test_somebody_elses_run_that_is_gone_on_with_here_keeps_their_memory_apart(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    script: list[Answer] = [[("calculate", {"expression": "1"})], [("remember", {"text": "I like tea"})], "ok"]
    monkeypatch.setattr("qafila.cli.agent.open_client", lambda model, **_: ScriptedAgent(script, name=model))
    shell("agent", "remember that I like tea", "--tools", "calculate,remember", "--steps", "1", "-y", status=1)
    engine = sa.create_engine(shell.url)
    with engine.begin() as connection:  # as a server with keys writes it down
        connection.exec_driver_sql("UPDATE agent_runs SET owner = 'key:salma'")
    engine.dispose()
    shell("agent", "resume", "last", "-y", status=1)  # its budget is one step
    journal = Journal(shell.url)
    memory = journal.memory
    assert [one.text for one in memory.list("key:salma", kind="fact")] == ["I like tea"]
    assert memory.list("", kind="fact") == []
    journal.close()
