"""Values of iCalendar properties: days and times, their zones, lengths of time; read, and written."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final

from qafila.agent.agenda.dates import When, at
from qafila.agent.agenda.ics import Component, Ics, Property

_VALUE: Final = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(\d\d)(Z?))?", re.ASCII)
_LENGTH: Final = re.compile(
    r"([+-]?)P(?:(\d{1,6})W)?(?:(\d{1,6})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,6})M)?(?:(\d{1,8})S)?)?", re.ASCII
)
#: Years that can be reckoned with in every zone.
_YEARS: Final = range(1600, 9000)
#: Years for which a zone's changes of the clock are written down.
_ZONE_YEARS: Final = 10


def times(ics: Ics, found: Property, zone: tzinfo) -> list[When]:
    """The days or times that a property lists; of periods, their starts. Times of no zone are in the user's.

    Raises:
        FormatError: one is none, or its zone is unknown; the message names the line.
    """
    there = _zone(ics, found) or zone
    return [one_time(ics, found, value.partition("/")[0], there) for value in found.value.split(",")]


def when(ics: Ics, item: Component, name: str, zone: tzinfo) -> When | None:
    """The day or time of an item's property, if it has it; errors as of `times`."""
    found = item.get(name)
    return times(ics, found, zone)[0] if found is not None else None


def one_time(ics: Ics, found: Property, value: str, zone: tzinfo) -> When:
    """A day or time as a property holds it; errors as of `times`."""
    match = _VALUE.fullmatch(value.strip())
    if match is None:
        raise ics.wrong(found, f"{found.name}: {value:.40} is no date or time")
    try:
        day = date(int(match[1]), int(match[2]), int(match[3]))
        if day.year not in _YEARS:
            raise ics.wrong(found, f"{found.name}: the year {day.year} is too far away")
        if match[4] is None:
            return day
        # A leap second is the one before it.
        clock_time = time(int(match[4]), int(match[5]), min(int(match[6]), 59))
    except ValueError:
        raise ics.wrong(found, f"{found.name}: {value:.40} is no date or time") from None
    return at(day, clock_time, UTC if match[7] else zone)


def _zone(ics: Ics, found: Property) -> tzinfo | None:
    """The zone that a property names; None where it names none."""
    name = found.params.get("TZID", "")
    if not name:
        return None
    for guess in _names(ics, name):
        try:
            return zoneinfo.ZoneInfo(guess)
        except (OSError, ValueError, KeyError):
            continue
    raise ics.wrong(found, f"{found.name}: the time zone {name:.60} is unknown")


def _names(ics: Ics, name: str) -> Iterator[str]:
    """What a zone may be called: names of our own, with paths before them, and those of Windows."""
    yield name
    parts = name.split("/")
    for length in (3, 2):
        yield "/".join(parts[-length:])
    for one in ics.named("VTIMEZONE"):
        if one.text("TZID") == name:
            yield one.text("X-LIC-LOCATION")
    from icalendar.timezone.windows_to_olson import WINDOWS_TO_OLSON

    yield WINDOWS_TO_OLSON.get(name, "")


def length(ics: Ics, found: Property) -> timedelta:
    """A length of time, as ``-PT15M`` (RFC 5545, section 3.3.6).

    Raises:
        FormatError: it is none; the message names the line.
    """
    match = _LENGTH.fullmatch(found.value.strip())
    if match is None or not any(match.groups()[1:]):
        raise ics.wrong(found, f"{found.name}: {found.value:.40} is no length of time")
    weeks, days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[1:])
    takes = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    return -takes if match[1] == "-" else takes


def line(name: str, value: When) -> str:
    """A property that holds a day or a time: in its zone where that has a name, else in UTC.

    The second of two times that look alike is written in UTC, since a zone's time means the first.
    """
    if not isinstance(value, datetime):
        return f"{name};VALUE=DATE:{value:%Y%m%d}"
    key = zone_key(value.tzinfo)
    if key is None or value.fold:
        return stamp(name, value)
    return f"{name};TZID={key}:{value:%Y%m%dT%H%M%S}"


def stamp(name: str, moment: datetime) -> str:
    """A property that holds a moment, in UTC."""
    return f"{name}:{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def zone_key(zone: tzinfo | None) -> str | None:
    """A zone's name, where it has one other than UTC."""
    key = zone.key if isinstance(zone, zoneinfo.ZoneInfo) else None
    return None if key in (None, "UTC", "Etc/UTC") else key


def zone_lines(zone: zoneinfo.ZoneInfo, year: int) -> list[str]:
    """A VTIMEZONE (RFC 5545, section 3.6.5) with a zone's changes of the clock in ten years from one on."""
    first = datetime(year, 1, 1, tzinfo=UTC)
    changes: dict[tuple[str, str, str, str], list[datetime]] = {}
    earlier = first
    for days in range(1, _ZONE_YEARS * 366):
        later = first + timedelta(days=days)
        if _offset(earlier, zone) != _offset(later, zone):
            change = _change(earlier, later, zone)
            before, after = (change - timedelta(minutes=1)).astimezone(zone), change.astimezone(zone)
            kind = "DAYLIGHT" if after.dst() else "STANDARD"
            # The local time of a change is that of the clock before it.
            local = change.replace(tzinfo=None) + _offset(change - timedelta(minutes=1), zone)
            changes.setdefault((kind, f"{before:%z}", f"{after:%z}", after.tzname() or ""), []).append(local)
        earlier = later
    begin = first.astimezone(zone)
    kind = "DAYLIGHT" if begin.dst() else "STANDARD"
    lines = ["BEGIN:VTIMEZONE", f"TZID:{zone.key}"]
    lines += _observance(kind, f"{begin:%z}", f"{begin:%z}", begin.tzname() or "", [datetime(year, 1, 1)])
    for names, starts in changes.items():
        lines += _observance(*names, starts)
    return [*lines, "END:VTIMEZONE"]


def _observance(kind: str, before: str, after: str, name: str, starts: list[datetime]) -> list[str]:
    written = [f"{start:%Y%m%dT%H%M%S}" for start in starts]
    return [
        f"BEGIN:{kind}",
        f"DTSTART:{written[0]}",
        *([f"RDATE:{','.join(written[1:])}"] if written[1:] else []),
        f"TZOFFSETFROM:{before}",
        f"TZOFFSETTO:{after}",
        f"TZNAME:{name}",
        f"END:{kind}",
    ]


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _change(earlier: datetime, later: datetime, zone: tzinfo) -> datetime:
    """The minute, in UTC, from which on a zone is as it is at the later time."""
    while later - earlier > timedelta(minutes=1):
        middle = (earlier + (later - earlier) / 2).replace(second=0, microsecond=0)
        if _offset(middle, zone) == _offset(later, zone):
            later = middle
        else:
            earlier = middle
    return later
