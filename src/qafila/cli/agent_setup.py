"""What the commands of `qafila agent` work with: a journal, a model, tools, and a person at the terminal."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qafila.cli import terminal
from qafila.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qafila.agent.config import Config
    from qafila.agent.events import Prices
    from qafila.agent.journal import Journal
    from qafila.agent.policy import Policy
    from qafila.agent.tool import Tool
    from qafila.chat.client import ChatClient


def open_journal(database: str | None) -> Journal:
    """The journal of this machine, or the one at a database's URL.

    Raises:
        UsageError: the agent's extra is not installed, or the URL is none.
    """
    try:
        from qafila.agent.journal import Journal
        from qafila.database import default_url
    except ModuleNotFoundError as error:
        raise UsageError(f"agent: {error.name} is missing; `pip install 'qafila[agent]'` brings it") from None
    return Journal(database or default_url("agent"))


def tool_names(tools: str | None) -> list[str] | None:
    """Names of tools as they are given with commas; None for all."""
    if tools is None:
        return None
    return [] if tools.strip() == "none" else [name.strip() for name in tools.split(",") if name.strip()]


def load_policy(yes: bool, file: Path | None) -> Policy:
    """The policy out of a file, or the usual one; ``yes``: files may be changed without asking.

    Raises:
        UsageError: there is no such file. FormatError: it is no policy.
    """
    from qafila.agent.policy import Policy, read_policy, with_writes

    if file is not None and not file.exists():
        raise UsageError(f"policy {file}: no such file; --policy names another")
    policy = Policy() if file is None else read_policy(file)
    return with_writes(policy) if yes else policy


def load_config(file: Path | None) -> Config:
    """The settings out of a file, or of `agent.toml` in QAFILA_HOME where that is there.

    Raises:
        FormatError: they are none.
    """
    from qafila.agent.config import Config, read_config
    from qafila.weights.cache import home

    if file is not None:
        return read_config(file)
    usual = home() / "agent.toml"
    return read_config(usual) if usual.is_file() else Config()


def need_mcp() -> None:
    """See that the library for MCP is there, and keep it from writing what servers say to the terminal.

    Raises:
        UsageError: it is not installed.
    """
    if importlib.util.find_spec("mcp") is None:
        raise UsageError("mcp: the library mcp is missing; `pip install 'qafila[agent]'` brings it")
    logging.getLogger("mcp").addHandler(logging.NullHandler())


def mcp_tools(config: Config) -> Callable[[], tuple[Tool, ...]]:
    """Makes the trusted tools of the MCP servers in the settings, each time with connections of their own.

    What is trusted is looked up once; what is not offered is said on standard error.

    Raises:
        UsageError: the library for them is not installed.
    """
    if not config.mcp:
        return tuple
    need_mcp()
    from qafila.agent.mcp.pins import pins_path, read_pins
    from qafila.agent.mcp.tools import offered

    pins = read_pins(pins_path())
    for note in offered(config, pins).notes:
        print(terminal.printable(f"note: {note}"), file=sys.stderr)
    return lambda: offered(config, pins).tools


def open_client(
    model: str,
    *,
    endpoint: str | None,
    key_variable: str | None,
    threads: int | None,
    context: int | None,
    adapter: str | None,
) -> ChatClient:
    """A model in this process, or one behind an OpenAI-compatible endpoint.

    Raises:
        QafilaError: it is not there, or options do not go together.
    """
    if endpoint is None:
        if key_variable is not None:
            raise UsageError("--key-env goes with --endpoint")
        from qafila.chat.llama import Llama
        from qafila.chat.local import LocalClient

        llama = Llama.load(model, threads=threads, context=context, adapter=adapter)
        return LocalClient(llama, model, owns_model=True)
    if any(option is not None for option in (threads, context, adapter)):
        raise UsageError(
            "--threads, --context and --adapter are of a model in this process; leave them or --endpoint out"
        )
    return _remote(model, endpoint, key_variable)


def _remote(model: str, endpoint: str, key_variable: str | None) -> ChatClient:
    from qafila.chat.remote import RemoteClient
    from qafila.chat.upstream import Address, Connection, all_offered, read_key

    key, where = read_key(key_variable), f"endpoint {endpoint}"
    address = Address.parse(endpoint, "endpoint")
    known = all_offered(Connection(address, key=key, where=where), where)
    if model == "default" and model not in known and len(known) == 1:
        model = next(iter(known))
    if model not in known:
        raise UsageError(f"{where}: has no model {model!r:.120}; --model names one of {', '.join(list(known)[:20])}")
    there = known[model]
    return RemoteClient(
        Connection(address, key=key, where=where),
        model,
        dialect=there.dialect,
        context_length=there.context_length,
    )


def workspace(folder: Path) -> Path:
    """The folder that a run works in.

    Raises:
        UsageError: it is no folder.
    """
    if not folder.is_dir():
        raise UsageError(f"--workspace {folder}: is no folder")
    return folder.resolve()


def prices(
    cost: float | None, usual: Prices, *, read: float | None, cached: float | None, generated: float | None
) -> Prices:
    """What tokens cost; ``cost``: the limit on it, if there is one; ``usual``: what they cost where nothing is said.

    Raises:
        UsageError: a number that is none, a limit without prices, or prices of some tokens only.
    """
    from qafila.agent.events import Prices

    numbers = {"cost": cost, "price-read": read, "price-cached": cached, "price-generated": generated}
    for name, value in numbers.items():
        if value is not None and (not math.isfinite(value) or value < 0):
            raise UsageError(f"--{name} {value:g}: give a number that is not below zero")
    if cost == 0:
        raise UsageError("--cost 0: nothing can be done for nothing; give a number above zero")
    if read is None and cached is None and generated is None:
        if cost is not None and usual == Prices():
            needed = "--price-read and --price-generated, of a million each, or [prices] in agent.toml"
            raise UsageError(f"--cost: needs what tokens cost: {needed}")
        return usual
    if read is None or generated is None:
        missing = "--price-read" if read is None else "--price-generated"
        raise UsageError(f"{missing} is missing: tokens read and written both have a price (0 where they cost nothing)")
    if cost is not None and not (read or cached or generated):
        raise UsageError("--cost: can never be reached where all prices are 0; leave it out")
    return Prices(read=read, cached=read if cached is None else cached, generated=generated)
