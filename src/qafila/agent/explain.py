"""Why a step did what it did: measured by leaving parts of what the model was told out, not told by the model itself.

For each part (the standing words, the goal, a line of a tool's result, something said meanwhile) the very answer that
was given is scored again without it. What makes the answer less likely when it is gone is what caused it, and the
calibrated odds without it, of the tools that could be called then, say what would have been done instead: leave-one-out
occlusion (Zeiler and Fergus 2014, section 4.2), here of exact log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qafila.agent.choose import Chooser, candidates, decided
from qafila.agent.events import Answered, Candidate
from qafila.agent.finding import found_in
from qafila.agent.journal import Recorded
from qafila.agent.state import State
from qafila.agent.tool import FIND
from qafila.chat.client import ChatClient, ChatRequest
from qafila.errors import AgentError
from qafila.text.messages import Message, ToolSchema

#: What stands where a part was: something has to, for roles to alternate.
LEFT_OUT = "..."
#: Longer texts are parts as a whole, not line by line.
MOST_LINES = 12


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what the model was told.

    Attributes:
        message: its place among the messages. what: its role in words. text: what it says. without: the messages
            without it.
    """

    message: int
    what: str
    text: str
    without: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Cause:
    """What a part did to an answer.

    Attributes:
        part: which. change: natural log-probability of the answer that was given, with the part less without it.
        instead: what would have been likeliest without it, where that is something else; None where it is not known.
    """

    part: Part
    change: float
    instead: Candidate | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for programs."""
        return {
            "what": self.part.what,
            "text": self.part.text,
            "message": self.part.message,
            "change": round(self.change, 4),
            "instead": None if self.instead is None else self.instead.model_dump(),
        }


def parts(messages: Sequence[Message]) -> list[Part]:
    """The parts that can be left out: messages of system, user and tools, short ones line by line."""
    found = []
    for place, message in enumerate(messages):
        if message.role == "assistant":
            continue
        what = {"system": "instructions", "user": "goal" if place <= 1 else "you", "tool": f"{message.name} said"}
        lines = message.text.split("\n")
        pieces = lines if 1 < len(lines) <= MOST_LINES else [message.text]
        for number, piece in enumerate(pieces):
            rest = LEFT_OUT if len(pieces) == 1 else "\n".join([*lines[:number], *lines[number + 1 :]])
            without = (*messages[:place], replace(message, content=rest), *messages[place + 1 :])
            if piece.strip():
                found.append(Part(place, what[message.role], piece, tuple(without)))
    return found


async def explain(client: ChatClient, recorded: Sequence[Recorded], number: int) -> AsyncIterator[Cause]:
    """What each part of the context did to one answer of a run, in the order of the context.

    Args:
        client: the model of the run. recorded: its events. number: of the event with the answer.

    Raises:
        AgentError: the event is no answer, or the client cannot score texts.
    """
    event = recorded[number].event if 0 <= number < len(recorded) else None
    if not isinstance(event, Answered):
        answers = ", ".join(str(one.number) for one in recorded if isinstance(one.event, Answered))
        raise AgentError(f"event {number} is no answer of the model; those are {answers or 'none'}")
    ids = event.message.get("ids")
    if not client.abilities.exact_likelihood or not ids:
        raise AgentError("explain: needs exact log-probabilities, which only a model in this process gives")
    state = State.of(recorded[:number])
    tools = tuple(ToolSchema.from_dict(tool) for tool in state.began.tools)
    chooser = Chooser(state.began.calibration)
    barred = frozenset(event.options.barred)
    allowed = frozenset(tool.name for tool in (*tools, *state.untold)) - barred
    chosen = event.decision.choosing == "likelihood" and bool(allowed)
    whole = await _logprob(client, state.messages, tools, ids)
    done = (event.message.get("tool_calls") or [{"function": {"name": ""}}])[0]["function"]["name"]
    if chosen:  # habits are those of the whole conversation, not of one without its instructions
        await chooser.odds(client, ChatRequest(tuple(state.messages), tools, tool_names=allowed, untold=state.untold))
    for part in parts(state.messages):
        change = whole - await _logprob(client, part.without, tools, ids)
        instead = None
        untold = _found_without(part, state)
        allowed = frozenset(tool.name for tool in (*tools, *untold)) - barred
        if chosen and allowed:
            odds = await chooser.odds(client, ChatRequest(part.without, tools, tool_names=allowed, untold=untold))
            name = decided(odds, state.began.thresholds.call)
            if name != done:
                instead = next(one for one in candidates(odds) if one.name == name)
        elif chosen and done:  # nothing is left to be called
            instead = Candidate(name="", probability=1.0)
        yield Cause(part, change, instead)


def _found_without(part: Part, state: State) -> tuple[ToolSchema, ...]:
    """The tools that were found, without those that nothing tells of any more when a part is left out."""

    def told(messages: Sequence[Message]) -> set[str]:
        results = (message.text for message in messages if message.name == FIND)
        return set(found_in("\n".join(results), state.began.more))

    gone = told(state.messages) - told(part.without)
    return tuple(tool for tool in state.untold if tool.name not in gone)


async def _logprob(
    client: ChatClient, messages: Sequence[Message], tools: Sequence[ToolSchema], ids: Sequence[int]
) -> float:
    """Natural log-probability of an answer's tokens after a conversation."""
    prompt = await client.render(messages, tools)
    scored = await client.score([*prompt, *ids])
    return math.fsum(token.logprob for token in scored[len(prompt) :])
