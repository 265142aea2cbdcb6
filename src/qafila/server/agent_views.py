"""Runs as JSON, as ``/v1/agent`` tells of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from qafila.agent.events import Answered, Asked, Began, Event, Intended
from qafila.agent.journal import Journal, Recorded, RunLine
from qafila.agent.show import edits, question
from qafila.agent.state import State
from qafila.agent.subrun import Waiting, waiting

# Endings that have a state of their own; after the others the run is stopped.
_STATES = {"done": "done", "waiting": "waiting", "failed": "failed"}


def run_object(
    line: RunLine, recorded: Sequence[Recorded], asked: Sequence[Waiting], *, working: bool
) -> dict[str, Any]:
    """A run.

    Args:
        line: of it. recorded: its events. asked: what it, or a part of it, waits for.
        working: whether somebody works on it; what nobody does and has no end was interrupted.
    """
    state = State.of(recorded)
    ended = state.ended
    detail = ended.detail if ended is not None else "" if working else "interrupted; it can be resumed"
    return {
        "object": "agent.run",
        "id": line.id,
        "goal": state.began.goal,
        "model": state.began.model,
        "state": _state(None if ended is None else ended.reason, working),
        "reason": None if ended is None else ended.reason,
        "answer": ended.answer if ended is not None and ended.reason == "done" else None,
        "detail": detail,
        "created": int(line.created),
        "steps": state.steps,
        "usage": {"read": state.spent.read, "cached": state.spent.cached, "generated": state.spent.generated},
        "cost": state.cost,
        "pending": [question(line.id, one) for one in asked],
        "events": state.events,
    }


def run_row(line: RunLine, *, working: bool) -> dict[str, Any]:
    """A run in a list: what the journal's table of runs tells of it, without a look at its events.

    The table is written together with each event that ends a run or has it go on, so that it says the same.

    Args:
        line: of the run. working: as of `run_object`.
    """
    reason = None if line.status == "running" else line.status
    return {
        "object": "agent.run",
        "id": line.id,
        "goal": line.goal,
        "state": _state(reason, working),
        "reason": reason,
        "created": int(line.created),
        "events": line.events,
    }


def _state(reason: str | None, working: bool) -> str:
    """How a run stands that ended for this reason; None: it has no end."""
    if reason is None:
        return "running" if working else "stopped"
    return _STATES.get(reason, "stopped")


def approvals(journal: Journal, line: RunLine) -> list[dict[str, Any]]:
    """What a run, or a part of it, waits for, with the run's goal and when it was asked."""
    waits = waiting(journal, line.id)
    asked_at = {
        (run, one.event.intent.call): one.at
        for run in {one.run for one in waits}
        for one in journal.events(run)
        if isinstance(one.event, Asked)
    }
    return [
        {"run": line.id, "goal": line.goal, **question(line.id, one), "at": asked_at[one.run, one.intent.call]}
        for one in waits
    ]


def event_object(one: Recorded, step: int) -> dict[str, Any]:
    """An event in its place; ``step``: how many answers there had been with it."""
    return {"number": one.number, "at": one.at, "step": step, "event": _event(one.event)}


def event_objects(recorded: Iterable[Recorded], step: int = 0) -> list[dict[str, Any]]:
    """Events in their places; ``step``: how many answers there had been before them."""
    told = []
    for one in recorded:
        step += isinstance(one.event, Answered)
        told.append(event_object(one, step))
    return told


def _event(event: Event) -> dict[str, Any]:
    match event:
        case Asked():
            body = _plain(event, {"intent": {"edits"}})
            body["intent"]["edits"] = edits(event.intent.edits)
        case Intended():
            body = _plain(event, {"edits"})
            body["edits"] = edits(event.edits)
        case Began():  # where the server keeps its files is not its clients' to know
            body = _plain(event, {"workspace", "policy"})
            body["workspace"] = PurePath(event.workspace).name
        case _:
            body = _plain(event, None)
    if isinstance(event, Answered):
        body["message"].pop("ids", None)
    return body


def _plain(event: Event, without: Any) -> dict[str, Any]:
    return dict(json.loads(event.model_dump_json(exclude=without)))
