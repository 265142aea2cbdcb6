"""Events of the user's calendar, and days of two calendars: what is on, what is added, moved and taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, Literal, TypeAlias

from qafila.agent.agenda.caldav import CaldavStore
from qafila.agent.agenda.dates import Clock, When, at, hijri, moment, read_when, shown, system_clock
from qafila.agent.agenda.ics import Change, Component, escaped
from qafila.agent.agenda.names import existing, ids, named, one_line, summary, title_of
from qafila.agent.agenda.occurrences import Occurrence, Series, itself, occurrences, of_series, series
from qafila.agent.agenda.patterns import written
from qafila.agent.agenda.rules import Steps
from qafila.agent.agenda.store import FileStore, Store, Stored, needed_zone
from qafila.agent.agenda.values import line, stamp
from qafila.agent.config import Config
from qafila.agent.observation import MOST_SHOWN
from qafila.agent.tool import ArgumentsError, Draft, Surroundings, Tool, ToolError, tool

#: Days that are listed where no end is given, and at most.
_DAYS, _MOST_DAYS = 7, 731
#: Days by which one of an event that repeats may have been moved and still be known by the day that it was moved from.
_AROUND = 366
#: Seconds for a call: a server may take its time.
_SECONDS: Final = 60.0

Repeat: TypeAlias = Literal["never", "daily", "weekly", "monthly", "yearly"]


class CalendarTools:
    """The tools, for a calendar that is kept somewhere and a clock."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock, self._zone = store, clock, clock.zone

    def current_time(self) -> str:
        """Say today's date and the time."""
        return shown(self._clock.here())

    def convert_date(self, date: str) -> str:
        """Convert a date between the Gregorian and the Hijri calendar."""
        when = read_when(date, self._clock).when
        return shown(when) if hijri(_day(when)) else f"{shown(when)}; Hijri dates are known from 1343 to 1500 AH"

    def list_events(self, place: Surroundings, start: str = "today", end: str = "") -> str:
        """List the calendar's events between two dates."""
        after = moment(read_when(start, self._clock).when, self._zone)
        until = self._end_of(read_when(end, self._clock).when) if end.strip() else after + timedelta(days=_DAYS)
        if not after < until:
            raise ToolError("end: is not after the start")
        if until - after > timedelta(days=_MOST_DAYS):
            raise ToolError(f"end: more than {_MOST_DAYS} days after the start; ask for fewer")
        problems: list[str] = []
        every: dict[str, Series] = {}
        found: list[Occurrence] = []
        steps = Steps()
        for stored in self._store.read(place, (after, until)):
            every |= series(stored.ics)
            found += occurrences(stored.ics, after, until, problems, steps)
        found.sort(key=lambda one: moment(one.start, self._zone))
        names = {one.uid: name for name, one in ids(every).items()}
        lines = [self._line(names[one.uid], one) for one in found] or ["(no events)"]
        return _fitting(lines + [f"[not understood: {problem}]" for problem in problems[:5]])

    def add_event(
        self, place: Surroundings, title: str, start: str, end: str = "", location: str = "", repeat: Repeat = "never"
    ) -> Draft | str:
        """Add an event to the calendar."""
        begins = read_when(start, self._clock).when
        ends = self._end(begins, end)
        lines = [
            "BEGIN:VEVENT",
            f"UID:{place.key}",
            *_times(begins, ends, self._clock.now()).values(),
            summary(title),
            *([f"LOCATION:{escaped(one_line(location))}"] if location.strip() else []),
            *([f"RRULE:FREQ={repeat.upper()}"] if repeat != "never" else []),
            "END:VEVENT",
        ]
        name, span = one_line(title), self._span(begins, ends)
        if self._is_there(place, name, begins, ends):
            return f"{name!r} is in the calendar already: {span}"
        often = "" if repeat == "never" else f", {repeat}"
        return self._store.add(place, lines, begins, f"added {name!r}: {span}{often}")

    def move_event(self, place: Surroundings, id: str, start: str, day: str = "") -> Draft | str:
        """Move an event to another time; day: which one of an event that repeats."""
        stored, one = self._find(place, id)
        new = read_when(start, self._clock).when
        if not one.repeats:
            old = itself(stored.ics, one.items[0], self._zone)
        elif day.strip():
            old = self._on_day(stored, one, day)
        else:
            old = itself(stored.ics, _movable(one), self._zone)
        begins, ends = self._moved(old, new)
        times = _times(begins, ends, self._clock.now())
        if one.repeats and day.strip() and old.item is one.master:
            # An exception: the event as it is, at another time.
            first, *rest = stored.ics.copied(old.item, ("RRULE", "RDATE", "EXDATE", "DURATION", *times))
            exception = [first, line("RECURRENCE-ID", old.original), *times.values(), *rest]
            changes: list[Change] = [(old.item.last, old.item.last, exception)]
        else:
            changes = stored.ics.set(old.item, {**times, "DURATION": None})
        if not isinstance(old.start, datetime):  # else it stays in its zone
            changes.append(stored.ics.added(needed_zone(stored.ics, begins)))
        told = f"moved {title_of(old.item)!r} to {self._span(begins, ends)}"
        return self._store.change(place, stored, stored.ics.edited(changes), told)

    def delete_event(self, place: Surroundings, id: str, day: str = "") -> Draft | str:
        """Delete an event; day: only that one of an event that repeats."""
        stored, one = self._find(place, id)
        name = title_of(one.items[0])
        if not day.strip() or not one.repeats:
            return self._store.remove(place, stored, one, f"deleted {name!r}")
        gone = self._on_day(stored, one, day)
        changes: list[Change] = []
        if gone.item is not one.master:
            changes.append((gone.item.first, gone.item.last, []))
        if one.master is not None:
            changes.append((one.master.end, one.master.end, [line("EXDATE", gone.original)]))
        told = f"deleted {name!r} of {shown(self._here(gone.start))}"
        return self._store.change(place, stored, stored.ics.edited(changes), told)

    def listed(self, place: Surroundings, made: Sequence[Mapping[str, Any]]) -> Mapping[str, dict[str, Any]]:
        """As `dates`, for days that are listed, which change nothing."""
        return {"start": written(words=True), "end": written(words=True, empty=True)}

    def dates(self, place: Surroundings, made: Sequence[Mapping[str, Any]]) -> Mapping[str, dict[str, Any]]:
        """Dates are written so that they can be read."""
        words = self._store.near
        return {"start": written(words=words), "end": written(words=words, empty=True, alone=True)}

    def existing(self, place: Surroundings, made: Sequence[Mapping[str, Any]]) -> Mapping[str, dict[str, Any]] | None:
        """Ids are of events that exist, and dates are written so that they can be read."""
        found = existing(self._store, place, "VEVENT") if self._store.near else {}
        if found is None:
            return None
        words = self._store.near
        return {**found, "start": written(words=words), "day": written(words=words, time=False, empty=True)}

    def _is_there(self, place: Surroundings, name: str, begins: When, ends: When) -> bool:
        """Whether another call's event of this name begins then: models forget what they have done."""
        window = (moment(begins, self._zone), moment(ends, self._zone))
        return any(
            title_of(one.item) == name and one.start == begins and one.item.text("UID") != place.key
            for stored in self._store.read(place, window)
            for one in occurrences(stored.ics, *window, [])
        )

    def _find(self, place: Surroundings, name: str) -> tuple[Stored, Series]:
        """The event of a name, and the file that it is in."""
        every: dict[str, Series] = {}
        files: dict[str, Stored] = {}
        for stored in self._store.read(place):
            for uid, one in series(stored.ics).items():
                every[uid], files[uid] = one, stored
        one = named(every, name)
        if not self._store.near and ids(every).get(name.strip()) is not one:
            # Nothing but the name shows a person what is meant: it has to be the event's own.
            raise ToolError(f"id: {name!r:.60} is not how this event is listed; list them and write the whole id")
        if self._store.effect != "write" and any(item.get("ATTENDEE") for item in one.items):
            raise ToolError("others take part in this event, and the server would write to them; change it yourself")
        return files[one.uid], one

    def _on_day(self, stored: Stored, one: Series, day: str) -> Occurrence:
        """The one of an event that repeats which begins on a day, or would if it had not been moved."""
        wanted = _day(read_when(day, self._clock).when)
        after, until = at(wanted, time(), self._zone), self._end_of(wanted)
        around = timedelta(days=_AROUND)
        every = list(of_series(stored.ics, one, after - around, until + around, Steps()))
        there = [found for found in every if after <= moment(found.start, self._zone) < until]
        from_there = [found for found in every if after <= moment(found.original, self._zone) < until]
        if there or from_there:
            return (there or from_there)[0]
        raise ToolError(f"day: {title_of(one.items[0])!r} is not on {shown(wanted)}")

    def _moved(self, old: Occurrence, begins: When) -> tuple[When, When]:
        """Start and end of an event that is moved: it takes as long as before, and a day alone keeps the time."""
        if isinstance(old.start, datetime) and isinstance(old.end, datetime):
            if not isinstance(begins, datetime):
                begins = at(begins, old.start.astimezone(self._zone).time(), self._zone)
            begins = begins.astimezone(old.start.tzinfo)
            return begins, _after(begins, old.end.astimezone(UTC) - old.start.astimezone(UTC))
        if isinstance(begins, datetime):
            return begins, _after(begins, timedelta(hours=1))
        return begins, begins + (_day(old.end) - _day(old.start))

    def _end(self, begins: When, end: str) -> When:
        """When an event ends that begins then: as it is said; else after an hour, or at the end of the day."""
        if not end.strip():
            return _after(begins, timedelta(hours=1)) if isinstance(begins, datetime) else begins + timedelta(days=1)
        ends = read_when(end, self._clock, _day(begins)).when
        if isinstance(ends, datetime) != isinstance(begins, datetime):
            raise ToolError("start and end: give both a time, or neither")
        last = ends if isinstance(ends, datetime) else ends + timedelta(days=1)
        if moment(last, self._zone) <= moment(begins, self._zone):
            raise ToolError(f"end: {shown(ends)} is not after the start, {shown(begins)}")
        return last

    def _end_of(self, when: When) -> datetime:
        """The end of a day; a time as it is."""
        return when if isinstance(when, datetime) else at(when + timedelta(days=1), time(), self._zone)

    def _here(self, when: When) -> When:
        """A time in the user's zone."""
        return when.astimezone(self._zone) if isinstance(when, datetime) else when

    def _line(self, name: str, one: Occurrence) -> str:
        where = one_line(one.item.text("LOCATION"))
        parts = [f"{name}: {self._span(one.start, one.end)}", title_of(one.item)]
        return ", ".join([*parts, *([f"at {where}"] if where else []), *(["repeats"] if one.repeats else [])])

    def _span(self, begins: When, ends: When) -> str:
        """When an event is, in the user's zone."""
        begins, ends = self._here(begins), self._here(ends)
        if not isinstance(begins, datetime) or not isinstance(ends, datetime):
            last = ends - timedelta(days=1)
            return f"{shown(begins)}, all day" + (f", until {shown(last)}" if last > begins else "")
        if begins == ends:
            return shown(begins)
        return f"{shown(begins)} until " + (f"{ends:%H:%M}" if begins.date() == ends.date() else shown(ends))

    def tools(self) -> tuple[Tool, ...]:
        """All of them."""
        effect, near = self._store.effect, self._store.near
        writing = [
            tool(one, effect=effect, live=live, origin="built-in", repeats=not near, seconds=_SECONDS)
            for one, live in (
                (self.add_event, self.dates),
                (self.move_event, self.existing),
                (self.delete_event, self.existing),
            )
        ]
        return (
            tool(self.current_time, effect="read", origin="built-in"),
            tool(self.convert_date, effect="read", origin="built-in"),
            tool(self.list_events, effect="read", live=self.listed, origin="built-in", seconds=_SECONDS),
            *(one if near else with_written_dates(one, self._clock) for one in writing),
        )


def tools(config: Config, clock: Clock | None = None) -> tuple[Tool, ...]:
    """The tools of this module.

    Raises:
        UsageError: the calendar's server is not described so that it can be asked.
    """
    store: Store = CaldavStore(config.calendar) if config.calendar.caldav else FileStore(config.calendar.file)
    return CalendarTools(store, clock or system_clock(config.zone)).tools()


def with_written_dates(one: Tool, clock: Clock) -> Tool:
    """The same tool, which takes no ``tomorrow``: a call may be allowed, or made again, on another day than written."""

    def check(arguments: Mapping[str, Any]) -> dict[str, Any]:
        checked = one.check(arguments)
        day: date | None = None
        for name in ("start", "end", "day"):
            if text := str(checked.get(name) or "").strip():
                try:
                    found = read_when(text, clock, day)
                except ToolError as error:
                    raise ArgumentsError(f"{name}: {error}") from None
                if found.relative:
                    raise ArgumentsError(f"{name}: write the date out: {text!r} is {shown(found.when)}")
                day = _day(found.when)
        return checked

    return replace(one, check=check)


def _fitting(lines: list[str]) -> str:
    """As many lines as can be shown."""
    size = 0
    for number, text in enumerate(lines):
        size += len(text) + 1
        if size > MOST_SHOWN - 100:
            return "\n".join([*lines[:number], f"[{len(lines) - number} more; ask for fewer days]"])
    return "\n".join(lines)


def _after(begins: datetime, takes: timedelta) -> datetime:
    return (begins.astimezone(UTC) + takes).astimezone(begins.tzinfo)


def _day(when: When) -> date:
    return when.date() if isinstance(when, datetime) else when


def _movable(one: Series) -> Component:
    """An event that repeats and can be moved as a whole."""
    master = one.master
    rules = master.all("RRULE") if master is not None else []
    if master is None or one.exceptions or master.all("EXDATE", "RDATE") or any("BY" in rule.value for rule in rules):
        raise ToolError("day: the event repeats in a way that cannot be moved as a whole; say which day's is meant")
    return master


def _times(begins: When, ends: When, now: datetime) -> dict[str, str]:
    """The properties that say when an event is, and when that was said."""
    return {
        "DTSTAMP": stamp("DTSTAMP", now),
        "DTSTART": line("DTSTART", begins),
        "DTEND": line("DTEND", ends),
    }
