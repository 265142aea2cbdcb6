"""Which hosts may be fetched, and which addresses a name may lead to: none inside this machine or its network."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from qafila.agent.tool import ToolError
from qafila.errors import UsageError

if TYPE_CHECKING:
    import httpx

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS: Final = {"http": 80, "https": 443}
_MOST_CHARACTERS = 2000
_HOST = re.compile(r"[a-z0-9._:-]*")
# What of IPv6 is routed in public (RFC 4291, IANA's registry), and what IPv4 is translated to (RFC 6052).
_PUBLIC_V6, _TRANSLATED = ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads: scheme, host in ASCII without a final dot, port, and path with query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def site(self) -> str:
        """Host and port as a ``Host`` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole URL."""
        return f"{self.scheme}://{self.site}{self.path}"

    def at(self, address: str) -> str:
        """The URL with an address in place of the host."""
        return f"{self.scheme}://{f'[{address}]' if ':' in address else address}:{self.port}{self.path}"


def target_of(url: str, base: Target | None = None) -> Target:
    """What a URL, or a redirect's relative one, leads to.

    Raises:
        ToolError: it is none that can be fetched.
    """
    import httpx

    if len(url) > _MOST_CHARACTERS:
        raise ToolError(f"url: more than {_MOST_CHARACTERS} characters")
    try:
        parsed = httpx.URL(url) if base is None else httpx.URL(base.url).join(url)
        host, port = _host_and_port(parsed)
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise ToolError(f"url: is none ({error})") from None
    if parsed.scheme not in _PORTS or not host:
        raise ToolError("url: must begin with https:// or http:// and a host")
    if parsed.userinfo:
        raise ToolError("url: must hold no user or password")
    return Target(parsed.scheme, host, port or _PORTS[parsed.scheme], parsed.raw_path.decode("ascii"))


def _host_and_port(url: httpx.URL) -> tuple[str, int | None]:
    """Of a URL, as they are compared; ValueError for what is neither a name nor an address."""
    host, port = url.raw_host.decode("ascii").lower().rstrip("."), url.port
    if not _HOST.fullmatch(host):
        raise ValueError("its host is none")
    if port is not None and not 0 < port < 65536:
        raise ValueError("its port is none")
    return host, port


class Hosts:
    """An allow-list: names of hosts, ``*.`` before one for all below it, and with ``:port`` where it is not 80 or 443.

    Addresses inside this machine or its network are reached only where they are listed themselves, or as ``localhost``.

    Raises:
        UsageError: an entry that is no host.
    """

    def __init__(self, allow: Iterable[str]) -> None:
        self._allow = tuple((entry, *_entry(entry)) for entry in allow)

    def __bool__(self) -> bool:
        return bool(self._allow)

    def check(self, target: Target) -> None:
        """Raise ToolError where a target is not allowed; the message names what is."""
        for _, below, host, port in self._allow:
            fits = target.host.endswith(f".{host}") if below else target.host == host
            if fits and target.port == (port or _PORTS[target.scheme]):
                return
        names = ", ".join(entry for entry, *_ in self._allow)
        raise ToolError(f"url: {target.site} is not among the hosts that may be fetched: {names:.500}")

    def check_address(self, target: Target, address: str) -> None:
        """Raise ToolError where a host's name leads to an address that is nobody's in public.

        Args:
            target: one that `check` let pass, so that a host that is an address is listed as that. address: resolved.
        """
        found = _address(address.partition("%")[0])
        if _address(target.host) == found or found is None:
            if found is None:
                raise ToolError(f"url: {target.host} has no address that can be used")
            return
        if target.host == "localhost" and found.is_loopback:
            return
        if not _public(found):
            raise ToolError(f"url: {target.host} leads to {found}, which is inside this machine or its network")


def _entry(text: str) -> tuple[bool, str, int | None]:
    """Whether an entry is of what lies below a host, the host, and the port."""
    import httpx

    below = text.startswith("*.")
    try:
        url = httpx.URL(f"http://{text.removeprefix('*.')}")
        host, port = _host_and_port(url)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        host, port, url = "", None, httpx.URL("")
    plain = host and "*" not in host and not url.userinfo and url.raw_path in (b"/", b"") and not url.fragment
    if not plain or (below and _address(host) is not None) or text.endswith("/"):
        raise UsageError(f"web.allow: {text!r:.80} is no host; write example.org, *.example.org or localhost:8000")
    return below, host, port


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _public(address: Address) -> bool:
    """Whether an address is one of the public internet, and so is any IPv4 address that it stands for."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _TRANSLATED:
            return _public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None:
            return _public(address.sixtofour)
        return address in _PUBLIC_V6 and address.is_global
    return address.is_global and not address.is_multicast
