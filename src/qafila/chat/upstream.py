"""The wire to a server with OpenAI's API: requests, server-sent events, failures, keys."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from qafila.chat.dialects import Dialect, dialect_of
from qafila.chat.server_url import is_loopback, server_url
from qafila.errors import ContextLengthError, QafilaError, UpstreamError, UsageError

# One event holds one token, or one whole answer with log-probabilities; a server that sends more is broken.
_MAX_EVENT = 16 << 20
_MAX_BODY = 64 << 20
# Before each further try to reach a server, in seconds.
_PAUSES = (0.1, 0.5)
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is: ``api`` ends in its version (``/v1``), ``root`` does not."""

    api: str
    root: str

    @classmethod
    def parse(cls, url: str, what: str = "upstream") -> Address:
        """Read what an operator typed: a server, or its API with a path; ``what``: how errors call it.

        Raises:
            UsageError: it is no http(s) URL, or has a password, query or fragment.
        """
        instead = "name a variable that holds a key instead"
        parts = server_url(url.strip(), what, example="http://host:port", instead=instead)
        if parts.query:
            raise UsageError(f"{what}: {url!r:.120} is no URL of a server; write it as http://host:port")
        whole = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        api = whole if parts.path.strip("/") else f"{whole}/v1"
        return cls(api, api.removesuffix("/v1"))

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(urlsplit(self.api).hostname or "")


def read_key(variable: str | None = None, file: str | Path | None = None) -> str | None:
    """An API key out of the environment or a file; None for none.

    Raises:
        UsageError: it is not there, empty, or nothing that a header can hold; the message does not show it.
    """
    if variable is not None and file is not None:
        raise UsageError(f"a key comes from the variable {variable} or from {file}, not both")
    if variable is not None:
        where, key = f"environment variable {variable}", os.environ.get(variable)
        if key is None:
            raise UsageError(f"{where}: not set; it should hold an API key")
    elif file is not None:
        where = f"{file}"
        try:
            key = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or 'no text'})") from None
    else:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{where}: holds no API key (one line of printable ASCII)")
    return key


class Connection:
    """Requests to one server.

    Tried again is only what got no byte of an answer: connecting, twice; a request whose connection broke, once (a kept
    connection may have been closed meanwhile). A request that timed out or was refused is not.

    Args:
        address: of the server. key: sent as a bearer token. where: how errors call the server.
        timeout: seconds between two bytes of an answer.
    """

    def __init__(self, address: Address, *, key: str | None = None, where: str, timeout: float = 600.0) -> None:
        self.address, self._where, self._closed = address, where, False
        headers = {"User-Agent": "qafila"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            # A redirect would take prompts to a place nobody configured.
            follow_redirects=False,
            trust_env=not address.is_loopback,
        )

    async def close(self) -> None:
        """End everything under way."""
        self._closed = True
        await self._client.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        """A JSON object of the API."""
        async with self._sent("GET", self.address.api + path, None) as response:
            return await self._json(response)

    async def post(self, path: str, body: Mapping[str, Any], *, root: bool = False) -> dict[str, Any]:
        """The JSON object that answers a body; ``root``: the path is no part of the versioned API.

        Raises:
            UpstreamError: no answer, or one that is an error.
        """
        async with self._sent("POST", (self.address.root if root else self.address.api) + path, body) as response:
            return await self._json(response)

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The events that answer a body, once the server has accepted it.

        Raises:
            UpstreamError: no answer, one that is an error, or one that breaks off.
        """
        async with self._sent("POST", self.address.api + path, body) as response:
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise UpstreamError(
                    f"{self._where}: answered with {kind or 'no type'!r:.60} instead of events", status=502
                )
            yield self._events(response)

    @asynccontextmanager
    async def _sent(self, method: str, url: str, body: Mapping[str, Any] | None) -> AsyncIterator[httpx.Response]:
        response = await self._send(method, url, body)
        try:
            if response.status_code != 200:
                raise await self._refusal(response)
            yield response
        except httpx.HTTPError as error:
            raise self._failure(error) from error
        finally:
            await response.aclose()

    async def _send(self, method: str, url: str, body: Mapping[str, Any] | None) -> httpx.Response:
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        tries = 0
        while True:
            if self._closed:
                raise UpstreamError(f"{self._where}: was closed", status=503)
            try:
                request = self._client.build_request(method, url, content=content, headers=headers)
                return await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                if tries == len(_PAUSES) or (tries and not isinstance(error, httpx.ConnectError)):
                    raise self._failure(error) from error
            except httpx.HTTPError as error:
                raise self._failure(error) from error
            await asyncio.sleep(_PAUSES[tries])
            tries += 1

    def _failure(self, error: httpx.HTTPError) -> UpstreamError:
        if isinstance(error, httpx.TimeoutException):
            return UpstreamError(f"{self._where}: its server did not answer in time", status=408)
        if isinstance(error, httpx.ConnectError):
            return UpstreamError(f"{self._where}: its server cannot be reached")
        return UpstreamError(f"{self._where}: its server broke the connection ({type(error).__name__})")

    async def _refusal(self, response: httpx.Response) -> QafilaError:
        status, retry_after = response.status_code, response.headers.get("retry-after")
        if status in (401, 403):
            # What such an answer says may hold a part of the key.
            return UpstreamError(
                f"{self._where}: its server does not accept this server's key ({status})", status=status
            )
        told, param, code = _told(await self._read(response, 1 << 16))
        message = f"{self._where}: its server answered {status}" + (f": {told}" if told else "")
        if code == "context_length_exceeded":
            return ContextLengthError(message)
        return UpstreamError(message, status=status, retry_after=retry_after, param=param, code=code)

    async def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            value = json.loads(await self._read(response, _MAX_BODY))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise UpstreamError(f"{self._where}: its server answered with no JSON object", status=502)
        return value

    async def _read(self, response: httpx.Response, most: int) -> bytes:
        pieces, size = [], 0
        async for piece in response.aiter_bytes():
            size += len(piece)
            if size > most:
                raise UpstreamError(f"{self._where}: its server answered with more than {most:,} bytes", status=502)
            pieces.append(piece)
        return b"".join(pieces)

    async def _events(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        async for data in server_sent(response.aiter_bytes(), self._where):
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except (ValueError, RecursionError):
                event = None
            if not isinstance(event, dict):
                raise UpstreamError(f"{self._where}: its server sent an event that is no JSON object", status=502)
            if event.get("error"):
                told, param, code = _told(data)
                raise UpstreamError(f"{self._where}: its server failed: {told}", status=502, param=param, code=code)
            yield event


async def server_sent(pieces: AsyncIterator[bytes], where: str) -> AsyncIterator[bytes]:
    """The data of server-sent events (HTML standard, 9.2), without their names and comments.

    Lines end at line feeds alone: text in JSON may hold characters that Unicode counts as ends of lines.

    Raises:
        UpstreamError: an event of more than 16 MiB.
    """
    rest, data = b"", []
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n") if b"\n" in piece else (rest + piece,)
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
        if len(rest) + sum(map(len, data)) > _MAX_EVENT:
            raise UpstreamError(f"{where}: its server sent an event of more than {_MAX_EVENT:,} bytes", status=502)
    if rest.startswith(b"data:"):
        data.append(rest[5:].strip())
    if data:  # some servers do not send the last empty line
        yield b"\n".join(data)


def _told(body: bytes) -> tuple[str, str | None, str | None]:
    """What an error says, its field and its code, in one of the shapes that are seen."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return "", None, None
    error = value.get("error", value)
    if not isinstance(error, dict):
        return _line(error), None, None
    param, code = error.get("param"), error.get("code")
    return (
        _line(error.get("message") or error.get("detail") or ""),
        param if isinstance(param, str) else None,
        code if isinstance(code, str) else None,
    )


def _line(text: object) -> str:
    return " ".join(str(text).split())[:500]


@dataclass(frozen=True, slots=True)
class Offered:
    """A model that a server has: its name there, the kind of server, and its context if that is told."""

    name: str
    dialect: Dialect
    context_length: int | None


async def offered(connection: Connection, where: str) -> list[Offered]:
    """The models of a server.

    Raises:
        UpstreamError: it does not say.
    """
    listed = (await connection.get("/models")).get("data")
    found = []
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict) and isinstance(item.get("id"), str) and item["id"]:
            context = item.get("max_model_len") or item.get("context_length")
            owner = item.get("owned_by")
            dialect = dialect_of(owner if isinstance(owner, str) else None)
            found.append(Offered(item["id"], dialect, context if isinstance(context, int) else None))
    if not found:
        raise UpstreamError(f"{where}: its list of models is empty", status=502)
    return found


def all_offered(connection: Connection, where: str) -> dict[str, Offered]:
    """The models of a server by name, for who runs no event loop yet; the connection is closed after it.

    Raises:
        UpstreamError: it does not say.
    """

    async def ask() -> dict[str, Offered]:
        try:
            return {one.name: one for one in await offered(connection, where)}
        finally:
            await connection.close()

    return asyncio.run(ask())
