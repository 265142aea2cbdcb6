"""Carrying out the calls of an answer in order: harmless neighbours side by side, the rest allowed and noted first."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from qafila.agent.carry_out import after_crash, checked, do_edits, outcome
from qafila.agent.edits import Edit
from qafila.agent.events import Asked, Decided, Ended, Event, Intended, Observed
from qafila.agent.observation import Observation, observation
from qafila.agent.policy import Policy, Verdict, proposed
from qafila.agent.provenance import Trusted, declared_keys
from qafila.agent.reasons import Reason, coded
from qafila.agent.result import Paused, Result
from qafila.agent.sources import sources
from qafila.agent.state import Pending
from qafila.agent.tool import Draft, Surroundings, Tool
from qafila.text.messages import Message, ToolCall

#: Effects that need no record before they happen: to do them twice is to do them once.
HARMLESS = ("pure", "read")


class Approver(Protocol):
    """A person who can be asked now. Where there is none, the run waits."""

    async def __call__(self, asked: Sequence[Asked]) -> Sequence[tuple[bool, str] | None]:
        """Of each call, whether it may be carried out, with a reason where it may not; None: not now.

        Several are calls of one answer, and are asked about in one question.
        """


class Calls:
    """Makes events of calls; whoever takes an event writes it down before the next one is asked for.

    Args:
        tools: what can be called now, by name. policy: what is allowed. trusted: what the user has said so far.
        told: what the model was told and said so far.
        approver: who is asked, if anybody is there. surroundings: of a call, by its id.
        waits: the event that ends work until a person has decided, by what is to be decided and why.
    """

    def __init__(
        self,
        tools: Callable[[], Mapping[str, Tool]],
        policy: Policy,
        trusted: Callable[[], Trusted],
        told: Callable[[], Sequence[Message]],
        approver: Approver | None,
        surroundings: Callable[[str], Surroundings],
        waits: Callable[[str], Ended],
    ) -> None:
        self._tools, self._policy, self._trusted, self._told = tools, policy, trusted, told
        self._approver = approver
        self._surroundings, self._waits = surroundings, waits

    async def carry_out(self, pending: Sequence[Pending]) -> AsyncIterator[Event]:
        """The events of all calls that have come to nothing yet, up to one that cannot be finished now."""
        left = [one for one in pending if one.observed is None]
        while left:
            # Only neighbours: what is read after a write is what was written.
            together = list(itertools.takewhile(self._harmless_now, left))
            for observed in await asyncio.gather(*map(self._harmless, together)):
                yield observed
            left = left[len(together) :]
            if left:
                observed_it = False
                one, *left = left
                async for event in self._effectful(one, left):
                    yield event
                    observed_it = isinstance(event, Observed)
                if not observed_it:  # it waits, or the run is to stop
                    return

    def _tool(self, pending: Pending) -> Tool | None:
        return self._tools().get(pending.call.name)

    def _harmless_now(self, pending: Pending) -> bool:
        """Whether a call needs nobody's word and no record before it happens."""
        tool = self._tool(pending)
        if tool is None or tool.effect not in HARMLESS or tool.repeats:
            return False
        return self._judge(pending, tool)[0] != "ask"

    def _judge(self, pending: Pending, tool: Tool, edits: Sequence[Edit] = ()) -> tuple[Verdict, str]:
        """What the policy says of a call, and why; a call that the model is not sure of is asked about.

        ``edits``: what the call will change, once that is known.
        """
        call = proposed(tool, pending.call.arguments, self._trusted())
        verdict, why = self._policy.judge_paths(call, edits)
        if verdict == "allow" and pending.unsure:
            return "ask", Reason("unsure_tool", tool=tool.name)
        return verdict, why

    async def _harmless(self, pending: Pending) -> Observed:
        started = time.monotonic()
        tool = self._tools()[pending.call.name]
        verdict, why = self._judge(pending, tool)
        if verdict != "allow":
            return _observed(pending, observation(why, "refused"), started)
        arguments = checked(tool, pending.call.arguments)
        if isinstance(arguments, Observation):
            return _observed(pending, arguments, started)
        found = await outcome(tool, arguments, self._surroundings(pending.call.id))
        if isinstance(found, Draft | Paused):
            found = observation(f"{tool.name} has the effect {tool.effect} and may not change files", "error")
        return _observed(pending, found, started)

    async def _effectful(self, pending: Pending, later: Sequence[Pending]) -> AsyncIterator[Event]:
        """The events of one call that changes something; the last is `Observed` unless it cannot be finished now.

        ``later``: the calls after it, whose questions may be put together with its own.
        """
        started = time.monotonic()
        tool, surroundings = self._tool(pending), self._surroundings(pending.call.id)
        if tool is None:
            found = observation(Reason("no_tool", name=pending.call.name, tools=tuple(self._tools())), "error")
            yield _observed(pending, found, started)
            return
        arguments = checked(tool, pending.call.arguments)
        if isinstance(arguments, Observation):
            yield _observed(pending, arguments, started)
            return
        if pending.intent is not None:
            intent = pending.intent
            # In a fork it is that of the run in which it was begun: twice is once.
            surroundings = replace(surroundings, key=intent.key)
            known = None if tool.repeats else after_crash(intent, surroundings)
            if known is not None:
                yield _observed(pending, known, started)
                return
        else:
            verdict, why = self._judge(pending, tool)
            if verdict == "deny":
                yield _observed(pending, observation(why, "refused"), started)
                return
            if pending.asked:  # in a fork it was shown with another key
                made: Intended | Observation = pending.asked.intent.model_copy(update={"key": surroundings.key})
            else:
                made = await intended(tool, pending.call, arguments, surroundings)
            if isinstance(made, Observation):
                yield _observed(pending, made, started)
                return
            intent = made
            if intent.edits:
                verdict, why = self._judge(pending, tool, intent.edits)
            if verdict == "deny":
                yield _observed(pending, observation(why, "refused"), started)
                return
            if verdict == "ask" and pending.decided is None:
                if pending.asked is None:
                    yield self._asked(tool, intent, why)
                    async for asked in self._asked_with(intent, later):
                        yield asked
                async for event in self._decided([pending, *later]):
                    yield event
                if any(one.asked is not None and one.decided is None for one in (pending, *later)):
                    return
            # A no holds, also where the policy has changed meanwhile and would not ask.
            if pending.decided is not None and not pending.decided.allowed:
                why = pending.decided.reason or Reason("said_no")
                yield _observed(pending, observation(why, "refused"), started)
                return
            yield intent
        if tool.drafts:
            yield _observed(pending, do_edits(intent, surroundings), started)
            return
        found_or_draft = await outcome(tool, arguments, surroundings)
        if isinstance(found_or_draft, Paused):
            if found_or_draft.waits:
                yield self._waits(f"{intent.name}: {found_or_draft.waits}")
            return
        if isinstance(found_or_draft, Draft):
            found_or_draft = observation(f"{tool.name} gave a draft, which only tools that write may", "error")
        yield _observed(pending, found_or_draft, started)

    async def _asked_with(self, intent: Intended, later: Sequence[Pending]) -> AsyncIterator[Asked]:
        """What is asked together with a call: the calls after it whose effects can be told before it is carried out.

        The calls are still carried out in their order. The first that would change something without being asked
        about, or that may depend on what comes of the ones before, ends the question.
        """
        touched = {edit.path for edit in intent.edits}
        for pending in later:
            tool = self._tool(pending)
            if tool is None or self._harmless_now(pending):
                continue
            arguments = checked(tool, pending.call.arguments)
            if isinstance(arguments, Observation):  # it comes to that, whatever is said
                continue
            verdict, why = self._judge(pending, tool)
            if verdict != "ask" or (tool.drafts and not tool.self_contained):
                return
            made = await intended(tool, pending.call, arguments, self._surroundings(pending.call.id))
            if isinstance(made, Observation) or touched & {edit.path for edit in made.edits}:
                return
            if made.edits:
                verdict, why = self._judge(pending, tool, made.edits)
            if verdict != "ask":
                return
            touched |= {edit.path for edit in made.edits}
            yield self._asked(tool, made, why)

    def _asked(self, tool: Tool, intent: Intended, why: str) -> Asked:
        """The question about a call, with where the values come from that it acts on."""
        trusted = self._trusted()
        call = proposed(tool, intent.arguments, trusted)
        names = call.untrusted & call.controls if call.controls else call.untrusted
        foreign = {name: value for name, value in intent.arguments.items() if name in names}
        declared = frozenset(declared_keys(tool.schema.parameters))
        found = sources(foreign, trusted, self._told(), declared)
        return Asked(intent=intent, why=why, coded=coded(why), sources=found)

    async def _decided(self, pending: Sequence[Pending]) -> AsyncIterator[Event]:
        """What a person says of the calls that were asked about; `Ended` where an answer comes later."""
        asked = [one.asked for one in pending if one.asked is not None and one.decided is None]
        said = [None] * len(asked) if self._approver is None else await self._approver(asked)
        for one, answer in zip(asked, said, strict=True):
            if answer is not None:
                yield Decided(call=one.intent.call, allowed=answer[0], by="terminal", reason=answer[1])
        open_ = [one for one, answer in zip(asked, said, strict=True) if answer is None]
        if open_:
            more = f" (and {len(open_) - 1} more)" if len(open_) > 1 else ""
            yield self._waits(f"{open_[0].intent.name}: {open_[0].why}{more}")


async def intended(
    tool: Tool, call: ToolCall, arguments: dict[str, Any], surroundings: Surroundings
) -> Intended | Observation:
    """What a call is about to do, worked out without doing any of it; or what came of it, if that is all.

    Args:
        tool, call: which. arguments: of the call, as the tool takes them. surroundings: of the call.
    """
    made = Intended(
        call=call.id, name=tool.name, arguments=dict(call.arguments), effect=tool.effect, key=surroundings.key
    )
    if not tool.drafts:
        return made
    found = await outcome(tool, arguments, surroundings)
    if isinstance(found, Observation):
        return found
    if not isinstance(found, Draft):
        return observation(f"{tool.name} gave no draft, which tools that write must", "error")
    if not found.edits:
        return observation(found.text)
    return made.model_copy(update={"edits": found.edits, "told": found.text})


def _observed(pending: Pending, found: Observation | Result, started: float) -> Observed:
    known = found if isinstance(found, Result) else Result(found)
    return Observed(
        call=pending.call.id,
        name=pending.call.name,
        observation=known.observation,
        seconds=time.monotonic() - started,
        found=known.found,
        steps=known.steps,
        spent=known.spent,
    )
