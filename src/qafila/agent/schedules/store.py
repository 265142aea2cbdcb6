"""Schedules, what they set off, and the notices that came of it, in the database of the runs."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa

from qafila.agent.schedules.triggers import TRIGGER, OnName, Trigger
from qafila.database import TABLES, Schema, prepare, reading, writing
from qafila.errors import AgentError

Missed: TypeAlias = Literal["skip", "once", "all"]
#: Schedules of an owner, and days for which it is known what was set off and what was told.
MOST_SCHEDULES = 200
_KEPT_DAYS = 400

_SCHEDULES = sa.Table(
    "agent_schedules",
    TABLES,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False, index=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("goal", sa.Text, nullable=False),
    sa.Column("trigger", sa.Text, nullable=False),
    sa.Column("workspace", sa.Text, nullable=False),
    sa.Column("tools", sa.Text),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("missed", sa.String(8), nullable=False),
    sa.Column("skip_quiet", sa.Boolean, nullable=False),
    sa.Column("brief", sa.Boolean, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("checked", sa.Float, nullable=False),
    sa.Column("seen", sa.Text, nullable=False),
    sa.UniqueConstraint("owner", "name"),
)
_FIRES = sa.Table(
    "agent_fires",
    TABLES,
    sa.Column("id", sa.String(160), primary_key=True),
    sa.Column(
        "schedule",
        sa.String(16),
        sa.ForeignKey("agent_schedules.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("due", sa.Float, nullable=False),
    sa.Column("about", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
)
_NOTICES = sa.Table(
    "agent_notices",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("owner", sa.String(128), nullable=False, index=True),
    sa.Column("schedule", sa.String(64), nullable=False),
    sa.Column("run", sa.String(32), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("read", sa.Boolean, nullable=False),
)
SCHEMA = Schema("agent_schedules", (_SCHEDULES, _FIRES, _NOTICES))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A schedule, as a user wants it.

    Attributes:
        name: that it is called by. goal, workspace, tools, steps: of its runs; None for all tools.
        missed: what happens where times went by while nobody worked: nothing, one run, or one for each.
        skip_quiet: in quiet hours it does not happen, rather than after them.
        brief: a run that finds nothing worth telling leaves no notice.
    """

    name: str
    goal: str
    trigger: Trigger
    workspace: str
    tools: tuple[str, ...] | None = None
    steps: int = 12
    missed: Missed = "once"
    skip_quiet: bool = False
    brief: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule.

    Attributes:
        wanted: what it is. checked: up to when it is known what was due, in seconds since 1970.
        seen: the files that are known, by path, with what changes when they do.
    """

    id: str
    owner: str
    wanted: Wanted
    paused: bool
    created: float
    checked: float
    seen: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        wanted = self.wanted
        return {
            "id": self.id,
            "name": wanted.name,
            "goal": wanted.goal,
            "trigger": json.loads(wanted.trigger.model_dump_json()),
            "workspace": wanted.workspace,
            "tools": None if wanted.tools is None else list(wanted.tools),
            "steps": wanted.steps,
            "missed": wanted.missed,
            "skip_quiet": wanted.skip_quiet,
            "brief": wanted.brief,
            "paused": self.paused,
            "created": int(self.created),
        }


@dataclass(frozen=True, slots=True)
class Fire:
    """Something that a schedule sets off, once.

    Attributes:
        id: says which; the same thing never has two. due: when, in seconds since 1970.
        about: what set it off, in words that may be anybody's.
    """

    id: str
    schedule: str
    due: float
    about: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """What a run of a schedule has to tell. ``at``: seconds since 1970."""

    id: int
    schedule: str
    run: str
    at: float
    text: str
    read: bool


@dataclass(frozen=True, slots=True)
class Planned:
    """What became of a schedule: what it sets off, up to when that is known, and the files that are known now."""

    fires: Sequence[Fire]
    checked: float
    seen: Mapping[str, str] | None = None


class Schedules:
    """All schedules of a database.

    Args:
        engine: of the database, see `qafila.database.open_database`. clock: seconds since 1970.

    Raises:
        StorageError: the database fails; so does every method.
    """

    def __init__(self, engine: sa.Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine, self.clock = engine, clock
        prepare(engine, SCHEMA)

    def add(self, owner: str, wanted: Wanted, seen: Mapping[str, str] | None = None) -> Schedule:
        """Keep a schedule; what came before it does not set it off. ``seen``: files that are there already.

        Raises:
            AgentError: there is one of this name, or there are too many. StorageError: the database fails.
        """
        with writing(self._engine) as connection:
            names = connection.scalars(sa.select(_SCHEDULES.c.name).where(_SCHEDULES.c.owner == owner)).all()
            if wanted.name in names:
                raise AgentError(f"there is a schedule {wanted.name} already; give this one another --name")
            if len(names) >= MOST_SCHEDULES:
                raise AgentError(f"there are {MOST_SCHEDULES} schedules already; remove one first")
            now = self.clock()
            found = Schedule(secrets.token_hex(4), owner, wanted, False, now, now, dict(seen or {}))
            connection.execute(
                _SCHEDULES.insert().values(
                    id=found.id,
                    owner=owner,
                    name=wanted.name,
                    goal=wanted.goal,
                    trigger=wanted.trigger.model_dump_json(),
                    workspace=wanted.workspace,
                    tools=None if wanted.tools is None else json.dumps(wanted.tools),
                    steps=wanted.steps,
                    missed=wanted.missed,
                    skip_quiet=wanted.skip_quiet,
                    brief=wanted.brief,
                    paused=False,
                    created=now,
                    checked=now,
                    seen=json.dumps(found.seen),
                )
            )
        return found

    def list(self, owner: str | None = None) -> Sequence[Schedule]:
        """Schedules by name: an owner's, or everybody's."""
        query = sa.select(_SCHEDULES).order_by(_SCHEDULES.c.name, _SCHEDULES.c.id)
        with reading(self._engine) as connection:
            rows = connection.execute(query if owner is None else query.where(_SCHEDULES.c.owner == owner)).all()
        return [_schedule(row) for row in rows]

    def find(self, owner: str, name: str) -> Schedule:
        """The schedule of this name, or whose id it is.

        Raises:
            AgentError: there is none.
        """
        for one in self.list(owner):
            if name in (one.wanted.name, one.id):
                return one
        raise AgentError(f"there is no schedule {name!r:.60}; `qafila agent schedule list` shows them")

    def remove(self, owner: str, name: str) -> Schedule:
        """Remove a schedule and what it has set off but not begun; runs stay.

        Raises:
            AgentError: there is none.
        """
        found = self.find(owner, name)
        with writing(self._engine) as connection:
            connection.execute(_FIRES.delete().where(_FIRES.c.schedule == found.id))
            connection.execute(_SCHEDULES.delete().where(_SCHEDULES.c.id == found.id))
        return found

    def pause(self, owner: str, name: str, paused: bool) -> Schedule:
        """Pause a schedule, or let it go on; what came meanwhile does not set it off.

        Raises:
            AgentError: there is none.
        """
        found = self.find(owner, name)
        values: dict[str, Any] = {"paused": paused} if paused else {"paused": False, "checked": self.clock()}
        with writing(self._engine) as connection:
            connection.execute(_SCHEDULES.update().where(_SCHEDULES.c.id == found.id).values(**values))
        return found

    def announce(self, owner: str, name: str, key: str | None = None) -> Sequence[Schedule]:
        """Set off what waits for a name, or the schedule that is called so; gives which.

        Args:
            owner: whose. name: of the event or schedule. key: the same one sets things off once.

        Raises:
            AgentError: nothing waits for it.
        """
        every = [one for one in self.list(owner) if not one.paused]
        waiting = [one for one in every if one.wanted.trigger == OnName(name=name)]
        found = waiting or [one for one in every if one.wanted.name == name]
        if not found:
            raise AgentError(f"no schedule waits for {name!r:.60}; `qafila agent schedule list` shows them")
        token = key or secrets.token_hex(8)
        with writing(self._engine) as connection:
            for one in found:
                self._insert(connection, Fire(f"{one.id}@{token}", one.id, self.clock(), f"announced: {name}"))
        return found

    def plan(self, planner: Callable[[Schedule], Planned | None]) -> None:
        """Write down what is due, all of it or nothing; two processes that do this never set off the same thing twice.

        Args:
            planner: says what a schedule sets off now; None where it is left as it is.
        """
        every = [(one, planner(one)) for one in self.list() if not one.paused]
        with writing(self._engine) as connection:
            for one, planned in every:
                if planned is None:
                    continue
                values: dict[str, Any] = {"checked": planned.checked}
                if planned.seen is not None:
                    values["seen"] = json.dumps(planned.seen)
                # Another process may have looked since, or the user have paused it.
                same = (_SCHEDULES.c.id == one.id) & (_SCHEDULES.c.checked == one.checked)
                query = _SCHEDULES.update().where(same & _SCHEDULES.c.paused.is_(False)).values(**values)
                if connection.execute(query).rowcount:
                    for fire in planned.fires:
                        self._insert(connection, fire)
            long_ago = self.clock() - _KEPT_DAYS * 86400
            connection.execute(_FIRES.delete().where((_FIRES.c.status != "due") & (_FIRES.c.due < long_ago)))
            connection.execute(_NOTICES.delete().where(_NOTICES.c.read & (_NOTICES.c.at < long_ago)))

    def _insert(self, connection: sa.Connection, fire: Fire) -> None:
        if connection.scalar(sa.select(_FIRES.c.id).where(_FIRES.c.id == fire.id)) is None:
            row = {"id": fire.id, "schedule": fire.schedule, "due": fire.due, "about": fire.about}
            connection.execute(_FIRES.insert().values(**row, status="due"))

    def open_fires(self) -> Sequence[tuple[Fire, Schedule]]:
        """What was set off and has not come to an end, in the order in which it was due."""
        query = sa.select(_FIRES).where(_FIRES.c.status == "due").order_by(_FIRES.c.due, _FIRES.c.id)
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        known = {one.id: one for one in self.list()}
        return [
            (Fire(row.id, row.schedule, row.due, row.about), known[row.schedule])
            for row in rows
            if row.schedule in known and not known[row.schedule].paused
        ]

    def end(self, fire: Fire, schedule: Schedule, status: str, run: str, notice: str | None) -> bool:
        """Write down that something has come to its end, with a notice for the user; False if that was done before."""
        with writing(self._engine) as connection:
            is_open = (_FIRES.c.id == fire.id) & (_FIRES.c.status == "due")
            if not connection.execute(_FIRES.update().where(is_open).values(status=status)).rowcount:
                return False
            if notice is not None:
                row = {"owner": schedule.owner, "schedule": schedule.wanted.name, "run": run, "text": notice}
                connection.execute(_NOTICES.insert().values(**row, at=self.clock(), read=False))
        return True

    def notices(self, owner: str, *, unread: bool = False) -> Sequence[Notice]:
        """Notices, newest first; ``unread``: only those that nobody has read."""
        query = sa.select(_NOTICES).where(_NOTICES.c.owner == owner).order_by(_NOTICES.c.id.desc())
        with reading(self._engine) as connection:
            rows = connection.execute(query.where(_NOTICES.c.read.is_(False)) if unread else query).all()
        return [Notice(row.id, row.schedule, row.run, row.at, row.text, row.read) for row in rows]

    def forget_run(self, connection: sa.Connection, run: str) -> None:
        """Delete what a run had to tell."""
        connection.execute(_NOTICES.delete().where(_NOTICES.c.run == run))

    def mark_read(self, owner: str, notices: Sequence[int]) -> None:
        """These notices have been read."""
        with writing(self._engine) as connection:
            mine = (_NOTICES.c.owner == owner) & _NOTICES.c.id.in_(notices)
            connection.execute(_NOTICES.update().where(mine).values(read=True))


def _schedule(row: Any) -> Schedule:
    wanted = Wanted(
        row.name,
        row.goal,
        TRIGGER.validate_json(row.trigger),
        row.workspace,
        None if row.tools is None else tuple(json.loads(row.tools)),
        row.steps,
        row.missed,
        row.skip_quiet,
        row.brief,
    )
    return Schedule(row.id, row.owner, wanted, row.paused, row.created, row.checked, json.loads(row.seen))
