"""The user's tasks: to-dos of ``tasks.ics`` in the workspace, with days they are due and times to be reminded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from qafila.agent.agenda.dates import Clock, moment, read_when, shown, system_clock
from qafila.agent.agenda.names import existing, ids, named, one_line, still_open, summary, title_of
from qafila.agent.agenda.patterns import written
from qafila.agent.agenda.store import FileStore
from qafila.agent.agenda.values import line, stamp, when
from qafila.agent.config import Config
from qafila.agent.tool import Draft, Surroundings, Tool, ToolError, tool
from qafila.errors import FormatError

FILE = "tasks.ics"
_MOST_LISTED = 40


class TaskTools:
    """The tools, for a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._store = clock, FileStore(FILE)

    def list_tasks(self, place: Surroundings) -> str:
        """List the tasks that are to be done."""
        (stored,) = self._store.read(place)
        ics, zone = stored.ics, self._clock.zone
        lines: list[tuple[float, str]] = []
        for name, one in ids(still_open(ics, "VTODO")).items():
            order, words = float("inf"), f"{name}: {title_of(one.items[0])}"
            try:
                due = when(ics, one.items[0], "DUE", zone)
            except FormatError as error:
                words, due = f"{words} [not understood: {error}]", None
            if due is not None:
                order = moment(due, zone).timestamp()
                words += f", due {shown(due.astimezone(zone) if isinstance(due, datetime) else due)}"
            lines.append((order, words))
        told = [words for _, words in sorted(lines)]
        more = [f"[{len(told) - _MOST_LISTED} more]"] if len(told) > _MOST_LISTED else []
        return "\n".join(told[:_MOST_LISTED] + more) or "(no tasks)"

    def add_task(self, place: Surroundings, title: str, due: str = "", remind: str = "") -> Draft | str:
        """Add a task: when it is due, when to remind the user."""
        ends = read_when(due, self._clock).when if due.strip() else None
        alarm = read_when(remind, self._clock).when if remind.strip() else None
        if alarm is not None and not isinstance(alarm, datetime):
            raise ToolError("remind: give it a time too, as 2026-11-29 09:00")
        (stored,) = self._store.read(place)
        name = one_line(title)
        if any(name == title_of(one.items[0]) for one in still_open(stored.ics, "VTODO").values()):
            return f"{name!r} is among the tasks already"
        told = f"added {name!r}" + (f", due {shown(ends)}" if ends is not None else "")
        lines = [
            "BEGIN:VTODO",
            f"UID:{place.key}",
            stamp("DTSTAMP", self._clock.now()),
            summary(title),
            *([line("DUE", ends)] if ends is not None else []),
        ]
        if alarm is not None:
            told += f", reminder {shown(alarm)}"
            trigger = stamp("TRIGGER;VALUE=DATE-TIME", alarm)
            lines += ["BEGIN:VALARM", "ACTION:DISPLAY", summary(title).replace("SUMMARY", "DESCRIPTION", 1), trigger]
            lines += ["END:VALARM"]
        return self._store.add(place, [*lines, "END:VTODO"], ends, told)

    def finish_task(self, place: Surroundings, id: str) -> Draft:
        """Mark a task as done."""
        (stored,) = self._store.read(place)
        task = named(still_open(stored.ics, "VTODO"), id).items[0]
        if task.get("RRULE") is not None:
            raise ToolError("id: the task repeats; finish it in the program that it comes from")
        now = self._clock.now()
        done = {
            "STATUS": "STATUS:COMPLETED",
            "COMPLETED": stamp("COMPLETED", now),
            "PERCENT-COMPLETE": "PERCENT-COMPLETE:100",
            "DTSTAMP": stamp("DTSTAMP", now),
        }
        return self._store.change(
            place, stored, stored.ics.edited(stored.ics.set(task, done)), f"done: {title_of(task)!r}"
        )

    def dates(self, place: Surroundings, made: Sequence[Mapping[str, Any]]) -> Mapping[str, dict[str, Any]]:
        """Dates are written so that they can be read."""
        return dict.fromkeys(("due", "remind"), written(words=True, empty=True))

    def existing(self, place: Surroundings, made: Sequence[Mapping[str, Any]]) -> Mapping[str, dict[str, Any]] | None:
        """Ids are of tasks that exist and are not done."""
        return existing(self._store, place, "VTODO")

    def tools(self) -> tuple[Tool, ...]:
        """All of them."""
        return (
            tool(self.list_tasks, effect="read", origin="built-in"),
            tool(self.add_task, effect="write", live=self.dates, origin="built-in"),
            tool(self.finish_task, effect="write", live=self.existing, origin="built-in"),
        )


def tools(config: Config, clock: Clock | None = None) -> tuple[Tool, ...]:
    """The tools of this module."""
    return TaskTools(clock or system_clock(config.zone)).tools()
