"""Agents: a model with tools in a workspace, whose runs begin, are told things, and are carried on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qafila import __version__
from qafila.agent.calibration import Calibration
from qafila.agent.calls import Approver
from qafila.agent.events import (
    Began,
    Budget,
    Choosing,
    Decided,
    Prices,
    Thresholds,
)
from qafila.agent.journal import Journal, Recorded
from qafila.agent.memory.store import Memory
from qafila.agent.memory.told import Told, keep_episode, told
from qafila.agent.policy import Policy
from qafila.agent.sandbox.sandbox import Sandbox, find_sandbox
from qafila.agent.scaffold import system_prompt
from qafila.agent.state import State
from qafila.agent.tool import Toolbox
from qafila.agent.worker import PATIENCE, Worker, check_goal
from qafila.chat.client import ChatClient
from qafila.errors import AgentError


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


class Agent:
    """A model with tools, in a workspace.

    Args:
        client: the model. toolbox: what it may call. journal: where its runs are kept.
        workspace: the folder that its tools see. policy: what is allowed. approver: who is asked, if anybody is there.
        settings: of new runs. tell: gets pieces of the model's text as they come.
        sandbox: walls for commands; by default this machine's best, found when first needed.
        memory: what is kept between runs, and whose; None where nothing is.
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
        memory: Memory | None = None,
        owner: str = "",
    ) -> None:
        self.client, self.toolbox, self.journal = client, toolbox, journal
        self.workspace = workspace.resolve()
        self.policy, self.approver = policy or Policy(), approver
        self._settings, self.tell, self.sandbox = settings or Settings(), tell, sandbox
        self._memory, self._owner = memory, owner

    async def start(self, goal: str, *, note: str = "", run: str | None = None) -> str:
        """As `begin`, with what the memory holds for this goal.

        Raises:
            AgentError: the goal is none.
        """
        check_goal(goal)
        known = Told() if self._memory is None else await told(self._memory, self._owner, goal, self.client)
        return self.begin(goal, known, note=note, run=run)

    def begin(self, goal: str, remembered: Told | None = None, *, note: str = "", run: str | None = None) -> str:
        """Write down a new run; `work` carries it out. Gives its id.

        Args:
            goal: what is to be done. remembered: what it is told of the memory.
            note: more for the system prompt, in anybody's words. run: its id; by default a new one.

        Raises:
            AgentError: the goal is none.
        """
        check_goal(goal)
        settings = self._settings
        began = Began(
            goal=goal,
            system=system_prompt(settings.instructions, note, remembered.text if remembered else ""),
            model=self.client.name,
            tools=tuple(schema.to_dict() for schema in self.toolbox.schemas),
            more=tuple(schema.to_dict() for schema in self.toolbox.untold),
            effects={name: one.effect for name, one in self.toolbox.by_name.items()},
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
            remembers=self._memory is not None,
            remembered=remembered.trusted if remembered else (),
            foreign=bool(note) or (remembered is not None and remembered.foreign),
            policy=self.policy.file,
        )
        return self.journal.begin(began, run, owner=self._owner)

    def go_on(self, run: str, *, say: str | None = None, decisions: Mapping[str, Decided] | None = None) -> bool:
        """Write down that a run is to go on, and what was said and decided; `work` then carries it on.

        Returns:
            Whether there is anything to carry on: a run that still waits for a word on other calls goes on later.

        Raises:
            AgentError, StorageError: as `work`.
        """
        with self.journal.hold(run, patience=PATIENCE):
            worker = self._worker(run)
            for event in worker.opening(say, decisions or {}):
                worker.write(event)
            return worker.state.ended is None

    def _worker(self, run: str) -> Worker:
        state = State.of(self.journal.events(run))
        if (parent := state.began.parent) is not None:
            raise AgentError(f"run {run} is a part of run {parent.run}; go on with that one")
        return Worker(self, run, state)

    async def work(
        self,
        run: str,
        *,
        say: str | None = None,
        decisions: Mapping[str, Decided] | None = None,
        only_unfinished: bool = False,
    ) -> AsyncIterator[Recorded]:
        """Carry a run on until it ends or waits; gives each event once it is written down.

        Args:
            run: its id; one that was interrupted, waits, or used up its budget goes on where it was.
            say: something to tell the model first.
            decisions: answers to what the run asked about, by call; of what a part of it asked, by the key of the call.
            only_unfinished: one that has ended or waits is left as it is.

        Raises:
            AgentError: no such run, another process works on it, or its workspace or tools are not these; or it is a
                part of another run.
            StorageError: what happens cannot be written down; the run pauses, and nothing is lost.
        """
        with self.journal.hold(run, patience=PATIENCE):
            worker = self._worker(run)
            if only_unfinished and worker.state.ended is not None:
                return
            for event in worker.opening(say, decisions or {}):
                yield worker.write(event)
            async for recorded in worker.turns():
                yield recorded
            if self._memory is not None and worker.state.began.remembers:
                keep_episode(self._memory, self._owner, run, worker.state)
