"""A web server on loopback that answers with exactly the bytes that a test says, as slowly as it says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

#: What is sent: bytes at once, or pieces of them.
Sent: TypeAlias = bytes | Callable[[], AsyncIterator[bytes]]


def response(body: bytes = b"", *headers: str, status: str = "200 OK") -> bytes:
    """A whole answer of HTTP/1.1."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Site:
    """What was asked of it: the request lines and headers of each request, as text."""

    port: int = 0
    asked: list[str] = field(default_factory=list)


@asynccontextmanager
async def serving(pages: Mapping[str, Sent], tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    """A server of these pages, by path with query."""
    site = Site()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            site.asked.append(request)
            sent = pages.get(request.split(" ")[1], response(b"none", status="404 Not Found"))
            if isinstance(sent, bytes):
                writer.write(sent)
                await writer.drain()
                return
            async for piece in sent():
                writer.write(piece)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # it was hung up on
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    try:
        site.port = server.sockets[0].getsockname()[1]
        yield site
    finally:
        server.close()
        await server.wait_closed()
