"""When a schedule is due: instants out of local times, and hours in which nothing begins.

A time that clocks skip is due once, right after the gap; one that they show twice is due once, the first time. Cron
fields whose minute or hour begins with a star go by real time instead, as Debian's cron has it.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo

from qafila.agent.schedules.triggers import Cron, Once

#: How many missed times are made up for, at most.
MOST_MISSED = 24
_LOOKS_BACK = tuple(timedelta(hours=hours) for hours in (2, 24, 32 * 24, 366 * 24, 30 * 366 * 24))


def instant(local: datetime, zone: tzinfo) -> datetime:
    """What a local time is in UTC; one that clocks skip is the moment at which they skip it."""
    first = local.replace(tzinfo=zone, fold=0)
    found = first.astimezone(UTC)
    if found.astimezone(zone).replace(tzinfo=None) == local:
        return found
    # In a gap: fold 0 counts by the offset before it, fold 1 by the one after it (PEP 495): the gap lies between.
    low, high = local.replace(tzinfo=zone, fold=1).astimezone(UTC), found
    before = zone.utcoffset(low.astimezone(zone))
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        if zone.utcoffset(middle.astimezone(zone)) == before:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)


def due_times(trigger: Cron | Once, after: datetime, until: datetime) -> Sequence[datetime]:
    """The last `MOST_MISSED` instants after one and up to another, in order."""
    zone = zoneinfo.ZoneInfo(trigger.zone)
    if isinstance(trigger, Once):
        found = instant(trigger.at, zone)
        return [found] if after < found <= until else []
    for look in _LOOKS_BACK:
        start = max(after, until - look)
        times = _cron_times(trigger.fields, zone, start, until)
        if len(times) >= MOST_MISSED or start == after:
            break
    return times[-MOST_MISSED:]


def next_time(trigger: Cron | Once, after: datetime) -> datetime | None:
    """The next instant, if there is one."""
    from cronsim import CronSim

    zone = zoneinfo.ZoneInfo(trigger.zone)
    if isinstance(trigger, Once):
        found = instant(trigger.at, zone)
        return found if found > after else None
    for one in CronSim(trigger.fields, after.astimezone(zone)):
        if one.astimezone(UTC) > after:
            return one.astimezone(UTC)
    return None


def _cron_times(fields: str, zone: tzinfo, after: datetime, until: datetime) -> list[datetime]:
    from cronsim import CronSim

    found: list[datetime] = []
    for local in CronSim(fields, after.astimezone(zone)):
        one = local.astimezone(UTC)
        if one > until:
            break
        # Within the hour that comes twice, fixed times are counted by its first showing, which may be over.
        if one > after and (not found or one > found[-1]):
            found.append(one)
    return found


@dataclass(frozen=True, slots=True)
class Quiet:
    """Hours in which nothing begins by itself: from one time of day up to another, in a zone."""

    start: time
    end: time
    zone: tzinfo

    @classmethod
    def parse(cls, written: str, zone: tzinfo) -> Quiet:
        """As the settings have it: ``22:00-07:00``."""
        start, _, end = written.partition("-")
        return cls(time.fromisoformat(start), time.fromisoformat(end), zone)

    def ends(self, moment: datetime) -> datetime:
        """When it is no longer quiet: the moment itself where it is not."""
        local = moment.astimezone(self.zone)
        clock = local.time().replace(tzinfo=None)
        over_midnight = self.start > self.end
        inside = clock >= self.start or clock < self.end if over_midnight else self.start <= clock < self.end
        if not inside:
            return moment
        day = local.date() + timedelta(days=1) if over_midnight and clock >= self.start else local.date()
        return max(moment, instant(datetime.combine(day, self.end), self.zone))
