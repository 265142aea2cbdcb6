"""One answer of the model: which tool, if any, and with which arguments; and the record of why."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from qafila.agent.choose import Chooser, candidates, decided
from qafila.agent.events import Answered, Candidate, Choosing, Decision, Spent, spent_by
from qafila.agent.observation import whole_letters
from qafila.agent.reasons import Reason
from qafila.agent.state import State
from qafila.agent.tool import Options
from qafila.chat.client import (
    CallPiece,
    ChatClient,
    ChatRequest,
    Event,
    Finished,
    Generation,
    TextPiece,
    Usage,
)
from qafila.errors import AgentError
from qafila.text.messages import Message, ToolCall, ToolSchema

#: Objects and lists within one another in a call's arguments: whatever looks at them later calls itself for each.
_MOST_NESTED = 64


class UnsureError(Exception):
    """The model knows too little of what to do next: a person is to take over; ``reason``: the same, in words."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Step:
    """What an answer is asked for with.

    Attributes:
        tools: what the model is told. options: what can be called now. found: tools that it has found, and can call.
        chooser: for runs whose tools are chosen by likelihood.
    """

    tools: tuple[ToolSchema, ...]
    options: Options
    chooser: Chooser
    found: tuple[ToolSchema, ...] = ()


async def ask_model(
    client: ChatClient, state: State, step: Step, tell: Callable[[str], None] = lambda _: None
) -> Answered:
    """Ask for the next answer of a run.

    The seed is the run's and the number of the step: asked again, an engine of ours gives the same tokens.

    Args:
        client: the model. state: of the run. step: what it may do, and how that is chosen.
        tell: gets pieces of the answer's text as they come.

    Raises:
        UnsureError: nothing is likely enough. QafilaError: the prompt does not fit, or the model cannot be asked.
    """
    began = state.began
    exact = client.abilities.exact_likelihood
    generation = Generation(
        max_tokens=began.answer_tokens,
        temperature=began.temperature,
        seed=(began.seed + state.steps) % 2**32,
        logprobs=0 if exact else None,
    )
    every = (*step.tools, *step.found)
    request = ChatRequest(
        tuple(state.messages),
        step.tools,
        narrowed=step.options.narrowed(every),
        untold=step.found,
        generation=generation,
    )
    choosing: Choosing = began.choosing if exact and every else "free"
    found: tuple[Candidate, ...] = ()
    allowed = frozenset(tool.name for tool in every) - frozenset(step.options.barred)
    if choosing == "likelihood" and not allowed:
        request = replace(request, tool_names=frozenset())
    elif choosing == "likelihood":
        odds = await step.chooser.odds(client, replace(request, tool_names=allowed))
        found = candidates(odds)
        name = decided(odds, began.thresholds.call)
        sure = max(one.probability for one in found)
        if sure < began.thresholds.hand_over:
            raise UnsureError(Reason("unsure", probability=round(sure, 2)))
        request = replace(
            request,
            tool_mode="required" if name else "auto",
            tool_names=frozenset([name]) if name else frozenset(),
            parallel_tool_calls=False,
        )
    digest = await _digest(client, request)
    answer = _Answer(tell)
    async for event in client.chat(request):
        answer.take(event)
    if answer.broken:
        name = whole_letters(answer.broken)
        raise AgentError(f"the model wrote a call of {name!r:.80} whose arguments are no JSON object")
    for call in answer.message.tool_calls:
        if _too_deep(call.arguments):
            raise AgentError(f"the model wrote a call of {whole_letters(call.name)!r:.80} that is nested too deeply")
    message = _own_ids(answer.message, state.steps)
    decision = Decision(
        prompt_sha256=digest,
        choosing=choosing,
        candidates=found,
        arguments_logprob=answer.calls_logprob if exact and message.tool_calls else None,
    )
    return Answered(
        message=message.to_dict(), reason=answer.reason, decision=decision, spent=answer.spent, options=step.options
    )


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
        self._begun: dict[int, str] = {}

    def take(self, event: Event) -> None:
        """One event of the client."""
        if isinstance(event, TextPiece):
            self._tell(event.text)
        elif isinstance(event, CallPiece):
            self._begun.setdefault(event.index, event.name or "")
            self.calls_logprob += math.fsum(token.logprob for token in event.tokens)
        elif isinstance(event, Finished):
            self.message, self.reason = event.message, event.reason
        elif isinstance(event, Usage):
            self.spent = spent_by(event)

    @property
    def broken(self) -> str:
        """The last tool whose call was written to its end and still is none, "" where there is no such call."""
        if self.reason == "length" or len(self._begun) == len(self.message.tool_calls):
            return ""
        made = Counter(call.name for call in self.message.tool_calls)
        return next(iter((Counter(self._begun.values()) - made).elements()), "?")


def _too_deep(arguments: Mapping[str, Any]) -> bool:
    layer: list[Any] = [arguments]
    for _ in range(_MOST_NESTED):
        layer = [
            inner
            for one in layer
            for inner in (one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ())
        ]
    return bool(layer)


def _own_ids(message: Message, step: int) -> Message:
    """The message with call ids that are the same in every attempt, and unique in the run."""
    calls = tuple(
        ToolCall(f"{step}.{i}", whole_letters(call.name), _letters(call.arguments))
        for i, call in enumerate(message.tool_calls)
    )
    return Message("assistant", whole_letters(message.text), tool_calls=calls, ids=message.ids)


def _letters(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    written = json.dumps(dict(arguments), ensure_ascii=False)
    clean = whole_letters(written)
    return arguments if clean == written else dict(json.loads(clean))
