"""A calendar on a server: with Radicale over the loopback interface, and with servers that mean no good."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from zoneinfo import ZoneInfo

import httpx
import pytest
import radicale
import radicale.config
from agent_place import Place, ended, told
from scripted_agent import ScriptedAgent

from qafila.agent.agenda.caldav import CaldavStore
from qafila.agent.agenda.dates import Clock
from qafila.agent.config import Calendar, Config
from qafila.agent.events import Intended
from qafila.agent.policy import Policy
from qafila.agent.sandbox.sandbox import find_sandbox
from qafila.agent.tool import ArgumentsError, Surroundings, Tool, ToolError
from qafila.agent.tools import calendar
from qafila.agent.tools.calendar import CalendarTools
from qafila.errors import UsageError

CAIRO = ZoneInfo("Africa/Cairo")
CLOCK = Clock(lambda: datetime(2026, 11, 29, 9, 30, tzinfo=CAIRO), CAIRO)
AUTH = ("salma", "سر")


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a collection on a server that knows one user."""
    folder = tmp_path_factory.mktemp("radicale")
    (folder / "users").write_text("salma:سر\n", encoding="utf-8")
    configuration = radicale.config.load()
    configuration.update(
        {
            "auth": {"type": "htpasswd", "htpasswd_filename": str(folder / "users"), "htpasswd_encryption": "plain",
                     "delay": "0"},
            "storage": {"filesystem_folder": str(folder / "storage")},
            "logging": {"level": "critical"},
        },
        "test",
    )  # fmt: skip
    with make_server("127.0.0.1", 0, radicale.Application(configuration), handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/salma/home/"
        made = httpx.request("MKCALENDAR", url, auth=AUTH, trust_env=False)
        assert made.status_code == 201
        yield url
        server.shutdown()
        thread.join()


@pytest.fixture
def config(collection: str, monkeypatch: pytest.MonkeyPatch) -> Calendar:
    monkeypatch.setenv("TEST_PASSWORD", AUTH[1])
    return Calendar(caldav=collection, user=AUTH[0], password_env="TEST_PASSWORD")


@pytest.fixture
def tools(config: Calendar) -> Iterator[CalendarTools]:
    yield CalendarTools(CaldavStore(config), CLOCK)
    with httpx.Client(auth=AUTH, trust_env=False) as client:
        for path in resources(str(config.caldav)):
            client.delete(httpx.URL(str(config.caldav)).join(path))


def resources(url: str) -> list[str]:
    answer = httpx.request("PROPFIND", url, headers={"Depth": "1"}, auth=AUTH, trust_env=False)
    return [part.split("<")[0] for part in answer.text.split("<href>")[1:] if part.split("<")[0].endswith(".ics")]


def here(tmp_path: Path, key: str = "key1") -> Surroundings:
    return Surroundings(tmp_path, find_sandbox, key)


def test_events_are_added_listed_moved_and_deleted(tools: CalendarTools, tmp_path: Path, config: Calendar) -> None:
    place = here(tmp_path)
    assert tools.list_events(place) == "(no events)"
    for _ in range(2):  # twice is once
        told = tools.add_event(place, "موعد", "2026-12-01 10:00", repeat="daily")
        assert told == "added 'موعد': Tuesday 2026-12-01 10:00 (21 Jumada al-Akhirah 1448 AH) until 11:00, daily"
    assert resources(str(config.caldav)) == ["/salma/home/key1.ics"]
    assert tools.list_events(place, "2026-12-01", "2026-12-03").count("موعد, repeats") == 3
    name = tools.list_events(place, "2026-12-01").partition(":")[0]
    for _ in range(2):
        assert isinstance(tools.move_event(place, name, "2026-12-05 12:00", "2026-12-02"), str)
    with pytest.raises(ToolError, match="is not how this event is listed"):
        tools.delete_event(place, "another-title-" + name.rpartition("-")[2], "2026-12-03")
    assert isinstance(tools.delete_event(place, name, "2026-12-03"), str)
    days = [line.split(" (")[0] for line in tools.list_events(place, "2026-12-01", "2026-12-05").splitlines()]
    assert [day.removeprefix(f"{name}: ") for day in days] == [
        "Tuesday 2026-12-01 10:00", "Friday 2026-12-04 10:00", "Saturday 2026-12-05 10:00", "Saturday 2026-12-05 12:00",
    ]  # fmt: skip
    assert tools.list_events(place, "2026-11-01", "2026-11-30") == "(no events)"
    assert tools.delete_event(place, name) == "deleted 'موعد'"
    assert resources(str(config.caldav)) == []
    with pytest.raises(ToolError, match="any more"):
        tools.delete_event(place, name)


def test_what_somebody_else_changed_meanwhile_is_not_overwritten(tools: CalendarTools, tmp_path: Path) -> None:
    place = here(tmp_path)
    tools.add_event(place, "x", "2026-12-01 10:00")
    store = tools._store
    (stored,) = store.read(place)
    store.change(place, stored, stored.ics.edited([]).replace(b"SUMMARY:x", b"SUMMARY:y"), "")
    with pytest.raises(ToolError, match="changed by somebody else"):
        store.change(place, stored, stored.ics.edited([]), "")
    assert tools.list_events(place, "2026-12-01").endswith(", y")


def test_events_with_other_people_are_left_alone(tools: CalendarTools, tmp_path: Path, config: Calendar) -> None:
    event = (
        "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nBEGIN:VEVENT\r\nUID:o\r\nDTSTAMP:20261129T000000Z\r\nSUMMARY:o\r\n"
        "DTSTART:20261201T100000Z\r\nORGANIZER:mailto:a@example.org\r\nATTENDEE:mailto:b@example.org\r\nEND:VEVENT\r\n"
        "END:VCALENDAR\r\n"
    )
    httpx.put(f"{config.caldav}o.ics", content=event, auth=AUTH, trust_env=False).raise_for_status()
    name = tools.list_events(here(tmp_path), "2026-12-01").partition(":")[0]
    with pytest.raises(ToolError, match="others take part"):
        tools.delete_event(here(tmp_path), name)


def test_a_run_asks_and_an_interrupted_call_is_made_again_once(
    config: Calendar, place: Place, tools: CalendarTools
) -> None:
    every = calendar.tools(Config(calendar=config), CLOCK)
    effects = {one.name: (one.effect, one.repeats) for one in every}
    assert effects["list_events"] == ("read", False)
    assert effects["add_event"] == effects["delete_event"] == effects["move_event"] == ("egress", True)
    script = ScriptedAgent([[("add_event", {"title": "x", "start": "2026-12-01 10:00"})], "done"])
    asking = place.agent(script, every, policy=Policy())
    run = asking.begin("do it")
    assert ended(place.work(asking, run)).reason == "waiting"
    assert resources(str(config.caldav)) == []

    agent = place.agent(script, every, policy=Policy(effects={"egress": "allow"}))
    run = agent.begin("do it")

    async def until_the_power_is_cut() -> Intended:
        async for one in (events := agent.work(run)):
            if isinstance(one.event, Intended):
                await events.aclose()
                return one.event
        raise AssertionError

    intent = asyncio.run(until_the_power_is_cut())
    # It got as far as the server, and nobody knows.
    (adding,) = [one for one in every if one.name == "add_event"]
    adding.run(adding.check(intent.arguments), Surroundings(place.workspace, find_sandbox, intent.key))
    assert [status for status, _ in told(place.work(agent, run))] == ["ok"]
    assert resources(str(config.caldav)) == [f"/salma/home/{intent.key}.ics"]
    assert AUTH[1] not in str([one.event.model_dump_json() for one in place.journal.events(run)])


def test_dates_are_written_out_where_a_call_may_be_made_on_another_day(config: Calendar, tmp_path: Path) -> None:
    every: dict[str, Tool] = {one.name: one for one in calendar.tools(Config(calendar=config), CLOCK)}
    with pytest.raises(ArgumentsError, match="start: write the date out: 'tomorrow' is Monday 2026-11-30"):
        every["add_event"].check({"title": "x", "start": "tomorrow"})
    with pytest.raises(ArgumentsError, match="day: write the date out"):
        every["delete_event"].check({"id": "x", "day": "الاثنين"})
    with pytest.raises(ArgumentsError, match=r"end: .* is no date"):
        every["add_event"].check({"title": "x", "start": "2026-12-01 10:00", "end": "late"})
    every["add_event"].check({"title": "x", "start": "2026-12-01 10:00", "end": "11:30"})
    live = every["delete_event"].live
    assert live is not None
    assert set(live(here(tmp_path), []) or {}) == {"start", "day"}  # no ids: that would ask the server at each step


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"caldav": "ftp://x/"}, "no URL"), ({"caldav": "https:///x"}, "no URL"),
        ({"caldav": "x"}, "no URL"), ({"caldav": "https://a:b@[x/"}, "caldav: is no URL"),
        ({"caldav": "https://example.org:99999/"}, "no URL"), ({"caldav": "https://a:b@c:d/"}, "user and password_env"),
        ({"caldav": "https://a:b@example.org/"}, "user and password_env instead"),
        ({"caldav": "http://example.org/"}, "needs https"), ({"caldav": "https://example.org/?x"}, "no URL"),
        ({"user": None}, "go together"), ({"password_env": None}, "go together"),
        ({"password_env": "TEST_NOT_SET"}, "TEST_NOT_SET is not set"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(config: Calendar, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        calendar.tools(Config(calendar=config.model_copy(update=change)), CLOCK)
    assert AUTH[1] not in str(caught.value)


def test_a_wrong_password_or_place_is_told(config: Calendar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "wrong")
    refused = CaldavStore(config.model_copy(update={"password_env": "OTHER"}))
    with pytest.raises(ToolError, match="refused the user or the password"):
        refused.read(here(tmp_path))
    nowhere = CaldavStore(config.model_copy(update={"caldav": f"{config.caldav}none/"}))
    with pytest.raises(ToolError, match="calendar server 127"):
        nowhere.read(here(tmp_path))
    closed = CaldavStore(Calendar(caldav="http://127.0.0.1:1/"))
    with pytest.raises(ToolError, match=r"calendar server 127\.0\.0\.1: "):
        closed.read(here(tmp_path))


@pytest.fixture
def hostile() -> Iterator[Callable[[int, bytes, dict[str, str]], CaldavStore]]:
    """A server that answers everything in one way."""
    answer: list[tuple[int, bytes, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_REPORT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body, headers = answer[-1]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()

        def store(status: int, body: bytes, headers: dict[str, str]) -> CaldavStore:
            answer.append((status, body, headers))
            return CaldavStore(Calendar(caldav=f"http://127.0.0.1:{server.server_port}/home/"))

        yield store
        server.shutdown()
        thread.join()


def multistatus(href: str, data: str = "BEGIN:VCALENDAR\nEND:VCALENDAR\n") -> bytes:
    return (
        '<multistatus xmlns="DAV:" xmlns:C="urn:ietf:params:xml:ns:caldav"><response>'
        f"<href>{href}</href><propstat><prop><C:calendar-data>{data}</C:calendar-data></prop></propstat></response></multistatus>"
    ).encode()


@pytest.mark.parametrize(
    ("status", "body", "headers", "words"),
    [
        (200, b"hello", {}, "answered 200"), (500, b"", {}, "answered 500"), (207, b"hello", {}, "no WebDAV"),
        (302, b"", {"Location": "http://169.254.169.254/"}, "answers from elsewhere"), (207, b"", {}, "no WebDAV"),
        (207, b'<!DOCTYPE a [<!ENTITY a "b">]><a>&a;</a>', {}, "declares a document type"),
        (207, multistatus("http://169.254.169.254/x.ics"), {}, "not in its calendar"),
        (207, multistatus("/home/../../etc/x.ics"), {}, "not in its calendar"),
        (207, multistatus("/home/%2e%2e%2fx.ics"), {}, "not in its calendar"),
        (207, multistatus("/home/"), {}, "not in its calendar"), (207, b"x" * (17 << 20), {}, "too large"),
        (207, b"x", {"Content-Length": "9"}, "calendar server"),
        (207, b"x", {"Content-Encoding": "gzip"}, "calendar server"),
    ],
)  # fmt: skip
def test_servers_that_mean_no_good(
    hostile: Callable[[int, bytes, dict[str, str]], CaldavStore],
    tmp_path: Path,
    status: int,
    body: bytes,
    headers: dict[str, str],
    words: str,
) -> None:
    with pytest.raises(ToolError, match=words) as caught:
        hostile(status, body, headers).read(here(tmp_path))
    assert "\n" not in str(caught.value)


def test_what_is_no_resource_of_ours_is_left_out(
    hostile: Callable[[int, bytes, dict[str, str]], CaldavStore], tmp_path: Path
) -> None:
    found = hostile(207, multistatus("/home/a%20b.ics"), {}).read(here(tmp_path))
    assert [one.ics.name.rpartition("/")[2] for one in found] == ["a%20b.ics"]
    assert hostile(207, multistatus("/home/", ""), {}).read(here(tmp_path)) == []
