"""Pages fetched from hosts that the user's settings allow.

A URL can carry away what was read, so that fetching is an effect on the world outside: a person is asked, unless the
policy allows it and the URL stands in the user's own words, or a rule allows URLs from elsewhere too.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qafila.agent.observation import MOST_SHOWN
from qafila.agent.tool import Tool, ToolError, tool
from qafila.agent.tools.web_hosts import Hosts, Target, target_of
from qafila.agent.tools.web_text import decoded

if TYPE_CHECKING:
    import httpx

_REDIRECTS = (301, 302, 303, 307, 308)
_SCRIPT = Path(__file__).with_name("page_script.py")
_READING_SECONDS = 5.0
_ROOM = 300  # characters of a result beside the page's text


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """``seconds`` for all of a fetch, ``body_bytes`` as sent and as unpacked, ``redirects`` that are followed."""

    seconds: float = 20.0
    body_bytes: int = 2 << 20
    redirects: int = 5


@dataclass(frozen=True, slots=True)
class Page:
    """What was fetched: the URL that it came from in the end, its title, and its text."""

    url: str
    title: str
    text: str


async def fetched(url: str, hosts: Hosts, limits: FetchLimits | None = None) -> Page:
    """Fetch a page by GET, and through redirects as long as they stay on allowed hosts.

    Raises:
        ToolError: it is not allowed, not there, no text, too large or too slow.
    """
    import httpx

    limits = limits or FetchLimits()
    target = target_of(url)
    try:
        async with asyncio.timeout(limits.seconds):
            for _ in range(limits.redirects + 1):
                found = await _got(target, hosts, limits)
                if isinstance(found, Page):
                    return found
                target = target_of(found, target)
    except TimeoutError:
        raise ToolError(f"{target.site} took longer than {limits.seconds:g} seconds") from None
    except httpx.HTTPError as error:
        raise ToolError(f"{target.site} cannot be fetched: {error or type(error).__name__}") from None
    raise ToolError(f"{target.site} redirects more than {limits.redirects} times")


async def _got(target: Target, hosts: Hosts, limits: FetchLimits) -> Page | str:
    """A page, or where it redirects to."""
    import httpx

    hosts.check(target)
    addresses = await _resolved(target)
    for address in addresses:
        hosts.check_address(target, address)
    # A transport alone: no cookies, no redirects of its own, and no proxy or password out of the environment.
    async with httpx.AsyncHTTPTransport(trust_env=False, limits=httpx.Limits(max_connections=1)) as transport:
        response = await _answer(transport, target, addresses, limits)
        try:
            if response.status_code in _REDIRECTS and "location" in response.headers:
                return response.headers["location"]
            if not response.is_success:
                raise ToolError(f"{target.url}: status {response.status_code} {response.reason_phrase}".rstrip())
            return await _page(target, response, limits)
        finally:
            await response.aclose()


async def _resolved(target: Target) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ToolError(f"url: there is no host {target.host}") from None
    return list(dict.fromkeys(str(each[4][0]) for each in found))


async def _answer(
    transport: httpx.AsyncHTTPTransport, target: Target, addresses: list[str], limits: FetchLimits
) -> httpx.Response:
    """The answer of the first of the addresses that can be reached: the very ones that were checked, not the name."""
    import httpx

    for number, address in enumerate(addresses, 1):
        request = httpx.Request(
            "GET",
            target.at(address),
            headers={
                "Host": target.site,
                "User-Agent": "qafila",
                "Accept": "text/html, text/*, application/json, application/xml;q=0.9",
                "Accept-Encoding": "gzip",
            },
            # The certificate must be the host's.
            extensions={"sni_hostname": target.host, "timeout": httpx.Timeout(limits.seconds).as_dict()},
        )
        try:
            return await transport.handle_async_request(request)
        except httpx.ConnectError:
            if number == len(addresses):
                raise
    raise ToolError(f"url: there is no host {target.host}")


async def _page(target: Target, response: httpx.Response, limits: FetchLimits) -> Page:
    kind = response.headers.get("content-type", "text/plain").partition(";")[0].strip().lower()
    html = kind in ("text/html", "application/xhtml+xml")
    data = kind in ("application/json", "application/xml") or kind.endswith(("+json", "+xml"))
    if not (kind.startswith("text/") or html or data):
        raise ToolError(f"{target.url}: is {kind:.80}, no text")
    body = bytearray()
    async for piece in _unpacked(target, response, limits):
        body += piece
        if len(body) > limits.body_bytes:
            raise ToolError(f"{target.url}: is larger than {limits.body_bytes:,} bytes")
    if not html and b"\0" in body and not body.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ToolError(f"{target.url}: is no text")
    text = decoded(bytes(body), response.charset_encoding, html=html)
    title, text = await asyncio.to_thread(_readable, target, text) if html else ("", text)
    return Page(target.url, title, text)


def _readable(target: Target, page: str) -> tuple[str, str]:
    """Title and text of an HTML page, worked out in a process that can be ended."""
    try:
        done = subprocess.run(  # noqa: S603 - our own program; the page is its input
            [sys.executable, "-I", str(_SCRIPT)],
            input=page.encode("utf-8", "replace"),
            capture_output=True,
            env={},
            timeout=_READING_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"{target.url}: takes too long to read; its tags are nested too deeply") from None
    if done.returncode != 0:
        raise ToolError(f"{target.url}: cannot be read; its tags are nested too deeply, or `selectolax` is missing")
    title, text = json.loads(done.stdout)
    return title, text


async def _unpacked(target: Target, response: httpx.Response, limits: FetchLimits) -> AsyncIterator[bytes]:
    """The body's bytes, unpacked in portions that cannot be larger than the limit, however well they were packed."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "x-gzip"):
        raise ToolError(f"{target.url}: is packed with {coding:.40}, which was not asked for")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    received = 0
    try:
        async for chunk in response.aiter_raw():
            received += len(chunk)
            if received > limits.body_bytes:
                raise ToolError(f"{target.url}: is larger than {limits.body_bytes:,} bytes")
            yield chunk if coding == "identity" else unpacker.decompress(chunk, limits.body_bytes + 1)
    except zlib.error:
        raise ToolError(f"{target.url}: is no gzip, though it says so") from None


def lacking(allow: tuple[str, ...]) -> str | None:
    """Why pages cannot be fetched; None where they can."""
    return None if allow else 'no host may be fetched; name some in the settings file: [web] allow = ["example.org"]'


def tools(allow: tuple[str, ...]) -> tuple[Tool, ...]:
    """The tools of this module, for the hosts that may be fetched; none without any.

    Raises:
        UsageError: an entry that is no host.
    """
    hosts = Hosts(allow)

    async def fetch(url: str, start: Annotated[int, "first character"] = 0) -> str:
        """Read a web page as text."""
        if start < 0:
            raise ToolError("start: the first is 0")
        page = await fetched(url, hosts)
        moved = page.url if page.url != url else ""
        head = "\n".join(line[: _ROOM // 3] for line in (page.title, moved) if line)
        shown = page.text[start : start + MOST_SHOWN - _ROOM]
        rest = len(page.text) - start - len(shown)
        tail = f"[{rest:,} more characters, from start {start + len(shown)}]" if rest > 0 else ""
        return "\n".join(part for part in (head, shown, tail) if part) or "(no text)"

    # A GET changes nothing there (RFC 9110, section 9.2.1), so that one that was interrupted is made again.
    return (tool(fetch, effect="egress", controls=("url",), repeats=True, origin="built-in"),) if hosts else ()
