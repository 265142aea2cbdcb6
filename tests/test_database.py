"""The server's database: one file of its owner's, versions, writers that wait for one another."""

from __future__ import annotations

import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from qafila import database
from qafila.errors import StorageError, UsageError


@pytest.fixture
def counters():
    """A store's schema in a MetaData of its own, so that no other test sees it."""
    table = sa.Table(
        "counters", sa.MetaData(), sa.Column("name", sa.String, primary_key=True), sa.Column("n", sa.Integer)
    )
    return database.Schema("counters", (table,))


@pytest.fixture
def opened(tmp_path):
    engine = database.open_database(f"sqlite:///{tmp_path}/new/server.sqlite3")
    yield engine
    engine.dispose()


def test_the_default_is_a_file_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("QAFILA_HOME", str(tmp_path))
    engine = database.open_database(database.default_url("server"))
    engine.dispose()
    assert (tmp_path / "server.sqlite3").is_file()


def test_only_the_owner_reads_its_files(opened, counters, tmp_path):
    database.prepare(opened, counters)
    with database.writing(opened) as connection:
        connection.execute(counters.tables[0].insert().values(name="a", n=1))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert "server.sqlite3-wal" in modes
    assert set(modes.values()) == {0o600}


def test_writers_in_threads_wait_for_one_another(opened, counters):
    database.prepare(opened, counters)
    table = counters.tables[0]
    with database.writing(opened) as connection:
        connection.execute(table.insert().values(name="a", n=0))

    def add(_):
        with database.writing(opened) as connection:
            n = connection.scalar(sa.select(table.c.n))
            connection.execute(table.update().values(n=n + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(100)))
    with database.reading(opened) as connection:
        assert connection.scalar(sa.select(table.c.n)) == 100


def test_a_reader_waits_for_no_writer(opened, counters):
    database.prepare(opened, counters)
    table = counters.tables[0]
    with database.writing(opened) as writer:
        writer.execute(table.insert().values(name="a", n=1))
        with database.reading(opened) as reader:
            assert reader.scalar(sa.select(sa.func.count()).select_from(table)) == 0


def test_a_failed_block_leaves_nothing(opened, counters):
    database.prepare(opened, counters)
    table = counters.tables[0]

    def fail():
        with database.writing(opened) as connection:
            connection.execute(table.insert().values(name="a", n=1))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with database.reading(opened) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0


def test_older_tables_are_migrated_once_and_newer_ones_refused(opened, counters):
    database.prepare(opened, counters)
    with database.writing(opened) as connection:
        connection.execute(counters.tables[0].insert().values(name="a", n=1))

    def add_column(connection):
        connection.exec_driver_sql("ALTER TABLE counters ADD COLUMN unit TEXT DEFAULT 'km'")

    newer = database.Schema(counters.name, counters.tables, (add_column,))
    database.prepare(opened, newer)
    database.prepare(opened, newer)
    with database.reading(opened) as connection:
        assert connection.exec_driver_sql("SELECT name, n, unit FROM counters").all() == [("a", 1, "km")]
    with pytest.raises(StorageError, match="of version 2, and this Qafila knows 1"):
        database.prepare(opened, counters)


def test_a_migration_that_fails_changes_nothing(opened, counters):
    database.prepare(opened, counters)

    def fail(connection):
        connection.exec_driver_sql("ALTER TABLE counters ADD COLUMN unit TEXT")
        connection.exec_driver_sql("nonsense")

    with pytest.raises(StorageError, match="nonsense"):
        database.prepare(opened, database.Schema(counters.name, counters.tables, (fail,)))
    with database.reading(opened) as connection:
        assert [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(counters)")] == ["name", "n"]
    database.prepare(opened, counters)


def test_servers_that_start_at_once_create_the_tables_once(opened, counters):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: database.prepare(opened, counters), range(8)))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("nothing", "no URL"),
        ("mysql://u@h/d", "mysql is not supported"),
        ("postgresql+psycopg://u:secret@h:port/d", "no URL"),
        ("sqlite:////tmp/none/x.sqlite3?cache=shared", "leave out .cache"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("postgresql+nothing://u:secret@h/d", "postgresql.nothing"),
    ],
)
def test_urls_that_are_refused(url, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        database.open_database(url)
    assert "secret" not in str(caught.value)


def test_who_opens_a_database_that_another_just_makes_waits(tmp_path):
    file = tmp_path / "new.sqlite3"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.2, other.execute, ["COMMIT"]).start()
    engine = database.open_database(f"sqlite:///{file}")
    with database.reading(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()
    other.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file"):
        database.open_database(f"sqlite:///{tmp_path}/file/server.sqlite3")


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "file.sqlite3").write_text("not a database, certainly" * 100)
    with pytest.raises(StorageError, match=r"file\.sqlite3: file is not a database"):
        database.open_database(f"sqlite:///{tmp_path}/file.sqlite3")


def test_a_failure_tells_nothing_of_the_texts(opened, counters):
    database.prepare(opened, counters)
    table = counters.tables[0]

    def add():
        with database.writing(opened) as connection:
            connection.execute(table.insert().values(name="my secret", n=1))

    add()
    with pytest.raises(StorageError) as caught:
        add()
    assert "UNIQUE" in str(caught.value)
    assert "secret" not in str(caught.value)
