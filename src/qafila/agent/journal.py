"""The journal: every run's events in a database, written before what they tell of can be lost.

Events are only ever added. A run is worked on by one process at a time, which holds it; the hold ends with the process,
however that ends. What other processes want of a run (to stop it, to tell it something) they leave in its inbox.
"""

from __future__ import annotations

import contextlib
import functools
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from qafila.agent.audit_log import AuditLog, append
from qafila.agent.events import EVENT, Began, Decided, Ended, Event, Intended, Observed, Resumed
from qafila.agent.journal_tables import EVENTS, INBOX, RUNS, SCHEMA
from qafila.agent.memory.store import Memory
from qafila.agent.run_lock import BusyError, run_lock
from qafila.agent.schedules.store import Schedules
from qafila.database import open_database, prepare, reading, writing
from qafila.errors import AgentError, StorageError

Wish = Literal["steer", "cancel"]
_ID = re.compile("[0-9a-f]{1,32}")


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in a list of them.

    Attributes:
        status: ``running`` (or interrupted), else why it ended. created: seconds since 1970.
        parent: the run it was forked from, and after which of its events; without such a number, the run it is a part
            of.
        owner: whose it is; "" for this machine's own user. served: the name of the key for which a server works on it,
            and goes on by itself after a restart; None: no server does.
    """

    id: str
    created: float
    goal: str
    status: str
    events: int
    parent: str | None
    forked_at: int | None
    owner: str = ""
    served: str | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event in its place. ``at``: seconds since 1970."""

    number: int
    at: float
    event: Event


class Journal:
    """Runs and their events.

    Args:
        url: of the database, as SQLAlchemy writes it. clock: seconds since 1970.

    Raises:
        UsageError, StorageError: the database cannot be opened.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = open_database(url, durable=True)
        self._clock = clock
        prepare(self._engine, SCHEMA)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def begin(self, began: Began, run: str | None = None, *, owner: str = "") -> str:
        """Write down a new run and its first event; gives its id, by default a new one.

        Args:
            began: the event. run: its id. owner: whose it is; a sub-run is of whoever owns the run above it.

        Raises:
            AgentError: the event holds what is no text. StorageError: there is such a run, or the database fails.
        """
        with writing(self._engine) as connection:
            parent = began.parent.run if began.parent is not None else None
            if parent is not None:
                owner = connection.scalar(sa.select(RUNS.c.owner).where(RUNS.c.id == parent)) or ""
            return self._begin(connection, began, run, parent=parent, owner=owner)

    def _begin(
        self, connection: sa.Connection, began: Began, run: str | None = None, **columns: str | int | None
    ) -> str:
        run = run or secrets.token_hex(6)
        body = _body(began)
        row = {"id": run, "created": self._clock(), "goal": began.goal, "status": "running"}
        connection.execute(RUNS.insert().values(**row, **columns))
        self._insert(connection, run, 0, body)
        return run

    def add(self, run: str, number: int, event: Event, *, wish: int | None = None) -> None:
        """Write down the next event; once this returns, it stays.

        Args:
            run: its id. number: how many events there are: another one's place is never taken.
            wish: the number of one that this event grants; it leaves the inbox in the same moment.

        Raises:
            AgentError: the event holds what is no text. StorageError: somebody else wrote one there, or the database
                fails: nothing is written.
        """
        with writing(self._engine) as connection:
            self._add(connection, run, number, event)
            if wish is not None:
                connection.execute(INBOX.delete().where(INBOX.c.id == wish))

    def _add(self, connection: sa.Connection, run: str, number: int, event: Event) -> None:
        self._insert(connection, run, number, _body(event))
        if isinstance(event, Ended | Resumed):
            status = event.reason if isinstance(event, Ended) else "running"
            connection.execute(RUNS.update().where(RUNS.c.id == run).values(status=status))

    def _insert(self, connection: sa.Connection, run: str, number: int, body: str) -> None:
        at = float(self._clock())
        connection.execute(EVENTS.insert().values(run=run, number=number, at=at, body=body))
        append(connection, run, number, at, body)

    def events(self, run: str, start: int = 0) -> list[Recorded]:
        """The events of a run from number ``start`` on, in order.

        Raises:
            AgentError: no such run. StorageError: the database fails, or holds what this version cannot read.
        """
        with reading(self._engine) as connection:
            chosen = sa.and_(EVENTS.c.run == run, EVENTS.c.number >= start)
            rows = connection.execute(sa.select(EVENTS).where(chosen).order_by(EVENTS.c.number)).all()
        if not rows and not start:
            raise _unknown(run)
        try:
            return [Recorded(row.number, row.at, EVENT.validate_json(row.body)) for row in rows]
        except ValidationError as error:
            raise StorageError(
                f"run {run}: an event cannot be read (another version wrote it, or the database is damaged): "
                f"{error.errors()[0]['msg']}"
            ) from None

    def find(self, start: str) -> str:
        """The id of the one run whose id begins so; ``last`` is the newest that is no part of another.

        Raises:
            AgentError: there is none, or more than one.
        """
        with reading(self._engine) as connection:
            if start == "last":
                whole = RUNS.c.parent.is_(None) | RUNS.c.forked_at.is_not(None)
                newest = connection.scalar(sa.select(RUNS.c.id).where(whole).order_by(RUNS.c.created.desc()).limit(1))
                if newest is None:
                    raise AgentError('there are no runs yet; `qafila agent "goal"` makes one')
                return str(newest)
            beginning = RUNS.c.id.startswith(start, autoescape=True)
            found = connection.scalars(sa.select(RUNS.c.id).where(beginning).limit(2)).all() if start else []
        if len(found) != 1:
            many = "more than one run begins" if found else "there is no run that begins"
            raise AgentError(f"{many} with {start!r:.40}; `qafila agent runs` lists them")
        return str(found[0])

    def runs(
        self,
        most: int = 50,
        *,
        owner: str | None = None,
        status: str | None = None,
        before: RunLine | None = None,
        parts: bool = True,
    ) -> list[RunLine]:
        """The newest runs, newest first.

        Args:
            most: how many. owner, status: only these; None for all. before: only runs that are older than this one.
            parts: sub-runs among them.
        """
        query = _lines().order_by(RUNS.c.created.desc(), RUNS.c.id.desc()).limit(most)
        if not parts:
            query = query.where(sa.or_(RUNS.c.parent.is_(None), RUNS.c.forked_at.is_not(None)))
        if owner is not None:
            query = query.where(RUNS.c.owner == owner)
        if status is not None:
            query = query.where(RUNS.c.status == status)
        if before is not None:
            older = sa.and_(RUNS.c.created == before.created, RUNS.c.id < before.id)
            query = query.where(sa.or_(RUNS.c.created < before.created, older))
        return self._read_lines(query)

    def line(self, run: str, owner: str) -> RunLine | None:
        """The run of this id, if it is this owner's."""
        if not _ID.fullmatch(run):  # PostgreSQL takes no NUL even to compare with
            return None
        return next(iter(self._read_lines(_lines().where(RUNS.c.id == run, RUNS.c.owner == owner))), None)

    def served_runs(self) -> list[RunLine]:
        """Runs that a server was working on and has not ended, oldest first."""
        chosen = sa.and_(RUNS.c.served.is_not(None), RUNS.c.status == "running")
        return self._read_lines(_lines().where(chosen).order_by(RUNS.c.created))

    def serve(self, run: str, served: str | None) -> None:
        """Note for whom a server works on a run; None: it is not to go on by itself any more."""
        with writing(self._engine) as connection:
            connection.execute(RUNS.update().where(RUNS.c.id == run).values(served=served))

    def count(self, status: str) -> int:
        """How many runs have this status."""
        with reading(self._engine) as connection:
            return connection.scalar(sa.select(sa.func.count()).where(RUNS.c.status == status)) or 0

    def _read_lines(self, query: sa.Select[Any]) -> list[RunLine]:
        with reading(self._engine) as connection:
            return [RunLine(**row) for row in connection.execute(query).mappings()]

    def parts(self, run: str) -> list[str]:
        """The ids of a run's sub-runs, oldest first."""
        part = (RUNS.c.parent == run) & RUNS.c.forked_at.is_(None)
        with reading(self._engine) as connection:
            return list(connection.scalars(sa.select(RUNS.c.id).where(part).order_by(RUNS.c.created)))

    def fork(self, run: str, after: int, instead: Event | None = None) -> str:
        """A new run that begins as another did, up to and with event ``after``, or with ``instead`` in its place.

        What comes of an event that did not happen is not kept in the memory.

        Raises:
            AgentError: no such run or event, a part of another run, or a person's word that would count twice.
        """
        recorded = self.events(run)
        if not 0 <= after < len(recorded):
            raise AgentError(f"run {run} has events 0 to {len(recorded) - 1}, not {after}")
        first = recorded[0].event
        if not isinstance(first, Began):
            raise AgentError("the journal of this run does not start with its beginning")
        if first.parent is not None:  # its goal is not the user's, and alone it would be taken for that
            raise AgentError(f"run {run} is a part of run {first.parent.run}; fork that one")
        shared = [one.event for one in recorded[: after + 1]]
        allowed = {event.call for event in shared if isinstance(event, Decided) and event.allowed}
        if unused := sorted(allowed - {event.call for event in shared if isinstance(event, Intended | Observed)}):
            raise AgentError(
                f"call {unused[0]} of run {run} is allowed by then and made later, and what a person allows is "
                "done once; fork before it was allowed, or after it was made"
            )
        if instead is not None:
            first = first.model_copy(update={"remembers": False})
        with writing(self._engine) as connection:
            owner = connection.scalar(sa.select(RUNS.c.owner).where(RUNS.c.id == run))
            new = self._begin(connection, first, parent=run, forked_at=after, owner=owner)
            for one in recorded[1 : after + 1]:
                event = instead if instead is not None and one.number == after else one.event
                self._add(connection, new, one.number, event)
        return new

    def ask(self, run: str, wish: Wish, text: str = "") -> None:
        """Leave something for whoever works on a run.

        Raises:
            AgentError: ``text`` is none. StorageError: no such run, or the database fails.
        """
        _check_text(text)
        with writing(self._engine) as connection:
            connection.execute(INBOX.insert().values(run=run, kind=wish, text=text))

    def wishes(self, run: str) -> list[tuple[int, Wish, str]]:
        """What was left for a run, oldest first, with numbers for `granted`."""
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(INBOX).where(INBOX.c.run == run).order_by(INBOX.c.id)).all()
        return [(row.id, row.kind, row.text) for row in rows]

    def granted(self, number: int) -> None:
        """Take a wish out of the inbox."""
        with writing(self._engine) as connection:
            connection.execute(INBOX.delete().where(INBOX.c.id == number))

    @functools.cached_property
    def memory(self) -> Memory:
        """What is remembered between runs, in the same database."""
        return Memory(self._engine, clock=self._clock)

    @functools.cached_property
    def schedules(self) -> Schedules:
        """What begins by itself, in the same database."""
        return Schedules(self._engine, clock=self._clock)

    @property
    def audit(self) -> AuditLog:
        """The log of everything that was ever written down here."""
        return AuditLog(self._engine)

    def erase(self, run: str) -> int:
        """Erase a run and its parts: their goals, their events and all they hold; gives how many there were.

        The audit log still proves that there were so many, and that no other was touched.

        Raises:
            AgentError: no such run, or it is being worked on.
        """
        memory, schedules = self.memory, self.schedules  # their tables are there before the transaction begins
        with self.hold(run):
            parts = sum(self.erase(part) for part in self.parts(run))
            return parts + self._erase(run, memory, schedules)

    def _erase(self, run: str, memory: Memory, schedules: Schedules) -> int:
        with writing(self._engine) as connection:
            erased = self.audit.forget(connection, run)
            for table in (INBOX, EVENTS):
                connection.execute(table.delete().where(table.c.run == run))
            connection.execute(RUNS.delete().where(RUNS.c.id == run))
            memory.forget_run(connection, run)
            schedules.forget_run(connection, run)
        return erased

    def holds(self, run: str) -> bool:
        """Whether there is a run of this id."""
        with reading(self._engine) as connection:
            return connection.scalar(sa.select(RUNS.c.id).where(RUNS.c.id == run)) is not None

    def owner(self, run: str) -> str:
        """Whose a run is.

        Raises:
            AgentError: no such run.
        """
        with reading(self._engine) as connection:
            found = connection.scalar(sa.select(RUNS.c.owner).where(RUNS.c.id == run))
        if found is None:
            raise _unknown(run)
        return str(found)

    def _check_there(self, run: str) -> None:
        if not self.holds(run):
            raise _unknown(run)

    def worked_on(self, run: str) -> bool:
        """Whether a process works on a run just now.

        Raises:
            AgentError: no such run.
        """
        self._check_there(run)
        try:
            with self.hold(run):
                return False
        except BusyError:
            return True

    @contextlib.contextmanager
    def hold(self, run: str, *, patience: float = 0.0) -> Iterator[None]:
        """Work on a run while no other process does.

        Args:
            run: its id. patience: seconds before somebody else is believed to work on it: a look whether anybody
                does takes the lock for a moment.

        Raises:
            AgentError: no such run. BusyError: another process works on it. StorageError: its lock cannot be made.
        """
        self._check_there(run)
        with run_lock(self._engine, run, patience):
            yield


def _lines() -> sa.Select[Any]:
    """What a `RunLine` holds, of every run."""
    # Numbers have no gaps, and the last one is found in the index without a walk through all of them.
    last = sa.select(sa.func.max(EVENTS.c.number)).where(EVENTS.c.run == RUNS.c.id).scalar_subquery()
    return sa.select(RUNS, sa.func.coalesce(last + 1, 0).label("events"))


def _unknown(run: str) -> AgentError:
    return AgentError(f"there is no run {run!r:.40}; `qafila agent runs` lists them")


def _body(event: Event) -> str:
    try:
        return event.model_dump_json()
    except (PydanticSerializationError, UnicodeEncodeError):
        raise AgentError(f"{event.kind}: holds letters that are no text (half a surrogate pair)") from None


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise AgentError("the text holds letters that are no text (half a surrogate pair)") from None
