"""API keys: made, kept as hashes, and recognised.

A key is ``qfl_ID_SECRET``: a public part of 10 letters by which it is found, and 256 random bits. What is stored is the
SHA-256 of the whole; a slow hash would add nothing, because nobody guesses 256 random bits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from qafila.database import TABLES, Schema, prepare, reading, writing
from qafila.errors import UsageError
from qafila.server.service import Caller

# What a scope allows is in `qafila.server.guard`; "admin" allows everything.
SCOPES = ("inference", "models", "agent", "metrics", "admin")
DEFAULT_SCOPES = frozenset({"inference", "models"})
PREFIX = "qfl_"
# A string chosen by a person has to be long enough that nobody finds it by trying.
STATIC_LENGTH = 16

_ID_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
_SHAPE = re.compile(rf"qfl_([{_ID_LETTERS}]{{10}})_[A-Za-z0-9_-]{{43}}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")

_KEYS = sa.Table(
    "api_keys",
    TABLES,
    sa.Column("id", sa.String(10), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
    sa.Column("scopes", sa.String(128), nullable=False),
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("tokens_per_minute", sa.Integer),
    sa.Column("max_concurrent", sa.Integer),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("revoked", sa.Float),
)
_SCHEMA = Schema("keys", (_KEYS,))


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept; times are seconds since 1970.

    Attributes:
        id: its public part. name: what people call it, unique. hash: SHA-256 of the key.
        scopes: what it may do. requests_per_minute, tokens_per_minute, max_concurrent: its limits; None: the server's.
    """

    id: str
    name: str
    hash: bytes
    scopes: frozenset[str] = DEFAULT_SCOPES
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"

    def caller(self, *, share_cache: bool) -> Caller:
        """Who a request with this key comes from."""
        return Caller(
            name=self.name,
            tenant="" if share_cache else f"key:{self.id}",
            scopes=self.scopes,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            max_concurrent=self.max_concurrent,
        )


def digest(key: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def check_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """Scopes as a set, or those of a key for which none were given.

    Raises:
        UsageError: there is no such scope.
    """
    found = frozenset(scopes)
    for scope in sorted(found - set(SCOPES)):
        raise UsageError(f"--scope: there is no scope {scope!r:.40}; there are {', '.join(SCOPES)}")
    return found or DEFAULT_SCOPES


class KeyStore:
    """The keys in a database. Calls block: make them in a thread.

    Args:
        engine: of the database, see `qafila.database.open_database`. clock: seconds since 1970.

    Raises:
        StorageError: the database fails; so does every method.
    """

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine, clock
        prepare(engine, _SCHEMA)

    def create(
        self,
        name: str,
        *,
        scopes: Iterable[str] = (),
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_concurrent: int | None = None,
        lifetime: float | None = None,
    ) -> tuple[str, Key]:
        """A new key, which nobody can read again later, and what is kept of it.

        Args:
            name: unique. scopes: by default ``inference`` and ``models``. lifetime: in seconds; None: for ever.

        Raises:
            UsageError: a name that is taken or no name, no such scope, or a limit below 1.
        """
        if name == Caller().name:
            raise UsageError(f"{name}: that is what requests without a key are called; choose another name")
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r:.80}: a key's name is 1 to 64 letters, digits and . _ @ - (a letter first)")
        numbers = {
            "--requests-per-minute": requests_per_minute,
            "--tokens-per-minute": tokens_per_minute,
            "--max-concurrent": max_concurrent,
            "--expires": lifetime,
        }
        for option, value in numbers.items():
            if value is not None and value <= 0:
                raise UsageError(f"{option}: must be above 0, not {value}")
        now = self._clock()
        text, key_id, hashed = _new_secret()
        key = Key(
            key_id,
            name,
            hashed,
            check_scopes(scopes),
            requests_per_minute,
            tokens_per_minute,
            max_concurrent,
            now,
            None if lifetime is None else now + lifetime,
        )
        with writing(self._engine) as connection:
            self._must_be_free(connection, name)
            connection.execute(_KEYS.insert().values(**_row(key)))
        return text, key

    def listed(self) -> list[Key]:
        """All keys, revoked ones too, in the order they were made."""
        with reading(self._engine) as connection:
            return [_key(row) for row in connection.execute(sa.select(_KEYS).order_by(_KEYS.c.created, _KEYS.c.id))]

    def find(self, key_id: str) -> Key | None:
        """The key with this public part."""
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(_KEYS).where(_KEYS.c.id == key_id)).first()
        return None if row is None else _key(row)

    def has_any(self) -> bool:
        """Whether a key was ever made here: revoking the last one does not open the server."""
        with reading(self._engine) as connection:
            return connection.execute(sa.select(_KEYS.c.id).limit(1)).first() is not None

    def revoke(self, name: str) -> Key:
        """Make a key worthless, for ever.

        Raises:
            UsageError: there is no such key, or it is revoked already.
        """
        with writing(self._engine) as connection:
            key = self._named(connection, name)
            # The name becomes free for another key; what the log said of this one stays readable.
            gone = replace(key, revoked=self._clock(), name=f"{key.name[:40]}~{key.id}")
            connection.execute(_KEYS.update().where(_KEYS.c.id == key.id).values(revoked=gone.revoked, name=gone.name))
        return replace(gone, name=key.name)

    def rotate(self, name: str) -> tuple[str, Key]:
        """A new secret for a key, whose old one is worthless from now on; limits, scopes and expiry stay.

        Raises:
            UsageError: there is no such key, or it is revoked.
        """
        text, key_id, hashed = _new_secret()
        with writing(self._engine) as connection:
            old = self._named(connection, name)
            key = replace(old, id=key_id, hash=hashed)
            connection.execute(_KEYS.update().where(_KEYS.c.id == old.id).values(id=key_id, hash=hashed))
        return text, key

    def _must_be_free(self, connection: sa.Connection, name: str) -> None:
        if connection.execute(sa.select(_KEYS.c.id).where(_KEYS.c.name == name)).first() is not None:
            raise UsageError(f"{name}: there is a key of that name; `qafila keys rotate {name}` gives it a new secret")

    def _named(self, connection: sa.Connection, name: str) -> Key:
        row = connection.execute(sa.select(_KEYS).where(_KEYS.c.name == name, _KEYS.c.revoked.is_(None))).first()
        if row is None:
            raise UsageError(f"{name!r:.80}: there is no such key; `qafila keys list` names them")
        return _key(row)


def _new_secret() -> tuple[str, str, bytes]:
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(10))
    text = f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    return text, key_id, digest(text)


def _row(key: Key) -> dict[str, Any]:
    return {
        "id": key.id, "name": key.name, "hash": key.hash, "scopes": " ".join(sorted(key.scopes)),
        "requests_per_minute": key.requests_per_minute, "tokens_per_minute": key.tokens_per_minute,
        "max_concurrent": key.max_concurrent, "created": key.created, "expires": key.expires, "revoked": key.revoked,
    }  # fmt: skip


def _key(row: Any) -> Key:
    return Key(
        row.id, row.name, bytes(row.hash), frozenset(row.scopes.split()), row.requests_per_minute,
        row.tokens_per_minute, row.max_concurrent, row.created, row.expires, row.revoked,
    )  # fmt: skip


def static_keys(texts: Sequence[str], source: str) -> list[Key]:
    """Keys that an operator wrote down: they never expire and may do everything but administer.

    Args:
        texts: the keys. source: where they are from, for messages and as their name.

    Raises:
        UsageError: one is too short, or holds what no header can; the message does not show it.
    """
    keys: list[Key] = []
    for number, text in enumerate(texts, 1):
        if len(text) < STATIC_LENGTH or not text.isascii() or not text.isprintable() or " " in text:
            raise UsageError(
                f"{source}: key {number} must be {STATIC_LENGTH} or more printable characters without spaces; "
                "`openssl rand -hex 32` makes one"
            )
        hashed = digest(text)
        scopes = DEFAULT_SCOPES | {"agent", "metrics"}
        name = f"{source.lstrip('-').lower().replace('_', '-')}-{number}"
        keys.append(Key(hashed.hex()[:10], name, hashed, scopes))
    return keys


@dataclass(frozen=True, slots=True)
class Unknown:
    """Why a key is not accepted: ``unknown``, ``expired`` or ``revoked``."""

    reason: str


class Keyring:
    """Recognises keys: those of a store, and those an operator wrote down.

    What the store said of a key is remembered for a second, so a revoked key is refused a second later at most, and
    few requests touch the database.

    Args:
        static: keys that are not in the store. store: None for none. clock: seconds since 1970.
    """

    def __init__(
        self,
        static: Sequence[Key] = (),
        store: KeyStore | None = None,
        *,
        clock: Callable[[], float] = time.time,
        remembered_s: float = 1.0,
        most: int = 4096,
    ) -> None:
        self._static, self._store, self._clock = tuple(static), store, clock
        self._remembered_s, self._most = remembered_s, most
        self._seen: OrderedDict[str, tuple[float, Key | None]] = OrderedDict()
        self._lock = threading.Lock()
        self._required = bool(static)
        self._asked = -float("inf")

    def required(self) -> bool:
        """Whether there are keys, so that a request without one is a stranger's. May block for the database."""
        if not self._required and self._store is not None and self._clock() - self._asked >= self._remembered_s:
            self._asked = self._clock()
            self._required = self._store.has_any()
        return self._required

    def fresh(self, presented: str | None) -> bool:
        """Whether `required` and `recognise` would answer at once, without the database."""
        now = self._clock()
        if self._store is None:
            return True
        if not self._required and now - self._asked >= self._remembered_s:
            return False
        match = _SHAPE.fullmatch(presented) if presented else None
        if match is None:
            return True
        with self._lock:
            found = self._seen.get(match[1])
        return found is not None and now - found[0] < self._remembered_s

    def recognise(self, presented: str) -> Key | Unknown:
        """The key that a request shows. May block for the database."""
        hashed = digest(presented)
        match: Key | None = None
        for key in self._static:  # all of them: how long it takes tells nothing of which
            if hmac.compare_digest(key.hash, hashed):
                match = key
        if match is not None:
            return match
        shape = _SHAPE.fullmatch(presented)
        if shape is None or self._store is None:
            return Unknown("unknown")
        found = self._look_up(shape[1])
        if found is None or not hmac.compare_digest(found.hash, hashed):
            return Unknown("unknown")
        state = found.state(self._clock())
        return found if state == "active" else Unknown(state)

    def by_id(self, key_id: str) -> Key | None:
        """The key with this public part, as long as it is active. May block for the database."""
        key = next((key for key in self._static if key.id == key_id), None)
        if key is None and self._store is not None:
            key = self._store.find(key_id)
        return key if key is not None and key.state(self._clock()) == "active" else None

    def _look_up(self, key_id: str) -> Key | None:
        assert self._store is not None
        now = self._clock()
        with self._lock:
            seen = self._seen.get(key_id)
            if seen is not None and now - seen[0] < self._remembered_s:
                return seen[1]
        key = self._store.find(key_id)
        with self._lock:
            self._seen[key_id] = (now, key)
            self._seen.move_to_end(key_id)
            while len(self._seen) > self._most:
                self._seen.popitem(last=False)
        return key
