"""Where a calendar is kept: what tools read it from and write it to."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from zoneinfo import ZoneInfo

from qafila.agent.agenda.dates import When
from qafila.agent.agenda.ics import Ics, read_ics
from qafila.agent.agenda.occurrences import Series
from qafila.agent.agenda.values import zone_key, zone_lines
from qafila.agent.edits import MOST_BYTES, file_edit, inside
from qafila.agent.sandbox.entries import look, opened_root
from qafila.agent.tool import Draft, Effect, Surroundings
from qafila.errors import FormatError


@dataclass(frozen=True, slots=True)
class Stored:
    """An iCalendar file where it is kept; ``version`` stands for what it held when it was read."""

    ics: Ics
    version: str = ""


class Store(Protocol):
    """A place for events: a file, or a collection of them on a server.

    Attributes:
        effect: what a change of it is. near: whether it can be looked at often.
    """

    effect: Effect
    near: bool

    def read(self, place: Surroundings, window: tuple[datetime, datetime] | None = None) -> list[Stored]:
        """What it holds, of a window at least."""

    def add(self, place: Surroundings, lines: Sequence[str], begins: When | None, told: str) -> Draft | str:
        """Add an item, which begins at a time, if it does; tells so."""

    def change(self, place: Surroundings, stored: Stored, content: bytes, told: str) -> Draft | str:
        """Write a file anew."""

    def remove(self, place: Surroundings, stored: Stored, series: Series, told: str) -> Draft | str:
        """Take an event out."""


class FileStore:
    """A file of the workspace. What is to change in it is a draft."""

    effect: Effect = "write"
    near = True

    def __init__(self, path: str) -> None:
        self._path = inside(path)

    def read(self, place: Surroundings, window: tuple[datetime, datetime] | None = None) -> list[Stored]:
        """The file; a new one where there is none."""
        with opened_root(place.workspace) as root:
            found = look(root, self._path, MOST_BYTES)
        if found is not None and not stat.S_ISREG(found[0].mode):
            raise FormatError(self._path, "is a folder or a link, no file")
        if found is not None and found[1] is None:
            raise FormatError(self._path, f"{found[0].size} bytes are more than the {MOST_BYTES} that are read")
        return [Stored(read_ics(self._path, found[1] or b"" if found is not None else b""))]

    def add(self, place: Surroundings, lines: Sequence[str], begins: When | None, told: str) -> Draft:
        """See `Store`."""
        (stored,) = self.read(place)
        content = stored.ics.edited([stored.ics.added([*needed_zone(stored.ics, begins), *lines])])
        return self.change(place, stored, content, told)

    def change(self, place: Surroundings, stored: Stored, content: bytes, told: str) -> Draft:
        """See `Store`."""
        return Draft(told, file_edit(place.workspace, self._path, content))

    def remove(self, place: Surroundings, stored: Stored, series: Series, told: str) -> Draft:
        """See `Store`."""
        return self.change(place, stored, stored.ics.edited((item.first, item.last, ()) for item in series.items), told)


def needed_zone(ics: Ics, begins: When | None) -> list[str]:
    """The definition of an event's time zone, where its file has none."""
    if not isinstance(begins, datetime) or begins.fold:
        return []
    zone = begins.tzinfo
    if not isinstance(zone, ZoneInfo) or zone_key(zone) is None:
        return []
    if any(one.text("TZID") == zone.key for one in ics.named("VTIMEZONE")):
        return []
    return zone_lines(zone, begins.year)
