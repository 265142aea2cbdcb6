"""The server's agent: begins runs, works on them in the background, and goes on with them after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

from qafila.agent.choose import settled
from qafila.agent.config import Config
from qafila.agent.events import Answered, Choosing, Decided, Ended
from qafila.agent.journal import Journal, Recorded, RunLine
from qafila.agent.loop import Agent, Settings
from qafila.agent.policy import Policy, read_policy
from qafila.agent.state import State
from qafila.agent.tools.builtin import Resources, builtin, rules_of_nothing
from qafila.agent.worker import check_goal
from qafila.database import default_url
from qafila.errors import QafilaError, StorageError, UsageError
from qafila.server.agent_client import ServedModel, served_model
from qafila.server.agent_work import Work
from qafila.server.errors import ApiError
from qafila.server.keys import Keyring
from qafila.server.metrics import Metrics
from qafila.server.service import Caller, Service
from qafila.server.settings import AgentSettings

_log = logging.getLogger(__name__)

# Runs that are worked on or wait for that: of all, and of one owner. More are refused.
_MOST_ACTIVE, _MOST_OF_ONE = 256, 64
# Seconds that calls under way get to come to their end when the server stops.
_GRACE = 10.0
_ANONYMOUS = Caller().name


@dataclass(slots=True)
class _Active:
    """A run that is worked on, or waits for that."""

    owner: str
    work: Work
    future: asyncio.Future[None]


class Agents:
    """Runs of agents over a service's models. Its methods belong to the service's event loop.

    Args:
        service: whose models think. settings: workspace, policy, tools. keyring: who began a run that goes on after a
            restart. metrics: counts runs and steps.

    Raises:
        QafilaError: a policy that is none, a tool that there is not, a journal that cannot be opened.
    """

    def __init__(
        self,
        service: Service,
        settings: AgentSettings,
        *,
        keyring: Keyring | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.workspace: Path = settings.folder.resolve()
        self.policy = Policy() if settings.policy is None else read_policy(settings.policy)
        self.journal = Journal(settings.database or default_url("agent"))
        self.memory = self.journal.memory
        self.prices = (settings.config or Config()).token_prices
        self._config, self._others, self._chosen = settings.config or Config(), settings.others, settings.tools
        resources = Resources(self._config, memory=self.memory, others=self._others())
        self.tools = builtin(self._chosen, resources)
        for note in rules_of_nothing(self.policy, resources):
            _log.warning("%s", note)
        self._service, self._keyring, self._metrics = service, keyring, metrics
        self._pool = ThreadPoolExecutor(settings.at_once, thread_name_prefix="qafila-agent")
        self._active: dict[str, _Active] = {}
        self._opening: set[str] = set()
        self._deciding: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._taking_up: asyncio.Task[None] | None = None
        self._closing = False

    # Its life.

    async def start(self) -> None:
        """Go on with the runs that a server was working on when it ended; they count as worked on from now on."""
        try:
            await asyncio.to_thread(self._count_waiting)
            lines = await asyncio.to_thread(self.journal.served_runs)
        except StorageError as error:
            _log.error("no run goes on by itself: %s", error)
            return
        self._opening.update(line.id for line in lines)
        self._taking_up = asyncio.create_task(self._take_up(lines))

    async def close(self) -> None:
        """Leave all runs so that they can be gone on with."""
        self._closing = True
        if self._taking_up is not None:
            self._taking_up.cancel()
            await asyncio.gather(self._taking_up, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for at_once in (False, True):
            for active in list(self._active.values()):
                active.work.leave(at_once=at_once)
            left = [active.future for active in self._active.values()]
            if left:
                await asyncio.wait(left, timeout=_GRACE)
        await asyncio.to_thread(self.journal.close)

    async def _take_up(self, lines: Sequence[RunLine]) -> None:
        for line in lines:
            try:
                caller = await asyncio.to_thread(self._caller_of, line)
                agent = await self.agent_of(line, caller)
                self._work_on(agent, line.id, line.owner)
            except Exception as error:  # the others go on all the same
                foreseen = isinstance(error, ApiError | QafilaError)
                _log.warning("run %s does not go on by itself: %s", line.id, error, exc_info=not foreseen)
            finally:
                self._opening.discard(line.id)
                self.changed(line.id)

    def _caller_of(self, line: RunLine) -> Caller:
        """Who began a run.

        Raises:
            UsageError: their key is not valid any more.
        """
        if not line.owner.startswith("key:"):
            return Caller(name=line.served or _ANONYMOUS)
        key = self._keyring.by_id(line.owner.removeprefix("key:")) if self._keyring is not None else None
        if key is None:
            raise UsageError("the key that it was begun with is not valid any more")
        return key.caller(share_cache=False)

    # Runs.

    async def begin(
        self, caller: Caller, goal: str, model: str, names: Sequence[str] | None, wished: Choosing | None,
        settings: Settings,
    ) -> str:  # fmt: skip
        """Write down a new run, and work on it; its id.

        Args:
            caller: whose it will be. goal, model: of it. names: of its tools; None for all. wished: how tools are
                chosen. settings: the rest.

        Raises:
            ApiError, QafilaError: what is wrong with it, or no room.
        """
        check_goal(goal)
        owner = owner_of(caller)
        self._check_room(owner)
        self._check_names(names)
        chosen = self._chosen if names is None else names
        agent = await self._agent(caller, owner, model, chosen, None, settings, wished)

        def write() -> str:
            run = asyncio.run(agent.start(goal))
            self.journal.serve(run, caller.name)
            return run

        run = await asyncio.to_thread(write)
        with self._opened(run):
            self._work_on(agent, run, owner)
        return run

    async def go_on(
        self, line: RunLine, caller: Caller, *, say: str | None = None, decided: Mapping[str, Decided] | None = None
    ) -> None:
        """Write down what was said or decided, and work on, unless it waits for a word on other calls still.

        Raises:
            ApiError, QafilaError: it cannot go on, or somebody works on it.
        """
        with self._opened(line.id):
            self._check_room(line.owner)
            agent = await self.agent_of(line, caller)

            def write() -> bool:
                self.journal.serve(line.id, caller.name)
                try:
                    goes_on = agent.go_on(line.id, say=say, decisions=decided)
                except BaseException:
                    self.journal.serve(line.id, line.served)
                    raise
                self._count_waiting()
                return goes_on

            if await asyncio.to_thread(write):
                self._work_on(agent, line.id, line.owner)
            else:
                self.changed(line.id)

    def is_active(self, run: str) -> bool:
        """Whether this server works on a run, or will in a moment."""
        return run in self._active or run in self._opening

    def deciding(self, run: str) -> asyncio.Lock:
        """To be held while a word on a run's calls is taken: words on several of them may come at once."""
        return self._deciding.setdefault(run, asyncio.Lock())

    def active(self) -> frozenset[str]:
        """The runs that this server works on, or will in a moment."""
        return frozenset((*self._active, *self._opening))

    async def settled(self, run: str, seconds: float) -> None:
        """Wait until this server works on a run no more, or for so long."""
        active = self._active.get(run)
        if active is not None:
            await asyncio.wait([active.future], timeout=seconds)

    async def model(self, line: RunLine, caller: Caller) -> tuple[ServedModel, list[Recorded]]:
        """The model of a run, and the run's events.

        Raises:
            ApiError: the model is not served here.
        """
        recorded = await asyncio.to_thread(self.journal.events, line.id)
        model = self._served(State.of(recorded[:1]).began.model, line.id)
        return await served_model(self._service, caller, model), recorded

    async def agent_of(self, line: RunLine, caller: Caller) -> Agent:
        """The agent of a run: its model, workspace and tools.

        Raises:
            ApiError: these are not here.
        """
        recorded = await asyncio.to_thread(self.journal.events, line.id)
        began = State.of(recorded[:1]).began
        if began.workspace != str(self.workspace):
            raise ApiError(409, f"run {line.id} belongs to another folder than this server's; go on with it there")
        self._check_names(list(began.effects))
        told, more = ([one["function"]["name"] for one in listed] for listed in (began.tools, began.more))
        model = self._served(began.model, line.id)
        return await self._agent(caller, line.owner, model, told, more, Settings(), "free")

    @asynccontextmanager
    async def watching(self, run: str) -> AsyncIterator[asyncio.Event]:
        """Set whenever something happens in a run, for the length of the block."""
        changed = asyncio.Event()
        self._watchers.setdefault(run, set()).add(changed)
        try:
            yield changed
        finally:
            self._watchers[run].discard(changed)
            if not self._watchers[run]:
                del self._watchers[run]

    def changed(self, run: str) -> None:
        """Wake who watches a run."""
        for watcher in self._watchers.get(run, ()):
            watcher.set()

    # Inside.

    def _check_names(self, names: Sequence[str] | None) -> None:
        known = list(self.tools.by_name)
        unknown = next((name for name in names or () if name not in known), None)
        if unknown is not None:
            message = f"tools: there is no tool {unknown!r:.80} here; there are {', '.join(known)}"
            raise ApiError(400, message, param="tools")

    def _served(self, model: str, run: str) -> str:
        if model not in self._service.models.entries:
            raise ApiError(409, f"run {run} has the model {model!r:.120}, which is not served here")
        return model

    async def _agent(
        self,
        caller: Caller,
        owner: str,
        model: str,
        names: Sequence[str] | None,
        more: Sequence[str] | None,
        settings: Settings,
        wished: Choosing | None,
    ) -> Agent:
        client = await served_model(self._service, caller, model)
        choosing, calibration = settled(client, wished, option="choosing")
        resources = Resources(self._config, memory=self.memory, owner=owner, others=self._others())
        return Agent(
            client,
            builtin(names, resources, more),
            self.journal,
            workspace=self.workspace,
            policy=self.policy,
            settings=replace(settings, choosing=choosing, calibration=calibration),
            memory=self.memory,
            owner=owner,
        )

    def _check_room(self, owner: str) -> None:
        if self._closing:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        own = sum(active.owner == owner for active in self._active.values())
        if own >= _MOST_OF_ONE or len(self._active) >= _MOST_ACTIVE:
            message = f"{own} of your runs, and {len(self._active)} in all, are worked on or wait for that"
            wait = {"Retry-After": "30"}
            raise ApiError(429, f"{message}; try again later", code="server_busy", headers=wait)

    @contextmanager
    def _opened(self, run: str) -> Iterator[None]:
        """Nobody else here makes the run go on meanwhile."""
        if self.is_active(run):
            raise ApiError(409, f"run {run} is being worked on; wait for it, or stop it first", code="run_busy")
        self._opening.add(run)
        try:
            yield
        finally:
            self._opening.discard(run)

    def _work_on(self, agent: Agent, run: str, owner: str) -> None:
        loop = asyncio.get_running_loop()

        def tell(recorded: Recorded) -> None:
            if isinstance(recorded.event, Ended):
                self._count_waiting()
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody watches
                loop.call_soon_threadsafe(self._heard, run, recorded)

        if isinstance(agent.client, ServedModel):
            agent.client.run = run
        work = Work(agent, run, tell)
        future = loop.run_in_executor(self._pool, work.carry_on)
        self._active[run] = _Active(owner, work, future)
        future.add_done_callback(lambda _: self._ended(run))

    def _heard(self, run: str, recorded: Recorded) -> None:
        if self._metrics is not None:
            if isinstance(recorded.event, Answered):
                self._metrics.agent_steps.inc()
            elif isinstance(recorded.event, Ended):
                self._metrics.agent_runs.labels(recorded.event.reason).inc()
        self.changed(run)

    def _count_waiting(self) -> None:
        """To be called in a thread."""
        if self._metrics is not None:
            with contextlib.suppress(StorageError):  # a count is no reason to stop
                self._metrics.agent_waiting.set(self.journal.count("waiting"))

    def _ended(self, run: str) -> None:
        self._active.pop(run, None)
        self.changed(run)


def owner_of(caller: Caller) -> str:
    """Whose runs a caller's are: those of a key, of this machine's own user (""), or of all who come without a key."""
    if caller.tenant:
        return caller.tenant
    own = caller.name == _ANONYMOUS and "admin" in caller.scopes
    return "" if own else f"name:{caller.name}"
