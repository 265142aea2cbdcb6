"""The database of what is kept between runs: SQLite in the user's cache, or PostgreSQL where its URL says so.

Each store (answers, keys, ...) declares its tables on ``TABLES`` and lists them in a `Schema`. It opens the database
with `open_database`, brings its tables up to date with `prepare`, reads in `reading` and writes in `writing`. Engines
are synchronous: call them in threads (``asyncio.to_thread``).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from qafila.errors import StorageError, UsageError
from qafila.weights.cache import home

TABLES = sa.MetaData()

_VERSIONS = sa.Table(
    "schema_versions",
    TABLES,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

# How long a writer waits for another, in milliseconds; writes take a few.
_BUSY_MS = 10_000
# A key of PostgreSQL's advisory locks: two servers that start at once create tables one after the other.
_PREPARE_LOCK = 0x5146_4C31


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one store.

    Attributes:
        name: of the store. tables: its tables, on ``TABLES``, as they are now.
        migrations: what makes version i + 2 of a database of version i + 1; their number says which version is now.
    """

    name: str
    tables: tuple[sa.Table, ...]
    migrations: tuple[Callable[[sa.Connection], None], ...] = ()

    @property
    def version(self) -> int:
        """The version that this code reads and writes."""
        return len(self.migrations) + 1


def default_url(name: str) -> str:
    """The URL of ``NAME.sqlite3`` in the root of the model cache (``QAFILA_HOME``)."""
    return sa.URL.create("sqlite", database=str(home() / f"{name}.sqlite3")).render_as_string()


def open_database(url: str, *, durable: bool = False) -> sa.Engine:
    """An engine for a database, which a SQLite file becomes if it is not there (readable by its owner alone).

    Args:
        url: as SQLAlchemy writes it: ``sqlite:////path``, ``postgresql+psycopg://user:password@host/name``.
        durable: what is written survives a loss of power as well, for which SQLite waits for the disk each time.

    Raises:
        UsageError: no URL, or one of a database that cannot be used. StorageError: it cannot be opened.
    """
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # the latter where the port is no number
        raise UsageError("database: no URL such as sqlite:////path or postgresql+psycopg://user@host/name") from None
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise UsageError(f"database: {kind} is not supported; use sqlite or postgresql")
    if kind == "sqlite" and (not parsed.database or parsed.database == ":memory:" or "mode=memory" in url):
        raise UsageError("database: SQLite in memory is not shared between threads; name a file")
    if kind == "sqlite" and parsed.query:
        raise UsageError(f"database: SQLite takes no options; leave out ?{next(iter(parsed.query)):.40}")
    try:
        if kind == "sqlite":
            assert parsed.database is not None
            _own_file(Path(parsed.database))
            engine = sa.create_engine(parsed)
            sa.event.listen(engine, "connect", _set_up_sqlite)
            if durable:
                sa.event.listen(engine, "connect", _wait_for_the_disk)
            sa.event.listen(engine, "begin", _begin_sqlite)
        else:
            engine = sa.create_engine(parsed, pool_pre_ping=True)
    except (ImportError, NoSuchModuleError) as error:
        missing = getattr(error, "name", None) or parsed.drivername
        raise UsageError(f"database: {parsed.drivername} needs {missing}, which is not installed") from None
    with _told(engine), engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    return engine


def prepare(engine: sa.Engine, schema: Schema) -> None:
    """Create the tables of a store, or bring older ones up to date, all or nothing.

    Raises:
        StorageError: a newer Qafila wrote them, or the database fails.
    """
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PREPARE_LOCK)))
        _VERSIONS.create(connection, checkfirst=True)
        found = connection.scalar(sa.select(_VERSIONS.c.version).where(_VERSIONS.c.name == schema.name))
        if found is None:
            TABLES.create_all(connection, tables=list(schema.tables))
            connection.execute(_VERSIONS.insert().values(name=schema.name, version=schema.version))
            return
        if found > schema.version:
            raise StorageError(
                f"database: its {schema.name} are of version {found}, and this Qafila knows {schema.version}; "
                "use a newer one, or another database"
            )
        if found < schema.version:
            for migrate in schema.migrations[found - 1 :]:
                migrate(connection)
            connection.execute(_VERSIONS.update().where(_VERSIONS.c.name == schema.name).values(version=schema.version))


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that is committed at the end of the block, and of which nothing stays if the block raises.

    Raises:
        StorageError: the database fails.
    """
    with _told(engine), engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection that only reads: it sees one state of the database and waits for no writer.

    Raises:
        StorageError: the database fails.
    """
    with _told(engine), engine.connect().execution_options(qafila_reads=True) as connection:
        yield connection


@contextmanager
def _told(engine: sa.Engine) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        # The driver's own words: SQLAlchemy's hold the statement's parameters, which are people's texts.
        cause = str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0]
        where = engine.url.render_as_string(hide_password=True)
        raise StorageError(f"database {where}: {cause}") from None


def _own_file(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite gives its -wal and -shm files the mode of this one.
        # A file that is there is not touched: closing it would drop the locks that other connections of this process
        # hold on it (POSIX), and another process would then take their -wal file away.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise StorageError(f"database {path}: {error.strerror or error}") from None


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says so
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    _write_ahead(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    """Readers and a writer side by side; where others are just making the database, for this SQLite does not wait."""
    until = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _wait_for_the_disk(connection: Any, _: object) -> None:
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that first reads and then writes fails at once where another wrote in between; one that says from
    # the start that it will write waits its turn.
    reads = connection.get_execution_options().get("qafila_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
