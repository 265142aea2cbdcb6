"""The tools of the MCP servers that the settings name and the user trusts, as tools of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qafila.agent.config import Config
from qafila.agent.mcp.connection import CALL_SECONDS, CONNECT_SECONDS, LIST_SECONDS, Connection
from qafila.agent.mcp.definition import MOST_DESCRIPTION, described, reached, told_name
from qafila.agent.mcp.pins import Pinned, PinnedServer, Pins
from qafila.agent.mcp.schema import argument_check, told, whole
from qafila.agent.tool import Effect, Surroundings, Tool
from qafila.errors import UsageError


@dataclass(frozen=True, slots=True)
class Offered:
    """What servers offer: their tools, and notes on what is not offered and why."""

    tools: tuple[Tool, ...] = ()
    notes: tuple[str, ...] = ()


def offered(config: Config, pins: Pins, environment: Mapping[str, str] = os.environ) -> Offered:
    """The trusted tools of all servers in the settings; no server is started or asked before one of them is called.

    Raises:
        UsageError: an effect is given for a tool that a server does not have.
    """
    tools: list[Tool] = []
    notes: list[str] = []
    for name, server in config.mcp.items():
        pinned = pins.servers.get(name)
        if pinned is None:
            notes.append(
                f"mcp.{name}: not trusted yet, so that its tools are not offered; see `qafila mcp trust {name}`"
            )
            continue
        if pinned.reached != reached(server):
            notes.append(
                f"mcp.{name}: its command or URL is another than when it was trusted, so that its tools are not "
                f"offered; see `qafila mcp trust {name}`"
            )
            continue
        unknown = sorted(set(server.effects) - set(pinned.tools))
        if unknown:
            raise UsageError(
                f"mcp.{name}.effects: the server has no tool {unknown[0]!r:.60}; it has "
                f"{', '.join(described(one, 60) for one in list(pinned.tools)[:20])}"
            )
        connection = Connection(name, server, environment)
        for one in pinned.tools.values():
            try:
                tools.append(_tool(connection, one, server.effects.get(one.definition.name)))
            except UsageError as error:
                notes.append(f"mcp.{name}: its tool {described(one.definition.name, 60)} is left out: {error}")
    return Offered(tuple(tools), tuple(notes))


def left_out(name: str, server: PinnedServer) -> dict[str, str]:
    """Why tools of a server cannot be offered, by their names there."""
    found: dict[str, str] = {}
    for one in server.tools.values():
        definition = one.definition
        try:
            told(told_name(name, definition.name), "", whole(definition.input_schema))
        except UsageError as error:
            found[definition.name] = str(error)
    return found


def _tool(connection: Connection, pinned: Pinned, configured: Effect | None) -> Tool:
    definition = pinned.definition
    schema = whole(definition.input_schema)
    effect = definition.effect(configured)
    words = definition.description or definition.title or definition.annotations.get("title") or definition.name
    shown = told(told_name(connection.name, definition.name), described(str(words), MOST_DESCRIPTION), schema)

    async def run(arguments: dict[str, Any], surroundings: Surroundings) -> str:
        return await connection.call(pinned, arguments, surroundings.key, acts=effect not in ("pure", "read"))

    return Tool(
        shown,
        effect,
        argument_check(schema),
        run,
        seconds=CONNECT_SECONDS + LIST_SECONDS + CALL_SECONDS,
        origin=connection.name,
        # Nobody knows which of them say where the call acts.
        controls=frozenset(schema.get("properties", {})) if effect not in ("pure", "read") else frozenset(),
        close=connection.close,
    )
