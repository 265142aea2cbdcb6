"""What is kept of ``/v1/responses``: each response with its input, and the tokens that its answer was generated as."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from qafila import database
from qafila.database import TABLES, Schema, open_database, prepare, reading, writing
from qafila.text.messages import Message

_RESPONSES = sa.Table(
    "responses",
    TABLES,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("previous", sa.String(128), nullable=True),
    sa.Column("expires", sa.Float, nullable=False, index=True),
    # JSON, all ASCII: PostgreSQL's text knows no NUL, and what people write may hold one.
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("messages", sa.Text, nullable=False),
)

SCHEMA = Schema("responses", (_RESPONSES,))

_ID = re.compile("[a-z]+_[0-9a-f]+")
_DAY = 24 * 3600.0
# How often, in seconds, what has expired is looked for.
_PURGE_EVERY = 3600.0
# Turns of one conversation. Nobody talks that long; a chain that does is a mistake that would read the disk forever.
_MOST_TURNS = 10_000


class BrokenConversationError(Exception):
    """A response that cannot be continued; the message says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One response.

    Attributes:
        body: as it was told. input: its input items.
        messages: what the turn added to the conversation, the answer last and with its token ids.
        previous: id of the response that this one continues.
    """

    body: dict[str, Any]
    input: list[dict[str, Any]]
    messages: tuple[Message, ...]
    previous: str | None = None


class ResponseStore:
    """Responses in a database. Methods block; call them in threads. Several threads and processes may.

    A caller sees its own responses only. A response is kept for some days after its conversation was last continued.

    Args:
        engine: of `open_database`; `close` disposes of it. days: that a response is kept.
        clock: seconds since 1970.

    Raises:
        StorageError: the database fails; so does every method.
    """

    def __init__(self, engine: sa.Engine, *, days: float = 30, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._seconds, self._clock = engine, days * _DAY, clock
        self._purged = 0.0
        self._lock = threading.Lock()
        prepare(engine, SCHEMA)
        self._purge()

    @classmethod
    def open(cls, url: str | None = None, *, days: float = 30) -> ResponseStore:
        """A store at a URL, by default a SQLite file in the root of the model cache.

        Raises:
            UsageError: no URL of a database that can be used.
        """
        return cls(open_database(database.default_url("server") if url is None else url), days=days)

    def save(self, tenant: str, caller: str, kept: Kept) -> None:
        """Keep a response."""
        self._purge()
        row = {
            "id": kept.body["id"], "tenant": tenant, "caller": caller, "previous": kept.previous,
            "expires": self._clock() + self._seconds, "body": json.dumps(kept.body), "input": json.dumps(kept.input),
            "messages": json.dumps([message.to_dict() for message in kept.messages]),
        }  # fmt: skip
        with writing(self._engine) as connection:
            connection.execute(_RESPONSES.insert().values(row))

    def get(self, tenant: str, caller: str, response: str) -> Kept | None:
        """A response by id; None where the caller has no such one."""
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(_RESPONSES).where(self._owned(tenant, caller, response))).first()
        if row is None:
            return None
        return Kept(json.loads(row.body), json.loads(row.input), _messages(row.messages), row.previous)

    def delete(self, tenant: str, caller: str, response: str) -> bool:
        """Forget a response; whether there was one."""
        with writing(self._engine) as connection:
            return bool(connection.execute(_RESPONSES.delete().where(self._owned(tenant, caller, response))).rowcount)

    def conversation(self, tenant: str, caller: str, response: str) -> list[Message]:
        """All messages up to a response, oldest first; what is kept of them is kept as long as if it were new.

        Raises:
            BrokenConversationError: there is no such response, or one before it was deleted.
        """
        step = sa.select(_RESPONSES.c.id, _RESPONSES.c.previous, sa.literal(0).label("back"))
        chain = step.where(self._owned(tenant, caller, response)).cte("chain", recursive=True)
        older = _RESPONSES.alias("older")
        # Not its own check of the owner: a response continues only one of the same owner.
        chain = chain.union_all(
            sa.select(older.c.id, older.c.previous, chain.c.back + 1).where(
                older.c.id == chain.c.previous, chain.c.back < _MOST_TURNS
            )
        )
        joined = sa.select(_RESPONSES.c.id, _RESPONSES.c.previous, _RESPONSES.c.messages)
        query = joined.join(chain, chain.c.id == _RESPONSES.c.id).order_by(chain.c.back.desc())
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        if not rows:
            raise BrokenConversationError("there is no such response, or no longer")
        if rows[0].previous is not None:
            raise BrokenConversationError("an earlier response of its conversation was deleted")
        self._renew([row.id for row in rows])
        return [message for row in rows for message in _messages(row.messages)]

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _owned(self, tenant: str, caller: str, response: str) -> sa.ColumnElement[bool]:
        if not _ID.fullmatch(response):  # PostgreSQL takes no NUL even to compare with
            return sa.false()
        return sa.and_(
            _RESPONSES.c.id == response,
            _RESPONSES.c.tenant == tenant,
            _RESPONSES.c.caller == caller,
            _RESPONSES.c.expires > self._clock(),
        )

    def _renew(self, ids: Sequence[str]) -> None:
        expires = self._clock() + self._seconds
        with writing(self._engine) as connection:
            for start in range(0, len(ids), 500):  # SQLite takes 999 parameters at least
                some = ids[start : start + 500]
                connection.execute(_RESPONSES.update().where(_RESPONSES.c.id.in_(some)).values(expires=expires))

    def _purge(self) -> None:
        with self._lock:
            now = self._clock()
            if now < self._purged + _PURGE_EVERY:
                return
            self._purged = now
        with writing(self._engine) as connection:
            connection.execute(_RESPONSES.delete().where(_RESPONSES.c.expires <= now))


def _messages(text: str) -> tuple[Message, ...]:
    return tuple(Message.from_dict(one) for one in json.loads(text))
