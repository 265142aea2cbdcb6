"""Rules by which events repeat (RFC 5545, section 3.3.10), worked out day by day within bounds.

Libraries for such rules search on until something fits: a rule of a stranger's file that never fits, or fits each
second, would hold them up for minutes. Here the days looked at are counted, for all rules of a file together.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal, TypeAlias, get_args

from qafila.agent.agenda.dates import When
from qafila.agent.agenda.ics import Ics, Property
from qafila.agent.agenda.values import one_time
from qafila.errors import FormatError, UnsupportedError

Frequency: TypeAlias = Literal["DAILY", "WEEKLY", "MONTHLY", "YEARLY"]
FREQUENCIES: Final[tuple[Frequency, ...]] = get_args(Frequency)
_DAYS: Final = {name: number for number, name in enumerate(("MO", "TU", "WE", "TH", "FR", "SA", "SU"))}
_KNOWN: Final = {
    "FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYMONTH", "BYMONTHDAY", "BYYEARDAY", "BYDAY", "BYSETPOS",
}  # fmt: skip
#: Parts that only say again when a day's event begins, as long as they name its one time.
_TIMES: Final = ("BYHOUR", "BYMINUTE", "BYSECOND")


class Steps:
    """Days that may still be looked at."""

    def __init__(self, left: int = 200_000) -> None:
        self._left = left

    def take(self, name: str) -> None:
        """Count one.

        Raises:
            FormatError: there are none left.
        """
        self._left -= 1
        if self._left < 0:
            raise FormatError(name, "its events repeat too often to be worked out; ask for fewer days")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule; parts that are not given are empty. ``weekdays``: as pairs of ordinal (0: each) and day (Monday is 0)."""

    frequency: Frequency
    interval: int = 1
    count: int | None = None
    until: When | None = None
    first_weekday: int = 0
    months: frozenset[int] = frozenset()
    month_days: frozenset[int] = frozenset()
    year_days: frozenset[int] = frozenset()
    weekdays: frozenset[tuple[int, int]] = frozenset()
    positions: frozenset[int] = frozenset()

    def days(self, start: date, after: date, until: date, name: str, steps: Steps) -> Iterator[date]:
        """Days of the rule, in order, from its start to a last one; it may leave out what is before ``after``.

        Args:
            start: of the first event. name: of the file, for errors. steps: days that may be looked at.
        """
        rule = self._complete(start)
        begin = 0
        if self.count is None and after > start:
            begin = max(0, rule._periods(start, after) // self.interval - 1)
        period = begin * self.interval
        while (first := rule._first(start, period)) is not None and first <= until:
            fitting = []
            for day in rule._candidates(first):
                steps.take(name)
                if rule._fits(day):
                    fitting.append(day)
            if not fitting:
                steps.take(name)
            if self.positions:
                chosen = {at - 1 if at > 0 else len(fitting) + at for at in self.positions}
                fitting = [day for number, day in enumerate(fitting) if number in chosen]
            yield from (day for day in fitting if start <= day <= until)
            period += self.interval

    def _complete(self, start: date) -> Rule:
        """The rule with what it takes from its first day."""
        if self.month_days or self.year_days or self.weekdays:
            return self
        if self.frequency == "WEEKLY":
            return replace(self, weekdays=frozenset({(0, start.weekday())}))
        if self.frequency == "MONTHLY":
            return replace(self, month_days=frozenset({start.day}))
        if self.frequency == "YEARLY":
            return replace(self, months=self.months or frozenset({start.month}), month_days=frozenset({start.day}))
        return self

    def _periods(self, start: date, day: date) -> int:
        """Days, weeks, months or years from the start to a day."""
        if self.frequency == "DAILY":
            return (day - start).days
        if self.frequency == "WEEKLY":
            return (day - start).days // 7
        if self.frequency == "MONTHLY":
            return (day.year - start.year) * 12 + day.month - start.month
        return day.year - start.year

    def _first(self, start: date, period: int) -> date | None:
        """The first day of a period; None at the end of time."""
        try:
            if self.frequency == "DAILY":
                return start + timedelta(days=period)
            if self.frequency == "WEEKLY":
                return start - timedelta(days=(start.weekday() - self.first_weekday) % 7) + timedelta(days=7 * period)
            if self.frequency == "MONTHLY":
                months = start.year * 12 + start.month - 1 + period
                return date(months // 12, months % 12 + 1, 1)
            return date(start.year + period, 1, 1)
        except (ValueError, OverflowError):
            return None

    def _candidates(self, first: date) -> Iterator[date]:
        if self.frequency == "DAILY":
            yield first
        elif self.frequency == "WEEKLY":
            yield from (first + timedelta(days=number) for number in range(7))
        else:
            months = [first.month] if self.frequency == "MONTHLY" else sorted(self.months) or range(1, 13)
            for month in months:
                for day in range(1, calendar.monthrange(first.year, month)[1] + 1):
                    yield date(first.year, month, day)

    def _fits(self, day: date) -> bool:
        if self.months and day.month not in self.months:
            return False
        length = calendar.monthrange(day.year, day.month)[1]
        if self.month_days and not {day.day, day.day - length - 1} & self.month_days:
            return False
        number, year = day.timetuple().tm_yday, 366 if calendar.isleap(day.year) else 365
        if self.year_days and not {number, number - year - 1} & self.year_days:
            return False
        if not self.weekdays:
            return True
        # Ordinals count within the month, unless the rule is about years as a whole.
        if self.frequency != "YEARLY" or self.months:
            number, year = day.day, length
        ordinals = {0, (number - 1) // 7 + 1, -((year - number) // 7 + 1)}
        return any((ordinal, day.weekday()) in self.weekdays for ordinal in ordinals)


def read_rule(ics: Ics, found: Property, start: When) -> Rule:
    """A rule out of an RRULE.

    Raises:
        UnsupportedError: it repeats within a day, or counts weeks of years.
        FormatError: it is none. Both name the line.
    """

    def unsupported(problem: str) -> UnsupportedError:
        return UnsupportedError(ics.name, f"line {found.first + 1}: RRULE: {problem}")

    written = [part.partition("=") for part in found.value.strip().rstrip(";").upper().split(";")]
    parts = {name.strip(): value.strip().split(",") for name, _, value in written}
    frequency = next((one for one in FREQUENCIES if [one] == parts.get("FREQ")), None)
    if frequency is None:
        raise unsupported(f"only events that repeat {', '.join(FREQUENCIES).lower()} are worked out")
    until: When | None = None
    if "UNTIL" in parts:
        # A last time of no zone is in that of the events.
        zone = start.tzinfo if isinstance(start, datetime) else None
        until = one_time(ics, found, parts["UNTIL"][0], zone or UTC)
    if isinstance(start, datetime):
        for name, value in zip(_TIMES, (start.hour, start.minute, start.second), strict=True):
            if parts.get(name) in ([str(value)], [f"{value:02}"]):
                del parts[name]
    for name in parts:
        if name not in _KNOWN:
            raise unsupported(f"{name:.40} is not worked out")
    try:
        rule = _rule(frequency, until, parts)
    except (ValueError, KeyError):
        raise ics.wrong(found, f"RRULE: {found.value:.60} is no rule") from None
    if any(ordinal for ordinal, _ in rule.weekdays) and frequency in ("DAILY", "WEEKLY"):
        raise ics.wrong(found, f"RRULE: numbered weekdays do not go with {frequency}")
    return rule


def _rule(frequency: Frequency, until: When | None, parts: Mapping[str, list[str]]) -> Rule:
    def numbers(name: str, most: int, least: int = 1) -> frozenset[int]:
        found = frozenset(int(value) for value in parts.get(name, []))
        if any(not least <= (number if least else abs(number)) <= most or not number for number in found):
            raise ValueError
        return found

    return Rule(
        frequency,
        next(iter(numbers("INTERVAL", 10_000)), 1),
        next(iter(numbers("COUNT", 1_000_000)), None),
        until,
        _DAYS[parts.get("WKST", ["MO"])[0]],
        numbers("BYMONTH", 12),
        numbers("BYMONTHDAY", 31, 0),
        numbers("BYYEARDAY", 366, 0),
        frozenset((int(value[:-2] or 0), _DAYS[value[-2:]]) for value in parts.get("BYDAY", [])),
        numbers("BYSETPOS", 366, 0),
    )


def is_over(rule: Rule, start: When) -> bool:
    """Whether an event that begins then is after the rule's last."""
    until = rule.until
    if until is None:
        return False
    if isinstance(until, datetime) and isinstance(start, datetime):
        return start > until
    day = start.date() if isinstance(start, datetime) else start
    return day > (until.date() if isinstance(until, datetime) else until)
