"""The loop: ask the model, carry out its calls, tell it what came of them, until it is done or has to stop.

Every turn of it looks at the state alone, which is the fold of the journal: a run goes on after a crash exactly as it
would have gone on without.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qafila import __version__
from qafila.agent.ask_model import Step, UnsureError, ask_model
from qafila.agent.calibration import Calibration
from qafila.agent.calls import Approver, Calls
from qafila.agent.choose import Chooser
from qafila.agent.events import (
    Began,
    Budget,
    Choosing,
    Decided,
    Ended,
    Ending,
    Event,
    Intended,
    Prices,
    Resumed,
    Steered,
    Thresholds,
)
from qafila.agent.journal import Journal, Recorded
from qafila.agent.observation import whole_letters
from qafila.agent.policy import Policy
from qafila.agent.provenance import Trusted
from qafila.agent.sandbox.sandbox import Sandbox, find_sandbox
from qafila.agent.scaffold import system_prompt
from qafila.agent.state import State
from qafila.agent.tool import Surroundings, Toolbox
from qafila.chat.client import ChatClient
from qafila.errors import AgentError, QafilaError, StorageError

#: Seconds between looks into the inbox while the model answers.
_LOOK = 0.25


@dataclass(frozen=True, slots=True)
class Settings:
    """What a new run is given besides its goal.

    Attributes:
        budget, prices: its limits, and what tokens cost. choosing: how tools are chosen (``free`` where the client
            has no exact likelihoods). calibration, thresholds: for ``likelihood``.
        seed, temperature, answer_tokens: of each answer. instructions: more for the system prompt.
    """

    budget: Budget = field(default_factory=Budget)
    prices: Prices = field(default_factory=Prices)
    choosing: Choosing = "free"
    calibration: Calibration = field(default_factory=Calibration)
    thresholds: Thresholds = field(default_factory=Thresholds)
    seed: int = 0
    temperature: float = 0.0
    answer_tokens: int = 512
    instructions: str = ""


def check_goal(goal: str) -> None:
    """Raise AgentError for a goal that says nothing, or is no text."""
    if not goal.strip():
        raise AgentError("the goal is empty; say what is to be done")
    if goal != whole_letters(goal):
        raise AgentError("the goal is no text: it holds halves of letters")


class Agent:
    """A model with tools, in a workspace.

    Args:
        client: the model. toolbox: what it may call. journal: where its runs are kept.
        workspace: the folder that its tools see. policy: what is allowed. approver: who is asked, if anybody is there.
        settings: of new runs. tell: gets pieces of the model's text as they come.
        sandbox: walls for commands; by default this machine's best, found when first needed.
    """

    def __init__(
        self,
        client: ChatClient,
        toolbox: Toolbox,
        journal: Journal,
        *,
        workspace: Path,
        policy: Policy | None = None,
        approver: Approver | None = None,
        settings: Settings | None = None,
        tell: Callable[[str], None] = lambda _: None,
        sandbox: Callable[[], Sandbox] = find_sandbox,
    ) -> None:
        self.client, self.toolbox, self.journal = client, toolbox, journal
        self.workspace = workspace.resolve()
        self._policy, self._approver = policy or Policy(), approver
        self._settings, self._tell, self._sandbox = settings or Settings(), tell, sandbox

    def begin(self, goal: str) -> str:
        """Write down a new run; `work` carries it out. Gives its id.

        Raises:
            AgentError: the goal is none.
        """
        check_goal(goal)
        settings = self._settings
        began = Began(
            goal=goal,
            system=system_prompt(settings.instructions),
            model=self.client.name,
            tools=tuple(schema.to_dict() for schema in self.toolbox.schemas),
            effects={one.name: one.effect for one in self.toolbox.tools},
            workspace=str(self.workspace),
            budget=settings.budget,
            prices=settings.prices,
            choosing=settings.choosing,
            thresholds=settings.thresholds,
            calibration=settings.calibration,
            fingerprint=self.client.fingerprint,
            seed=settings.seed,
            temperature=settings.temperature,
            answer_tokens=settings.answer_tokens,
            version=__version__,
        )
        return self.journal.begin(began)

    async def work(
        self, run: str, *, say: str | None = None, decisions: Mapping[str, Decided] | None = None
    ) -> AsyncIterator[Recorded]:
        """Carry a run on until it ends or waits; gives each event once it is written down.

        Args:
            run: its id; one that was interrupted, waits, or used up its budget goes on where it was.
            say: something to tell the model first. decisions: answers to what the run asked about, by call.

        Raises:
            AgentError: no such run, another process works on it, or its workspace or tools are not these.
            StorageError: what happens cannot be written down; the run pauses, and nothing is lost.
        """
        with self.journal.hold(run):
            worker = _Worker(self, run, State.of(self.journal.events(run)))
            for event in worker.opening(say, decisions or {}):
                yield worker.write(event)
            async for recorded in worker.turns():
                yield recorded


class _Worker:
    """One run while it is worked on."""

    def __init__(self, agent: Agent, run: str, state: State) -> None:
        self._agent, self._run, self.state = agent, run, state
        self._started = time.monotonic()
        self._chooser = Chooser(state.began.calibration)
        if state.began.workspace != str(agent.workspace):
            raise AgentError(f"run {run} belongs to the workspace {state.began.workspace}; go on with it there")
        missing = sorted(set(state.began.effects) - set(agent.toolbox.by_name))
        if missing:
            raise AgentError(f"run {run} has the tool {missing[0]}, which is not among these; give it the same tools")
        self._calls = Calls(
            agent.toolbox, agent._policy, self._trusted, agent._approver, self._surroundings, self._waits
        )
        told = tuple(schema.to_dict() for schema in agent.toolbox.schemas)
        if told != state.began.tools:
            raise AgentError(f"run {run} has other tools, or other versions of them; give it the same ones")

    def write(self, event: Event, wish: int | None = None) -> Recorded:
        """Write down what happens, or which wish it grants, and only then let it count."""
        number = self.state.events
        self._agent.journal.add(self._run, number, event, wish=wish)
        self.state.add(event)
        return Recorded(number, time.time(), event)

    def opening(self, say: str | None, decisions: Mapping[str, Decided]) -> list[Event]:
        """What comes before the first turn."""
        events: list[Event] = []
        if self.state.ended is not None:
            events.append(Resumed(budget=self._fresh_budget()))
            for number, kind, _ in self._agent.journal.wishes(self._run):
                if kind == "cancel":  # it meant the work that has ended
                    self._agent.journal.granted(number)
        for call, decided in decisions.items():
            pending = self.state.of_call(call)
            if pending.asked is None or pending.decided is not None:
                raise AgentError(f"call {call} of run {self._run} waits for nobody's word")
            events.append(decided)
        if say:
            events.append(Steered(text=say))
        return events

    def _fresh_budget(self) -> Budget:
        """As much again as the run was given at first, counted from what it has used; a person's word adds none."""
        given, state = self.state.began.budget, self.state
        if state.ended is not None and state.ended.reason == "waiting":
            return state.budget
        tokens = state.spent.read - state.spent.cached + state.spent.generated
        return Budget(
            steps=None if given.steps is None else state.steps + given.steps,
            tokens=None if given.tokens is None else tokens + given.tokens,
            seconds=None if given.seconds is None else state.seconds + given.seconds,
            cost=None if given.cost is None else state.cost + given.cost,
        )

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

    def _wishes(self) -> list[tuple[Event, int]]:
        """What other processes and threads left in the inbox, and its number there."""
        events: list[tuple[Event, int]] = []
        for number, kind, text in self._agent.journal.wishes(self._run):
            if kind == "cancel":
                events.append((self._end("cancelled", detail=text), number))
                break
            events.append((Steered(text=text), number))
        return events

    def _ending(self) -> Ended | None:
        """Why the run is to stop before its next turn, if it is."""
        state, budget = self.state, self.state.budget
        if state.answer is not None:
            cut = f"the answer was cut at {state.began.answer_tokens} tokens" if state.cut else ""
            if cut and not state.answer.strip():
                return self._end("failed", detail=f"a call was begun and not finished: {cut}")
            return self._end("done", answer=state.answer, detail=cut)
        if state.circling:
            return self._end("circle", detail="the same call came to the same result again and again")
        tokens = state.spent.read - state.spent.cached + state.spent.generated
        seconds = state.seconds + time.monotonic() - self._started
        used: Sequence[tuple[Ending, float, float | None]] = (
            ("tokens", tokens, budget.tokens),
            ("seconds", seconds, budget.seconds),
            ("cost", state.cost, budget.cost),
        )
        for name, spent, most in used:
            if most is not None and spent >= most:
                return self._end(name, detail=f"the budget of {most:g} {name} is used up")
        # Calls of the last answer that the steps allow are still carried out.
        if budget.steps is not None and state.steps >= budget.steps and not state.pending:
            return self._end("steps", detail=f"the budget of {budget.steps} steps is used up")
        return None

    def _end(self, reason: Ending, *, answer: str = "", detail: str = "") -> Ended:
        return Ended(reason=reason, answer=answer, detail=detail, seconds=time.monotonic() - self._started)

    def _trusted(self) -> Trusted:
        """The user's words: the goal, and what was said since."""
        return Trusted(self.state.said, read=self.state.has_read)

    def _waits(self, intent: Intended, why: str) -> Ended:
        return self._end("waiting", detail=f"{intent.name}: {why}")

    def _surroundings(self, call: str) -> Surroundings:
        key = hashlib.sha256(f"{self._run}/{call}".encode()).hexdigest()[:32]
        return Surroundings(self._agent.workspace, self._agent._sandbox, key)

    async def _answer(self) -> Event | None:
        """The model's next answer, or why there is none; None where it is wished that the run stops."""
        agent = self._agent
        tools = agent.toolbox
        step = Step(tools.schemas, tools.options(self._surroundings(""), self.state.made), self._chooser)
        asking = asyncio.ensure_future(ask_model(agent.client, self.state, step, agent._tell))
        try:
            while not (await asyncio.wait([asking], timeout=_LOOK))[0]:
                if any(kind == "cancel" for _, kind, _ in agent.journal.wishes(self._run)):
                    asking.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await asking
                    return None
            return await asking
        except UnsureError as error:
            return self._end("handed over", detail=str(error))
        except StorageError:
            raise
        except QafilaError as error:
            return self._end("failed", detail=str(error))
        finally:
            asking.cancel()
