"""URLs of servers, as users name them in options and settings."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from qafila.errors import UsageError


def server_url(url: str, where: str, *, example: str, instead: str) -> SplitResult:
    """The parts of a server's URL: http or https and a host, with no user, password or fragment.

    Args:
        url: what the user wrote. where: the option or setting, for errors. example: of such a URL.
        instead: how a password is given.

    Raises:
        UsageError: it is no such URL; the message shows no password.
    """
    try:
        parts = urlsplit(url)
        secret = parts.username is not None or parts.password is not None
    except ValueError:
        raise UsageError(f"{where}: is no URL of a server; write it as {example}") from None
    if secret:
        # URLs come up in logs and messages.
        raise UsageError(f"{where}: its URL holds a user or password; {instead}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment or not _has_good_port(parts):
        raise UsageError(f"{where}: {url!r:.120} is no URL of a server; write it as {example}")
    return parts


def _has_good_port(parts: SplitResult) -> bool:
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether the host of a URL is this machine; a name that we do not know is not."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
