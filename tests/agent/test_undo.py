"""Taking back what runs did to files."""

from __future__ import annotations

from typing import Any

import pytest
from agent_place import Place, ended, kinds, told
from scripted_agent import ScriptedAgent

from qafila.agent.events import Answered, Decided, Intended, Observed, Undone
from qafila.agent.policy import Policy
from qafila.agent.undo import undo
from qafila.errors import AgentError, SandboxError


def write(name: str, text: str) -> tuple[str, dict[str, Any]]:
    return ("write_file", {"path": name, "text": text})


def test_the_last_change_is_taken_back_and_the_model_is_told(place: Place) -> None:
    (place.workspace / "a.txt").write_text("old\n")
    client = ScriptedAgent([[write("a.txt", "new")], [write("deep/b.txt", "b")], "written", "I see"])
    run, _ = place.begin(client)
    taken = undo(place.journal, run)
    assert [(edit.kind, edit.path) for edit in taken] == [("deleted", "deep/b.txt"), ("deleted", "deep")]
    assert not (place.workspace / "deep").exists()
    assert place.file("a.txt") == "new\n"
    assert [(edit.kind, edit.path) for edit in undo(place.journal, run)] == [("changed", "a.txt")]
    assert place.file("a.txt") == "old\n"
    with pytest.raises(AgentError, match="changed nothing that is still there"):
        undo(place.journal, run)
    events = place.work(place.agent(client), run)
    assert kinds(events) == ["resumed", "answered", "ended"]
    said = [message.text for message in client.asked[-1].messages if message.role == "user"]
    assert said[1:] == ["(The user took back what write_file had changed.)"] * 2
    assert ended(events).answer == "I see"


def test_everything_is_taken_back_newest_first(place: Place) -> None:
    (place.workspace / "a.txt").write_text("old\n")
    script = [
        [write("a.txt", "1"), write("a.txt", "2")],
        [("delete_file", {"path": "a.txt"}), write("a.txt", "3")],
        "ok",
    ]
    run, _ = place.begin(script)
    assert place.file("a.txt") == "3\n"
    undo(place.journal, run, everything=True)
    assert place.file("a.txt") == "old\n"
    undone = [one.event.call for one in place.journal.events(run) if isinstance(one.event, Undone)]
    assert undone == ["1.1", "1.0", "0.1", "0.0"]


def test_what_somebody_else_changed_since_stays(place: Place) -> None:
    run, _ = place.begin([[write("a.txt", "a")], [write("b.txt", "b")], "ok"])
    (place.workspace / "a.txt").write_text("mine now")
    with pytest.raises(SandboxError, match=r"a\.txt: was changed by somebody else"):
        undo(place.journal, run, everything=True)
    assert place.file("a.txt") == "mine now"
    assert place.file("b.txt") is None
    assert [one.event.call for one in place.journal.events(run) if isinstance(one.event, Undone)] == ["1.0"]


def test_a_write_that_failed_is_nothing_to_take_back(place: Place) -> None:
    (place.workspace / "b.txt").write_text("b\n")
    script = [[write("a.txt", "a")], [write("b.txt", "mine")], "ok"]
    run, _ = place.begin(script, policy=Policy())
    for call in ("0.0", "1.0"):
        if call == "1.0":
            (place.workspace / "b.txt").write_text("theirs\n")
        decisions = {call: Decided(call=call, allowed=True, by="api")}
        events = place.work(place.agent(script, policy=Policy()), run, decisions=decisions)
    assert told(events)[0][0] == "error"
    assert [edit.path for edit in undo(place.journal, run)] == ["a.txt"]
    assert place.file("b.txt") == "theirs\n"


def test_what_was_interrupted_is_taken_back_and_not_done_after_all(place: Place) -> None:
    script = [[write("a.txt", "a")], "ok"]
    run, events = place.begin(script)
    cut = next(i for i, event in enumerate(events, 1) if isinstance(event, Intended))
    fork = place.journal.fork(run, cut)
    assert place.file("a.txt") == "a\n"
    undo(place.journal, fork)
    assert place.file("a.txt") is None
    events = place.work(place.agent(script), fork)
    assert [event.kind for event in events] == ["answered", "ended"]
    assert place.file("a.txt") is None
    results = [one.event for one in place.journal.events(fork) if isinstance(one.event, Observed)]
    assert [(one.observation.status, one.observation.text) for one in results] == [
        ("refused", "it was interrupted, and the user took it back")
    ]


def test_a_run_that_is_worked_on_is_left_alone(place: Place) -> None:
    run, _ = place.begin([[write("a.txt", "a")], "ok"])
    with place.journal.hold(run), pytest.raises(AgentError, match="another process"):
        undo(place.journal, run)
    assert place.file("a.txt") == "a\n"


def test_what_was_undone_is_not_undone_again_after_it_was_done_again(place: Place) -> None:
    client = ScriptedAgent([[write("a.txt", "a")], "ok", [write("a.txt", "a")], "again"])
    run, _ = place.begin(client)
    undo(place.journal, run)
    events = place.work(place.agent(client), run, say="do it again")
    assert place.file("a.txt") == "a\n"
    assert sum(isinstance(event, Answered) for event in events) == 2
    assert [edit.kind for edit in undo(place.journal, run)] == ["deleted"]
    with pytest.raises(AgentError):
        undo(place.journal, run)
