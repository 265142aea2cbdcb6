"""`qafila agent schedule`, `scheduler` and `notices`, as a user calls them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from scripted_agent import Answer, ScriptedAgent

from qafila.agent.journal import Journal
from qafila.cli.main import main
from qafila.errors import UsageError


class Shell:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.url, self.capsys, self.patch = f"sqlite:///{folder}/agent.sqlite3", capsys, patch
        self.workspace = folder / "files"
        self.workspace.mkdir()
        self.clients: list[ScriptedAgent] = []
        patch.setenv("QAFILA_AGENT_DATABASE", self.url)
        patch.setenv("QAFILA_HOME", str(folder))
        patch.chdir(self.workspace)

    def script(self, answers: Sequence[Answer]) -> None:
        def open_client(model: str, **given: Any) -> ScriptedAgent:
            self.clients.append(ScriptedAgent(answers, name=model))
            return self.clients[-1]

        self.patch.setattr("qafila.cli.agent_schedule.open_client", open_client)

    def __call__(self, *args: str, status: int = 0) -> tuple[str, str]:
        found = main(["agent", *args])
        told = self.capsys.readouterr()
        assert found == status, told.err
        return told.out, told.err

    def schedules(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self("schedule", "list", "--json")[0])
        return found


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    made = Shell(tmp_path, monkeypatch, capsys)
    made.script(["صباح الخير"])
    yield made
    assert all(client.closed for client in made.clients)


def test_schedules_are_added_listed_paused_and_removed(shell: Shell) -> None:
    assert "no schedules yet" in shell("schedule", "list")[1]
    shell(
        "schedule", "add", "ملخص الصباح", "--cron", "٠ ٧ * * *", "--zone", "Africa/Cairo", "--brief", "--name", "صباح"
    )
    shell("schedule", "add", "sort the inbox", "--on-file", "inbox/*", "--tools", "list_files,recall", "--steps", "3")
    shell("schedule", "add", "answer mail", "--on", "mail", "--missed", "skip", "--tools", "none")
    out, _ = shell("schedule", "list")
    assert re.search(r"صباح  cron 0 7 \* \* \* \(Africa/Cairo\)  next \d{4}-\d\d-\d\d 07:00", out)
    assert "file-1  on file inbox/*  waits  sort the inbox" in out
    by_name = {one["name"]: one for one in shell.schedules()}
    assert set(by_name) == {"صباح", "file-1", "event-1"}
    assert by_name["صباح"]["trigger"] == {"kind": "cron", "fields": "0 7 * * *", "zone": "Africa/Cairo"}
    assert (by_name["file-1"]["tools"], by_name["file-1"]["steps"]) == (["list_files", "recall"], 3)
    assert (by_name["event-1"]["tools"], by_name["event-1"]["missed"]) == ([], "skip")
    assert by_name["صباح"]["workspace"] == str(shell.workspace)
    shell("schedule", "pause", "صباح")
    assert "paused" in shell("schedule", "list")[0]
    shell("schedule", "resume", by_name["صباح"]["id"])
    assert "paused" not in shell("schedule", "list")[0]
    shell("schedule", "remove", "صباح")
    assert len(shell.schedules()) == 2


def test_what_is_fired_is_worked_and_told_once(shell: Shell) -> None:
    shell("schedule", "add", "say hello", "--on", "door")
    assert shell("scheduler", "--once") == ("", "")
    assert shell.clients == []  # no model is loaded where nothing is due
    assert shell("schedule", "fire", "door", "--key", "1")[0] == "set off event-1\n"
    shell("schedule", "fire", "door", "--key", "1")
    _, err = shell("scheduler", "--once", "-m", "mine")
    assert "event-1: done: صباح الخير" in err
    assert [client.name for client in shell.clients] == ["mine"]
    out, _ = shell("notices")
    assert "صباح الخير" in out
    assert shell("notices") == ("", "nothing new\n")
    (one,) = json.loads(shell("notices", "--all", "--json")[0])
    assert (one["schedule"], one["text"], one["read"]) == ("event-1", "صباح الخير", True)
    assert Journal(shell.url).audit is not None


def test_what_would_change_something_waits_even_with_a_policy_that_allows_it(shell: Shell, tmp_path: Path) -> None:
    shell.script([[("write_file", {"path": "a.txt", "text": "x"})], "written"])
    policy = tmp_path / "policy.toml"
    policy.write_text('[effects]\nwrite = "allow"\n[[rule]]\ntool = "write_file"\nthen = "allow"\n')
    shell("schedule", "add", "write a.txt", "--on", "go")
    shell("schedule", "fire", "go")
    shell("scheduler", "--once", "--policy", str(policy))
    assert not (shell.workspace / "a.txt").exists()
    out, _ = shell("notices")
    assert "it waits for your word" in out
    shell.patch.setattr("qafila.cli.agent.open_client", lambda *a, **k: shell.clients[0])
    shell("approve", "last")
    assert (shell.workspace / "a.txt").read_text() == "x\n"


def test_settings_say_the_zone_and_the_quiet_hours(shell: Shell, tmp_path: Path) -> None:
    now = datetime.now().astimezone()
    begin, end = (f"{now + timedelta(hours=hours):%H:%M}" for hours in (-1, 1))
    (tmp_path / "agent.toml").write_text(f'[schedules]\nquiet = "{begin}-{end}"\n')
    shell("schedule", "add", "x", "--on", "go")
    shell("schedule", "fire", "go")
    shell("scheduler", "--once")
    assert shell.clients == []
    (tmp_path / "other.toml").write_text('timezone = "Asia/Riyadh"\n')
    other = ("--config", str(tmp_path / "other.toml"))
    shell("schedule", "add", "x", "--cron", "0 7 * * *", *other)
    assert shell.schedules()[0]["trigger"]["zone"] == "Asia/Riyadh"
    shell("scheduler", "--once", *other)
    assert len(shell.clients) == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("schedule", "add", "x"), "say when, in one way"),
        (("schedule", "add", "x", "--on", "a", "--cron", "0 7 * * *"), "say when, in one way"),
        (("schedule", "add", " ", "--on", "a"), "the goal is empty"),
        (("schedule", "add", "x", "--cron", "7"), "--cron '7': has five fields"),
        (("schedule", "add", "x", "--at", "tomorrow"), "--at 'tomorrow': is no time"),
        (("schedule", "add", "x", "--at", "2020-01-01 09:00"), "--at '2020-01-01 09:00': is over"),
        (("schedule", "add", "x", "--on", "a", "--zone", "Mars"), "--zone 'Mars'"),
        (("schedule", "add", "x", "--on", "a", "--missed", "some"), "none of skip, once, all"),
        (("schedule", "add", "x", "--on", "a", "--tools", "fly"), "no tool 'fly'"),
        (("schedule", "add", "x", "--on", "a", "--name", "a b"), "--name 'a b'"),
        (("schedule", "add", "x", "--on", "a", "-w", "nowhere"), "--workspace nowhere"),
        (("schedule", "remove", "x"), "no schedule 'x'"), (("schedule", "pause", "x"), "no schedule 'x'"),
        (("schedule", "fire", "x"), "no schedule waits for 'x'"),
        (("schedule", "add", "x", "--on", "a", "--config", "none.toml"), "none.toml: cannot be read"),
    ],
)  # fmt: skip
def test_errors_are_one_clear_line(shell: Shell, args: tuple[str, ...], said: str) -> None:
    out, err = shell(*args, status=2)
    assert out == ""
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_without_a_model_what_is_due_stays_due(shell: Shell) -> None:
    shell("schedule", "add", "go", "--on", "mail")
    shell("schedule", "fire", "mail")

    def no_model(model: str, **given: Any) -> ScriptedAgent:
        raise UsageError(f"no model or file {model!r}")

    shell.patch.setattr("qafila.cli.agent_schedule.open_client", no_model)
    for more in ((), ("--endpoint", "http://127.0.0.1:9/v1")):
        assert shell("scheduler", "--once", "-m", "nosuch", *more, status=2)[1] == "error: no model or file 'nosuch'\n"
    shell.script(["done"])
    shell("scheduler", "--once")
    assert len(shell.clients) == 1
    assert "done" in shell("notices")[0]
