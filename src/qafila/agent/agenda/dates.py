"""Days and times as people write them, in the Gregorian and the Hijri calendar, and as they are shown.

The Hijri calendar is that of Umm al-Qura, as tabulated by `hijridate` for 1343 to 1500 AH. A time that clocks skip is
the one that they show then, and of a time that they show twice the first is meant, as RFC 5545, section 3.3.5, has it.
"""

from __future__ import annotations

import os
import re
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, date, datetime, time, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Final, TypeAlias

from qafila.agent.agenda.words import (
    EVENING,
    GREGORIAN,
    HIJRI,
    HIJRI_MONTHS,
    LAST,
    MONTHS,
    MORNING,
    NAMED_TIMES,
    NEAR,
    NEXT,
    NUMBERS,
    SPANS,
    WEEKDAYS,
    either,
    plain,
)
from qafila.agent.tool import ToolError

#: A whole day, or a time with its zone.
When: TypeAlias = date | datetime

#: Years before the Gregorian calendar began are Hijri years.
_FIRST_GREGORIAN: Final = 1582
_MOST_CHARACTERS: Final = 120
_MOST_SPAN: Final = 100_000

_HALF = f"(?P<half>{either(MORNING | EVENING)})"
_TIMES: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:\b(?:at|الساعه) ?)?(?<![\d:/.+-])(?P<hour>\d{{1,2}}):(?P<minute>\d\d)(?::(?P<second>\d\d))?"
        rf"(?: ?{_HALF}(?!\w))?(?: ?(?P<offset>z|[+-]\d\d:?\d\d))?(?![\w:])",
        rf"(?:\b(?:at|الساعه) ?)?(?<![\d:/.+-])(?P<hour>\d{{1,2}}) ?{_HALF}(?!\w)",
        r"\b(?:at|الساعه) ?(?P<hour>\d{1,2})(?![\w:])",
        rf"\b(?:at )?(?P<named>{either(NAMED_TIMES)})(?!\w)",
    )
)
_ERA = rf"(?: ?(?P<era>{either(HIJRI | GREGORIAN)}))?"
_MONTH = f"(?P<month>{either(MONTHS | HIJRI_MONTHS)})"
_YEAR_FIRST: Final = re.compile(rf"(?P<year>\d{{4}})([-/.])(?P<number>\d{{1,2}})\2(?P<day>\d{{1,2}}){_ERA}")
_YEAR_LAST: Final = re.compile(rf"(?P<day>\d{{1,2}})([-/.])(?P<number>\d{{1,2}})\2(?P<year>\d{{4}}){_ERA}")
_NAMED: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of| من)? {_MONTH}(?:,? ?(?P<year>\d{{4}}))?{_ERA}",
        rf"{_MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,? (?P<year>\d{{4}}))?{_ERA}",
    )
)
_SPAN: Final = re.compile(rf"(?:in|after|بعد) (?:(?P<count>\d{{1,6}}|{either(NUMBERS)}) )?(?P<unit>{either(SPANS)})")
_NEXT_SPAN: Final = re.compile(rf"(?:next (?P<unit>week|month|year)|(?P<unit_ar>{either(SPANS)}) (?:{either(NEXT)}))")
_WEEKDAY: Final = re.compile(
    rf"(?P<before>(?:(?:{either(NEXT | LAST)}) )*)(?P<weekday>{either(WEEKDAYS)})(?: (?P<after>{either(NEXT | LAST)}))?"
)
_LEADING_WEEKDAY: Final = re.compile(rf"(?:(?:on|يوم) )?(?P<weekday>{either(WEEKDAYS)}),? (?=.*\d)")
_WEEKDAY_NAMES: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True, slots=True)
class Clock:
    """What time it is for a user; ``now`` gives it with a zone, ``zone`` is the user's."""

    now: Callable[[], datetime]
    zone: tzinfo

    def here(self) -> datetime:
        """The time now, in the user's zone."""
        return self.now().astimezone(self.zone)


@dataclass(frozen=True, slots=True)
class Written:
    """What somebody wrote; ``relative``: it means something else on another day."""

    when: When
    relative: bool


def system_clock(zone: tzinfo | None) -> Clock:
    """This machine's clock, in a zone; None for this machine's."""
    return Clock(lambda: datetime.now(UTC), zone or machine_zone())


def machine_zone() -> tzinfo:
    """The zone that ``TZ`` or ``/etc/localtime`` names; UTC where neither does."""
    names = [os.environ.get("TZ", "").lstrip(":")]
    try:
        names.append(os.fspath(Path("/etc/localtime").readlink()))
    except OSError:
        names.append("")
    for name in names:
        try:
            return zoneinfo.ZoneInfo(name.rpartition("zoneinfo/")[2])
        except (OSError, ValueError, KeyError):
            continue
    return UTC


def at(day: date, clock_time: time, zone: tzinfo) -> datetime:
    """A time of a day in a zone; one that clocks skip there is what they show after the gap."""
    try:
        return datetime.combine(day, clock_time, zone).astimezone(UTC).astimezone(zone)
    except OverflowError:
        raise ToolError(f"{day}: is too far away") from None


def moment(when: When, zone: tzinfo) -> datetime:
    """When it begins: of a day, its first moment."""
    return when if isinstance(when, datetime) else at(when, time(), zone)


def hijri(day: date) -> str | None:
    """A day as ``19 Jumada al-Thani 1448 AH``; None outside of 1343 to 1500 AH."""
    from hijridate import Gregorian

    try:
        found = Gregorian(day.year, day.month, day.day).to_hijri()
    except OverflowError:
        return None
    return f"{found.day} {found.month_name()} {found.year} AH"


def shown(when: When) -> str:
    """As ``Sunday 2026-11-29 15:00 (19 Jumada al-Thani 1448 AH)``."""
    day = when.date() if isinstance(when, datetime) else when
    text = f"{_WEEKDAY_NAMES[day.weekday()]} {day.isoformat()}"
    if isinstance(when, datetime):
        text += f" {when:%H:%M}" + (f" {when:%z}" if when.fold else "")
    other = hijri(day)
    return f"{text} ({other})" if other else text


def read_when(text: str, clock: Clock, day: date | None = None) -> Written:
    """A day or a time out of words: ISO 8601, either calendar's dates, and words like ``next Monday`` or ``غدا``.

    A weekday is the next one after today. Dates without a year are the next of their kind. A time alone is one of
    ``day``, or of today.

    Raises:
        ToolError: nothing is meant, more than one thing could be, or there is no such day; the model is told.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ToolError(f"a date of {len(text)} characters is too long; write it as 2026-11-29 15:00")
    words = re.sub(r"\([^)]*\)", " ", plain(text))
    words = re.sub(r"(?<=\d)t(?=\d\d:)", " ", words)
    found = next((match for pattern in _TIMES if (match := pattern.search(words))), None)
    rest = words if found is None else f"{words[: found.start()]} {words[found.end() :]}"
    rest = " ".join(rest.split()).strip(" ,")
    try:
        span = _SPAN.fullmatch(rest)
        if found is None and span and SPANS[span["unit"]][1] in ("hours", "minutes"):
            return Written(_later(clock, span), True)
        if rest:
            meant, relative = _day(rest, text, clock)
        elif found is not None:
            meant, relative = day or clock.here().date(), day is None
        else:
            raise _unreadable(text)
        if meant.year in (MINYEAR, MAXYEAR):  # the day before or after, or the same in another zone, may be none
            raise OverflowError
        return Written(meant if found is None else _at(meant, found, clock.zone), relative)
    except OverflowError:
        raise ToolError(f"{text!r}: is too far away") from None


def _unreadable(text: str) -> ToolError:
    return ToolError(f"{text!r} is no date; write it as 2026-11-29, 2026-11-29 15:00 or 1448-06-19 AH")


def _count(span: re.Match[str]) -> tuple[int, str]:
    each, unit = SPANS[span["unit"]]
    written = span["count"] or "1"
    count = each * (int(written) if written.isdigit() else NUMBERS[written])
    if count > _MOST_SPAN:
        raise OverflowError
    return count, unit


def _later(clock: Clock, span: re.Match[str]) -> datetime:
    count, unit = _count(span)
    later = clock.now().astimezone(UTC) + timedelta(**{unit: count})
    return later.replace(second=0, microsecond=0).astimezone(clock.zone)


def _at(day: date, found: re.Match[str], zone: tzinfo) -> datetime:
    """The time that was found in the words, on a day."""
    parts = found.groupdict()
    if parts.get("named"):
        return at(day, time(NAMED_TIMES[parts["named"]]), zone)
    hour, minute, second = (int(parts.get(name) or 0) for name in ("hour", "minute", "second"))
    half = parts.get("half")
    if half is not None:
        if not 1 <= hour <= 12:
            raise ToolError(f"{found[0].strip()!r}: hours with such a word are 1 to 12")
        hour = hour % 12 + (12 if half in EVENING else 0)
    try:
        clock_time = time(hour, minute, second)
    except ValueError:
        raise ToolError(f"{found[0].strip()!r} is no time of a day; they go from 00:00 to 23:59") from None
    offset = parts.get("offset")
    if offset is None:
        return at(day, clock_time, zone)
    try:
        return datetime.combine(day, clock_time, _offset(offset)).astimezone(zone)
    except ValueError:
        raise ToolError(f"{offset!r} is no offset from UTC") from None


def _offset(written: str) -> timezone:
    if written == "z":
        return UTC
    sign = -1 if written[0] == "-" else 1
    return timezone(sign * timedelta(hours=int(written[1:3]), minutes=int(written[-2:])))


def _day(rest: str, text: str, clock: Clock) -> tuple[date, bool]:
    """The day that is meant, and whether it is so only as seen from today."""
    today = clock.here().date()
    for word in ("on ", "في ", "by "):
        rest = rest.removeprefix(word)
    if rest in NEAR:
        return today + timedelta(days=NEAR[rest]), True
    if span := _SPAN.fullmatch(rest):
        return _shifted(today, *_count(span), text), True
    if coming := _NEXT_SPAN.fullmatch(rest):
        return _shifted(today, *SPANS[coming["unit"] or coming["unit_ar"]], text), True
    if named := _WEEKDAY.fullmatch(rest):
        return _weekday(today, named), True
    leading = _LEADING_WEEKDAY.match(rest)
    day, relative = _date(rest[leading.end() :] if leading else rest, text, today)
    if leading and day.weekday() != WEEKDAYS[leading["weekday"]]:
        raise ToolError(f"{text!r}: {day} is a {_WEEKDAY_NAMES[day.weekday()]}")
    return day, relative


def _shifted(today: date, count: int, unit: str, text: str) -> date:
    if unit in ("days", "weeks"):
        return today + timedelta(days=count * (7 if unit == "weeks" else 1))
    if unit not in ("months", "years"):
        raise _unreadable(text)  # hours of a day that already has a time
    months = today.year * 12 + today.month - 1 + count * (12 if unit == "years" else 1)
    # The last day of a month that is shorter.
    for day in range(today.day, 0, -1):
        try:
            return date(months // 12, months % 12 + 1, day)
        except ValueError:
            continue
    raise OverflowError


def _weekday(today: date, named: re.Match[str]) -> date:
    wanted = WEEKDAYS[named["weekday"]]
    if (named["after"] or "") in LAST or set(named["before"].split()) & LAST:
        return today - timedelta(days=(today.weekday() - wanted - 1) % 7 + 1)
    return today + timedelta(days=(wanted - today.weekday() - 1) % 7 + 1)


def _date(rest: str, text: str, today: date) -> tuple[date, bool]:
    """A date of one of the calendars."""
    for pattern in (_YEAR_FIRST, _YEAR_LAST):
        if match := pattern.fullmatch(rest):
            year, month, day = int(match["year"]), int(match["number"]), int(match["day"])
            islamic = _is_hijri(match["era"], year)
            if pattern is _YEAR_LAST and not islamic:
                month, day = _day_and_month(month, day, year, text)
            return _checked(year, month, day, islamic, text), False
    for pattern in _NAMED:
        if match := pattern.fullmatch(rest):
            islamic = match["month"] in HIJRI_MONTHS
            month, day = (HIJRI_MONTHS if islamic else MONTHS)[match["month"]], int(match["day"])
            if (match["era"] in HIJRI) != islamic and match["era"] is not None:
                raise ToolError(f"{text!r}: the month is of the other calendar")
            if match["year"] is not None:
                return _checked(int(match["year"]), month, day, islamic, text), False
            return _next(today, month, day, islamic, text), True
    raise _unreadable(text)


def _is_hijri(era: str | None, year: int) -> bool:
    return era in HIJRI if era is not None else year < _FIRST_GREGORIAN


def _day_and_month(month: int, day: int, year: int, text: str) -> tuple[int, int]:
    """Month and day of ``03/04/2026``, which is the third of April for some and the fourth of March for others."""
    if month > 12 >= day:
        return day, month
    if month <= 12 and day <= 12 and month != day and not re.search("[٠-٩۰-۹]", text):
        raise ToolError(
            f"{text!r} could be two days: write {year:04}-{month:02}-{day:02} or {year:04}-{day:02}-{month:02}"
        )
    return month, day


def _checked(year: int, month: int, day: int, islamic: bool, text: str) -> date:
    if not islamic:
        try:
            return date(year, month, day)
        except ValueError as error:
            raise ToolError(f"{text!r}: there is no such day ({error})") from None
    from hijridate import Hijri

    try:
        found = Hijri(year, month, day).to_gregorian()
    except OverflowError:
        raise ToolError(f"{text!r}: Hijri dates are known from 1343 to 1500 AH") from None
    except ValueError as error:
        raise ToolError(f"{text!r}: there is no such day ({error})") from None
    return date(found.year, found.month, found.day)


def _next(today: date, month: int, day: int, islamic: bool, text: str) -> date:
    """The next such day of a year, today at the earliest."""
    first = today.year
    if islamic:
        from hijridate import Gregorian

        try:
            first = Gregorian(today.year, today.month, today.day).to_hijri().year
        except OverflowError:
            raise ToolError(f"{text!r}: Hijri dates are known from 1343 to 1500 AH") from None
    refused: ToolError | None = None
    for year in range(first, first + 9):  # the 29th of February can be eight years away
        try:
            found = _checked(year, month, day, islamic, text)
        except ToolError as error:
            refused = refused or error
            continue
        if found >= today:
            return found
    raise refused or _unreadable(text)
