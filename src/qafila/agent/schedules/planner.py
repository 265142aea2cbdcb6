"""What a schedule sets off now: the times that came, the events that come, the files that changed."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from qafila.agent.schedules.instants import MOST_MISSED, Quiet, due_times
from qafila.agent.schedules.store import Fire, Planned, Schedule
from qafila.agent.schedules.triggers import BeforeEvents, Cron, Once, OnFile, lead
from qafila.errors import QafilaError

#: Seconds after its time within which something is not late; for which a file must have been left alone.
ON_TIME, SETTLED = 300.0, 2.0
_MOST_BYTES, _MOST_FILES, _MOST_NAMED = 4 << 20, 2000, 10
_SKIPPED = {".git", "__pycache__", "node_modules", ".venv"}


class Occasion(Protocol):
    """Something in a calendar: an event that begins, a task that is due, or a reminder, which comes at its own time."""

    @property
    def when(self) -> datetime:
        """Its time, with a zone."""

    @property
    def kind(self) -> str:
        """``event``, ``task`` or ``reminder``."""

    @property
    def title(self) -> str:
        """What it is called."""

    @property
    def uid(self) -> str:
        """Which event or task."""


class Reader(Protocol):
    """Reads a calendar."""

    def __call__(self, text: str, after: datetime, until: datetime) -> Sequence[Occasion]:
        """What is in an iCalendar file from ``after`` on and before ``until``; FormatError where it is none."""


@dataclass(frozen=True, slots=True)
class Planner:
    """Says what schedules set off.

    Attributes:
        now: seconds since 1970. quiet: hours in which nothing begins. reader: of calendars, where there is one.
        calendars: their files, in the workspace. problems: that were met on the way; what they keep from being seen is
            looked at again later.
    """

    now: float
    quiet: Quiet | None = None
    reader: Reader | None = None
    calendars: Sequence[str] = ("calendar.ics", "tasks.ics")
    problems: list[str] = field(default_factory=list)

    @property
    def moment(self) -> datetime:
        """Now."""
        return datetime.fromtimestamp(self.now, UTC)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing begins now."""
        return self._waits_until(self.moment) > self.moment

    def __call__(self, schedule: Schedule) -> Planned | None:
        """What a schedule sets off; None in quiet hours, and where it waits for a name."""
        if self.is_quiet:
            return None
        after = datetime.fromtimestamp(schedule.checked, UTC)
        match schedule.wanted.trigger:
            case Cron() | Once() as trigger:
                times = self._wanted_times(schedule, due_times(trigger, after, self.moment))
                return Planned([_fire(schedule, at) for at in times], self.now)
            case BeforeEvents() as trigger:
                try:
                    return Planned(self._before_events(schedule, trigger, after), self.now)
                except QafilaError as error:
                    self.problems.append(f"{schedule.wanted.name}: {error}")
                    return None
            case OnFile() as trigger:
                return self._changed_files(schedule, trigger)
        return None

    def _waits_until(self, moment: datetime) -> datetime:
        return moment if self.quiet is None else self.quiet.ends(moment)

    def _wanted_times(self, schedule: Schedule, times: Sequence[datetime]) -> Sequence[datetime]:
        """Those of the times that came for which something is to happen: all of them, the last one, or none if late."""
        loud = [at for at in times if not (schedule.wanted.skip_quiet and self._waits_until(at) > at)]
        match schedule.wanted.missed:
            case "all":
                return loud[-MOST_MISSED:]
            case "once":
                return loud[-1:]
            case "skip":
                on_time = self.moment - timedelta(seconds=ON_TIME)
                return [at for at in loud if self._waits_until(at) >= on_time][-1:]

    def _before_events(self, schedule: Schedule, trigger: BeforeEvents, after: datetime) -> list[Fire]:
        """What comes within the span, and what came since the last look, once each."""
        ahead = lead(trigger)
        begun: dict[datetime, list[Fire]] = {}
        fires: list[Fire] = []
        for one in self._occasions(schedule, trigger, after, self.moment + ahead + timedelta(seconds=1)):
            due = one.when - (timedelta() if one.kind == "reminder" else ahead)
            if due > self.moment or one.when <= after:
                continue
            if schedule.wanted.skip_quiet and self._waits_until(due) > due:
                continue
            about = f"{one.kind} at {one.when.astimezone(zoneinfo.ZoneInfo(trigger.zone)):%Y-%m-%d %H:%M}: {one.title}"
            token = hashlib.sha256(f"{one.kind}\0{one.uid}".encode("utf-8", "replace")).hexdigest()[:16]
            fire = _fire(schedule, one.when, token, " ".join(about[:300].split()))
            # An event that lies ahead is never late; one that has begun was missed.
            if one.when > self.moment:
                fires.append(fire)
            else:
                begun.setdefault(one.when, []).append(fire)
        kept = self._wanted_times(schedule, sorted(begun))
        return [fire for at in kept for fire in begun[at]][-MOST_MISSED:] + fires[:MOST_MISSED]

    def _occasions(
        self, schedule: Schedule, trigger: BeforeEvents, after: datetime, until: datetime
    ) -> Iterator[Occasion]:
        if self.reader is None:
            return
        zone = zoneinfo.ZoneInfo(trigger.zone)
        for name in self.calendars:
            text = _text(Path(schedule.wanted.workspace) / name)
            if text is not None:
                yield from self.reader(text, after.astimezone(zone), until.astimezone(zone))

    def _changed_files(self, schedule: Schedule, trigger: OnFile) -> Planned:
        found = files(Path(schedule.wanted.workspace), trigger.pattern)
        seen: dict[str, str] = {}
        changed: list[str] = []
        for path, (when, size) in found.items():
            mark = f"{when}/{size}"
            if schedule.seen.get(path) == mark:
                seen[path] = mark
            elif 0 <= self.now - when / 1e9 < SETTLED:  # it may still be written
                if path in schedule.seen:
                    seen[path] = schedule.seen[path]
            else:
                seen[path] = mark
                at = datetime.fromtimestamp(min(max(0.0, when / 1e9), self.now), UTC)
                if not (schedule.wanted.skip_quiet and self._waits_until(at) > at):
                    changed.append(path)
        if not changed:
            return Planned([], self.now, seen)
        marks = "\n".join([str(schedule.checked), *(f"{path}\0{seen[path]}" for path in changed)])
        token = hashlib.sha256(marks.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        rest = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
        about = f"files that are new or changed: {', '.join(changed[:_MOST_NAMED])}{rest}"
        return Planned([Fire(f"{schedule.id}@{token}", schedule.id, self.now, about)], self.now, seen)


def known_files(workspace: Path, pattern: str) -> dict[str, str]:
    """The files that fit a pattern, as a schedule knows them."""
    return {path: f"{when}/{size}" for path, (when, size) in files(workspace, pattern).items()}


def files(workspace: Path, pattern: str) -> Mapping[str, tuple[int, int]]:
    """Times of change, in nanoseconds, and sizes of the regular files that fit a pattern; links are not followed."""
    found: dict[str, tuple[int, int]] = {}
    for folder, folders, names in os.walk(workspace):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = (Path(folder) / name).relative_to(workspace).as_posix()
            if not path.isprintable() or not fnmatch.fnmatchcase(path, pattern):
                continue
            try:
                status = os.lstat(workspace / path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                found[path] = (status.st_mtime_ns, status.st_size)
                if len(found) >= _MOST_FILES:
                    return found
    return found


def _fire(schedule: Schedule, at: datetime, token: str = "", about: str = "") -> Fire:
    name = f"{schedule.id}@{int(at.timestamp())}"
    return Fire(f"{name}:{token}" if token else name, schedule.id, at.timestamp(), about)


def _text(path: Path) -> str | None:
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
