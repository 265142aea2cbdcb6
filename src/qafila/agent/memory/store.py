"""The memory: entries of the user's profile, facts, and episodes, in the database of the runs.

Every entry says where it came from, and whether it is in the user's own words. What a model wants to keep in words that
are not the user's is only proposed: it is told to nobody until the user has kept it.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import sqlalchemy as sa

from qafila.agent.memory.search import WordIndex
from qafila.agent.observation import whole_letters
from qafila.agent.spelling import plain
from qafila.database import TABLES, Schema, prepare, reading, writing
from qafila.errors import AgentError

Kind: TypeAlias = Literal["profile", "fact", "episode"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Standing: TypeAlias = Literal["kept", "proposed"]

#: Characters of an entry; entries that a user keeps; proposals and episodes, of which the oldest fade.
MOST_TEXT, MOST_KEPT, MOST_PROPOSED, MOST_EPISODES = 600, 1000, 100, 300

_ENTRIES = sa.Table(
    "agent_memory",
    TABLES,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("source", sa.String(200), nullable=False),
    sa.Column("run", sa.String(32), index=True),
    sa.Column("key", sa.String(64), unique=True),
    sa.Column("trusted", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("changed", sa.Float, nullable=False),
)
SCHEMA = Schema("agent_memory", (_ENTRIES,))


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that is remembered.

    Attributes:
        source: where it came from: ``user``, or which tool of which run. run: its id, where there is one.
        trusted: the text is the user's own words. state: ``proposed`` entries are told to no model.
        created, changed: seconds since 1970.
    """

    id: str
    kind: Kind
    text: str
    source: str
    trusted: bool
    state: Standing
    created: float
    changed: float
    run: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; times in whole seconds, ``run`` only where there is one."""
        body: dict[str, Any] = {
            "id": self.id,
            "kind": self.kind,
            "text": self.text,
            "source": self.source,
            "trusted": self.trusted,
            "state": self.state,
            "created": int(self.created),
            "changed": int(self.changed),
        }
        return body if self.run is None else {**body, "run": self.run}


class Memory:
    """What is remembered of each owner; an owner never sees another one's.

    Args:
        engine: of the database, see `qafila.database.open_database`. clock: seconds since 1970.

    Raises:
        StorageError: the database fails; so does every method.
    """

    def __init__(self, engine: sa.Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine, clock
        self._index = WordIndex(engine.dialect.name)
        prepare(engine, SCHEMA)
        with writing(engine) as connection:
            self._index.prepare(connection)

    def add(
        self,
        owner: str,
        kind: Kind,
        text: str,
        *,
        source: str = "user",
        trusted: bool = True,
        state: Standing = "kept",
        run: str | None = None,
        key: str | None = None,
    ) -> Entry:
        """Keep a text, or propose it; gives its entry, or the one that says the same already.

        Args:
            owner: whose. kind, text, source, trusted, state, run: as in `Entry`.
            key: stands for this very entry in every attempt to keep it.

        Raises:
            AgentError: the text is empty or too long, or there are too many entries. StorageError: the database fails.
        """
        text = _checked(kind, text)
        with writing(self._engine) as connection:
            every = self._all(connection, owner)
            if key is not None:
                again = connection.scalar(sa.select(_ENTRIES.c.id).where(_ENTRIES.c.key == key))
                before = [one for one in every if one.id == again]
                if before:
                    return before[0]
            same = [one for one in every if kind == one.kind != "episode" and plain(one.text) == plain(text)]
            if same:
                return self._once_more(connection, same[0], text, trusted, state)
            if state == "kept" and kind != "episode" and sum(_lasts(one) for one in every) >= MOST_KEPT:
                raise AgentError(f"memory: {MOST_KEPT} entries are kept already; `qafila memory forget` makes room")
            now = self._clock()
            entry = Entry(secrets.token_hex(4), kind, text, source, trusted, state, now, now, run)
            row = {name: getattr(entry, name) for name in Entry.__slots__}
            connection.execute(_ENTRIES.insert().values(owner=owner, key=key, **row))
            self._index.put(connection, entry.id, text)
            return entry

    def _once_more(self, connection: sa.Connection, entry: Entry, text: str, trusted: bool, state: Standing) -> Entry:
        """The entry, kept if it is now, and in the user's own words if the user says it now."""
        if trusted and not entry.trusted:
            entry = replace(entry, text=text, trusted=True, source="user")
            self._let_go(connection, entry)
        elif entry.state == "kept" or state == "proposed":
            return entry
        return self._update(connection, replace(entry, state="kept" if state == "kept" else entry.state))

    @staticmethod
    def _let_go(connection: sa.Connection, entry: Entry) -> None:
        """What the user says now is no call's any more, and not taken back with it."""
        connection.execute(_ENTRIES.update().where(_ENTRIES.c.id == entry.id).values(key=None))

    def _update(self, connection: sa.Connection, entry: Entry) -> Entry:
        entry = replace(entry, changed=self._clock())
        values = {name: getattr(entry, name) for name in ("text", "trusted", "state", "changed", "source")}
        connection.execute(_ENTRIES.update().where(_ENTRIES.c.id == entry.id).values(**values))
        self._index.put(connection, entry.id, entry.text)
        return entry

    def edit(self, owner: str, entry: str, text: str) -> Entry:
        """Put the user's words in an entry's place: it is kept, and the user's own from then on.

        Raises:
            AgentError: no such entry, or the text is empty or too long. StorageError: the database fails.
        """
        with writing(self._engine) as connection:
            found = self._one(connection, owner, entry)
            text = _checked(found.kind, text)
            self._let_go(connection, found)
            return self._update(connection, replace(found, text=text, trusted=True, state="kept", source="user"))

    def keep(self, owner: str, entry: str) -> Entry:
        """Keep what was proposed; that the words are not the user's own stays true.

        Raises:
            AgentError: no such entry. StorageError: the database fails.
        """
        with writing(self._engine) as connection:
            return self._update(connection, replace(self._one(connection, owner, entry), state="kept"))

    def forget(self, owner: str, entry: str) -> Entry:
        """Delete an entry, in the index and on the disk as well; gives what it was.

        The journal of the run that it came from still tells of it, until that is erased.

        Raises:
            AgentError: no such entry. StorageError: the database fails.
        """
        with writing(self._engine) as connection:
            found = self._one(connection, owner, entry)
            self._delete(connection, [found.id])
        self._wipe()
        return found

    def forget_run(self, connection: sa.Connection, run: str) -> None:
        """Delete what a run left by itself: its episode, and what it proposed. What the user kept stays."""
        by_itself = (_ENTRIES.c.kind == "episode") | (_ENTRIES.c.state == "proposed")
        found = connection.scalars(sa.select(_ENTRIES.c.id).where((_ENTRIES.c.run == run) & by_itself)).all()
        self._delete(connection, list(found))

    def take_back(self, key: str) -> Entry | None:
        """Delete the entry of this key and give what it was; None where there is none (any more)."""
        with writing(self._engine) as connection:
            row = connection.execute(sa.select(_ENTRIES).where(_ENTRIES.c.key == key)).one_or_none()
            if row is not None:
                self._delete(connection, [row.id])
        if row is None:
            return None
        self._wipe()
        return _entry(row)

    def holds(self, key: str) -> bool:
        """Whether there is an entry of this key."""
        with reading(self._engine) as connection:
            return connection.scalar(sa.select(_ENTRIES.c.id).where(_ENTRIES.c.key == key)) is not None

    def consolidate(self, owner: str) -> None:
        """Make one of facts that say the same, and let the oldest episodes and proposals fade."""
        with writing(self._engine) as connection:
            every = list(reversed(self._all(connection, owner)))  # oldest first
            known: dict[tuple[str, str], Entry] = {}
            gone: list[str] = []
            # What is kept takes in what is proposed, and the oldest what came later.
            for one in sorted((one for one in every if one.kind != "episode"), key=lambda one: one.state != "kept"):
                same = (one.kind, plain(one.text))
                first = known.setdefault(same, one)
                if first.id != one.id:
                    gone.append(one.id)
                    known[same] = self._once_more(connection, first, one.text, one.trusted, one.state)
            for fades, most in (
                ([one.id for one in every if one.kind == "episode"], MOST_EPISODES),
                ([one.id for one in every if one.state == "proposed" and one.id not in gone], MOST_PROPOSED),
            ):
                gone += fades[: max(0, len(fades) - most)]
            self._delete(connection, gone)

    def find(self, owner: str, start: str) -> Entry:
        """The one entry whose id begins so.

        Raises:
            AgentError: there is none, or more than one.
        """
        with reading(self._engine) as connection:
            found = [one for one in self._all(connection, owner) if start and one.id.startswith(start)]
        if len(found) != 1:
            many = (
                "more than one entry of the memory begins" if found else "there is no entry in the memory that begins"
            )
            raise AgentError(f"{many} with {start!r:.40}; `qafila memory` lists them")
        return found[0]

    def list(
        self,
        owner: str,
        *,
        kind: Kind | None = None,
        state: Standing | None = None,
        words: str | None = None,
        most: int | None = None,
    ) -> Sequence[Entry]:
        """Entries, newest first, or those that hold words of ``words``, best first.

        Args:
            owner: whose. kind, state: only these. words: what is looked for. most: how many, at most.
        """
        with reading(self._engine) as connection:
            every = self._all(connection, owner)
            chosen = [one for one in every if kind in (None, one.kind) and state in (None, one.state)]
            if words is not None:
                by_id = {one.id: one for one in chosen}
                order = self._index.ranked(connection, words, [(one.id, one.text) for one in chosen])
                chosen = [by_id[found] for found in order]
        return chosen[:most]

    def _all(self, connection: sa.Connection, owner: str) -> Sequence[Entry]:
        query = sa.select(_ENTRIES).where(_ENTRIES.c.owner == owner)
        rows = connection.execute(query.order_by(_ENTRIES.c.created.desc(), _ENTRIES.c.id)).all()
        return [_entry(row) for row in rows]

    def _one(self, connection: sa.Connection, owner: str, entry: str) -> Entry:
        query = sa.select(_ENTRIES).where((_ENTRIES.c.owner == owner) & (_ENTRIES.c.id == entry))
        row = connection.execute(query).one_or_none()
        if row is None:
            raise AgentError(f"there is no entry {entry!r:.40} in the memory; `qafila memory` lists them")
        return _entry(row)

    def _delete(self, connection: sa.Connection, entries: Sequence[str]) -> None:
        if self._engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA secure_delete=ON")  # freed bytes are overwritten
        if entries:
            connection.execute(_ENTRIES.delete().where(_ENTRIES.c.id.in_(entries)))
            self._index.drop(connection, entries)

    def _wipe(self) -> None:
        """Empty SQLite's write-ahead log, which still holds pages as they were; a reader in the way delays it."""
        if self._engine.dialect.name == "sqlite":
            with contextlib.suppress(sqlite3.Error), self._engine.connect() as connection:
                raw = connection.connection.driver_connection
                assert raw is not None
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _lasts(entry: Entry) -> bool:
    return entry.kind != "episode" and entry.state == "kept"


def _entry(row: Any) -> Entry:
    return Entry(**{name: getattr(row, name) for name in Entry.__slots__})


def _checked(kind: str, text: str) -> str:
    if kind not in KINDS:
        raise AgentError(f"memory: {kind!r:.40} is none of {', '.join(KINDS)}")
    text = " ".join(text.split())
    if not text:
        raise AgentError("memory: there is nothing to keep: the text is empty")
    if text != whole_letters(text) or any(unicodedata.category(letter) == "Cc" for letter in text):
        raise AgentError("memory: the text is none: it holds control characters or halves of letters")
    if len(text) > MOST_TEXT:
        raise AgentError(f"memory: an entry has {MOST_TEXT} characters at most, and this one {len(text)}")
    return text
