"""What MCP's conformance suite speaks with: `python mcp_conformance.py server`, or `... client URL`.

The server is ours with the tools that the suite asks for; the client is ours, which calls each tool once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from qafila.agent.config import Config, Server
from qafila.agent.mcp.connection import Connection
from qafila.agent.mcp.definition import reached
from qafila.agent.mcp.pins import PinnedServer, Pins
from qafila.agent.mcp.server import Service, serve_http
from qafila.agent.mcp.tools import offered
from qafila.agent.sandbox.sandbox import find_sandbox
from qafila.agent.tool import Surroundings, Toolbox, ToolError, tool

#: As the scenario `json-schema-2020-12` has it.
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}},
    },
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
    "additionalProperties": False,
}


def test_simple_text() -> str:
    """Give a text."""
    return "This is a simple text response for testing."


def test_error_handling() -> str:
    """Go wrong."""
    raise ToolError("This tool intentionally returns an error for testing")


def json_schema_2020_12_tool(name: str = "") -> str:
    """Tool with JSON Schema 2020-12 features."""
    return name


async def serve() -> None:
    plain = [tool(one, effect="read") for one in (test_simple_text, test_error_handling)]
    made = tool(json_schema_2020_12_tool, effect="read")
    schema = dataclasses.replace(made.schema, parameters=SCHEMA)
    toolbox = Toolbox((*plain, dataclasses.replace(made, schema=schema)))
    with tempfile.TemporaryDirectory() as folder:
        await serve_http(Service(toolbox, workspace=Path(folder)), 0, None, lambda url: print(url, flush=True))


async def call_everything(url: str) -> None:
    """Trust a server as it is, and call each of its tools once, as a run would."""
    server = Server(url=url)
    connection = Connection("suite", server)
    definitions = await connection.definitions()
    pins = Pins(servers={"suite": PinnedServer.of(reached(server), connection.server_name, definitions)})
    await connection.close()
    found = offered(Config(mcp={"suite": server}), pins)
    assert not found.notes, found.notes
    with tempfile.TemporaryDirectory() as folder:
        for one in found.tools:
            arguments = one.check(dict.fromkeys(one.schema.parameters.get("required", ()), 5))
            print(await one.run(arguments, Surroundings(Path(folder), find_sandbox, "key")))
    await Toolbox(found.tools).close()


if __name__ == "__main__":
    asyncio.run(serve() if sys.argv[1] == "server" else call_everything(sys.argv[2]))
