"""One answer of the model: which tool, if any, and with which arguments; and the record of why."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from qafila.agent.events import Answered, Candidate, Choosing, Decision, Spent
from qafila.agent.state import State
from qafila.chat.client import (
    CallPiece,
    ChatClient,
    ChatRequest,
    Event,
    Finished,
    Generation,
    TextPiece,
    ToolOdds,
    Usage,
)
from qafila.text.messages import Message, ToolCall, ToolSchema


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which probability of a call the model acts, and below which it is too unsure to go on alone.

    Attributes:
        call: probability from which a call is made rather than an answer in words. It stands against how rarely a model
            of this size begins a call by itself, so that it says little of another model; `calibrate` finds it.
        ask: a person is asked about a call whose tool is less likely than this among the tools.
        hand_over: below this the run is handed over to a person.
    """

    call: float = 0.5
    ask: float = 0.0
    hand_over: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """What an answer is asked for with.

    Attributes:
        tools: what the model is told. narrowed: schemas that its calls must match.
        thresholds: for choosing by likelihood.
    """

    tools: tuple[ToolSchema, ...]
    narrowed: Mapping[str, ToolSchema]
    thresholds: Thresholds


async def ask_model(
    client: ChatClient, state: State, step: Step, tell: Callable[[str], None] = lambda _: None
) -> Answered:
    """Ask for the next answer of a run.

    The seed is the run's and the number of the step: asked again, an engine of ours gives the same tokens.

    Args:
        client: the model. state: of the run. step: tools and thresholds.
        tell: gets pieces of the answer's text as they come.

    Raises:
        QafilaError: the prompt does not fit, or the model cannot be asked.
    """
    began = state.began
    exact = client.abilities.exact_likelihood
    generation = Generation(
        max_tokens=began.answer_tokens,
        temperature=began.temperature,
        seed=(began.seed + state.steps) % 2**32,
        logprobs=0 if exact else None,
    )
    request = ChatRequest(tuple(state.messages), step.tools, narrowed=step.narrowed, generation=generation)
    choosing: Choosing = began.choosing if exact and step.tools else "free"
    candidates: tuple[Candidate, ...] = ()
    if choosing == "likelihood":
        odds = await client.tool_odds(request)
        candidates = by_probability(odds)
        chosen = odds.tools and max(odds.tools, key=lambda one: one[1])[0]
        called = odds.call >= step.thresholds.call
        request = ChatRequest(
            request.messages,
            request.tools,
            tool_mode="required" if called else "auto",
            tool_names=frozenset([chosen]) if called and chosen else frozenset(),
            narrowed=step.narrowed,
            parallel_tool_calls=False,
            generation=generation,
        )
    digest = await _digest(client, request)
    answer = _Answer(tell)
    async for event in client.chat(request):
        answer.take(event)
    message = _own_ids(answer.message, state.steps)
    decision = Decision(
        prompt_sha256=digest,
        choosing=choosing,
        candidates=candidates,
        arguments_logprob=answer.calls_logprob if exact and message.tool_calls else None,
    )
    return Answered(message=message.to_dict(), reason=answer.reason, decision=decision, spent=answer.spent)


def by_probability(odds: ToolOdds) -> tuple[Candidate, ...]:
    """What the model could do, likeliest first: each tool, and "" for an answer in words."""
    all_of_them = [Candidate(name="", probability=max(0.0, 1 - odds.call))]
    all_of_them += [Candidate(name=name, probability=odds.call * share) for name, share in odds.tools]
    return tuple(sorted(all_of_them, key=lambda one: -one.probability))


async def _digest(client: ChatClient, request: ChatRequest) -> str:
    if not client.abilities.exact_likelihood:
        return ""
    ids = await client.render(request.messages, request.tools)
    return hashlib.sha256(array("i", ids).tobytes()).hexdigest()


class _Answer:
    """Gathers the events of one answer."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.message = Message("assistant", "")
        self.reason: Literal["stop", "length", "tool_calls"] = "stop"
        self.spent = Spent()
        self.calls_logprob = 0.0

    def take(self, event: Event) -> None:
        """One event of the client."""
        if isinstance(event, TextPiece):
            self._tell(event.text)
        elif isinstance(event, CallPiece):
            self.calls_logprob += math.fsum(token.logprob for token in event.tokens)
        elif isinstance(event, Finished):
            self.message, self.reason = event.message, event.reason
        elif isinstance(event, Usage):
            self.spent = Spent(
                read=event.prompt,
                cached=event.cached,
                generated=event.generated,
                first_token_seconds=event.prompt_seconds,
                seconds=event.seconds,
            )


def _own_ids(message: Message, step: int) -> Message:
    """The message with call ids that are the same in every attempt, and unique in the run."""
    calls = tuple(ToolCall(f"{step}.{i}", call.name, call.arguments) for i, call in enumerate(message.tool_calls))
    return Message("assistant", message.content, tool_calls=calls, ids=message.ids)
