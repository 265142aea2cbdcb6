"""Where a run stands: the fold of its events, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qafila.agent.events import (
    Answered,
    Asked,
    Began,
    Budget,
    Decided,
    Ended,
    Event,
    Intended,
    Observed,
    Prices,
    Resumed,
    Spent,
    Steered,
    Undone,
)
from qafila.agent.journal import Recorded
from qafila.agent.tool import FIND
from qafila.errors import AgentError
from qafila.text.messages import Message, ToolCall, ToolSchema

#: After so many equal calls with equal results the model is told; after so many the run ends.
CIRCLE_TOLD, CIRCLE_ENDS = 2, 4


@dataclass(slots=True)
class Pending:
    """A call of the last answer.

    Attributes:
        unsure: its tool was so unlikely that a person is asked. intent: it is about to happen, or has.
        asked: a person was asked. decided: what was said. observed: what came of it.
    """

    call: ToolCall
    unsure: bool = False
    intent: Intended | None = None
    asked: Asked | None = None
    decided: Decided | None = None
    observed: Observed | None = None


@dataclass(slots=True)
class State:
    """A run, as far as its events go.

    Attributes:
        events: how many there are. messages: what the model has been told and said, complete turns only.
        pending: calls of the last answer, until all of them have come to something; in their order.
        steps: answers of the model. delegated: those of sub-runs. spent: what all of them took, summed up.
        seconds: of work before the last stop. found: tools that were found, and can be called since.
        cut: the last answer reached its limit of tokens. circles: how often each call, with its result, has come up
            since the user said something or had it go on.
        said: the user's own words: the goal, and what was said since. waiting: what the model is told next, and whether
            it is the user's own.
        made: calls that came to something since anything last changed. done: what changed files or the memory, by call.
        ended: why work stopped, if it has.
    """

    began: Began
    budget: Budget
    events: int = 1
    messages: list[Message] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    waiting: list[tuple[str, bool]] = field(default_factory=list)
    steps: int = 0
    delegated: int = 0
    found: list[str] = field(default_factory=list)
    cut: bool = False
    spent: Spent = field(default_factory=Spent)
    seconds: float = 0.0
    circles: Counter[str] = field(default_factory=Counter)
    made: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    done: dict[str, Intended] = field(default_factory=dict)
    ended: Ended | None = None

    @classmethod
    def of(cls, recorded: Iterable[Recorded]) -> State:
        """The state after these events.

        Raises:
            AgentError: they are not those of a run.
        """
        first, *rest = (one.event for one in recorded)
        if not isinstance(first, Began):
            raise AgentError("the journal of this run does not start with its beginning")
        state = cls(first, first.budget)
        state.messages = [Message("system", first.system), Message("user", first.goal)]
        state.said = [first.goal]
        for event in rest:
            state.add(event)
        return state

    def add(self, event: Event) -> None:
        """What changes with the next event."""
        self.events += 1
        match event:
            case Answered():
                self._answered(event)
            case Intended():
                self.of_call(event.call).intent = event
                if event.edits or event.effect == "write":
                    self.done[event.call] = event
            case Asked():
                self.of_call(event.intent.call).asked = event
            case Decided():
                self.of_call(event.call).decided = event
            case Observed():
                self._observed(event)
            case Steered():
                self.waiting.append((event.text, True))
                self.circles.clear()
                self._settle()
            case Undone():
                taken = self.done.pop(event.call, None)
                note = f"(The user took back what {taken.name if taken else 'a helper'} had changed.)"
                self.waiting.append((note, False))
                self._settle()
            case Resumed():
                # With a person's word it is the same work that goes on.
                if self.ended is not None and self.ended.reason != "waiting":
                    self.circles.clear()
                self.ended, self.budget = None, event.budget
            case Ended():
                self.ended = event
                self.seconds += event.seconds
            case Began():
                raise AgentError("a run begins once")

    def of_call(self, call: str) -> Pending:
        """The pending call of this id.

        Raises:
            AgentError: there is none.
        """
        for one in self.pending:
            if one.call.id == call:
                return one
        raise AgentError(f"no call {call!r:.60} is under way in this run")

    @property
    def answer(self) -> str | None:
        """The model's last words, where it is its turn no more."""
        last = self.messages[-1]
        return last.text if last.role == "assistant" and not last.tool_calls and not self.pending else None

    @property
    def untold(self) -> tuple[ToolSchema, ...]:
        """The tools that were found, in that order: the prompt's list of tools does not change with them."""
        more = {one.name: one for one in map(ToolSchema.from_dict, self.began.more)}
        return tuple(more[name] for name in self.found if name in more)

    @property
    def just_found(self) -> bool:
        """Whether what happened last is that tools were found."""
        return bool(self.made) and self.made[-1][0] == FIND and self.messages[-1].role == "tool"

    @property
    def tokens(self) -> int:
        """Tokens as budgets count them: read and generated, without those that were in the cache."""
        return self.spent.read - self.spent.cached + self.spent.generated

    @property
    def has_read(self) -> bool:
        """Whether the model has been told what is not the user's.

        In the system prompt, or by a tool that does more than compute.
        """
        effects = self.began.effects
        results = (one for one in self.messages if one.role == "tool")
        return self.began.foreign or any(effects.get(one.name or "") != "pure" for one in results)

    @property
    def cost(self) -> float:
        """In the currency of the prices."""
        return cost_of(self.spent, self.began.prices)

    def _answered(self, event: Answered) -> None:
        message = Message.from_dict(event.message)
        self.messages.append(message)
        self.pending = [Pending(call, self._unsure(call.name, event)) for call in message.tool_calls]
        self.steps += 1
        self.cut = event.reason == "length"
        self.spent = self.spent.plus(event.spent)

    def _unsure(self, name: str, event: Answered) -> bool:
        """Whether a tool's share among the tools is below what needs nobody's word."""
        shares = {one.name: one.probability for one in event.decision.candidates if one.name}
        total = sum(shares.values())
        return bool(total) and shares.get(name, 0.0) / total < self.began.thresholds.ask

    def _observed(self, event: Observed) -> None:
        pending = self.of_call(event.call)
        pending.observed = event
        self.found += [name for name in event.found if name not in self.found]
        self.delegated += event.steps
        self.spent = self.spent.plus(event.spent)
        if event.observation.status == "error":
            self.done.pop(event.call, None)  # edits that fail are taken back at once
        if pending.intent is not None:
            self.made.clear()
        elif event.observation.status == "ok":
            self.made.append((pending.call.name, pending.call.arguments))
        self.circles[_signature(pending.call.name, pending.call.arguments, event.observation.text)] += 1
        self._settle()

    def _settle(self) -> None:
        """Results and what the user said become messages when no call is under way; results in the order of calls."""
        if any(one.observed is None for one in self.pending):
            return
        for one in self.pending:
            assert one.observed is not None
            told = one.observed.observation.told()
            again = self.circles[_signature(one.call.name, one.call.arguments, one.observed.observation.text)]
            if again >= CIRCLE_TOLD:
                told += f"\n(You have made this same call {again} times, with the same result. Do something else.)"
            self.messages.append(Message("tool", told, name=one.call.name, tool_call_id=one.call.id))
        self.pending = []
        self.messages += [Message("user", text) for text, _ in self.waiting]
        self.said += [text for text, own in self.waiting if own]
        self.waiting = []

    @property
    def circling(self) -> bool:
        """Whether the same call has come to the same so often that going on makes no sense."""
        return any(times >= CIRCLE_ENDS for times in self.circles.values())


def cost_of(spent: Spent, prices: Prices) -> float:
    """What tokens cost; prices are for a million."""
    fresh = spent.read - spent.cached
    return (fresh * prices.read + spent.cached * prices.cached + spent.generated * prices.generated) / 1e6


def _signature(name: str, arguments: Mapping[str, Any], result: str) -> str:
    return json.dumps([name, arguments, result], sort_keys=True, ensure_ascii=False)
