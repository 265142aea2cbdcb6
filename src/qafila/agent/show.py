"""A run in words and as JSON, for people and programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from qafila.agent.edits import Edit
from qafila.agent.events import (
    Answered,
    Asked,
    Began,
    Decided,
    Ended,
    Event,
    Intended,
    Observed,
    Resumed,
    Source,
    Steered,
    Undone,
)
from qafila.agent.journal import Recorded, RunLine
from qafila.agent.state import State
from qafila.agent.subrun import Waiting
from qafila.agent.undo import Forgotten
from qafila.text.messages import Message

_MOST_VALUE, _MOST_RESULT, _MOST_EDITS = 60, 200, 8


def call_line(name: str, arguments: Mapping[str, Any], *, whole: bool = False) -> str:
    """A call on one line, long values cut unless they are to be ``whole``."""
    most = sys.maxsize if whole else _MOST_VALUE
    return f"{name}({', '.join(f'{key}={_value(value, most)}' for key, value in arguments.items())})"


def _value(value: Any, most: int) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 1] + "…"


def source_line(source: Source) -> str:
    """Where a value of a call comes from, on one line."""
    if source.told_by is None:
        return f"{source.argument}: {json.dumps(source.value, ensure_ascii=False)} stands in nothing that was read"
    where = f"what {source.told_by} gave" if source.told_by else "what the run began with"
    return f"{source.argument}: {json.dumps(source.value, ensure_ascii=False)} was read in {where}: “{source.quote}”"


def lines(event: Event, step: int) -> list[str]:
    """What a person is shown of an event.

    Args:
        event: what happened. step: how many answers there had been with it.
    """
    match event:
        case Answered():
            message = Message.from_dict(event.message)
            head = f"{step:>3}  "
            shown = [call_line(call.name, call.arguments) for call in message.tool_calls] or ["answers"]
            return [f"{head}{'; '.join(shown)}   {_record(event)}"]
        case Observed():
            first = " ".join(event.observation.told().split())
            return [f"     → {first[:_MOST_RESULT]}{'…' if len(first) > _MOST_RESULT else ''}"]
        case Intended():
            done = [f"{edit.kind} {edit.path}" for edit in event.edits[:_MOST_EDITS]]
            more = len(event.edits) - len(done)
            return [f"     {', '.join(done)}{f' and {more:,} more' if more else ''}"] if done else []
        case Asked():
            return [f"     asks about {event.intent.name}: {event.why}"]
        case Decided():
            return [f"     {'allowed' if event.allowed else 'not allowed'} ({event.by})"]
        case Steered():
            return [f"     you: {event.text}"]
        case Undone():
            return [f"     taken back: call {event.call}"]
        case Resumed():
            return ["     goes on"]
        case Ended() if event.reason != "done":
            return [f"     stopped: {event.reason}{f' ({event.detail})' if event.detail else ''}"]
        case Ended() if event.detail:
            return [f"     ({event.detail})"]
    return []


def _record(event: Answered) -> str:
    """Probability, tokens and time of an answer."""
    spent, parts = event.spent, []
    likeliest = event.decision.candidates
    if likeliest:
        names = [f"{one.name or 'words'} {one.probability:.2g}" for one in likeliest[:2]]
        parts.append(" / ".join(names))
    parts.append(f"{spent.read} read, {spent.cached} reused, {spent.generated} written")
    parts.append(f"{spent.seconds:.1f} s")
    return f"[{'; '.join(parts)}]"


def summary(run: str, state: State) -> str:
    """One line at the end of a run."""
    ended, spent = state.ended, state.spent
    how = ended.reason if ended is not None else "interrupted"
    share = f" ({spent.cached / spent.read:.0%} reused)" if spent.read else ""
    cost = f", cost {state.cost:.4g}" if state.cost else ""
    parts = f" and {state.delegated} in its parts" if state.delegated else ""
    steps = f"{state.steps} step{'s' if state.steps != 1 else ''}{parts}"
    tokens = f"{spent.read:,} tokens read{share}, {spent.generated:,} written"
    return f"run {run}: {how}; {steps}, {tokens}, {state.seconds:.1f} s{cost}"


def question(run: str, waits: Waiting) -> dict[str, Any]:
    """What a run, or a part of it, asks about, for programs: ``call`` is what an answer is given under."""
    asked, intent = waits.asked, waits.intent
    return {
        "call": waits.answer_to(run),
        "name": intent.name,
        "arguments": intent.arguments,
        "effect": intent.effect,
        "why": asked.why,
        "coded": None if asked.coded is None else asked.coded.model_dump(mode="json"),
        "sources": [one.model_dump() for one in asked.sources],
        "edits": edits(intent.edits),
    }


def edits(some: Iterable[Edit | Forgotten]) -> list[dict[str, Any]]:
    """Edits, and entries of the memory that were taken back, as people see them, not as bytes."""
    return [{"path": edit.path, "diff": edit.diff()} for edit in some]


def as_json(
    run: str,
    recorded: Iterable[Recorded],
    asked: Sequence[Waiting] = (),
    parts: Sequence[str] = (),
    *,
    working: bool = True,
) -> dict[str, Any]:
    """A run as one JSON object: how it stands, what it (or a part) waits for, and every event with its time.

    Args:
        run, recorded: which, and its events. asked: what it waits for. parts: of it.
        working: whether somebody works on it; what nobody does and has no end was interrupted.
    """
    every = list(recorded)
    state = State.of(every)
    ended = state.ended
    spent = state.spent
    return {
        "id": run,
        "goal": state.began.goal,
        "model": state.began.model,
        "status": ended.reason if ended is not None else "running" if working else "interrupted",
        "answer": ended.answer if ended is not None else "",
        "detail": ended.detail if ended is not None else "",
        "waits_for": [{"run": one.run, **question(run, one)} for one in asked],
        "parts": list(parts),
        "part_of": None if state.began.parent is None else state.began.parent.run,
        "steps": state.steps,
        "delegated_steps": state.delegated,
        "usage": {
            "prompt_tokens": spent.read,
            "cached_tokens": spent.cached,
            "completion_tokens": spent.generated,
            "seconds": round(state.seconds, 3),
            "cost": state.cost,
        },
        "events": [{"number": one.number, "at": _time(one.at), **one.event.model_dump(mode="json")} for one in every],
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def run_row(run: RunLine) -> dict[str, Any]:
    """A run in a list, for programs."""
    return {
        "id": run.id,
        "created": _time(run.created),
        "status": run.status,
        "goal": run.goal,
        "events": run.events,
        "parent": run.parent,
        "forked_at": run.forked_at,
    }


def transcript(recorded: Iterable[Recorded]) -> list[str]:
    """A whole run, line by line, its goal first and its answer last."""
    shown: list[str] = []
    step = 0
    for one in recorded:
        if isinstance(one.event, Began):
            if one.event.parent is not None:
                shown.append(f"part of run {one.event.parent.run}, call {one.event.parent.call}")
            shown.append(f"goal: {one.event.goal}")
        if isinstance(one.event, Answered):
            step += 1
        shown += [f"{one.number:>4} {line}" for line in lines(one.event, step)]
        if isinstance(one.event, Ended) and one.event.answer:
            shown.append(one.event.answer)
    return shown
