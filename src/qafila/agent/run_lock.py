"""The lock of a run: one process works on it, and the lock ends with that process, however that ends.

Beside a SQLite database it is a file's (flock), in PostgreSQL an advisory one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa

from qafila.errors import AgentError, StorageError

_LOCK = 0x51414745  # PostgreSQL's advisory locks: this, and a number made of the run's id


class BusyError(AgentError):
    """Another process works on the run."""


@contextlib.contextmanager
def run_lock(engine: sa.Engine, run: str, patience: float) -> Iterator[None]:
    """Hold the lock of a run.

    Args:
        engine: of the database. run: its id. patience: seconds before somebody else is believed to hold it.

    Raises:
        BusyError: another process holds it. StorageError: it cannot be made.
    """
    busy = BusyError(f"run {run} is being worked on by another process; wait for it, or stop it first")
    if engine.dialect.name == "postgresql":
        number = int.from_bytes(hashlib.sha256(run.encode()).digest()[:4], "big", signed=True)
        with engine.connect() as connection:
            locked = sa.select(sa.func.pg_try_advisory_lock(_LOCK, number))
            if not _soon(lambda: bool(connection.scalar(locked)), patience):
                raise busy
            connection.commit()
            try:
                yield
            finally:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(_LOCK, number)))
        return
    database = engine.url.database
    assert database is not None
    locks = Path(f"{database}.runs")
    try:
        locks.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(locks / run, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{locks / run}: {error.strerror}") from None
    try:
        if not _soon(lambda: _locked(descriptor), patience):
            raise busy
        yield
    finally:
        os.close(descriptor)


def _soon(tried: Callable[[], bool], patience: float) -> bool:
    """Whether something works, now or within so many seconds."""
    end = time.monotonic() + patience
    while not tried():
        if time.monotonic() >= end:
            return False
        time.sleep(0.02)
    return True


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
