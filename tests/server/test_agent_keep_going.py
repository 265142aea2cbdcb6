"""The server's agent when things go wrong: restarts, kills, a disk that is full; and whose runs are whose."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from agent_server import RUNS, AgentServer, Asking, eventually
from scripted_agent import ScriptedAgent

from qafila.agent.journal import Journal
from qafila.agent.state import State
from qafila.database import open_database
from qafila.errors import StorageError
from qafila.server.keys import Keyring, KeyStore
from qafila.server.settings import Settings

WRITES = [[("write_file", {"path": f"ملف-{number}.txt", "text": f"{number}"})] for number in range(8)]


@pytest.fixture
def place(tmp_path, serving):
    return AgentServer(tmp_path, serving)


@pytest.fixture
def keys(tmp_path):
    return KeyStore(open_database(f"sqlite:///{tmp_path}/keys.sqlite3"))


def key(keys: KeyStore, ask: Asking, name: str, *scopes: str, header: bool = True) -> Asking:
    """The same server with a key."""
    text, _ = keys.create(name, scopes=scopes)
    return Asking(ask.url, {"Authorization": f"Bearer {text}"} if header else {"X-API-Key": text})


def test_runs_are_their_owners(place, keys):
    with place.serve(["قال"], keyring=Keyring((), keys)) as server:
        salma = key(keys, server, "salma", "agent")
        omar = key(keys, server, "omar", "agent", header=False)
        run = salma.begin("سر")
        salma.watch(run)
        assert [one["id"] for one in salma.get(RUNS)["data"]] == [run]
        assert omar.get(RUNS)["data"] == []
        for path in ("", "/events", "/explain/1"):
            assert "سر" not in str(omar.get(f"{RUNS}/{run}{path}", status=404))
        for path, body in (
            ("decide", {"calls": ["0.0"], "allowed": True}), ("say", {"text": "x"}), ("stop", {}), ("resume", {}),
            ("undo", {}), ("fork", {"event": 0}),
        ):  # fmt: skip
            omar.post(f"{RUNS}/{run}/{path}", body, status=404)
        assert omar.get(f"{RUNS}?after={run}", status=400)
        assert len(salma.get(RUNS)["data"]) == 1
        assert salma.post(f"{RUNS}/{run}/fork", {"event": 1})["id"] in str(salma.get(RUNS))
        assert omar.get(RUNS)["data"] == []
        # Files are another thing than answers: it takes a scope of its own.
        talks = key(keys, server, "talks", "inference", "models")
        assert "lacks the scope 'agent'" in talks.get(RUNS, status=403)["error"]["message"]
        assert "lacks the scope 'agent'" in talks.post(RUNS, {"goal": "x"}, status=403)["error"]["message"]
        server.get(RUNS, status=401)
        assert (
            httpx.post(
                server.url + RUNS, json={}, headers={**salma.headers, "Origin": "http://evil.example"}
            ).status_code
            == 403
        )


def test_shared_caches_share_no_runs(place, keys):
    settings = Settings(share_cache=True)
    with place.serve(["x"], keyring=Keyring((), keys), settings=settings) as server:
        salma, omar = key(keys, server, "salma", "agent"), key(keys, server, "omar", "agent")
        run = salma.begin()
        salma.watch(run)
        omar.get(f"{RUNS}/{run}", status=404)
        salma.get(f"{RUNS}/{run}")


def test_the_command_lines_runs_are_this_machines_users(place, keys):
    with place.serve(["x"]) as ask:
        run = ask.begin()
        ask.watch(run)
        journal = place.journal()
        assert journal.find("last") == run
        assert journal.line(run, "") is not None
        journal.close()
    with place.serve(["x"], keyring=Keyring((), keys)) as server:
        key(keys, server, "salma", "agent").get(f"{RUNS}/{run}", status=404)


def test_rates_count_runs(place, keys):
    text, _ = keys.create("slow", scopes=["agent"], requests_per_minute=1)
    with place.serve(["x"], keyring=Keyring((), keys)) as server:
        ask = Asking(server.url, {"Authorization": f"Bearer {text}"})
        run = ask.begin()
        answer = httpx.post(server.url + RUNS, json={"goal": "x"}, headers=ask.headers)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        # The run's own step waits for its turn, and does not fail.
        assert ask.run(run)["state"] == "running"
        assert len(ask.get(RUNS)["data"]) == 1


def test_a_server_that_stops_and_starts(place):
    hold = asyncio.Event()
    client = ScriptedAgent([*WRITES[:2], "end"], hold=hold)
    with place.serve(client) as ask:
        runs = [ask.begin(f"{number}") for number in range(6)]  # two of them wait
        eventually(lambda: len(client.asked) == 4)
    assert client.cancelled == 4
    journal = place.journal()
    assert [line.status for line in journal.runs()] == ["running"] * 6
    with journal.hold(runs[0]), place.serve([*WRITES[:2], "end"]) as ask:
        # Another one works on the first, and so this server does not.
        assert [ask.watch(run)[-1][1]["answer"] for run in runs[1:]] == ["end"] * 5
        assert ask.run(runs[0])["state"] == "running"
    assert State.of(journal.events(runs[0])).steps == 0
    journal.close()
    assert place.file("ملف-1.txt") == "1\n"


def test_what_is_about_to_go_on_is_not_told_as_interrupted(place):
    with place.serve(ScriptedAgent([], hold=asyncio.Event())) as ask:
        run = ask.begin()
    with place.serve(["said"], loads=0.5) as ask:
        assert ask.run(run)["state"] == "running"
        assert "is being worked on" in ask.post(f"{RUNS}/{run}/resume", status=409)["error"]["message"]
        assert [kind for kind, _ in ask.watch(run)] == ["began", "answered", "ended", "end"]


def test_what_was_stopped_or_waits_does_not_go_on_by_itself(place):
    with place.serve([WRITES[0]], free=False) as ask:
        run = ask.begin()
        ask.watch(run)
    with place.serve([WRITES[0]], free=False) as ask:
        assert ask.run(run)["state"] == "waiting"
        ask.post(f"{RUNS}/{run}/decide", {"calls": ["0.0"], "allowed": True})
        assert ask.watch(run)[-1][1]["state"] == "done"


def test_a_revoked_keys_runs_do_not_go_on(place, keys):
    hold = asyncio.Event()
    client = ScriptedAgent(["x"], hold=hold)
    with place.serve(client, keyring=Keyring((), keys)) as server:
        text, _ = keys.create("salma", scopes=["agent"])
        ask = Asking(server.url, {"Authorization": f"Bearer {text}"})
        run = ask.begin()
        other = key(keys, server, "omar", "agent")
        kept = other.begin()
        eventually(lambda: len(client.asked) == 2)
    keys.revoke("salma")
    with place.serve(["x"], keyring=Keyring((), keys)) as server:
        assert Asking(server.url, other.headers).watch(kept)[-1][1]["state"] == "done"
    journal = place.journal()
    assert State.of(journal.events(run)).steps == 0
    journal.close()


def test_a_stream_ends_when_the_server_stops_and_when_its_time_is_up(place):
    with place.serve(["x"], settings=Settings(timeout=0.5)) as ask:
        first = ask.begin()
        ask.watch(first)
        journal = place.journal()
        run = journal.fork(first, 0)
        with journal.hold(run):  # another process works on it
            began = time.monotonic()
            assert [kind for kind, _ in ask.watch(run)] == ["began"]  # and no end: come back later
            assert 0.3 < time.monotonic() - began < 5
        assert [kind for kind, _ in ask.watch(run)] == ["began", "end"]
        journal.close()
    with place.serve(ScriptedAgent([], hold=asyncio.Event())) as ask:
        run = ask.begin()
        with ask.stream("GET", f"{RUNS}/{run}/events") as told:
            assert next(told)[0] == "began"
            place.app.state.lifecycle.stopping = True
            assert list(told) == []


def test_a_disk_that_is_full_for_a_while(place, monkeypatch):
    """The run pauses and goes on; nothing is lost and nothing twice."""
    add, full = Journal.add, [False]

    def sometimes(self: Any, run: str, number: int, event: Any, **options: Any) -> None:
        if number == 3 and not full[0]:
            full[0] = True
            raise StorageError("database: database or disk is full")
        add(self, run, number, event, **options)

    monkeypatch.setattr(Journal, "add", sometimes)
    with place.serve([WRITES[0], WRITES[1], "end"]) as ask:
        run = ask.begin()
        kinds = [kind for kind, _ in ask.watch(run)]
    assert full == [True]
    assert kinds == [
        "began",
        "answered",
        "intended",
        "observed",
        "answered",
        "intended",
        "observed",
        "answered",
        "ended",
        "end",
    ]


def test_a_database_that_fails_is_told_with_a_time_to_come_back(place, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise StorageError("database /secret/path: database is locked")

    with place.serve(["x"]) as ask:
        run = ask.begin()
        ask.watch(run)
        monkeypatch.setattr(Journal, "events", fails)
        monkeypatch.setattr(Journal, "begin", fails)
        for method, path in (("GET", f"{RUNS}/{run}"), ("POST", RUNS), ("POST", f"{RUNS}/{run}/resume")):
            answer = httpx.request(method, ask.url + path, json={"goal": "x"} if path == RUNS else None)
            assert answer.status_code == 503, path
            assert answer.headers["retry-after"] == "5"
            assert "secret" not in answer.text
        with ask.stream("GET", f"{RUNS}/{run}/events") as told:
            ((kind, data, _),) = told
        assert (kind, data["error"]["code"]) == ("error", "storage_error")


SERVER = """
import asyncio, sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from scripted_agent import ScriptedAgent
from qafila.server.assemble import assemble
from qafila.server.models import Entry, Models
from qafila.server.run import listen, run, url_of
from qafila.server.settings import AgentSettings, Settings

script = [[("write_file", {"path": f"f{n}.txt", "text": f"{n}"})] for n in range(12)]
async def load():
    return ScriptedAgent([*script, "end"], delay=0.02)
folder = Path(sys.argv[2])
agent = AgentSettings(folder / "workspace", policy=folder / "policy.toml", database=f"sqlite:///{folder}/agent.sqlite3")
app = assemble(Models({"scripted": Entry("scripted", "scripted", load)}), Settings(), agent=agent)
listener = listen("127.0.0.1", 0)
run(app, listener, Settings(), preload=None, ready=lambda: print(url_of(listener), flush=True))
"""


@contextmanager
def process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Asking]]:
    doubles = str(Path(__file__).resolve().parents[1] / "doubles")
    command = [sys.executable, "-c", SERVER, doubles, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server, Asking(server.stdout.readline().strip())
        finally:
            server.kill()


def test_a_killed_server_goes_on_with_its_runs_and_does_nothing_twice(place, tmp_path):
    with process(tmp_path) as (server, ask):
        runs = [ask.begin(f"هدف {number}", budget={"steps": 20}) for number in range(2)]
        eventually(lambda: place.file("f3.txt"))
        server.send_signal(signal.SIGKILL)
        server.wait(10)
    with process(tmp_path) as (server, ask):
        assert [ask.watch(run)[-1][1]["answer"] for run in runs] == ["end", "end"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) == 0
    assert [place.file(f"f{number}.txt") for number in range(12)] == [f"{number}\n" for number in range(12)]
    journal = place.journal()
    for run in runs:
        events = [one.event for one in journal.events(run)]
        for kind in ("intended", "observed"):
            calls = [event.call for event in events if event.kind == kind]
            assert len(calls) == len(set(calls)), kind
        assert [event.kind for event in events].count("observed") == 12
        assert [event.kind for event in events].count("ended") == 1
    journal.close()
