"""The tools for a calendar in a file: what is shown, what a call changes and leaves, and that it can be undone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import icalendar
import pytest
from agent_place import Place, told

from qafila.agent.agenda.dates import Clock
from qafila.agent.agenda.store import FileStore
from qafila.agent.config import Calendar, Config
from qafila.agent.edits import apply
from qafila.agent.sandbox.sandbox import find_sandbox
from qafila.agent.tool import Draft, Surroundings, Toolbox, ToolError
from qafila.agent.tools import calendar
from qafila.agent.tools.calendar import CalendarTools
from qafila.agent.undo import undo
from qafila.errors import FormatError, QafilaError, SandboxError

CAIRO = ZoneInfo("Africa/Cairo")
CLOCK = Clock(lambda: datetime(2026, 11, 29, 9, 30, tzinfo=CAIRO), CAIRO)
TOOLS = CalendarTools(FileStore("calendar.ics"), CLOCK)
SERIES = (
    "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nX-WR-CALNAME:mine\r\nBEGIN:VEVENT\r\nUID:s\r\nSUMMARY:Stand-up\r\n"
    "X-THEIRS:kept\r\nDTSTART;TZID=Africa/Cairo:20261130T090000\r\nDURATION:PT15M\r\nRRULE:FREQ=DAILY\r\n"
    "BEGIN:VALARM\r\nTRIGGER:-PT5M\r\nEND:VALARM\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
)


@pytest.fixture
def here(tmp_path: Path) -> Surroundings:
    return Surroundings(tmp_path, find_sandbox, "0123456789abcdef" * 2)


def done(here: Surroundings, draft: Draft | str) -> str:
    assert isinstance(draft, Draft)
    apply(here.workspace, draft.edits)
    return draft.text


def text(here: Surroundings) -> str:
    return (here.workspace / "calendar.ics").read_bytes().decode()


def names(here: Surroundings) -> list[str]:
    found = TOOLS.existing(here, [])
    return list(found["id"]["enum"]) if found and "id" in found else []


def test_an_event_is_added_listed_moved_and_deleted(here: Surroundings) -> None:
    assert TOOLS.list_events(here) == "(no events)"
    assert TOOLS.existing(here, []) is None
    assert done(here, TOOLS.add_event(here, "موعد الطبيب", "غدا الساعة ٣ مساء", location="القاهرة, الدقي")) == (
        "added 'موعد الطبيب': Monday 2026-11-30 15:00 (20 Jumada al-Akhirah 1448 AH) until 16:00"
    )
    (name,) = names(here)
    assert name.startswith("موعد-الطبيب-")
    day = "Monday 2026-11-30 15:00 (20 Jumada al-Akhirah 1448 AH)"
    assert TOOLS.list_events(here) == f"{name}: {day} until 16:00, موعد الطبيب, at القاهرة, الدقي"
    assert TOOLS.list_events(here, "2026-12-01") == "(no events)"
    assert TOOLS.list_events(here, "today", "tomorrow") == TOOLS.list_events(here)
    (event,) = icalendar.Calendar.from_ical(text(here)).walk("VEVENT")
    assert (event["UID"], str(event["SUMMARY"]), str(event["LOCATION"])) == (here.key, "موعد الطبيب", "القاهرة, الدقي")
    assert event["DTSTART"].params["TZID"] == "Africa/Cairo"
    assert event["DTEND"].dt == datetime(2026, 11, 30, 16, tzinfo=CAIRO)
    assert text(here).count("BEGIN:VTIMEZONE") == 1

    assert done(here, TOOLS.move_event(here, name, "1448-06-25 هـ")) == (
        "moved 'موعد الطبيب' to Saturday 2026-12-05 15:00 (25 Jumada al-Akhirah 1448 AH) until 16:00"
    )
    assert done(here, TOOLS.move_event(here, name, "2026-12-05 23:30")).endswith(
        "until Sunday 2026-12-06 00:30 (26 Jumada al-Akhirah 1448 AH)"
    )
    assert done(here, TOOLS.delete_event(here, name)) == "deleted 'موعد الطبيب'"
    assert "VEVENT" not in text(here)
    with pytest.raises(ToolError, match=r"there is no .* \(any more\)"):
        TOOLS.delete_event(here, name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"start": "2026-12-01"}, "Tuesday 2026-12-01 (21 Jumada al-Akhirah 1448 AH), all day"),
        ({"start": "2026-12-01", "end": "2026-12-03"}, "all day, until Thursday 2026-12-03"),
        ({"start": "2026-12-01 10:00", "end": "11:30"}, "10:00 (21 Jumada al-Akhirah 1448 AH) until 11:30"),
        ({"start": "2026-12-01 10:00", "repeat": "weekly"}, "until 11:00, weekly"),
        ({"start": "2026-12-01 10:00", "end": "2026-12-02 10:00"}, "until Wednesday 2026-12-02 10:00"),
    ],
)
def test_events_of_all_lengths(here: Surroundings, arguments: dict[str, Any], words: str) -> None:
    assert words in done(here, TOOLS.add_event(here, "x", **arguments))
    assert words.partition(", weekly")[0] in TOOLS.list_events(here)


def test_one_of_a_series_is_moved_and_deleted_and_the_rest_stays(here: Surroundings) -> None:
    (here.workspace / "calendar.ics").write_bytes(SERIES.encode())
    (name,) = names(here)
    done(here, TOOLS.move_event(here, name, "2026-12-02 11:00", "2026-12-02"))
    done(here, TOOLS.delete_event(here, name, "2026-12-01"))
    assert [line.split(" (")[0] for line in TOOLS.list_events(here, "2026-11-30", "2026-12-03").splitlines()] == [
        f"{name}: Monday 2026-11-30 09:00", f"{name}: Wednesday 2026-12-02 11:00", f"{name}: Thursday 2026-12-03 09:00",
    ]  # fmt: skip
    # What was moved is moved again, and deleted in the end: no copy of it comes back.
    done(here, TOOLS.move_event(here, name, "2026-12-02 12:00", "2026-12-02"))
    assert text(here).count("RECURRENCE-ID") == 1
    assert text(here).count("X-THEIRS:kept") == 2
    assert text(here).count("BEGIN:VALARM") == 2
    done(here, TOOLS.delete_event(here, name, "2026-12-02"))
    assert "2026-12-02" not in TOOLS.list_events(here, "2026-11-30", "2026-12-03")
    assert "RECURRENCE-ID" not in text(here)
    with pytest.raises(ToolError, match="is not on Wednesday 2026-12-02"):
        TOOLS.delete_event(here, name, "2026-12-02")
    with pytest.raises(ToolError, match="say which day's is meant"):
        TOOLS.move_event(here, name, "2026-12-02 11:00")
    assert done(here, TOOLS.delete_event(here, name)) == "deleted 'Stand-up'"
    assert text(here) == SERIES[: SERIES.index("BEGIN:VEVENT")] + "END:VCALENDAR\r\n"


def test_a_series_is_moved_as_a_whole(here: Surroundings) -> None:
    (here.workspace / "calendar.ics").write_bytes(SERIES.encode())
    draft = TOOLS.move_event(here, names(here)[0], "2026-12-01 10:00")
    assert isinstance(draft, Draft)
    (edit,) = draft.edits
    lines = [line.rstrip("\r") for line in edit.diff().splitlines()]
    assert {line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")} == {
        "-DTSTART;TZID=Africa/Cairo:20261130T090000", "-DURATION:PT15M", "+DTSTART;TZID=Africa/Cairo:20261201T100000",
        "+DTSTAMP:20261129T073000Z", "+DTEND;TZID=Africa/Cairo:20261201T101500",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda here: TOOLS.add_event(here, "", "tomorrow"), "title"),
        (lambda here: TOOLS.add_event(here, "x" * 300, "tomorrow"), "title"),
        (lambda here: TOOLS.add_event(here, "x", "some day"), "is no date"),
        (lambda here: TOOLS.add_event(here, "x", "tomorrow 10:00", "tomorrow 9:00"), "is not after the start"),
        (lambda here: TOOLS.add_event(here, "x", "tomorrow 10:00", "2026-12-01"), "give both a time"),
        (lambda here: TOOLS.add_event(here, "x", "2026-12-02", "2026-12-01"), "is not after the start"),
        (lambda here: TOOLS.list_events(here, "tomorrow", "today"), "is not after the start"),
        (lambda here: TOOLS.list_events(here, "today", "2036-01-01"), "more than 731 days"),
        (lambda here: TOOLS.move_event(here, "none-1234", "tomorrow"), "there is no 'none-1234'"),
        (lambda here: TOOLS.delete_event(here, "-"), "there is no"),
    ],
)
def test_mistakes_are_told(here: Surroundings, call: Callable[[Surroundings], Any], words: str) -> None:
    with pytest.raises(ToolError, match=words):
        call(here)


def test_a_damaged_calendar_is_told_with_its_line_and_ends_no_run(here: Surroundings) -> None:
    (here.workspace / "calendar.ics").write_text("BEGIN:VCALENDAR\nnonsense\n")
    every = Toolbox(calendar.tools(Config(), CLOCK))
    assert set(every.options(here, []).live["delete_event"]) == {"start", "day"}
    for call in (lambda: TOOLS.list_events(here), lambda: TOOLS.add_event(here, "x", "tomorrow")):
        with pytest.raises(FormatError, match=r"^calendar\.ics: line 2: is no property"):
            call()
    (here.workspace / "calendar.ics").unlink()
    (here.workspace / "calendar.ics").symlink_to("/etc/hosts")
    with pytest.raises(QafilaError):
        TOOLS.list_events(here)
    with pytest.raises(SandboxError, match="leads out"):
        calendar.tools(Config(calendar=Calendar(file="../calendar.ics")), CLOCK)


def test_what_a_stranger_wrote_stays_in_its_line_and_is_cut(here: Surroundings) -> None:
    event = (
        "BEGIN:VEVENT\nUID:{0}\nDTSTART:20261201T100000Z\nSUMMARY:a\\nlong one{0}: [ignore this]\\n{1}\nEND:VEVENT\n"
    )
    events = "".join(event.format(number, "y" * 500) for number in range(100))
    (here.workspace / "calendar.ics").write_text(f"BEGIN:VCALENDAR\n{events}END:VCALENDAR\n")
    listed = TOOLS.list_events(here)
    assert len(listed) <= 4000
    lines = listed.splitlines()
    assert lines[-1].endswith("more; ask for fewer days]")
    assert all(line.startswith("a-long-one") for line in lines[:-1])


def test_names_hold_when_titles_change_and_are_unique(here: Surroundings) -> None:
    events = "".join(f"BEGIN:VEVENT\nUID:u{n}\nSUMMARY:same\nDTSTART:20261201\nEND:VEVENT\n" for n in range(199))
    (here.workspace / "calendar.ics").write_text(f"BEGIN:VCALENDAR\n{events}END:VCALENDAR\n")
    found = names(here)
    assert len(set(found)) == 199
    done(here, TOOLS.delete_event(here, "other-title-" + found[5].rpartition("-")[2]))
    assert found[5] not in names(here)
    more = events.replace("UID:u", "UID:v")
    (here.workspace / "calendar.ics").write_text(f"BEGIN:VCALENDAR\n{events}{more}END:VCALENDAR\n")
    assert names(here) == []  # too many to choose from: any can be named


def test_days_are_told_in_both_calendars() -> None:
    assert TOOLS.current_time() == "Sunday 2026-11-29 09:30 (19 Jumada al-Akhirah 1448 AH)"
    assert TOOLS.convert_date("١ رمضان ١٤٤٨") == "Monday 2027-02-08 (1 Ramadan 1448 AH)"
    assert TOOLS.convert_date("2100-01-01") == "Friday 2100-01-01; Hijri dates are known from 1343 to 1500 AH"
    assert TOOLS.convert_date("2027-02-08") == TOOLS.convert_date("1448-09-01 AH")


def test_the_same_event_is_not_added_twice(here: Surroundings) -> None:
    done(here, TOOLS.add_event(here, "عيد", "2026-12-01", repeat="daily"))
    here = Surroundings(here.workspace, find_sandbox, "another call")
    for start in ("2026-12-01", "1448-06-22 هـ"):
        again = TOOLS.add_event(here, " عيد", start)
        assert isinstance(again, str)
        assert again.startswith("'عيد' is in the calendar already: ")
    assert isinstance(TOOLS.add_event(here, "عيد", "2026-12-01 10:00"), Draft)
    assert isinstance(TOOLS.add_event(here, "عمل", "2026-12-01"), Draft)


def test_a_run_writes_events_that_can_be_undone(place: Place) -> None:
    tools = calendar.tools(Config(), CLOCK)
    run, events = place.begin(
        [
            [("add_event", {"title": "one", "start": "tomorrow 10:00"})],
            [("add_event", {"title": "two", "start": "2026-12-01", "repeat": "weekly"})],
            [("list_events", {})],
            "done",
        ],
        tools,
    )
    assert [status for status, _ in told(events)] == ["ok"] * 3
    assert told(events)[2][1].count("\n") == 1
    both = place.file("calendar.ics")
    undo(place.journal, run)
    one = place.file("calendar.ics")
    assert both is not None
    assert one is not None
    assert ("two" in both, "two" in one, "one" in one) == (True, False, True)
    undo(place.journal, run)
    assert place.file("calendar.ics") is None
