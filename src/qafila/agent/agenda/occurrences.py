"""What happens when: events of an iCalendar file with their repetitions and exceptions, in a window of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo

from qafila.agent.agenda.dates import When, at, moment
from qafila.agent.agenda.ics import Component, Ics
from qafila.agent.agenda.rules import Steps, is_over, read_rule
from qafila.agent.agenda.values import length, times, when
from qafila.agent.tool import ToolError
from qafila.errors import FormatError, UnsupportedError

#: Days that an event may take: one that takes longer is cut there.
_MOST_DAYS = 3660


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One time that an event takes place.

    Attributes:
        uid: of the event, as `series` has it. item: the event, or the exception that it is there. start, end: of it.
        original: when it would have begun without an exception. repeats: whether there may be more of it.
    """

    uid: str
    item: Component
    start: When
    end: When
    original: When
    repeats: bool


@dataclass(slots=True)
class Series:
    """The components of one event: itself (None in a file of exceptions alone), and its exceptions."""

    uid: str
    master: Component | None = None
    exceptions: list[Component] = field(default_factory=list)

    @property
    def items(self) -> list[Component]:
        """All of them."""
        return ([self.master] if self.master is not None else []) + self.exceptions

    @property
    def repeats(self) -> bool:
        """Whether it takes place more than once."""
        master = self.master
        return bool(self.exceptions) or (master is not None and bool(master.all("RRULE", "RDATE")))


def series(ics: Ics, name: str = "VEVENT") -> dict[str, Series]:
    """The events (or tasks) of a file, by UID; what has none is known by its first lines."""
    found: dict[str, Series] = {}
    for item in ics.named(name):
        uid = item.text("UID") or "/".join(one.value for one in item.all("SUMMARY", "DTSTART", "DUE"))
        one = found.setdefault(uid, Series(uid))
        if item.get("RECURRENCE-ID") is not None:
            one.exceptions.append(item)
        elif one.master is None:
            one.master = item
    return found


def occurrences(
    ics: Ics, after: datetime, until: datetime, problems: list[str], steps: Steps | None = None
) -> list[Occurrence]:
    """What takes place in a window, in order; times of no zone are in that of ``after``.

    Args:
        ics: a file. after, until: the window, without its end. steps: days that may be looked at.
        problems: gets a line for each event that cannot be understood; it, or what of it cannot, is left out.
    """
    steps = steps or Steps()
    found: list[Occurrence] = []
    for one in series(ics).values():
        try:
            found += of_series(ics, one, after, until, steps)
        except (FormatError, ToolError) as error:
            problems.append(str(error))
        except OverflowError:
            problems.append(str(ics.wrong(one.items[0], "the event is too far away")))
    zone = after.tzinfo or UTC
    return sorted(found, key=lambda one: (moment(one.start, zone), one.item.first))


def of_series(ics: Ics, one: Series, after: datetime, until: datetime, steps: Steps) -> Iterator[Occurrence]:
    """What takes place of one event in a window.

    Raises:
        FormatError: something of it cannot be understood; the message names the line.
    """
    zone = after.tzinfo or UTC
    replaced: set[When] = set()
    for item in one.exceptions:
        (named,) = item.all("RECURRENCE-ID")[:1]
        if "RANGE" in named.params:
            raise UnsupportedError(
                ics.name, f"line {named.first + 1}: exceptions for all that follows are not worked out"
            )
        original = when(ics, item, "RECURRENCE-ID", zone)
        assert original is not None
        replaced.add(_key(original))
        start = when(ics, item, "DTSTART", zone) or original
        yield from _here(Occurrence(one.uid, item, start, _end(ics, item, start, zone), original, True), after, until)
    if one.master is None:
        return
    first = itself(ics, one.master, zone)
    takes = moment(first.end, zone) - moment(first.start, zone)
    replaced |= {_key(gone) for found in one.master.all("EXDATE") for gone in times(ics, found, zone)}
    seen: set[When] = set()
    for begins in _starts(ics, one.master, first.start, after - takes, until, steps):
        key = _key(begins)
        day = begins.date() if isinstance(begins, datetime) else begins
        if key in replaced or day in replaced or key in seen:
            continue
        seen.add(key)
        ends = _later(begins, first.start, first.end)
        yield from _here(Occurrence(one.uid, one.master, begins, ends, begins, one.repeats), after, until)


def itself(ics: Ics, item: Component, zone: tzinfo) -> Occurrence:
    """An event as its own component has it, whether it repeats or not.

    Raises:
        FormatError: it has no start, or one that cannot be understood.
    """
    start = when(ics, item, "DTSTART", zone)
    if start is None:
        raise ics.wrong(item, "VEVENT: has no DTSTART")
    return Occurrence(item.text("UID"), item, start, _end(ics, item, start, zone), start, False)


def _starts(ics: Ics, master: Component, start: When, after: datetime, until: datetime, steps: Steps) -> Iterator[When]:
    """When an event begins, by itself, by its rules and by its dates."""
    zone = after.tzinfo or UTC
    yield start
    for found in master.all("RDATE"):
        yield from times(ics, found, zone)
    first, last = after.astimezone(zone).date() - timedelta(days=2), until.astimezone(zone).date() + timedelta(days=2)
    day = start.date() if isinstance(start, datetime) else start
    for found in master.all("RRULE"):
        rule = read_rule(ics, found, start)
        for number, begins_on in enumerate(rule.days(day, first, last, ics.name, steps)):
            if begins_on < first:
                continue
            begins = at(begins_on, start.time(), start.tzinfo or UTC) if isinstance(start, datetime) else begins_on
            if is_over(rule, begins) or (rule.count is not None and number >= rule.count):
                break
            yield begins


def _end(ics: Ics, item: Component, start: When, zone: tzinfo) -> When:
    """When an event that begins then ends: by its DTEND or DURATION; a day by itself lasts one, a time none."""
    end = when(ics, item, "DTEND", zone)
    takes = item.get("DURATION")
    if end is None and takes is not None:
        lasts = max(timedelta(), min(length(ics, takes), timedelta(days=_MOST_DAYS)))
        if not isinstance(start, datetime):
            return start + max(lasts, timedelta(days=1))
        return (start.astimezone(UTC) + lasts).astimezone(start.tzinfo)
    if end is None or isinstance(end, datetime) != isinstance(start, datetime):
        return start if isinstance(start, datetime) else start + timedelta(days=1)
    if moment(end, zone) < moment(start, zone):
        return start
    return min(end, _later(start, date(2000, 1, 1), date(2000, 1, 1) + timedelta(days=_MOST_DAYS)))


def _later(begins: When, start: When, end: When) -> When:
    """When what begins then ends, if it takes as long as from start to end: exactly so long, or whole days."""
    if isinstance(start, datetime) and isinstance(end, datetime) and isinstance(begins, datetime):
        return (begins.astimezone(UTC) + (end.astimezone(UTC) - start.astimezone(UTC))).astimezone(begins.tzinfo)
    first, last = (one.date() if isinstance(one, datetime) else one for one in (start, end))
    return begins + (last - first)


def _here(one: Occurrence, after: datetime, until: datetime) -> Iterator[Occurrence]:
    """An occurrence, if it is in the window and takes place at all."""
    zone = after.tzinfo or UTC
    start, end = moment(one.start, zone), moment(one.end, zone)
    if start < until and (end > after or start == end >= after) and one.item.text("STATUS").upper() != "CANCELLED":
        yield one


def _key(found: When) -> When:
    """What stands for a day or a time, in whatever zone it is written."""
    return found.astimezone(UTC) if isinstance(found, datetime) else found
