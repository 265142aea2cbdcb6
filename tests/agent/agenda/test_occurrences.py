"""What happens when: rules, exceptions and windows, as libraries without bounds work them out, but within bounds."""

from __future__ import annotations

import time as clock_seconds
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import icalendar
import pytest
import recurring_ical_events
from dateutil.rrule import rrulestr
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.agent.agenda.dates import moment
from qafila.agent.agenda.ics import read_ics
from qafila.agent.agenda.occurrences import occurrences
from qafila.agent.agenda.reminders import due
from qafila.agent.agenda.rules import Steps, is_over, read_rule
from qafila.errors import FormatError

CAIRO, RIYADH, NEW_YORK = ZoneInfo("Africa/Cairo"), ZoneInfo("Asia/Riyadh"), ZoneInfo("America/New_York")


def calendar(*events: str) -> str:
    return (
        "BEGIN:VCALENDAR\n"
        + "".join(f"BEGIN:VEVENT\n{one.strip()}\nEND:VEVENT\n" for one in events)
        + "END:VCALENDAR\n"
    )


def starts(text: str, after: datetime, until: datetime, problems: list[str] | None = None) -> list[str]:
    found = occurrences(read_ics("c.ics", text.encode()), after, until, [] if problems is None else problems)
    return [f"{one.start:%m-%d %H:%M} {one.item.text('SUMMARY')}".strip() for one in found]


DECEMBER = (datetime(2026, 12, 1, tzinfo=CAIRO), datetime(2027, 1, 1, tzinfo=CAIRO))
STANDUP = """
UID:a
SUMMARY:standup
DTSTART;TZID=Africa/Cairo:20261103T090000
DURATION:PT15M
RRULE:FREQ=WEEKLY;BYDAY=TU,TH;UNTIL=20261218T000000Z
EXDATE;TZID=Africa/Cairo:20261203T090000
RDATE:20261220T100000Z
"""
MOVED = "UID:a\nRECURRENCE-ID:20261208T070000Z\nSUMMARY:moved\nDTSTART;TZID=Africa/Cairo:20261209T120000\n"
GONE = "UID:a\nRECURRENCE-ID:20261210T070000Z\nSTATUS:CANCELLED\nDTSTART:20261210T070000Z\n"


def test_a_series_with_exceptions() -> None:
    assert starts(calendar(STANDUP, MOVED, GONE), *DECEMBER) == [
        "12-01 09:00 standup", "12-09 12:00 moved", "12-15 09:00 standup", "12-17 09:00 standup", "12-20 10:00 standup",
    ]  # fmt: skip
    # An exception that comes from outside of the window, and one without its series.
    assert starts(calendar(MOVED), *DECEMBER) == ["12-09 12:00 moved"]
    late = (datetime(2026, 12, 9, tzinfo=CAIRO), datetime(2026, 12, 10, tzinfo=CAIRO))
    assert starts(calendar(STANDUP, MOVED), *late) == ["12-09 12:00 moved"]


def test_windows_take_in_what_is_under_way() -> None:
    text = calendar("UID:a\nDTSTART:20261201T100000Z\nDTEND:20261203T100000Z", "UID:b\nDTSTART;VALUE=DATE:20261202")
    for day, count in ((1, 1), (2, 2), (3, 1), (4, 0)):
        after = datetime(2026, 12, day, 5, tzinfo=UTC)
        assert len(starts(text, after, after + timedelta(hours=12))) == count
    at = datetime(2026, 12, 1, 10, tzinfo=UTC)
    point = calendar("UID:a\nDTSTART:20261201T100000Z")
    assert starts(point, at, at + timedelta(seconds=1))
    assert not starts(point, at - timedelta(hours=1), at)


def test_clocks_change_and_events_stay() -> None:
    def utc(zone: ZoneInfo, start: str, after: datetime) -> list[str]:
        text = calendar(f"UID:a\nDTSTART;TZID={zone.key}:{start}\nDURATION:PT1H\nRRULE:FREQ=DAILY")
        found = occurrences(read_ics("c.ics", text.encode()), after, after + timedelta(days=3), [])
        assert all(moment(one.end, UTC) - moment(one.start, UTC) == timedelta(hours=1) for one in found)
        return [f"{moment(one.start, UTC).astimezone(UTC):%d %H:%M}" for one in found]

    october, april = datetime(2026, 10, 29, tzinfo=CAIRO), datetime(2026, 4, 23, tzinfo=CAIRO)
    assert utc(CAIRO, "20260101T090000", october) == ["29 06:00", "30 07:00", "31 07:00"]
    # What begins in the hour that is skipped begins when it is over.
    assert utc(CAIRO, "20260101T003000", april) == ["22 22:30", "23 22:30", "24 21:30"]
    assert utc(RIYADH, "20260101T090000", october) == ["29 06:00", "30 06:00", "31 06:00"]
    march = datetime(2026, 3, 7, tzinfo=NEW_YORK)
    assert utc(NEW_YORK, "20260101T023000", march) == ["07 07:30", "08 07:30", "09 06:30"]


def test_what_cannot_be_understood_is_told_and_the_rest_is_listed() -> None:
    problems: list[str] = []
    text = calendar(
        "UID:a\nSUMMARY:good\nDTSTART:20261201T100000Z", "UID:b\nSUMMARY:no start", "UID:c\nDTSTART:x",
        "UID:d\nDTSTART:20261202T100000Z\nRRULE:FREQ=SECONDLY", "UID:e\nDTSTART:20261202T100000Z\nRRULE:FREQ=NEVER;X",
        "UID:f\nDTSTART:20261202T100000Z\nRRULE:FREQ=YEARLY;BYWEEKNO=3",
        "UID:g\nDTSTART:20261202T100000Z\nRRULE:FREQ=WEEKLY;BYDAY=2MO",
        "UID:h\nDTSTART:20261202T100000Z\nRRULE:FREQ=DAILY;INTERVAL=0",
        "UID:i\nDTSTART:20261202T100000Z\nRRULE:FREQ=MONTHLY;BYMONTHDAY=32",
        "UID:j\nRECURRENCE-ID;RANGE=THISANDFUTURE:20261202T100000Z\nDTSTART:20261202T100000Z",
        "UID:k\nDTSTART:20261202T100000Z\nDURATION:P1X",
    )  # fmt: skip
    assert "12-01 10:00 good" in starts(text, *DECEMBER, problems)
    assert len(problems) == 10
    assert all(problem.startswith("c.ics: line ") and "\n" not in problem for problem in problems)
    assert "daily, weekly, monthly, yearly" in problems[2]


@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=SECONDLY", "FREQ=MINUTELY;COUNT=1000000", "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "FREQ=DAILY;INTERVAL=7;BYDAY=WE", "FREQ=YEARLY;BYYEARDAY=1;BYMONTH=2",
        "FREQ=DAILY;COUNT=1000000", "FREQ=DAILY;BYHOUR=1,2,3;BYMINUTE=1,2,3", "FREQ=DAILY;BYSETPOS=300",
        "FREQ=YEARLY;INTERVAL=10000", "FREQ=WEEKLY;UNTIL=16000101", "FREQ=DAILY;COUNT=1000000;BYMONTH=2;BYMONTHDAY=30",
    ],
)  # fmt: skip
def test_a_hostile_rule_takes_no_time(rule: str) -> None:
    text = calendar(*(f"UID:{number}\nDTSTART;TZID=Africa/Cairo:16050101T090000\nRRULE:{rule}" for number in range(20)))
    problems: list[str] = []
    began = clock_seconds.process_time()
    starts(text, *DECEMBER, problems)
    assert clock_seconds.process_time() - began < 3
    assert len(problems) <= 20


def test_too_many_steps_are_refused() -> None:
    ics = read_ics("c.ics", calendar("UID:a\nDTSTART:20200101T000000Z\nRRULE:FREQ=DAILY;COUNT=5000").encode())
    problems: list[str] = []
    occurrences(ics, *DECEMBER, problems, Steps(1000))
    assert problems == ["c.ics: its events repeat too often to be worked out; ask for fewer days"]


WEEKDAY = st.sampled_from(["MO", "TU", "WE", "TH", "FR", "SA", "SU"])
# dateutil takes "MO,2TU" for days that are both, which none is.
NUMBERED = st.builds(lambda n, day: f"{n}{day}", st.sampled_from(["1", "2", "-1", "5"]), WEEKDAY)


def joined(values: st.SearchStrategy[object]) -> st.SearchStrategy[str]:
    return st.lists(values, min_size=1, max_size=3, unique=True).map(lambda found: ",".join(map(str, found)))


@st.composite
def rules(draw: st.DrawFn) -> str:
    frequency = draw(st.sampled_from(["DAILY", "WEEKLY", "MONTHLY", "YEARLY"]))
    parts = [f"FREQ={frequency}", f"INTERVAL={draw(st.integers(1, 4))}"]
    days = {
        "BYDAY": joined(WEEKDAY),
        "BYMONTHDAY": joined(st.integers(-28, 28).filter(bool)),
        "BYYEARDAY": joined(st.integers(-366, 366).filter(bool)),
        "BYMONTH": joined(st.integers(1, 12)),
    }
    if frequency in ("MONTHLY", "YEARLY"):
        days["BYDAY"] |= joined(NUMBERED)
    # Not all of them together: dateutil looks for what never comes until the year 9999.
    known = {
        "DAILY": ["BYDAY", "BYMONTH"],
        "WEEKLY": ["BYDAY", "BYMONTH"],
        "MONTHLY": ["BYDAY", "BYMONTHDAY"],
        "YEARLY": ["BYDAY", "BYMONTHDAY", draw(st.sampled_from(["BYYEARDAY", "BYMONTH"]))],
    }
    for name in draw(st.sets(st.sampled_from(known[frequency]), max_size=2)):
        parts.append(f"{name}={draw(days[name])}")
    # Of a first week dateutil counts from the start's own day on, and not the week that RFC 5545 speaks of.
    if len(parts) > 2 and frequency in ("MONTHLY", "YEARLY") and draw(st.booleans()):
        parts.append(f"BYSETPOS={draw(joined(st.sampled_from([1, 2, -1])))}")
    if draw(st.booleans()):
        parts.append(f"WKST={draw(WEEKDAY)}")
    last = draw(st.sampled_from(["", "COUNT=7", "UNTIL=20290601T120000Z"]))
    return ";".join([*parts, *([last] if last else [])])


@settings(deadline=None, max_examples=40)
@given(rules(), st.dates(date(2025, 1, 1), date(2026, 12, 31)))
def test_rules_are_worked_out_as_dateutil_does(rule: str, day: date) -> None:
    start = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    last = date(2030, 1, 1)
    end = datetime(2030, 1, 2, tzinfo=UTC)
    expected = [one.date() for one in rrulestr(rule, dtstart=start).between(start, end, inc=True) if one.date() <= last]
    ics = read_ics("c.ics", calendar(f"UID:a\nRRULE:{rule}").encode())
    read = read_rule(ics, ics.items[0].properties[1], start)

    def ours(after: date) -> list[date]:
        found = list(read.days(day, after, last, "c.ics", Steps()))
        found = found[: read.count] if read.count is not None else found
        return [one for one in found if not is_over(read, datetime(one.year, one.month, one.day, 12, tzinfo=UTC))]

    assert ours(day) == expected
    later = date(2028, 6, 15)
    assert [one for one in ours(later) if one >= later] == [one for one in expected if one >= later]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["FREQ=DAILY", "FREQ=WEEKLY;BYDAY=MO,TH", "FREQ=MONTHLY", "FREQ=DAILY;INTERVAL=3;COUNT=9"]),
    st.sets(st.integers(0, 30), max_size=4),
    st.dictionaries(st.integers(0, 30), st.integers(-50, 50), max_size=3),
    st.sampled_from([CAIRO, NEW_YORK]),
)  # fmt: skip
def test_series_are_worked_out_as_recurring_ical_events_does(
    rule: str, gone: set[int], moved: dict[int, int], zone: ZoneInfo
) -> None:
    start = datetime(2026, 10, 5, 9, tzinfo=zone)  # a Monday, and a fifth, before clocks change in both zones
    plain = calendar(f"UID:a\nDTSTART;TZID={zone.key}:{start:%Y%m%dT%H%M%S}\nDURATION:PT1H\nRRULE:{rule}")
    window = (start - timedelta(days=60), start + timedelta(days=90))
    times = [one.start for one in occurrences(read_ics("c.ics", plain.encode()), *window, [])]
    assert times

    def written(name: str, when: object) -> str:
        assert isinstance(when, datetime)
        return f"{name};TZID={zone.key}:{when:%Y%m%dT%H%M%S}"

    lines = "".join(written("EXDATE", times[n]) + "\n" for n in gone if n < len(times))
    exceptions = []
    for n, hours in moved.items():
        if n < len(times) and n not in gone:
            there = moment(times[n], UTC) + timedelta(hours=hours)
            new = f"DTSTART:{there.astimezone(UTC):%Y%m%dT%H%M%SZ}\nDURATION:PT2H"
            exceptions.append(f"UID:a\n{written('RECURRENCE-ID', times[n])}\n{new}")
    text = calendar(plain.split("BEGIN:VEVENT\n")[1].split("END:VEVENT")[0] + lines, *exceptions)
    ours = sorted(
        (moment(one.start, UTC).astimezone(UTC), moment(one.end, UTC).astimezone(UTC))
        for one in occurrences(read_ics("c.ics", text.encode()), *window, [])
    )
    theirs = recurring_ical_events.of(icalendar.Calendar.from_ical(text)).between(*window)
    assert ours == sorted((one.start.astimezone(UTC), one.end.astimezone(UTC)) for one in theirs)


def test_what_is_due_in_a_window() -> None:
    alarm = "\nBEGIN:VALARM\nTRIGGER:-PT15M\nEND:VALARM"
    text = calendar(STANDUP + "BEGIN:VALARM\nTRIGGER:-P1D\nEND:VALARM") + (
        "BEGIN:VCALENDAR\n"
        f"BEGIN:VTODO\nUID:t\nSUMMARY:سداد الفاتورة\nDUE;TZID=Africa/Cairo:20261201T180000{alarm}\nEND:VTODO\n"
        "BEGIN:VTODO\nUID:u\nSUMMARY:whole day\nDUE;VALUE=DATE:20261201\n"
        "BEGIN:VALARM\nTRIGGER;VALUE=DATE-TIME:20261201T060000Z\nEND:VALARM\nEND:VTODO\n"
        f"BEGIN:VTODO\nUID:d\nSUMMARY:done\nSTATUS:COMPLETED\nDUE:20261201T100000Z{alarm}\nEND:VTODO\n"
        "BEGIN:VTODO\nUID:x\nSUMMARY:damaged\nDUE:soon\nEND:VTODO\nBEGIN:VTODO\nUID:n\nSUMMARY:no date\nEND:VTODO\n"
        "BEGIN:VTODO\nUID:y\nDUE:20261203T000000Z\nBEGIN:VALARM\nTRIGGER:P\nEND:VALARM\nEND:VTODO\n"
        "END:VCALENDAR\n"
    )
    found = due(text, datetime(2026, 12, 1, tzinfo=CAIRO), datetime(2026, 12, 2, tzinfo=CAIRO))
    assert [(f"{one.when.astimezone(CAIRO):%H:%M}", one.kind, one.title, one.uid) for one in found] == [
        ("00:00", "task", "whole day", "u"), ("08:00", "reminder", "whole day", "u"),
        ("09:00", "event", "standup", "a"),
        ("17:45", "reminder", "سداد الفاتورة", "t"), ("18:00", "task", "سداد الفاتورة", "t"),
    ]  # fmt: skip
    # The reminder of a day before is due while its event is not yet.
    found = due(text, datetime(2026, 12, 7, tzinfo=CAIRO), datetime(2026, 12, 8, tzinfo=CAIRO))
    assert [(one.kind, one.title) for one in found] == [("reminder", "standup")]
    with pytest.raises(FormatError, match=r"tasks\.ics: line 1"):
        due("x", *DECEMBER, "tasks.ics")
    assert due("", *DECEMBER) == []
