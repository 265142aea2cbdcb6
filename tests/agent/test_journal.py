"""The journal: what was written down is what is read, one process works on a run, and failures are said."""

from __future__ import annotations

import base64
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qafila import database
from qafila.agent.calibration import Calibration
from qafila.agent.edits import Edit
from qafila.agent.events import (
    EVENT,
    Answered,
    Asked,
    Began,
    Budget,
    Candidate,
    Decided,
    Decision,
    Ended,
    Event,
    Intended,
    Observed,
    Prices,
    Resumed,
    Spent,
    Steered,
    Thresholds,
    Undone,
)
from qafila.agent.journal import Journal
from qafila.agent.observation import observation
from qafila.agent.state import State
from qafila.errors import AgentError, StorageError, UsageError
from qafila.text.messages import Message, ToolCall


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/agent.sqlite3"


class Clock:
    """Seconds that pass by one whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def journal(url: str) -> Iterator[Journal]:
    opened = Journal(url, clock=Clock())
    yield opened
    opened.close()


def began(goal: str = "count the files") -> Began:
    return Began(
        goal=goal,
        system="be brief",
        model="scripted",
        tools=({"type": "function", "function": {"name": "a", "description": "", "parameters": {}}},),
        effects={"a": "write"},
        workspace="/tmp/w",
        budget=Budget(steps=3, tokens=100, seconds=1.5, cost=0.25),
        prices=Prices(read=1, cached=0.1, generated=2),
        choosing="likelihood",
        thresholds=Thresholds(call=0.4, ask=0.2, hand_over=0.1),
        calibration=Calibration(call_slope=0.5, fingerprint="abc", source="examples.jsonl"),
        fingerprint="abc-avx2",
        seed=2**32 - 1,
        temperature=0.5,
        answer_tokens=64,
        version="0",
    )


EDIT = Edit(path="ملف", what="file", before=b"\x00\xff not text", after=None, mode=0o600, mode_before=0o755)
CALLS = Message("assistant", "I look. ", tool_calls=(ToolCall("0.0", "a", {"x": ["\u2028", 1.5]}),), ids=(1, 2, 3))
INTENT = Intended(call="0.0", name="a", arguments={"x": None}, effect="write", key="k", edits=(EDIT,), told="done")
EVENTS: tuple[Event, ...] = (
    Answered(
        message=CALLS.to_dict(),
        reason="tool_calls",
        decision=Decision(
            prompt_sha256="0" * 64, choosing="likelihood", candidates=(Candidate(name="", probability=0.1),),
            arguments_logprob=-0.1,
        ),
        spent=Spent(read=5, cached=3, generated=2, first_token_seconds=0.1, seconds=0.3),
    ),
    Asked(intent=INTENT, why="calls with the effect write are asked about"),
    Decided(call="0.0", allowed=True, by="terminal", reason="نعم"),
    INTENT,
    Observed(call="0.0", name="a", observation=observation("x" * 5000, "error"), seconds=0.5),
    Steered(text="and\nnow"),
    Undone(call="0.0"),
    Ended(reason="cost", answer="", detail="the budget", seconds=1.0),
    Resumed(budget=Budget(steps=None)),
)  # fmt: skip


def test_every_event_comes_back_as_it_was(journal: Journal, url: str) -> None:
    run = journal.begin(began())
    for number, event in enumerate(EVENTS, 1):
        journal.add(run, number, event)
    other = Journal(url)
    recorded = other.events(run)
    other.close()
    assert [one.event for one in recorded] == [began(), *EVENTS]
    assert [one.number for one in recorded] == list(range(len(EVENTS) + 1))
    assert [one.at for one in recorded] == sorted({one.at for one in recorded})
    state = State.of(recorded)
    assert state.messages[2] == CALLS
    assert (state.events, state.steps, state.ended, state.budget.steps) == (10, 1, None, None)
    kinds = {type(event) for event in EVENTS} | {Began}
    assert {one.event.kind for one in recorded} == {kind.model_fields["kind"].default for kind in kinds}


def test_bytes_that_are_no_text_are_base64_in_the_journal(journal: Journal, tmp_path: Path) -> None:
    run = journal.begin(began())
    journal.add(run, 1, EVENTS[0])
    journal.add(run, 2, INTENT)
    with sqlite3.connect(tmp_path / "agent.sqlite3") as connection:
        (body,) = connection.execute("SELECT body FROM agent_events WHERE number = 2").fetchone()
    connection.close()
    assert base64.urlsafe_b64encode(EDIT.before or b"").decode() in body


def test_a_place_is_taken_once(journal: Journal) -> None:
    run = journal.begin(began())
    journal.add(run, 1, Steered(text="first"))
    with pytest.raises(StorageError):
        journal.add(run, 1, Ended(reason="done"))
    assert [one.event for one in journal.events(run)][1:] == [Steered(text="first")]
    assert journal.runs()[0].status == "running"
    with pytest.raises(StorageError):
        journal.add("0" * 12, 0, Steered(text="of no run"))


def test_runs_are_found_by_how_they_begin(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AgentError, match="there are no runs yet"):
        journal.find("last")
    ids = iter(["aa11", "ab22", "c%33"])
    monkeypatch.setattr("qafila.agent.journal.secrets.token_hex", lambda size: next(ids) if size == 6 else "00" * size)
    for goal in ("one", "two", "three"):
        journal.begin(began(goal))
    assert journal.find("aa") == "aa11"
    assert journal.find("c%") == "c%33"
    assert journal.find("last") == "c%33"
    for start, words in (("a", "more than one run"), ("x", "no run"), ("", "no run"), ("%", "no run"), ("_", "no run")):
        with pytest.raises(AgentError, match=words):
            journal.find(start)
    assert [(line.goal, line.events, line.status) for line in journal.runs()] == [
        ("three", 1, "running"), ("two", 1, "running"), ("one", 1, "running")
    ]  # fmt: skip
    assert [line.goal for line in journal.runs(1)] == ["three"]
    with pytest.raises(AgentError, match="no run 'zz'"):
        journal.events("zz")


def test_the_list_says_how_runs_stand(journal: Journal) -> None:
    run = journal.begin(began())
    for number, (event, status) in enumerate(
        ((Steered(text="x"), "running"), (Ended(reason="waiting"), "waiting"), (Resumed(budget=Budget()), "running")), 1
    ):
        journal.add(run, number, event)
        assert journal.runs()[0].status == status


def test_a_fork_begins_as_its_parent_and_goes_its_own_way(journal: Journal) -> None:
    run = journal.begin(began())
    for number, event in enumerate(EVENTS, 1):
        journal.add(run, number, event)
    fork = journal.fork(run, 4)
    assert [one.event for one in journal.events(fork)] == [one.event for one in journal.events(run)][:5]
    journal.add(fork, 5, Steered(text="here only"))
    assert len(journal.events(run)) == 10
    line = journal.runs()[0]
    assert (line.id, line.parent, line.forked_at, line.status) == (fork, run, 4, "running")
    assert journal.runs()[1].parent is None
    instead = Observed(call="0.0", name="a", observation=observation("other"))
    changed = journal.fork(run, 5, instead)
    assert [one.event for one in journal.events(changed)][4:] == [INTENT, instead]
    with pytest.raises(AgentError, match=r"call 0\.0 of run .* what a person allows is done once"):
        journal.fork(run, 3)
    journal.fork(run, 8)
    assert journal.runs()[0].status == "cost"
    for after in (-1, 10):
        with pytest.raises(AgentError, match="has events 0 to 9"):
            journal.fork(run, after)
    count = len(journal.runs())
    with pytest.raises(AgentError, match="no run"):
        journal.fork("nowhere", 0)
    assert len(journal.runs()) == count


def test_what_was_allowed_and_came_to_nothing_is_in_no_forks_way(journal: Journal) -> None:
    run = journal.begin(began())
    refused = Observed(call="0.0", name="a", observation=observation("a rule denies it by now", "refused"))
    asked, yes = Asked(intent=INTENT, why="w"), Decided(call="0.0", allowed=True, by="api")
    for number, event in enumerate([EVENTS[0], asked, yes, refused], 1):
        journal.add(run, number, event)
    with pytest.raises(AgentError, match="what a person allows is done once"):
        journal.fork(run, 3)
    assert len(journal.events(journal.fork(run, 4))) == 5


def test_a_fork_is_there_whole_or_not_at_all(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    run = journal.begin(began())
    for number, event in enumerate(EVENTS, 1):
        journal.add(run, number, event)
    insert, left = journal._insert, iter(range(4))

    def fails(*arguments: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        insert(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(journal, "_insert", fails)
    with pytest.raises(KeyboardInterrupt):
        journal.fork(run, 8)
    assert [line.id for line in journal.runs()] == [run]


def test_wishes_wait_in_their_order_until_they_are_granted(journal: Journal, url: str) -> None:
    run, other = journal.begin(began()), journal.begin(began())
    elsewhere = Journal(url)
    elsewhere.ask(run, "steer", "first")
    elsewhere.ask(other, "cancel")
    elsewhere.ask(run, "cancel", "why")
    elsewhere.close()
    wishes = journal.wishes(run)
    assert [(kind, text) for _, kind, text in wishes] == [("steer", "first"), ("cancel", "why")]
    journal.granted(wishes[0][0])
    assert [kind for _, kind, _ in journal.wishes(run)] == ["cancel"]
    assert [kind for _, kind, _ in journal.wishes(other)] == ["cancel"]
    with pytest.raises(StorageError):
        journal.ask("0" * 12, "cancel")


def test_a_wish_and_the_event_that_grants_it_are_one(journal: Journal) -> None:
    run = journal.begin(began())
    journal.ask(run, "steer", "x")
    ((wish, _, _),) = journal.wishes(run)
    with pytest.raises(StorageError):
        journal.add(run, 0, Steered(text="x"), wish=wish)
    assert len(journal.wishes(run)) == 1
    journal.add(run, 1, Steered(text="x"), wish=wish)
    assert journal.wishes(run) == []


HOLDER = """
import sys, time
from qafila.agent.journal import Journal
journal = Journal(sys.argv[1])
with journal.hold(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
print("let go", flush=True)
"""


def holder(url: str, run: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_one_process_works_on_a_run_until_it_ends_or_is_killed(journal: Journal, url: str) -> None:
    run, other = journal.begin(began()), journal.begin(began())
    with holder(url, run) as process:
        with pytest.raises(AgentError, match="is being worked on by another process"), journal.hold(run):
            raise AssertionError("held twice")
        with journal.hold(other):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with journal.hold(run):
        pass
    with holder(url, run) as process:
        process.communicate(timeout=10)
    assert not journal.worked_on(run)
    with journal.hold(run):
        assert journal.worked_on(run)
    with journal.hold(run), pytest.raises(AgentError), journal.hold(run):
        raise AssertionError("held twice in one process")
    with journal.hold(run):
        pass


@pytest.mark.parametrize("run", ["0" * 12, "../escape", "/tmp/escape", ""])
def test_only_runs_that_are_there_are_held(journal: Journal, tmp_path: Path, run: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AgentError, match="no run"), journal.hold(run):
        raise AssertionError("held")
    assert sorted(tmp_path.rglob("*")) == before


def test_locks_that_cannot_be_made_are_a_clear_error(journal: Journal, tmp_path: Path) -> None:
    run = journal.begin(began())
    (tmp_path / "agent.sqlite3.runs").write_text("in the way")
    with pytest.raises(StorageError, match=r"agent\.sqlite3\.runs"), journal.hold(run):
        raise AssertionError("held")


@pytest.mark.parametrize(
    "body",
    ["", "{}", '{"kind":"steered"}', '{"kind":"later","text":"x"}', '{"kind":"steered","text":"x","y":1}', "\x00"],
)
def test_an_event_that_cannot_be_read_is_a_clear_error(journal: Journal, tmp_path: Path, body: str) -> None:
    run = journal.begin(began())
    journal.add(run, 1, Steered(text="x"))
    connection = sqlite3.connect(tmp_path / "agent.sqlite3")
    with connection:
        connection.execute("UPDATE agent_events SET body = ? WHERE number = 1", (body,))
    connection.close()
    with pytest.raises(StorageError, match=f"^run {run}: an event cannot be read") as caught:
        journal.events(run)
    assert "\n" not in str(caught.value)


def test_a_run_without_its_beginning_is_not_forked(journal: Journal, tmp_path: Path) -> None:
    run = journal.begin(began())
    journal.add(run, 1, Steered(text="and then"))
    with sqlite3.connect(tmp_path / "agent.sqlite3") as database:
        database.execute("DELETE FROM agent_events WHERE number = 0")
    database.close()
    with pytest.raises(AgentError, match="does not start with its beginning"):
        journal.fork(run, 0)


def test_what_cannot_be_written_as_text_is_a_clear_error_and_nothing_is_written(journal: Journal) -> None:
    with pytest.raises(AgentError, match="no text"):
        journal.begin(began("\udcff"))
    assert journal.runs() == []
    run = journal.begin(began())
    with pytest.raises(AgentError, match="no text"):
        journal.add(run, 1, Steered(text="a\ud800"))
    with pytest.raises(AgentError, match="no text"):
        journal.ask(run, "steer", "a\ud800")
    assert len(journal.events(run)) == 1
    assert journal.wishes(run) == []


def test_a_database_of_another_process_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_MS", 20)
    journal = Journal(f"sqlite:///{tmp_path}/agent.sqlite3")
    run = journal.begin(began())
    other = sqlite3.connect(tmp_path / "agent.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StorageError, match="locked"):
            journal.add(run, 1, Steered(text="x"))
        with pytest.raises(StorageError, match="locked"):
            journal.ask(run, "cancel")
        assert len(journal.events(run)) == 1
    finally:
        other.execute("ROLLBACK")
        other.close()
    journal.add(run, 1, Steered(text="x"))
    journal.close()


def test_a_full_database_takes_nothing_and_loses_nothing(journal: Journal) -> None:
    run = journal.begin(began())
    with journal._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StorageError, match="full"):
        journal.add(run, 1, Steered(text="x" * 1_000_000))
    journal.add(run, 1, Steered(text="x"))
    assert [one.event for one in journal.events(run)][1:] == [Steered(text="x")]


def test_a_damaged_or_unreachable_database(tmp_path: Path) -> None:
    (tmp_path / "damaged.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="not a database"):
        Journal(f"sqlite:///{tmp_path}/damaged.sqlite3")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Journal(f"sqlite:///{tmp_path}/file/agent.sqlite3")
    with pytest.raises(UsageError):
        Journal("nonsense")


def test_what_is_written_survives_the_power(journal: Journal) -> None:
    with journal._engine.connect() as connection:
        # FULL: a write is on the disk when it returns; what a call does to the world comes after it.
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2


def test_the_journal_is_its_owners(journal: Journal, tmp_path: Path) -> None:
    run = journal.begin(began())
    with journal.hold(run):
        modes = {path.name: path.stat().st_mode & 0o077 for path in tmp_path.rglob("agent*")}
    assert "agent.sqlite3.runs" in modes
    assert set(modes.values()) == {0}


def test_events_are_told_apart_by_their_kind() -> None:
    for event in EVENTS:
        assert EVENT.validate_json(event.model_dump_json()) == event


def test_runs_have_owners(journal: Journal) -> None:
    mine = [journal.begin(began(f"هدف {number}")) for number in range(3)]
    theirs = journal.begin(began("سر"), owner="key:salma")
    assert [line.id for line in journal.runs(owner="")] == mine[::-1]
    assert [line.id for line in journal.runs(owner="key:salma")] == [theirs]
    assert len(journal.runs()) == 4
    assert journal.line(theirs, "") is None
    line = journal.line(theirs, "key:salma")
    assert line is not None
    assert (line.goal, line.owner, line.events, line.served) == ("سر", "key:salma", 1, None)
    for wrong in ("", "last", "a\0b", "%", "٣"):
        assert journal.line(wrong, "") is None
    newest = journal.line(mine[2], "")
    assert [one.id for one in journal.runs(1, owner="", before=newest)] == [mine[1]]
    fork = journal.fork(theirs, 0)
    assert journal.line(fork, "key:salma") is not None
    ended = Ended(reason="waiting")
    journal.add(mine[0], 1, ended)
    assert [one.id for one in journal.runs(owner="", status="waiting")] == [mine[0]]
    assert journal.count("waiting") == 1
    assert [one.event for one in journal.events(mine[0], 1)] == [ended]
    assert journal.events(mine[0], 2) == []


def test_runs_that_a_server_works_on(journal: Journal) -> None:
    runs = [journal.begin(began()) for _ in range(3)]
    for run in runs[:2]:
        journal.serve(run, "salma")
    journal.add(runs[0], 1, Ended(reason="done"))
    assert [(line.id, line.served) for line in journal.served_runs()] == [(runs[1], "salma")]
    journal.serve(runs[1], None)
    assert journal.served_runs() == []


def test_a_journal_of_before_there_were_owners(url: str) -> None:
    old = Journal(url)
    run = old.begin(began("قديم"))
    with old._engine.begin() as connection:
        for column in ("owner", "served"):
            connection.exec_driver_sql(f"ALTER TABLE agent_runs DROP COLUMN {column}")
        connection.exec_driver_sql("UPDATE schema_versions SET version = 1 WHERE name = 'agent'")
    old.close()
    journal = Journal(url)
    line = journal.line(run, "")
    assert line is not None
    assert (line.goal, line.served) == ("قديم", None)
    assert journal.line(journal.begin(began(), owner="key:x"), "key:x") is not None
    journal.close()
