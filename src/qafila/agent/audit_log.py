"""The audit log: a leaf for every event that was ever written down, in order, and signed checkpoints over all of them.

A leaf holds a commitment to the event, not the event: a hash of it with a secret salt. Erasing a run removes its events
and their salts; the leaves stay, so that the log still verifies, and nothing of the run can be guessed from them.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from qafila.agent.journal_tables import CHECKPOINTS, EVENTS, LOG
from qafila.agent.merkle import leaf_hash, root
from qafila.agent.signing import ORIGIN, Checkpoint, Signer
from qafila.database import reading, writing

_APPEND_LOCK = 0x5146_4C41  # of PostgreSQL's advisory locks: places are given one after another


@dataclass(frozen=True, slots=True)
class Leaf:
    """One event in the log.

    Attributes:
        place: in the log, from 0. run, number: which event. commitment: SHA-256 of salt, time and event, in hex.
        salt: in hex. at: when it happened, in seconds since 1970. body: the event as it is kept; all None once erased.
    """

    place: int
    run: str
    number: int
    commitment: str
    salt: str | None
    at: float | None
    body: str | None

    def hash(self) -> bytes:
        """Its leaf hash in the tree."""
        return leaf_hash(f"{self.place} {self.run} {self.number} {self.commitment}".encode())


def commit(salt: str, at: float, body: str) -> str:
    """A commitment to an event and its time."""
    return hashlib.sha256(bytes.fromhex(salt) + f"{at!r} {body}".encode()).hexdigest()


def append(connection: sa.Connection, run: str, number: int, at: float, body: str) -> None:
    """Add an event to the log, in the transaction that writes it down."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_APPEND_LOCK)))
    place = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(LOG.c.place) + 1, 0)))
    salt = secrets.token_hex(16)
    row = {"place": place, "run": run, "number": number, "commitment": commit(salt, at, body), "salt": salt}
    connection.execute(LOG.insert().values(**row))


class AuditLog:
    """The log of a journal's database.

    Args:
        engine: of the database.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def leaves(self) -> list[Leaf]:
        """All leaves, in order."""
        joined = sa.and_(EVENTS.c.run == LOG.c.run, EVENTS.c.number == LOG.c.number, LOG.c.salt.is_not(None))
        query = (
            sa.select(LOG, EVENTS.c.at, EVENTS.c.body).select_from(LOG.outerjoin(EVENTS, joined)).order_by(LOG.c.place)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [Leaf(r.place, r.run, r.number, r.commitment, r.salt, r.at, r.body) for r in rows]

    def unlogged(self) -> list[tuple[str, int]]:
        """Run and number of events for which nothing stands in the log, or which it takes for erased."""
        joined = sa.and_(EVENTS.c.run == LOG.c.run, EVENTS.c.number == LOG.c.number, LOG.c.salt.is_not(None))
        query = sa.select(EVENTS.c.run, EVENTS.c.number).select_from(EVENTS.outerjoin(LOG, joined))
        with reading(self._engine) as connection:
            rows = connection.execute(query.where(LOG.c.run.is_(None)).order_by(EVENTS.c.run, EVENTS.c.number)).all()
        return [(row.run, row.number) for row in rows]

    def checkpoint(self, signer: Signer) -> str:
        """Sign the log as it is now; gives the note. Kept somewhere else, it shows when the log is cut short later."""
        with writing(self._engine) as connection:
            rows = connection.execute(sa.select(LOG).order_by(LOG.c.place)).all()
            hashes = [Leaf(r.place, r.run, r.number, r.commitment, None, None, None).hash() for r in rows]
            kept = connection.scalar(sa.select(CHECKPOINTS.c.note).where(CHECKPOINTS.c.size == len(hashes)))
            if kept is not None:
                return str(kept)
            note = signer.note(Checkpoint(len(hashes), root(hashes)))
            connection.execute(CHECKPOINTS.insert().values(size=len(hashes), note=note))
        return note

    def checkpoints(self) -> list[str]:
        """All notes, oldest first."""
        with reading(self._engine) as connection:
            return list(connection.scalars(sa.select(CHECKPOINTS.c.note).order_by(CHECKPOINTS.c.size)).all())

    def lines(self, public: str) -> Iterator[str]:
        """The log as JSONL, to be verified anywhere: a head with the public key, leaves, checkpoints.

        Events that never came through the log have lines of their own, which no log that was left alone has.
        """
        yield json.dumps({"audit": ORIGIN, "version": 2, "key": public})
        for leaf in self.leaves():
            row = {"place": leaf.place, "run": leaf.run, "number": leaf.number, "commitment": leaf.commitment}
            yield json.dumps({**row, "salt": leaf.salt, "at": leaf.at, "body": leaf.body}, ensure_ascii=False)
        for run, number in self.unlogged():
            yield json.dumps({"unlogged": True, "run": run, "number": number})
        for note in self.checkpoints():
            yield json.dumps({"checkpoint": note}, ensure_ascii=False)

    def forget(self, connection: sa.Connection, run: str) -> int:
        """Drop the salts of a run, whose events are erased in the same transaction; gives how many there were."""
        erased = connection.execute(LOG.update().where(LOG.c.run == run, LOG.c.salt.is_not(None)).values(salt=None))
        return int(erased.rowcount)
