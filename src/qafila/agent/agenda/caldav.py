"""A calendar on a server: a CalDAV collection (RFC 4791), read by REPORT and written by PUT and DELETE.

A new event is put under the key of its call, and only where nothing is there: to put it twice is to put it once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, unquote, urljoin
from xml.parsers import expat

from qafila.agent.agenda.dates import When
from qafila.agent.agenda.ics import EMPTY, read_ics
from qafila.agent.agenda.occurrences import Series
from qafila.agent.agenda.store import Stored, needed_zone
from qafila.agent.config import Calendar
from qafila.agent.tool import Effect, Surroundings, ToolError
from qafila.chat.server_url import is_loopback, server_url
from qafila.errors import UsageError

_MOST_BYTES: Final = 16 << 20
_SECONDS: Final = 20.0
_DAV, _CALDAV = "DAV:", "urn:ietf:params:xml:ns:caldav"
_QUERY: Final = (
    '<?xml version="1.0" encoding="utf-8"?>'
    f'<C:calendar-query xmlns:D="{_DAV}" xmlns:C="{_CALDAV}"><D:prop><D:getetag/><C:calendar-data/></D:prop>'
    '<C:filter><C:comp-filter name="VCALENDAR"><C:comp-filter name="VEVENT">{window}</C:comp-filter></C:comp-filter>'
    "</C:filter></C:calendar-query>"
)


class CaldavStore:
    """A collection on a server; changes happen when they are asked for.

    Args:
        config: where it is, and who asks.

    Raises:
        UsageError: the address, or what is known of the user, cannot be used.
    """

    effect: Effect = "egress"
    near = False

    def __init__(self, config: Calendar) -> None:
        url = config.caldav or ""
        where, example = "[calendar] caldav", "https://host/path/"
        parts = server_url(url, where, example=example, instead="give user and password_env instead")
        host = parts.hostname or ""
        if parts.query:
            raise UsageError(f"{where}: {url!r:.120} is no URL of a collection; write it as {example}")
        if parts.scheme == "http" and not is_loopback(host):
            raise UsageError(f"{where}: {host} needs https, or everybody can read along")
        if (config.user is None) != (config.password_env is None):
            raise UsageError("[calendar] user and password_env go together")
        self._auth: tuple[str, str] | None = None
        if config.user is not None and config.password_env is not None:
            password = os.environ.get(config.password_env)
            if password is None:
                raise UsageError(f"[calendar] password_env: the variable {config.password_env} is not set")
            self._auth = (config.user, password)
        self._url = url if url.endswith("/") else url + "/"
        self._host = host

    def read(self, place: Surroundings, window: tuple[datetime, datetime] | None = None) -> list[Stored]:
        """See `Store`."""
        span = ""
        if window is not None:
            start, end = (f"{one.astimezone(UTC):%Y%m%dT%H%M%SZ}" for one in window)
            span = f'<C:time-range start="{start}" end="{end}"/>'
        headers = {"Depth": "1", "Content-Type": "application/xml; charset=utf-8"}
        status, content = self._ask("REPORT", self._url, headers, _QUERY.format(window=span).encode())
        if status != 207:
            raise self._refused(status)
        return [
            Stored(read_ics(self._inside(one.href), one.data.encode()), one.etag)
            for one in self._answers(content)
            if one.data.strip()
        ]

    def add(self, place: Surroundings, lines: Sequence[str], begins: When | None, told: str) -> str:
        """See `Store`."""
        new = read_ics("new event", EMPTY)
        content = new.edited([new.added([*needed_zone(new, begins), *lines])])
        status = self._write("PUT", f"{self._url}{quote(place.key)}.ics", {"If-None-Match": "*"}, content)
        # 412: something is there under this very key: it was put before the call was interrupted.
        if status not in (200, 201, 204, 412):
            raise self._refused(status)
        return told

    def change(self, place: Surroundings, stored: Stored, content: bytes, told: str) -> str:
        """See `Store`."""
        self._replace("PUT", stored, content)
        return told

    def remove(self, place: Surroundings, stored: Stored, series: Series, told: str) -> str:
        """See `Store`."""
        self._replace("DELETE", stored, None)
        return told

    def _replace(self, method: str, stored: Stored, content: bytes | None) -> None:
        status = self._write(method, stored.ics.name, {"If-Match": stored.version or "*"}, content)
        if status == 412:
            raise ToolError("the event was changed by somebody else meanwhile; list the events again")
        if status not in (200, 201, 204):
            raise self._refused(status)

    def _write(self, method: str, url: str, headers: Mapping[str, str], content: bytes | None) -> int:
        kind = {"Content-Type": "text/calendar; charset=utf-8"} if content is not None else {}
        return self._ask(method, url, {**headers, **kind}, content)[0]

    def _ask(self, method: str, url: str, headers: Mapping[str, str], content: bytes | None) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        import httpx

        deadline = time.monotonic() + _SECONDS
        pieces, size = [], 0
        try:
            # Nothing of the environment: no other password for this host, and no other way to it.
            with (
                httpx.Client(auth=self._auth, timeout=_SECONDS, trust_env=False) as client,
                client.stream(method, url, headers=dict(headers), content=content) as answer,
            ):
                for piece in answer.iter_bytes():
                    size += len(piece)
                    if size > _MOST_BYTES or time.monotonic() > deadline:
                        raise ToolError(f"calendar server {self._host}: its answer is too large or takes too long")
                    pieces.append(piece)
                return answer.status_code, b"".join(pieces)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ToolError(f"calendar server {self._host}: {str(error) or type(error).__name__}") from None

    def _refused(self, status: int) -> ToolError:
        words = {401: "refused the user or the password", 403: "does not allow this", 404: "has no such calendar"}
        moved = "answers from elsewhere now; write its new address in [calendar] caldav" if 300 <= status < 400 else ""
        return ToolError(f"calendar server {self._host}: {words.get(status) or moved or f'answered {status}'}")

    def _inside(self, href: str) -> str:
        """The address of a resource, which must be in the collection: what a server says is not trusted further."""
        url = urljoin(self._url, href)
        path = unquote(url.removeprefix(self._url))
        if not url.startswith(self._url) or not path or "/" in path or path.startswith("."):
            raise ToolError(f"calendar server {self._host}: names {href!r:.80}, which is not in its calendar")
        return url

    def _answers(self, content: bytes) -> list[_Answer]:
        reader = _Reader()
        try:
            return reader.read(content)
        except (expat.ExpatError, ValueError) as error:
            raise ToolError(f"calendar server {self._host}: answered what is no WebDAV ({error})") from None


@dataclass(slots=True)
class _Answer:
    """One resource of a multistatus (RFC 4918, section 13)."""

    href: str = ""
    etag: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def data(self) -> str:
        """The iCalendar file that it holds."""
        return "".join(self.pieces)


@dataclass(slots=True)
class _Reader:
    """Reads a multistatus; no document types, so that nothing in it expands."""

    answers: list[_Answer] = field(default_factory=list)
    path: list[str] = field(default_factory=list)

    def read(self, content: bytes) -> list[_Answer]:
        """What its resources are."""
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._doctype
        parser.Parse(content, True)
        return self.answers

    def _start(self, name: str, _: Mapping[str, str]) -> None:
        self.path.append(name)
        if name == f"{_DAV} response":
            self.answers.append(_Answer())

    def _end(self, _: str) -> None:
        self.path.pop()

    def _text(self, text: str) -> None:
        if not self.answers:
            return
        last = self.answers[-1]
        match self.path[2:]:
            case [name] if name == f"{_DAV} href":
                last.href += text
            case [_, _, name] if name == f"{_DAV} getetag":
                last.etag += text
            case [_, _, name] if name == f"{_CALDAV} calendar-data":
                last.pieces.append(text)

    def _doctype(self, *_: object) -> None:
        raise ValueError("it declares a document type")
