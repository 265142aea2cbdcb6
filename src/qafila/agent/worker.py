"""The loop: ask the model, carry out its calls, tell it what came of them, until it is done or has to stop.

Every turn of it looks at the state alone, which is the fold of the journal: a run goes on after a crash exactly as it
would have gone on without.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from qafila.agent.ask_model import Step, UnsureError, ask_model
from qafila.agent.budgets import fresh, share, used_up
from qafila.agent.calls import Calls
from qafila.agent.choose import Chooser
from qafila.agent.events import (
    Asked,
    Budget,
    Decided,
    Ended,
    Ending,
    Event,
    Parent,
    Resumed,
    Steered,
)
from qafila.agent.finding import ranked, without
from qafila.agent.journal import Recorded
from qafila.agent.observation import whole_letters
from qafila.agent.provenance import Trusted
from qafila.agent.reasons import Reason, coded
from qafila.agent.result import Paused, Result
from qafila.agent.state import State
from qafila.agent.subrun import (
    DELEGATE,
    MOST_DEPTH,
    Waiting,
    begin_part,
    came_to,
    depth,
    key_of,
    part_id,
    waiting,
)
from qafila.agent.tool import Surroundings, Tool, ToolError
from qafila.errors import AgentError, QafilaError, StorageError

if TYPE_CHECKING:
    from qafila.agent.loop import Agent

#: Seconds between looks into the inbox while the model answers.
_LOOK = 0.25
#: Seconds before a run is believed to be worked on by somebody else.
PATIENCE = 0.5


def check_goal(goal: str) -> None:
    """Raise AgentError for a goal that says nothing, or is no text."""
    if not goal.strip():
        raise AgentError("the goal is empty; say what is to be done")
    if goal != whole_letters(goal):
        raise AgentError("the goal is no text: it holds halves of letters")


def _nobody(_: str) -> None:
    """Who hears the words of sub-runs: the run above is told what they come to."""


class Worker:
    """One run while it is worked on; ``above``: the run that it is a part of."""

    def __init__(self, agent: Agent, run: str, state: State, above: Worker | None = None) -> None:
        self._agent, self._run, self.state, self._above = agent, run, state, above
        self._started = time.monotonic()
        deepest = depth(state.began) >= MOST_DEPTH
        self._toolbox = without(agent.toolbox, DELEGATE) if deepest else agent.toolbox
        self._chooser = Chooser(state.began.calibration)
        if state.began.workspace != str(agent.workspace):
            raise AgentError(f"run {run} belongs to the workspace {state.began.workspace}; go on with it there")
        missing = sorted(set(state.began.effects) - set(self._toolbox.by_name))
        if missing:
            raise AgentError(f"run {run} has the tool {missing[0]}, which is not among these; give it the same tools")
        self._calls = Calls(
            self._callable,
            agent.policy,
            self._trusted,
            lambda: self.state.messages,
            self._ask if agent.approver is not None else None,
            self._surroundings,
            self._waits,
        )
        told = tuple(schema.to_dict() for schema in self._toolbox.schemas)
        more = tuple(schema.to_dict() for schema in self._toolbox.untold)
        if (told, more) != (state.began.tools, state.began.more):
            raise AgentError(f"run {run} has other tools, or other versions of them; give it the same ones")

    def write(self, event: Event, wish: int | None = None) -> Recorded:
        """Write down what happens, or which wish it grants, and only then let it count."""
        number = self.state.events
        self._agent.journal.add(self._run, number, event, wish=wish)
        self.state.add(event)
        return Recorded(number, time.time(), event)

    def opening(
        self, say: str | None, decisions: Mapping[str, Decided], budget: Budget | None = None
    ) -> Iterator[Event]:
        """What comes before the first turn, each to be written down before the next; ``budget``: of a sub-run.

        Where a word on some calls is still missing, the run stays as it is with the words there are. Where a word is
        about no call that waits, none of them counts.
        """
        asked = {one.answer_to(self._run): one for one in waiting(self._agent.journal, self._run)} if decisions else {}
        for call in decisions.keys() - asked.keys():
            self.state.of_call(call)
            raise AgentError(f"call {call} of run {self._run} waits for nobody's word")
        if self.state.ended is not None and (say or not asked.keys() - decisions.keys()):
            # First of all: a run that waits always waits for something.
            yield Resumed(budget=budget or fresh(self.state))
            for number, kind, _ in self._agent.journal.wishes(self._run):
                if kind == "cancel":  # it meant the work that has ended
                    self._agent.journal.granted(number)
        for call, decided in decisions.items():
            if asked[call].run == self._run:
                yield decided
            else:
                self._decide_in_part(asked[call], decided)
        if say:
            yield Steered(text=say)

    def _decide_in_part(self, asked: Waiting, decided: Decided) -> None:
        """Write down what was said of a call that waits in a part of the run."""
        journal = self._agent.journal
        with journal.hold(asked.run, patience=PATIENCE):
            number = len(journal.events(asked.run))
            journal.add(asked.run, number, decided.model_copy(update={"call": asked.intent.call}))

    async def turns(self) -> AsyncIterator[Recorded]:
        """Until the run ends, one event after another."""
        while self.state.ended is None:
            for wished, number in self._wishes():
                yield self.write(wished, number)
            if self.state.ended is not None:
                return
            ending = self._ending()
            if ending is not None:
                yield self.write(ending)
            elif self.state.pending:
                async for event in self._calls.carry_out(self.state.pending):
                    yield self.write(event)
            else:
                answer = await self._answer()
                if answer is not None:
                    yield self.write(answer)

    def _wishes(self) -> list[tuple[Event, int | None]]:
        """What other processes and threads left in the inbox, and its number there."""
        events: list[tuple[Event, int | None]] = []
        if self._above is not None and self._above.cancelled:
            return [(self._end("cancelled", detail=Reason("stopped_above")), None)]
        for number, kind, text in self._agent.journal.wishes(self._run):
            if kind == "cancel":
                events.append((self._end("cancelled", detail=text or Reason("stopped")), number))
                break
            events.append((Steered(text=text), number))
        return events

    @property
    def cancelled(self) -> bool:
        """Whether it is wished that the run stops, or one that it is a part of."""
        own = any(kind == "cancel" for _, kind, _ in self._agent.journal.wishes(self._run))
        return own or (self._above is not None and self._above.cancelled)

    @property
    def _seconds(self) -> float:
        """Of work, up to now."""
        return self.state.seconds + time.monotonic() - self._started

    def _ending(self) -> Ended | None:
        """Why the run is to stop before its next turn, if it is."""
        state = self.state
        if state.answer is not None:
            tokens = state.began.answer_tokens
            if state.cut and not state.answer.strip():
                return self._end("failed", detail=Reason("call_cut", tokens=tokens))
            return self._end(
                "done", answer=state.answer, detail=Reason("answer_cut", tokens=tokens) if state.cut else ""
            )
        if state.circling:
            return self._end("circle", detail=Reason("circle"))
        used = used_up(state, self._seconds)
        return self._end(used[0], detail=used[1]) if used is not None else None

    def _end(self, reason: Ending, *, answer: str = "", detail: str = "") -> Ended:
        seconds = time.monotonic() - self._started
        return Ended(reason=reason, answer=answer, detail=detail, coded=coded(detail), seconds=seconds)

    def _trusted(self) -> Trusted:
        # A sub-run's goal was written by a model that may have read anything.
        read = self._above is not None or self.state.has_read
        return Trusted(self._users_words(), read=read, before=self.state.began.remembered)

    def _users_words(self) -> list[str]:
        """The goal, and what was said since; in a sub-run, whose goal is a model's, what was said in the runs above."""
        said = self.state.said
        return said if self._above is None else [*self._above._users_words(), *said[1:]]

    def _waits(self, why: str) -> Ended:
        return self._end("waiting", detail=why)

    def _surroundings(self, call: str) -> Surroundings:
        return Surroundings(
            self._agent.workspace,
            self._agent.sandbox,
            key_of(self._run, call),
            self._run,
            self._trusted(),
            partial(self._delegate, call),
            self._agent.client,
        )

    def _may_find(self) -> bool:
        """Whether a tool that was not found yet is about what was said; what was just found is to be used first."""
        state = self.state
        said = " ".join(message.text for message in state.messages if message.role == "user")
        left = [schema for schema in self._toolbox.untold if schema.name not in state.found]
        return not state.just_found and bool(ranked(said, left))

    def _callable(self) -> Mapping[str, Tool]:
        return self._toolbox.callable(self.state.found)

    async def _delegate(self, call: str, goal: str, steps: int) -> Result | Paused:
        """Work on a goal in a sub-run, which began with this call, until it ends or has to wait."""
        agent, journal, part = self._agent, self._agent.journal, part_id(self._run, call)
        check_goal(goal)
        if part not in journal.parts(self._run):
            parent = Parent(run=self._run, call=call, depth=depth(self.state.began) + 1)
            toolbox = without(agent.toolbox, DELEGATE) if parent.depth >= MOST_DEPTH else agent.toolbox
            budget = share(self.state, self._seconds, steps)
            begin_part(journal, self.state, part, parent, goal, toolbox, budget)
        with journal.hold(part, patience=PATIENCE):
            worker = Worker(agent, part, State.of(journal.events(part)), self)
            ended = await worker.as_part(steps)
        if ended.reason == "waiting":
            return Paused(f"in its part {part}: {ended.detail}")
        return Paused() if self.cancelled else came_to(worker.state, ended)

    async def as_part(self, steps: int) -> Ended:
        """Work on a sub-run until it ends, unless it has: a person's word, a stop and a crash are no ends."""
        above, state = self._above, self.state
        assert above is not None
        if state.ended is not None and state.ended.reason not in ("waiting", "cancelled"):
            return state.ended
        try:
            budget = share(above.state, above._seconds, steps)
        except ToolError as error:
            return self._end("failed", detail=str(error))
        if budget.seconds is not None:  # what it worked before is behind its run, too
            budget = budget.model_copy(update={"seconds": state.seconds + budget.seconds})
        for event in self.opening(None, {}, budget):
            self.write(event)
        async for _ in self.turns():
            pass
        assert state.ended is not None
        return state.ended

    async def _ask(self, asked: Sequence[Asked]) -> Sequence[tuple[bool, str] | None]:
        """What a person says of some calls; nothing any more once it is wished that the run stops."""
        approver = self._agent.approver
        assert approver is not None
        began = time.monotonic()
        asking = asyncio.ensure_future(approver(asked))
        try:
            while not (await asyncio.wait([asking], timeout=_LOOK))[0]:
                if self.cancelled:
                    return [None] * len(asked)
            return await asking
        finally:
            asking.cancel()
            self._pause(time.monotonic() - began)

    def _pause(self, seconds: float) -> None:
        """A person took so long to answer: that is no work, here or in the runs above."""
        self._started += seconds
        if self._above is not None:
            self._above._pause(seconds)

    async def _answer(self) -> Event | None:
        """The model's next answer, or why there is none; None where it is wished that the run stops."""
        agent = self._agent
        tools, state = self._toolbox, self.state
        options = tools.options(self._surroundings(""), state.made, state.found, find=self._may_find())
        step = Step(tools.schemas, options, self._chooser, state.untold)
        tell = agent.tell if self._above is None else _nobody
        asking = asyncio.ensure_future(ask_model(agent.client, state, step, tell))
        try:
            while not (await asyncio.wait([asking], timeout=_LOOK))[0]:
                if self.cancelled:
                    asking.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await asking
                    return None
            return await asking
        except UnsureError as error:
            return self._end("handed over", detail=error.reason)
        except StorageError:
            raise
        except QafilaError as error:
            return self._end("failed", detail=str(error))
        finally:
            asking.cancel()
