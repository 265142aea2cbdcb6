"""The server's stores on PostgreSQL: a cluster for the length of the tests, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from qafila import database
from qafila.agent.events import Began, Budget, Prices
from qafila.agent.journal import Journal
from qafila.agent.schedules import triggers
from qafila.agent.schedules.planner import Planner
from qafila.agent.schedules.store import Wanted
from qafila.errors import AgentError, StorageError
from qafila.server.responses_store import BrokenConversationError, Kept, ResponseStore
from qafila.text.messages import Message

pytestmark = pytest.mark.slow


def program(name):
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((str(folder / name) for folder in folders if (folder / name).exists()), shutil.which(name))


@pytest.fixture(scope="module")
def url():
    pytest.importorskip("psycopg")
    initdb, control = program("initdb"), program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("PostgreSQL is not installed")
    # It refuses to run as root.
    user = pwd.getpwnam("nobody").pw_name if os.geteuid() == 0 else None
    # Not pytest's folder: the path of a socket is short, and nobody may not look into root's folders.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        if user is not None:
            shutil.chown(folder, user)

        def call(*command):
            done = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr

        data = f"{folder}/data"
        call(initdb, "--pgdata", data, "--username", "qafila", "--auth", "trust", "--no-sync", "--encoding", "UTF8")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        call(control, "--pgdata", data, "--log", f"{folder}/log", "--wait", "--options", options, "start")
        try:
            yield f"postgresql+psycopg://qafila@/postgres?host={folder}"
        finally:
            call(control, "--pgdata", data, "--mode", "immediate", "stop")


@pytest.fixture
def store(url):
    made = ResponseStore.open(url)
    yield made
    made.close()


def kept(number, previous=None, text="Hello"):
    body = {"id": f"resp_{number:048x}", "metadata": {"a": text}}
    return Kept(body, [{"text": text}], (Message("user", text), Message("assistant", text, ids=(1, 2))), previous)


def test_servers_that_start_at_once_create_the_tables_once(url):
    engine = database.open_database(url)
    table = sa.Table("counters", sa.MetaData(), sa.Column("n", sa.Integer))
    schema = database.Schema("counters", (table,))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: database.prepare(engine, schema), range(8)))
    with database.reading(engine) as connection:
        assert connection.exec_driver_sql("SELECT version FROM schema_versions WHERE name = 'counters'").all() == [(1,)]
    engine.dispose()


def test_responses_are_kept_continued_and_forgotten(store):
    text = "سلام \u0000 🐪 \ud800"
    first, second = kept(1, text=text), kept(2, kept(1).body["id"])
    store.save("t", "me", first)
    store.save("t", "me", second)
    assert store.get("t", "me", first.body["id"]) == first
    told = store.conversation("t", "me", second.body["id"])
    assert [message.text for message in told] == [text, text, "Hello", "Hello"]
    assert told[1].ids == (1, 2)
    for tenant, caller in (("t", "you"), ("u", "me")):
        assert store.get(tenant, caller, first.body["id"]) is None
        assert not store.delete(tenant, caller, first.body["id"])
        with pytest.raises(BrokenConversationError):
            store.conversation(tenant, caller, second.body["id"])
    assert store.delete("t", "me", first.body["id"])
    with pytest.raises(BrokenConversationError, match="earlier"):
        store.conversation("t", "me", second.body["id"])


def test_a_long_conversation(store):
    previous = None
    for number in range(100, 700):
        one = kept(number, previous, str(number))
        store.save("", "", one)
        previous = one.body["id"]
    told = store.conversation("", "", previous)
    assert [message.text for message in told[::2]] == [str(number) for number in range(100, 700)]


def test_an_id_that_is_none_finds_nothing(store):
    assert store.get("", "", "resp_\u0000") is None
    assert store.get("", "", "' OR 1=1 --") is None


def test_what_expired_is_gone(url):
    now = [1000.0]
    store = ResponseStore(database.open_database(url), days=1, clock=lambda: now[0])
    store.save("", "late", kept(0xAAA))
    now[0] += 86400 + 1
    assert store.get("", "late", kept(0xAAA).body["id"]) is None
    store.save("", "late", kept(0xAAA))  # the old one of that id was removed, or this would fail
    store.close()


def test_a_server_that_is_not_there_is_named_without_its_password():
    with pytest.raises(StorageError) as caught:
        database.open_database("postgresql+psycopg://u:secret@127.0.0.1:1/none?connect_timeout=2")
    assert "127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_agents_remember_and_forget(url):
    journal = Journal(url)
    memory = journal.memory
    one = memory.add("salma", "fact", "طبيب أسناني هو د. عمرو")
    memory.add("salma", "fact", "the gate code is 7", trusted=False, state="proposed", key="k", run="r")
    memory.add("omar", "fact", "my dentist is Mona")
    assert memory.list("salma", words="الاسنان") == memory.list("salma", words="عمرو") == [one]
    assert memory.take_back("k").text == "the gate code is 7"
    memory.edit("salma", one.id, "my dentist is Amr")
    memory.consolidate("salma")
    assert [found.text for found in memory.list("salma", words="dentist")] == ["my dentist is Amr"]
    memory.forget("salma", one.id)
    assert memory.list("salma") == []
    with pytest.raises(AgentError, match="control characters"):
        memory.add("salma", "fact", "a\x00b")
    journal.close()


def test_what_is_due_is_planned_once_by_servers_side_by_side(url):
    now = [0.0]
    journals = [Journal(url, clock=lambda: now[0]) for _ in range(4)]
    sides = [journal.schedules for journal in journals]
    sides[0].add("", Wanted("s", "go", triggers.cron("0 * * * *", "UTC"), "/tmp", missed="all"))
    for hour in range(1, 6):
        now[0] = hour * 3600.0 + 1
        with ThreadPoolExecutor(len(sides)) as pool:
            list(pool.map(lambda side: side.plan(Planner(now[0])), sides))
        (found,) = sides[0].open_fires()
        assert found[0].due == hour * 3600.0
        with ThreadPoolExecutor(len(sides)) as pool:
            ended = list(pool.map(lambda side, found=found: side.end(*found, "done", "r", "told"), sides))
        assert sorted(ended) == [False, False, False, True]
    assert len(sides[0].notices("")) == 5
    for journal in journals:
        journal.close()


def test_runs_of_agents_and_their_owners(url):
    old = Journal(url)
    with old._engine.begin() as connection:
        for column in ("owner", "served"):
            connection.exec_driver_sql(f"ALTER TABLE agent_runs DROP COLUMN {column}")
        connection.exec_driver_sql("UPDATE schema_versions SET version = 1 WHERE name = 'agent'")
    old.close()
    journal = Journal(url)
    began = Began(
        goal="هدف", system="", model="m", tools=(), effects={}, workspace="/w", budget=Budget(), prices=Prices(),
        choosing="free", seed=0, temperature=0, answer_tokens=1, version="1",
    )  # fmt: skip
    mine, theirs = journal.begin(began), journal.begin(began, owner="key:salma")
    assert [line.id for line in journal.runs(owner="key:salma")] == [theirs]
    assert journal.line(theirs, "") is None
    assert journal.line("a\0b", "") is None
    journal.serve(mine, "anonymous")
    assert [line.id for line in journal.served_runs()] == [mine]
    assert journal.count("running") == 2
    assert [line.id for line in journal.runs(5, owner="", before=journal.line(mine, ""))] == []
    with journal.hold(mine):
        assert journal.worked_on(mine)
    assert not journal.worked_on(mine)
    journal.close()
