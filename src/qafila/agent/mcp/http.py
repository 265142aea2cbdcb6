"""An MCP server behind a URL: streamable HTTP, with bounds on where it is and on what it sends."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from qafila.chat.server_url import is_loopback, server_url
from qafila.errors import UsageError

#: Bytes of one answer, and of one event of a stream.
MOST_BODY = 8 << 20
_CONNECT_SECONDS = 10.0


def checked_url(url: str, where: str) -> bool:
    """Whether a server's URL is of this machine.

    Raises:
        UsageError: it is none, holds a password, or would send what is said in the clear over a network.
    """
    instead = "name a variable with token_env instead"
    parts = server_url(url, where, example="https://host/mcp", instead=instead)
    local = is_loopback(parts.hostname or "")
    if parts.scheme == "http" and not local:
        raise UsageError(f"{where}: {url!r:.120} is not encrypted and not of this machine; use https")
    return local


def token(variable: str | None, where: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The bearer token out of a variable; None where none is named.

    Raises:
        UsageError: it is not set, or nothing that a header can hold; the message does not show it.
    """
    if variable is None:
        return None
    found = environment.get(variable, "").strip()
    if not found or not found.isascii() or not found.isprintable() or " " in found:
        raise UsageError(f"{where}: the variable {variable} holds no token (one line of printable ASCII)")
    return found


@asynccontextmanager
async def connected(url: str, bearer: str | None, where: str) -> AsyncGenerator[tuple[Any, Any]]:
    """Speak with a server over HTTP. Redirects are followed within its origin only (by the `mcp` library).

    It gives streams of messages, from and to the server, for the library's `Client`.

    Raises:
        UsageError: its URL may not be used.
    """
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    class Bounded(httpx2.AsyncBaseTransport):
        """Breaks off answers that are too long; of streams of events each event is bounded instead."""

        def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
            self._inner = inner

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await self._inner.handle_async_request(request)
            if response.headers.get("content-encoding", "identity") != "identity":
                await response.aclose()
                raise httpx2.ReadError("an answer that is packed, which it was not asked for")
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                assert isinstance(response.stream, httpx2.AsyncByteStream)
                response.stream = Counted(response.stream)
            return response

        async def aclose(self) -> None:
            await self._inner.aclose()

    class Counted(httpx2.AsyncByteStream):
        def __init__(self, inner: httpx2.AsyncByteStream) -> None:
            self._inner = inner

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in self._inner:
                size += len(chunk)
                if size > MOST_BODY:
                    raise httpx2.ReadError(f"an answer of more than {MOST_BODY >> 20} MiB")
                yield chunk

        async def aclose(self) -> None:
            await self._inner.aclose()

    local = checked_url(url, where)
    headers = {"User-Agent": "qafila", "Accept-Encoding": "identity"}
    if bearer is not None:
        headers["Authorization"] = f"Bearer {bearer}"
    timeout = httpx2.Timeout(300.0, connect=_CONNECT_SECONDS)
    client = httpx2.AsyncClient(
        headers=headers,
        timeout=timeout,
        transport=Bounded(httpx2.AsyncHTTPTransport(trust_env=not local)),
        trust_env=not local,
    )
    async with client, streamable_http_client(url, http_client=client, max_sse_event_size=MOST_BODY) as streams:
        yield streams
