"""The journal: every run's events in a database, written before what they tell of can be lost.

Events are only ever added. A run is worked on by one process at a time, which holds it; the hold ends with the process,
however that ends. What other processes want of a run (to stop it, to tell it something) they leave in its inbox.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from qafila.agent.audit_log import CHECKPOINTS, LOG, AuditLog, append
from qafila.agent.events import EVENT, Began, Ended, Event, Resumed
from qafila.database import TABLES, Schema, open_database, prepare, reading, writing
from qafila.errors import AgentError, StorageError

_RUNS = sa.Table(
    "agent_runs",
    TABLES,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("goal", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("parent", sa.String(32)),
    sa.Column("forked_at", sa.Integer),
)
_EVENTS = sa.Table(
    "agent_events",
    TABLES,
    sa.Column("run", sa.String(32), sa.ForeignKey("agent_runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
_INBOX = sa.Table(
    "agent_inbox",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String(32), sa.ForeignKey("agent_runs.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
SCHEMA = Schema("agent", (_RUNS, _EVENTS, _INBOX, LOG, CHECKPOINTS))

Wish = Literal["steer", "cancel"]
_LOCK = 0x51414745  # PostgreSQL's advisory locks: this, and a number made of the run's id


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in a list of them.

    Attributes:
        status: ``running`` (or interrupted), else why it ended. created: seconds since 1970.
        parent: the run it was forked from, and after which of its events; without such a number, the run it is a part
            of.
    """

    id: str
    created: float
    goal: str
    status: str
    events: int
    parent: str | None
    forked_at: int | None


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

    def begin(self, began: Began, run: str | None = None) -> str:
        """Write down a new run and its first event; gives its id.

        Args:
            began: the event. run: the id, of a sub-run; others get one.

        Raises:
            AgentError: the event holds what is no text. StorageError: the database fails, or has a run of this id.
        """
        parent = began.parent.run if began.parent is not None else None
        with writing(self._engine) as connection:
            return self._begin(connection, began, parent, None, run)

    def _begin(
        self, connection: sa.Connection, began: Began, parent: str | None, forked_at: int | None, run: str | None = None
    ) -> str:
        run = run or secrets.token_hex(6)
        body = _body(began)
        row = {"id": run, "created": self._clock(), "goal": began.goal, "status": "running"}
        connection.execute(_RUNS.insert().values(**row, parent=parent, forked_at=forked_at))
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
                connection.execute(_INBOX.delete().where(_INBOX.c.id == wish))

    def _add(self, connection: sa.Connection, run: str, number: int, event: Event) -> None:
        self._insert(connection, run, number, _body(event))
        if isinstance(event, Ended | Resumed):
            status = event.reason if isinstance(event, Ended) else "running"
            connection.execute(_RUNS.update().where(_RUNS.c.id == run).values(status=status))

    def _insert(self, connection: sa.Connection, run: str, number: int, body: str) -> None:
        connection.execute(_EVENTS.insert().values(run=run, number=number, at=self._clock(), body=body))
        append(connection, run, number, body)

    def events(self, run: str) -> list[Recorded]:
        """All events of a run, in order.

        Raises:
            AgentError: no such run. StorageError: the database fails, or holds what this version cannot read.
        """
        with reading(self._engine) as connection:
            query = sa.select(_EVENTS).where(_EVENTS.c.run == run).order_by(_EVENTS.c.number)
            rows = connection.execute(query).all()
        if not rows:
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
                whole = _RUNS.c.parent.is_(None) | _RUNS.c.forked_at.is_not(None)
                newest = connection.scalar(sa.select(_RUNS.c.id).where(whole).order_by(_RUNS.c.created.desc()).limit(1))
                if newest is None:
                    raise AgentError('there are no runs yet; `qafila agent "goal"` makes one')
                return str(newest)
            beginning = _RUNS.c.id.startswith(start, autoescape=True)
            found = connection.scalars(sa.select(_RUNS.c.id).where(beginning).limit(2)).all() if start else []
        if len(found) != 1:
            many = "more than one run begins" if found else "there is no run that begins"
            raise AgentError(f"{many} with {start!r:.40}; `qafila agent runs` lists them")
        return str(found[0])

    def runs(self, most: int = 50) -> list[RunLine]:
        """The newest runs, newest first."""
        count = sa.select(sa.func.count()).where(_EVENTS.c.run == _RUNS.c.id).scalar_subquery()
        query = sa.select(_RUNS, count.label("events")).order_by(_RUNS.c.created.desc()).limit(most)
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [RunLine(r.id, r.created, r.goal, r.status, r.events, r.parent, r.forked_at) for r in rows]

    def parts(self, run: str) -> list[str]:
        """The ids of a run's sub-runs, oldest first."""
        part = (_RUNS.c.parent == run) & _RUNS.c.forked_at.is_(None)
        with reading(self._engine) as connection:
            return list(connection.scalars(sa.select(_RUNS.c.id).where(part).order_by(_RUNS.c.created)))

    def fork(self, run: str, after: int, instead: Event | None = None) -> str:
        """A new run that begins as another did, up to and with event ``after``, or with ``instead`` in its place.

        Raises:
            AgentError: no such run or event, or a part of another run.
        """
        recorded = self.events(run)
        if not 0 <= after < len(recorded):
            raise AgentError(f"run {run} has events 0 to {len(recorded) - 1}, not {after}")
        first = recorded[0].event
        assert isinstance(first, Began)
        if first.parent is not None:  # its goal is not the user's, and alone it would be taken for that
            raise AgentError(f"run {run} is a part of run {first.parent.run}; fork that one")
        with writing(self._engine) as connection:
            new = self._begin(connection, first, run, after)
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
            connection.execute(_INBOX.insert().values(run=run, kind=wish, text=text))

    def wishes(self, run: str) -> list[tuple[int, Wish, str]]:
        """What was left for a run, oldest first, with numbers for `granted`."""
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(_INBOX).where(_INBOX.c.run == run).order_by(_INBOX.c.id)).all()
        return [(row.id, row.kind, row.text) for row in rows]

    def granted(self, number: int) -> None:
        """Take a wish out of the inbox."""
        with writing(self._engine) as connection:
            connection.execute(_INBOX.delete().where(_INBOX.c.id == number))

    @property
    def audit(self) -> AuditLog:
        """The log of everything that was ever written down here."""
        return AuditLog(self._engine, _EVENTS)

    def erase(self, run: str) -> int:
        """Erase a run and its parts: their goals, their events and all they hold; gives how many there were.

        The audit log still proves that there were so many, and that no other was touched.

        Raises:
            AgentError: no such run, or it is being worked on.
        """
        with self.hold(run):
            parts = sum(self.erase(part) for part in self.parts(run))
            return parts + self._erase(run)

    def _erase(self, run: str) -> int:
        with writing(self._engine) as connection:
            erased = self.audit.forget(connection, run)
            for table in (_INBOX, _EVENTS):
                connection.execute(table.delete().where(table.c.run == run))
            connection.execute(_RUNS.delete().where(_RUNS.c.id == run))
        return erased

    def _check_there(self, run: str) -> None:
        with reading(self._engine) as connection:
            if connection.scalar(sa.select(_RUNS.c.id).where(_RUNS.c.id == run)) is None:
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
        except AgentError:
            return True

    @contextlib.contextmanager
    def hold(self, run: str) -> Iterator[None]:
        """Work on a run while no other process does.

        Raises:
            AgentError: no such run, or another process works on it. StorageError: its lock cannot be made.
        """
        self._check_there(run)
        busy = AgentError(f"run {run} is being worked on by another process; wait for it, or stop it first")
        if self._engine.dialect.name == "postgresql":
            number = int.from_bytes(hashlib.sha256(run.encode()).digest()[:4], "big", signed=True)
            with self._engine.connect() as connection:
                if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_LOCK, number))):
                    raise busy
                connection.commit()
                try:
                    yield
                finally:
                    connection.execute(sa.select(sa.func.pg_advisory_unlock(_LOCK, number)))
            return
        database = self._engine.url.database
        assert database is not None
        locks = Path(f"{database}.runs")
        try:
            locks.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(locks / run, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"{locks / run}: {error.strerror}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            yield
        finally:
            os.close(descriptor)


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
