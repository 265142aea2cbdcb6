"""iCalendar files (RFC 5545), read so that they can be changed in place: what is not touched keeps its bytes.

A file is lines, lines make properties (one may be folded over several), and properties stand in components, one within
another. Where each begins and ends is kept, so that a change of one property is a change of its lines alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from qafila.errors import FormatError

#: Most lines of a file, and how deep components may stand in one another: files have about four levels.
_MOST_LINES, _MOST_DEPTH = 200_000, 12
_NAME: Final = re.compile(rb"[A-Za-z0-9-]+")
_PARAMETER: Final = re.compile(rb';([A-Za-z0-9-]+)=((?:"[^"\r\n]*"|[^";:,\r\n]*)(?:,(?:"[^"\r\n]*"|[^";:,\r\n]*))*)')
#: A file that holds nothing yet.
EMPTY: Final = b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Qafila//Agent//EN\r\nEND:VCALENDAR\r\n"


@dataclass(frozen=True, slots=True)
class Property:
    """A property.

    Attributes:
        name, params, value: as written, names in capitals; values of parameters without quotes.
        first, last: its lines, from 0, the last one not included.
    """

    name: str
    params: Mapping[str, str]
    value: str
    first: int
    last: int


#: Lines from one on to another, which is left as it is, and what is to stand there instead.
Change: TypeAlias = tuple[int, int, Sequence[str]]


@dataclass(slots=True)
class Component:
    """A component, as ``VEVENT``: its lines from BEGIN to END, its properties, and the components within it."""

    name: str
    first: int
    last: int = 0
    properties: list[Property] = field(default_factory=list)
    within: list[Component] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The line where a new property goes: after its own ones, before what is within."""
        return self.within[0].first if self.within else self.last - 1

    def get(self, name: str) -> Property | None:
        """Its first property of a name."""
        return next((one for one in self.properties if one.name == name), None)

    def all(self, *names: str) -> list[Property]:
        """Its properties of these names, in order."""
        return [one for one in self.properties if one.name in names]

    def text(self, name: str) -> str:
        """The text of a property, or "" where there is none."""
        found = self.get(name)
        return plain_text(found.value) if found is not None else ""


@dataclass(frozen=True, slots=True)
class Ics:
    """A file: what it is called, its lines with their ends, and its components."""

    name: str
    lines: tuple[bytes, ...]
    components: tuple[Component, ...]

    @property
    def items(self) -> list[Component]:
        """What stands right within its calendars: events, tasks, time zones."""
        return [item for one in self.components if one.name == "VCALENDAR" for item in one.within]

    def named(self, name: str) -> list[Component]:
        """Its items of a name."""
        return [item for item in self.items if item.name == name]

    def wrong(self, where: Component | Property, problem: str) -> FormatError:
        """An error that names the line."""
        return FormatError(self.name, f"line {where.first + 1}: {problem}")

    def edited(self, changes: Iterable[Change]) -> bytes:
        """The file after changes, none of which overlap. New lines end as its own do, and are folded at 75 bytes."""
        end = b"\n" if self.lines and not self.lines[0].endswith(b"\r\n") else b"\r\n"
        lines = list(self.lines)
        for first, last, new in sorted(changes, key=lambda change: change[:2], reverse=True):
            lines[first:last] = [piece + end for text in new for piece in _folded(text)]
        return b"".join(lines)

    def added(self, lines: Sequence[str]) -> Change:
        """The change that adds an item at the end of the first calendar.

        Raises:
            FormatError: there is no calendar.
        """
        calendar = next((one for one in self.components if one.name == "VCALENDAR"), None)
        if calendar is None:
            raise FormatError(self.name, "holds no calendar: there is no BEGIN:VCALENDAR")
        return calendar.last - 1, calendar.last - 1, lines

    def set(self, item: Component, properties: Mapping[str, str | None]) -> list[Change]:
        """The changes that set properties of an item to lines; None takes all of that name out.

        A property takes the place of the one that it replaces; new ones come after the others.
        """
        changes: list[Change] = []
        for name, line in properties.items():
            lines = [] if line is None else [line]
            for old in item.all(name):
                changes.append((old.first, old.last, lines))
                lines = []
            if lines:
                changes.append((item.end, item.end, lines))
        return changes

    def copied(self, item: Component, leave_out: Collection[str]) -> list[str]:
        """An item's lines, unfolded, without its own properties of some names."""
        gone = {number for one in item.all(*leave_out) for number in range(one.first, one.last)}
        lines: list[str] = []
        for number in range(item.first, item.last):
            line = self.lines[number].rstrip(b"\r\n")
            if number in gone or not line.strip():
                continue
            if line[:1] in (b" ", b"\t"):
                lines[-1] += line[1:].decode("utf-8", "surrogateescape")
            else:
                lines.append(line.decode("utf-8", "surrogateescape"))
        return [line.encode("utf-8", "surrogateescape").decode() for line in lines]


def read_ics(name: str, content: bytes) -> Ics:
    """A file out of its bytes.

    Raises:
        FormatError: it is none; the message names the line.
    """
    lines = tuple(content.splitlines(keepends=True)) if content.strip() else tuple(EMPTY.splitlines(keepends=True))
    if len(lines) > _MOST_LINES:
        raise FormatError(name, f"{len(lines)} lines are more than the {_MOST_LINES} that are read")
    roots: list[Component] = []
    open_ones: list[Component] = []
    number = 0
    while number < len(lines):
        first, unfolded = number, lines[number].rstrip(b"\r\n")
        number += 1
        parts = [unfolded.removeprefix(b"\xef\xbb\xbf") if first == 0 else unfolded]
        while number < len(lines) and lines[number][:1] in (b" ", b"\t"):
            parts.append(lines[number].rstrip(b"\r\n")[1:])
            number += 1
        if not (joined := b"".join(parts)).strip():
            continue
        found = _property(name, joined, first, number)
        if found.name == "BEGIN":
            if len(open_ones) == _MOST_DEPTH:
                raise FormatError(name, f"line {first + 1}: components stand too deep in one another")
            begun = Component(found.value.strip().upper(), first)
            (open_ones[-1].within if open_ones else roots).append(begun)
            open_ones.append(begun)
        elif not open_ones:
            raise FormatError(name, f"line {first + 1}: {found.name} stands outside of a calendar")
        elif found.name == "END":
            ended = open_ones.pop()
            if ended.name != found.value.strip().upper():
                problem = f"END:{found.value.strip():.40} does not end the {ended.name} of line {ended.first + 1}"
                raise FormatError(name, f"line {first + 1}: {problem}")
            ended.last = number
        else:
            open_ones[-1].properties.append(found)
    if open_ones:
        raise FormatError(name, f"line {open_ones[-1].first + 1}: the {open_ones[-1].name} that begins here has no end")
    return Ics(name, lines, tuple(roots))


def _property(name: str, line: bytes, first: int, last: int) -> Property:
    """A property out of its unfolded line: NAME;PARAMETER=VALUE:VALUE (RFC 5545, section 3.1)."""
    called = _NAME.match(line)
    at = called.end() if called else 0
    params: dict[str, str] = {}
    while called and (parameter := _PARAMETER.match(line, at)):
        params[parameter[1].decode().upper()] = _decoded(name, parameter[2], first).replace('"', "")
        at = parameter.end()
    if called is None or line[at : at + 1] != b":":
        raise FormatError(name, f"line {first + 1}: is no property; they are written as NAME:value")
    return Property(called[0].decode().upper(), params, _decoded(name, line[at + 1 :], first), first, last)


def _decoded(name: str, value: bytes, first: int) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise FormatError(name, f"line {first + 1}: is no UTF-8 text") from None


def _folded(line: str) -> list[bytes]:
    """A line in pieces of 75 bytes at most, never within a letter (RFC 5545, section 3.1)."""
    pieces, piece = [], b""
    for letter in line:
        encoded = letter.encode("utf-8", "replace")
        if len(piece) + len(encoded) > 75:
            pieces.append(piece)
            piece = b" "
        piece += encoded
    return [*pieces, piece]


def plain_text(value: str) -> str:
    """A text without its escapes (RFC 5545, section 3.3.11)."""
    return re.sub(r"\\([\\;,nN])", lambda found: "\n" if found[1] in "nN" else found[1], value)


def escaped(text: str) -> str:
    """A text with the escapes of RFC 5545, section 3.3.11, and without control characters, which it does not allow."""
    kept = "".join(sign for sign in text.replace("\r\n", "\n") if sign >= " " or sign in "\n\t")
    return re.sub(r"[\\;,]", r"\\\g<0>", kept.replace("\x7f", "")).replace("\n", "\\n")
