"""Local times as instants: gaps, times that come twice, missed times, quiet hours."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta

import pytest

from qafila.agent.schedules import triggers
from qafila.agent.schedules.instants import MOST_MISSED, Quiet, due_times, instant, next_time
from qafila.agent.schedules.triggers import Cron, Trigger
from qafila.errors import UsageError

BERLIN, CAIRO = "Europe/Berlin", "Africa/Cairo"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(fields: str, zone: str, after: str, until: str) -> list[str]:
    return [f"{one:%m-%d %H:%M}" for one in due_times(triggers.cron(fields, zone), utc(after), utc(until))]


@pytest.mark.parametrize(
    ("local", "zone", "found"),
    [
        ("2026-06-01 02:30", BERLIN, "2026-06-01 00:30"),
        ("2026-03-29 02:30", BERLIN, "2026-03-29 01:00"),  # the clocks go from 02:00 to 03:00
        ("2026-03-29 03:00", BERLIN, "2026-03-29 01:00"),
        ("2026-10-25 02:30", BERLIN, "2026-10-25 00:30"),  # it comes twice, and the first time counts
        ("2026-04-24 00:30", CAIRO, "2026-04-23 22:00"),  # Cairo's day begins at 01:00
        ("2026-10-04 02:15", "Australia/Lord_Howe", "2026-10-03 15:30"),  # half an hour is skipped
    ],
)
def test_local_times(local: str, zone: str, found: str) -> None:
    assert instant(datetime.fromisoformat(local), zoneinfo.ZoneInfo(zone)) == utc(found)


def test_a_time_that_does_not_exist_is_due_right_after_and_one_that_exists_twice_once() -> None:
    assert times("30 2 * * *", BERLIN, "2026-03-28 12:00", "2026-03-30 12:00") == ["03-29 01:00", "03-30 00:30"]
    assert times("30 2 * * *", BERLIN, "2026-10-24 12:00", "2026-10-26 12:00") == ["10-25 00:30", "10-26 01:30"]
    assert times("30 0 * * *", CAIRO, "2026-04-23 12:00", "2026-04-24 23:00") == ["04-23 22:00", "04-24 21:30"]
    # Looked at again within the hour that comes twice: what was due in it stays due once.
    assert times("30 2 * * *", BERLIN, "2026-10-25 00:45", "2026-10-25 02:00") == []
    # What recurs within the hour goes on by real time.
    assert times("*/30 * * * *", BERLIN, "2026-10-24 23:45", "2026-10-25 01:30") == [
        "10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30",
    ]  # fmt: skip


def test_however_often_it_is_looked_nothing_is_due_twice_or_never() -> None:
    cron = triggers.cron("15,45 1-3 * * *", BERLIN)
    for start in ("2026-03-28 20:00", "2026-10-24 20:00"):
        whole = due_times(cron, utc(start), utc(start) + timedelta(hours=12))
        seen: list[datetime] = []
        at = utc(start)
        while at < utc(start) + timedelta(hours=12):
            seen += due_times(cron, at, at + timedelta(minutes=7))
            at += timedelta(minutes=7)
        assert [one for one in seen if one <= whole[-1]] == list(whole)


def test_only_the_last_times_are_made_up_for_and_found_at_once() -> None:
    found = due_times(triggers.cron("* * * * *", "UTC"), utc("2020-01-01"), utc("2026-01-01"))
    assert len(found) == MOST_MISSED
    assert (found[0], found[-1]) == (utc("2025-12-31 23:37"), utc("2026-01-01"))
    assert times("0 0 29 2 *", "UTC", "2019-01-01", "2026-01-01") == ["02-29 00:00", "02-29 00:00"]


def test_once() -> None:
    once = triggers.once("٢٠٢٦-١٢-٠١ ٠٩:٠٠", CAIRO)
    assert due_times(once, utc("2026-12-01 06:59"), utc("2026-12-01 07:00")) == [utc("2026-12-01 07:00")]
    assert due_times(once, utc("2026-12-01 07:00"), utc("2027-01-01")) == []
    assert next_time(once, utc("2026-12-01 06:59")) == utc("2026-12-01 07:00")
    assert next_time(once, utc("2026-12-01 07:00")) is None
    assert next_time(triggers.cron("0 7 * * *", CAIRO), utc("2026-12-01 07:00")) == utc("2026-12-02 05:00")
    assert triggers.cron("٠ ٧ * * ١", CAIRO) == Cron(fields="0 7 * * 1", zone=CAIRO)


@pytest.mark.parametrize(
    ("moment", "until"),
    [
        ("2026-06-01 18:59", "2026-06-01 18:59"), ("2026-06-01 20:00", "2026-06-02 05:00"),
        ("2026-06-02 04:59:59", "2026-06-02 05:00"), ("2026-06-02 05:00", "2026-06-02 05:00"),
        ("2026-10-24 20:00", "2026-10-25 06:00"),
    ],
)  # fmt: skip
def test_quiet_over_midnight(moment: str, until: str) -> None:
    assert Quiet.parse("22:00-07:00", zoneinfo.ZoneInfo(BERLIN)).ends(utc(moment)) == utc(until)


def test_quiet_within_a_day_and_at_a_gap() -> None:
    noon = Quiet.parse("13:00-15:00", UTC)
    assert noon.ends(utc("2026-06-01 13:00")) == utc("2026-06-01 15:00")
    assert noon.ends(utc("2026-06-01 15:00")) == utc("2026-06-01 15:00")
    assert Quiet.parse("00:00-00:00", UTC).ends(utc("2026-06-01 13:00")) == utc("2026-06-01 13:00")
    gap = Quiet.parse("22:00-02:30", zoneinfo.ZoneInfo(BERLIN))
    assert gap.ends(utc("2026-03-29 00:30")) == utc("2026-03-29 01:00")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: triggers.cron("0 7 * *", "UTC"), "five fields"),
        (lambda: triggers.cron("61 7 * * *", "UTC"), "minute"),
        (lambda: triggers.cron("0 0 30 2 *", "UTC"), "--cron"),
        (lambda: triggers.cron("* * * * * *", "UTC"), "five fields"),
        (lambda: triggers.cron("@daily", "UTC"), "five fields"),
        (lambda: triggers.cron("0 7 * * *", "Nowhere"), "no time zone"),
        (lambda: triggers.cron("0 7 * * *", "../etc/passwd"), "no time zone"),
        (lambda: triggers.once("soon", "UTC"), "no time"),
        (lambda: triggers.once("2026-12-01T09:00+02:00", "UTC"), "--zone"),
        (lambda: triggers.once("9999-12-31 09:00", "UTC"), "too far"),
        (lambda: triggers.before_events("15", "UTC"), "15m"),
        (lambda: triggers.before_events("8d", "UTC"), "7d"),
        (lambda: triggers.on_file("/etc/*"), "workspace"),
        (lambda: triggers.on_file("../*"), "workspace"),
        (lambda: triggers.on_file(""), "workspace"),
        (lambda: triggers.on_name("a b"), "letters"),
    ],
)
def test_what_is_no_trigger_is_refused(make: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()  # type: ignore[operator]


def test_triggers_are_kept_as_they_are() -> None:
    every: list[Trigger] = [
        triggers.cron("0 7 * * *", CAIRO), triggers.once("2026-12-01 09:00", CAIRO),
        triggers.before_events("2h", CAIRO),
        triggers.on_file("inbox/*"), triggers.on_name("وصل-البريد"),
    ]  # fmt: skip
    assert [triggers.TRIGGER.validate_json(one.model_dump_json()) for one in every] == every
    assert [str(one) for one in every] == [
        "cron 0 7 * * * (Africa/Cairo)", "at 2026-12-01 09:00 (Africa/Cairo)", "120 min before events",
        "on file inbox/*", "on وصل-البريد",
    ]  # fmt: skip
