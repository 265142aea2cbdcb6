"""What is to be thought of in a window of time: events that begin, tasks that are due, and reminders of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

from qafila.agent.agenda.dates import When, moment
from qafila.agent.agenda.ics import Component, Ics, read_ics
from qafila.agent.agenda.occurrences import occurrences, series
from qafila.agent.agenda.values import length, times, when
from qafila.agent.tool import ToolError
from qafila.errors import FormatError

Kind: TypeAlias = Literal["event", "task", "reminder"]

#: How long before or after its event a reminder may be.
_MOST_LEAD = timedelta(days=31)
_DONE = ("COMPLETED", "CANCELLED")


@dataclass(frozen=True, slots=True)
class Due:
    """Something to think of at a time.

    Attributes:
        when: it is, in the user's zone. kind: an event begins, a task is due, or a reminder of either.
        title, uid: of the event or task.
    """

    when: datetime
    kind: Kind
    title: str
    uid: str


def due(text: str, after: datetime, until: datetime, name: str = "calendar.ics") -> list[Due]:
    """What begins, is due, or is to be reminded of in a window, in order; tasks that are done are left out.

    Args:
        text: of an iCalendar file.
        after, until: the window, without its end; times of no zone are in that of ``after``.
        name: of the file, for errors.

    Raises:
        FormatError: the text is no iCalendar file. Events and tasks that cannot be understood are left out.
    """
    ics = read_ics(name, text.encode("utf-8", "replace"))
    found = [one for one in (*_events(ics, after, until), *_tasks(ics, after)) if after <= one.when < until]
    return sorted(found, key=lambda one: (one.when, one.title))


def is_done(task: Component) -> bool:
    """Whether a task is completed or given up."""
    return task.text("STATUS").upper() in _DONE or task.get("COMPLETED") is not None


def _events(ics: Ics, after: datetime, until: datetime) -> Iterator[Due]:
    zone = after.tzinfo or UTC
    for one in occurrences(ics, after - _MOST_LEAD, until + _MOST_LEAD, []):
        title, uid = one.item.text("SUMMARY"), one.item.text("UID")
        yield Due(moment(one.start, zone).astimezone(zone), "event", title, uid)
        for at in _alarms(ics, one.item, one.start, one.end, after):
            yield Due(at, "reminder", title, uid)


def _tasks(ics: Ics, after: datetime) -> Iterator[Due]:
    zone = after.tzinfo or UTC
    for one in series(ics, "VTODO").values():
        for task in one.items:
            if is_done(task):
                continue
            title = task.text("SUMMARY")
            try:
                ends = when(ics, task, "DUE", zone)
                starts = when(ics, task, "DTSTART", zone) or ends
            except (FormatError, ToolError):
                continue
            if ends is not None:
                yield Due(moment(ends, zone).astimezone(zone), "task", title, one.uid)
            for at in _alarms(ics, task, starts, ends or starts, after):
                yield Due(at, "reminder", title, one.uid)


def _alarms(ics: Ics, item: Component, start: When | None, end: When | None, after: datetime) -> Iterator[datetime]:
    """When an event's or a task's alarms go off (RFC 5545, section 3.8.6.3); those that make no sense do not."""
    zone = after.tzinfo or UTC
    for alarm in item.within:
        trigger = alarm.get("TRIGGER")
        if alarm.name != "VALARM" or trigger is None:
            continue
        related = end if trigger.params.get("RELATED", "").upper() == "END" else start
        try:
            if trigger.params.get("VALUE", "").upper() == "DATE-TIME":
                yield moment(times(ics, trigger, zone)[0], zone).astimezone(zone)
            elif related is not None:
                lead = length(ics, trigger)
                yield (moment(related, zone).astimezone(UTC) + lead).astimezone(zone)
        except (FormatError, ToolError, OverflowError):
            continue
