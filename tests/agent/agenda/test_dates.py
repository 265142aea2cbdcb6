"""Days and times as people write them: two calendars, two languages, and clocks that change."""

from __future__ import annotations

import time as clock_seconds
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hijridate import Hijri
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.agent.agenda import words
from qafila.agent.agenda.dates import Clock, hijri, machine_zone, moment, read_when, shown, system_clock
from qafila.agent.tool import ToolError

CAIRO, RIYADH, NEW_YORK = ZoneInfo("Africa/Cairo"), ZoneInfo("Asia/Riyadh"), ZoneInfo("America/New_York")
#: A Sunday: the 19th of Jumada al-Akhirah 1448.
NOW = datetime(2026, 11, 29, 9, 30, tzinfo=CAIRO)
CLOCK = Clock(lambda: NOW, CAIRO)


def iso(text: str, clock: Clock = CLOCK) -> str:
    when = read_when(text, clock).when
    return f"{when:%Y-%m-%d %H:%M}" if isinstance(when, datetime) else when.isoformat()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-29", "2026-11-29"), ("2026-11-29 15:00", "2026-11-29 15:00"), ("2026/1/5", "2026-01-05"),
        ("2026-11-29T15:00:00Z", "2026-11-29 17:00"), ("2026-11-29T15:00+05:30", "2026-11-29 11:30"),
        ("29/11/2026", "2026-11-29"), ("11/29/2026", "2026-11-29"), ("05/05/2026", "2026-05-05"),
        ("29 November 2026", "2026-11-29"), ("the day after tomorrow", "2026-12-01"), ("Nov 3rd, 2027", "2027-11-03"),
        ("Sunday, 29 November 2026 at 3pm", "2026-11-29 15:00"), ("3 p.m. 2026-11-29", "2026-11-29 15:00"),
        ("12 am 2026-11-29", "2026-11-29 00:00"), ("12pm 2026-11-29", "2026-11-29 12:00"),
        ("tomorrow at noon", "2026-11-30 12:00"), ("tomorrow at 9", "2026-11-30 09:00"), ("9:05", "2026-11-29 09:05"),
        ("today", "2026-11-29"), ("TOMORROW", "2026-11-30"), ("yesterday", "2026-11-28"),
        ("Monday", "2026-11-30"), ("next Monday", "2026-11-30"), ("on Sunday", "2026-12-06"),
        ("last fri", "2026-11-27"),
        ("in 3 days", "2026-12-02"), ("in a week", "2026-12-06"), ("next month", "2026-12-29"),
        ("in 2 hours", "2026-11-29 11:30"), ("in 90 minutes", "2026-11-29 11:00"), ("in three months", "2027-02-28"),
        ("1 February", "2027-02-01"), ("29 November", "2026-11-29"), ("29 Feb", "2028-02-29"),
        # The Hijri calendar.
        ("1448-06-09 AH", "2026-11-19"), ("1448-06-09 هـ", "2026-11-19"), ("1448-06-09", "2026-11-19"),
        ("9/6/1448هـ", "2026-11-19"), ("9 جمادى الآخرة 1448", "2026-11-19"), ("٩ جُمادى الآخِرة ١٤٤٨ هـ", "2026-11-19"),
        ("1 Ramadan 1448", "2027-02-08"), ("1 رمضان", "2027-02-08"), ("Ramadan 1, 1448 AH 18:00", "2027-02-08 18:00"),
        ("10 ذو الحجة ١٤٤٨ الساعة ٨ صباحا", "2027-05-16 08:00"), ("1 محرم", "2027-06-06"),
        ("19 jumada al-akhirah", "2026-11-29"),
        # Arabic.
        ("غداً", "2026-11-30"), ("بعد غد", "2026-12-01"), ("أمس", "2026-11-28"), ("الاثنين القادم", "2026-11-30"),
        ("يوم الإثنين", "2026-11-30"), ("الجمعة الماضية", "2026-11-27"), ("الأسبوع القادم", "2026-12-06"),
        ("بعد يومين", "2026-12-01"), ("بعد ثلاثة أيام", "2026-12-02"), ("بعد ٣ أسابيع", "2026-12-20"),
        ("غدا الساعة ٣ مساءً", "2026-11-30 15:00"), ("٢٩ نوفمبر ٢٠٢٦", "2026-11-29"), ("٠٣/٠٤/٢٠٢٦", "2026-04-03"),
        ("٢٩ تشرين الثاني ٢٠٢٦ الساعة ١٤:٣٠", "2026-11-29 14:30"), ("٢٩/١١/٢٠٢٦م", "2026-11-29"),
        ("اليوم الساعة 5 بعد الظهر", "2026-11-29 17:00"), ("غدًا ظهرًا", "2026-11-30 12:00"),
        ("بعد ساعتين", "2026-11-29 11:30"),
        ("\u200f١٤٤٨-٠٦-٠٩\u200f هـ", "2026-11-19"), ("الأحد ٢٩ نوفمبر ٢٠٢٦", "2026-11-29"),
    ],
)  # fmt: skip
def test_what_is_meant(text: str, meant: str) -> None:
    assert iso(text) == meant


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no date"), ("soon", "is no date"), ("2026-02-30", "no such day"), ("2026-13-01", "no such day"),
        ("03/04/2026", "write 2026-04-03 or 2026-03-04"), ("1448-13-01", "no such day"), ("30 صفر 1449", "no such day"),
        ("1501-01-01 AH", "from 1343 to 1500"), ("1342-12-29", "from 1343 to 1500"),
        ("1581-01-01", "from 1343 to 1500"),
        ("Monday 2026-11-29", "is a Sunday"), ("13 pm tomorrow", "1 to 12"), ("tomorrow 24:00", "no time of a day"),
        ("tomorrow 10:61", "no time of a day"), ("1 رمضان 2026 م", "other calendar"), ("9" * 200, "too long"),
        ("in 99999 years", "too far away"), ("2026-11-29 10:00+99:00", "no offset"), ("0 November", "no such day"),
        ("10:00 and 11:00", "is no date"), ("in 3 hours 15:00", "is no date"), ("9999-12-31 23:00-12:00", "too far"),
        ("9999-12-31", "too far"),
    ],
)  # fmt: skip
def test_what_means_nothing_or_more_than_one_thing_is_told(text: str, words: str) -> None:
    with pytest.raises(ToolError, match=words) as caught:
        read_when(text, CLOCK)
    assert "\n" not in str(caught.value)


def test_what_depends_on_today_is_known() -> None:
    assert all(read_when(text, CLOCK).relative for text in ("tomorrow", "Monday", "15:00", "1 رمضان", "in 2 hours"))
    assert not any(read_when(text, CLOCK).relative for text in ("2026-11-29", "1 رمضان 1448", "2026-11-29 15:00"))
    assert read_when("15:00", CLOCK, date(2027, 1, 1)).when == datetime(2027, 1, 1, 15, tzinfo=CAIRO)
    assert not read_when("15:00", CLOCK, date(2027, 1, 1)).relative


def test_today_is_the_users_day() -> None:
    late = datetime(2026, 11, 29, 23, 30, tzinfo=UTC)
    assert iso("today", Clock(lambda: late, RIYADH)) == "2026-11-30"
    assert iso("today", Clock(lambda: late, NEW_YORK)) == "2026-11-29"


def test_times_that_clocks_skip_or_show_twice() -> None:
    def utc(text: str, zone: ZoneInfo) -> str:
        return f"{moment(read_when(text, Clock(lambda: NOW, zone)).when, UTC).astimezone(UTC):%d %H:%M}"

    # Cairo: the 24th of April 2026 begins at one o'clock; the last hour of the 29th of October comes twice.
    assert iso("2026-04-24 00:30") == "2026-04-24 01:30"
    assert f"{moment(date(2026, 4, 24), CAIRO):%H:%M}" == "01:00"
    assert utc("2026-10-29 23:30", CAIRO) == "29 20:30"
    assert utc("2026-10-29 23:30+02:00", CAIRO) == "29 21:30"
    # New York: two to three on the 8th of March, one to two on the 1st of November.
    assert iso("2026-03-08 02:30", Clock(lambda: NOW, NEW_YORK)) == "2026-03-08 03:30"
    assert utc("2026-11-01 01:30", NEW_YORK) == "01 05:30"
    assert shown(read_when("2026-11-01 01:30 -05:00", Clock(lambda: NOW, NEW_YORK)).when).startswith(
        "Sunday 2026-11-01 01:30 -0500"
    )
    # Riyadh has one clock.
    assert utc("2026-03-08 02:30", RIYADH) == "07 23:30"
    # Two hours later is two hours later.
    before = datetime(2026, 3, 8, 1, 30, tzinfo=NEW_YORK)
    assert iso("in 2 hours", Clock(lambda: before, NEW_YORK)) == "2026-03-08 04:30"


def test_both_calendars_are_shown() -> None:
    assert shown(date(2026, 11, 29)) == "Sunday 2026-11-29 (19 Jumada al-Akhirah 1448 AH)"
    assert shown(NOW) == "Sunday 2026-11-29 09:30 (19 Jumada al-Akhirah 1448 AH)"
    assert shown(date(2077, 11, 17)) == "Wednesday 2077-11-17"
    assert hijri(date(1924, 8, 1)) == "1 Muharram 1343 AH"


def test_the_machines_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", ":Africa/Cairo")
    assert machine_zone() == CAIRO
    assert system_clock(None).zone == CAIRO
    monkeypatch.setenv("TZ", "../../etc/passwd")
    assert machine_zone().utcoffset(NOW) is not None
    assert system_clock(RIYADH).here().tzinfo == RIYADH


def test_every_name_of_a_month_is_read() -> None:
    for number in range(1, 13):
        for language in ("en", "ar"):
            name = Hijri(1448, number, 1).month_name(language)
            assert iso(f"1 {name} 1448") == iso(f"1448-{number:02}-01"), name
            assert iso(f"1 {Hijri(1448, 1, 1).to_gregorian().replace(month=number).month_name(language)} 2026") == (
                f"2026-{number:02}-01"
            )
    assert not set(words.MONTHS) & set(words.HIJRI_MONTHS)


DAYS = st.dates(date(1924, 8, 1), date(2077, 11, 16))


@given(DAYS, st.booleans())
def test_what_is_shown_is_read_again(day: date, arabic: bool) -> None:
    digits = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩") if arabic else {}
    assert read_when(shown(day).translate(digits), CLOCK).when == day
    assert read_when(str(hijri(day)).translate(digits), CLOCK).when == day
    at_noon = datetime(day.year, day.month, day.day, 12, 5, tzinfo=CAIRO)
    assert read_when(shown(at_noon).translate(digits), CLOCK).when == at_noon


@given(st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1)), st.sampled_from([CAIRO, RIYADH, NEW_YORK]))
def test_a_moment_comes_back_whatever_the_clocks_do(when: datetime, zone: ZoneInfo) -> None:
    clock = Clock(lambda: NOW, zone)
    there = when.replace(second=0, microsecond=0, tzinfo=UTC).astimezone(zone)
    found = read_when(f"{there:%Y-%m-%d %H:%M%z}", clock).when
    assert isinstance(found, datetime)
    assert found.astimezone(UTC) == there.astimezone(UTC)


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("0123456789٠٣-/:. ,+tzapmnextmondayinدغابعهـيوم()"), max_size=60))
def test_any_text_is_read_or_told_quickly(text: str) -> None:
    started = clock_seconds.process_time()
    try:
        found = read_when(text, CLOCK)
        assert abs(moment(found.when, CAIRO) - NOW) < timedelta(days=366 * 10_000)
    except ToolError:
        found = None
    assert clock_seconds.process_time() - started < 1
