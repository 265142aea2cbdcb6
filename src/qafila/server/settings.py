"""What an operator decides about a server, checked before anything is opened."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from qafila.errors import UsageError

if TYPE_CHECKING:
    from qafila.agent.config import Config
    from qafila.agent.tool import Tool

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_COUNTS = ("max_running", "max_body", "requests_per_minute", "tokens_per_minute", "max_concurrent")
_SECONDS = ("timeout", "body_timeout", "grace")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server guards itself. The defaults are those of a server for one person on their own machine.

    Attributes:
        host: address that is listened on; decides which Host headers are believed.
        allowed_hosts: more names in Host headers that are ours. cors_origins: pages of other origins that may call.
        allow_anonymous: requests without a key are answered although there are keys, or although the address is public.
        share_cache: cached prompts are shared between keys.
        max_running: requests computed at once. max_waiting: requests that wait for that; more are refused (429).
        requests_per_minute, tokens_per_minute, max_concurrent: of each key that has none of its own; None: no limit.
        max_body: bytes of a request's body.
        timeout: seconds for one request, waiting included. body_timeout: for its body to arrive.
        grace: seconds that running requests get to finish when the server stops.
        log_prompts: texts of prompts and answers go into logs and traces.

    Raises:
        UsageError: a value that makes no sense; the message names the option.
    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allow_anonymous: bool = False
    share_cache: bool = False
    max_running: int = 64
    max_waiting: int = 256
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    max_body: int = 16 << 20
    timeout: float = 600.0
    body_timeout: float = 60.0
    grace: float = 30.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.host.strip():
            raise UsageError("--host: an address is missing; 127.0.0.1 is this machine alone")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{_option(name)}: must be 1 or more, not {value}")
        if self.max_waiting < 0:
            raise UsageError(f"--max-waiting: must be 0 or more, not {self.max_waiting}")
        for name in _SECONDS:
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and name != "grace"):
                raise UsageError(f"{_option(name)}: must be a number of seconds above 0, not {value}")
        for host in self.allowed_hosts:
            if not _is_address(host) and not _HOST_NAME.fullmatch(host.lower()):
                raise UsageError(f"--allowed-host: {host!r:.80} is no name of a host; give it without scheme and port")
        for origin in self.cors_origins:
            _check_origin(origin)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What an operator decides about the server's agent.

    Attributes:
        folder: the workspace of every run. policy: a file that says what is allowed; None for the usual policy.
        tools: the names of those that runs may have; None for all. database: URL of the journal; None for the usual
            one. at_once: runs worked on at the same time; others wait.
        config: of its tools. others: makes tools of MCP servers, anew for each run.

    Raises:
        UsageError: no folder; the message names the option.
    """

    folder: Path
    policy: Path | None = None
    tools: tuple[str, ...] | None = None
    database: str | None = None
    at_once: int = 4
    config: Config | None = None
    others: Callable[[], tuple[Tool, ...]] = tuple

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UsageError(f"--agent {self.folder}: is no folder")
        if self.at_once < 1:
            raise UsageError(f"--agent-runs: must be 1 or more, not {self.at_once}")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine's alone; a name that we do not know is not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _check_origin(origin: str) -> None:
    if "*" in origin:
        raise UsageError("--cors-origin: a wildcard would let every page call this server; name the origins")
    try:
        parts = urlsplit(origin)
        whole = f"{parts.scheme}://{parts.netloc}"
        parts.port  # noqa: B018 (raises where the port is no number)
    except ValueError:
        parts, whole = None, ""
    if parts is None or not parts.hostname or "@" in parts.netloc or origin.lower() != whole.lower():
        raise UsageError(f"--cors-origin: {origin!r:.80} is no origin; write it as https://host or http://host:port")


def _option(name: str) -> str:
    assert name in {field.name for field in fields(Settings)}
    return "--" + name.replace("_", "-")
