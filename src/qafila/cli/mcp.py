"""`qafila mcp`: which tools of MCP servers are trusted, and our tools for the clients of others."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qafila.cli import agent_options as agent_opt
from qafila.cli import terminal
from qafila.cli.agent_setup import load_config, load_policy, need_mcp, tool_names, workspace
from qafila.errors import AgentError, UsageError

if TYPE_CHECKING:
    from qafila.agent.config import Config, Server
    from qafila.agent.mcp.pins import PinnedServer

command = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Tools of MCP servers, and ours as one.",
    callback=need_mcp,
)
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The server, as the settings call it.")]


@command.command("list")
def _list(config: agent_opt.Config = None, as_json: agent_opt.JSON = False) -> None:
    """List the servers of the settings and their trusted tools; no server is started for it."""
    from qafila.agent.mcp.pins import pins_path, read_pins

    settings, pins = load_config(config), read_pins(pins_path())
    rows = [_row(name, server, pins.servers.get(name)) for name, server in settings.mcp.items()]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if not rows:
        typer.echo("the settings name no MCP server; `[mcp.NAME]` with a command or a url adds one", err=True)
    for row in rows:
        _say(f"{row['server']}  {row['state']}  {row['reached']}")
        for tool in row["tools"]:
            why = f"  left out: {tool['left_out']}" if tool["left_out"] else ""
            _say(f"  {tool['name']}  {tool['effect']}  sha256 {tool['sha256'][:16]}{why}")


def _row(name: str, server: Server, pinned: PinnedServer | None) -> dict[str, Any]:
    from qafila.agent.mcp.definition import described, reached
    from qafila.agent.mcp.tools import left_out

    state = "not trusted" if pinned is None else "trusted" if pinned.reached == reached(server) else "changed"
    bad = left_out(name, pinned) if pinned is not None else {}
    tools = [
        {
            "name": described(one.definition.name, 60),
            "effect": one.definition.effect(server.effects.get(one.definition.name)),
            "sha256": one.sha256,
            "left_out": bad.get(one.definition.name),
        }
        for one in (pinned.tools.values() if pinned is not None else ())
    ]
    return {"server": name, "reached": server.url or " ".join(server.command), "state": state, "tools": tools}


@command.command("trust")
def _trust(
    name: _Name,
    config: agent_opt.Config = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Trust what is shown without asking.")] = False,
) -> None:
    """Show what a server offers, or what it changed, and trust it as it is now."""
    from qafila.agent.mcp.definition import reached
    from qafila.agent.mcp.pins import PinnedServer, pin, pins_path, read_pins

    server = _server(load_config(config), name)
    before = read_pins(pins_path()).servers.get(name)
    now = PinnedServer.of(reached(server), *asyncio.run(_ask(name, server)))
    if now == before:
        _say(f"{name}: trusted, and nothing of it has changed")
        return
    for line in _differences(name, server, before, now):
        _say(line)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("there is nobody to ask; --yes trusts what is shown")
        print(f"trust {name} as it is now? [y]es, [n]o: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes", "نعم"):
            raise AgentError(f"mcp.{name}: left as it was")
    pin(pins_path(), name, now)
    _say(f"{name}: trusted, {len(now.tools)} tools")


@command.command("forget")
def _forget(name: _Name) -> None:
    """Trust a server no more."""
    from qafila.agent.mcp.pins import pin, pins_path, read_pins

    if name not in read_pins(pins_path()).servers:
        raise UsageError(f"{name!r:.40}: no server of this name is trusted")
    pin(pins_path(), name, None)
    _say(f"{name}: not trusted any more")


def _server(settings: Config, name: str) -> Server:
    if name not in settings.mcp:
        known = f"; there are {', '.join(settings.mcp)}" if settings.mcp else ""
        raise UsageError(f"the settings name no MCP server {name!r:.40}{known}")
    return settings.mcp[name]


async def _ask(name: str, server: Server) -> tuple[str, dict[str, Any]]:
    from qafila.agent.mcp.connection import Connection

    connection = Connection(name, server)
    try:
        found = await connection.definitions()
        return connection.server_name, found
    finally:
        await connection.close()


def _differences(name: str, server: Server, before: PinnedServer | None, now: PinnedServer) -> list[str]:
    """What a person has to see before a server is trusted."""
    from qafila.agent.mcp.definition import MOST_BYTES, cleaned, described
    from qafila.agent.mcp.tools import left_out

    lines = [f"{name}: {server.url or ' '.join(server.command)}, which calls itself {described(now.server_name, 80)!r}"]
    if before is not None and (before.reached, before.server_name) != (now.reached, now.server_name):
        lines.append(f"  before: {described(before.reached, 300)}, {described(before.server_name, 80)!r}")
    bad = left_out(name, now)
    known = before.tools if before is not None else {}
    for tool, pinned in now.tools.items():
        definition, shown = pinned.definition, described(tool, 60)
        if tool in known and known[tool].definition == definition:
            continue
        effect = definition.effect(server.effects.get(tool))
        lines.append(f"{'changed' if tool in known else 'new'}: {shown}  {effect}  sha256 {pinned.sha256}")
        if tool in bad:
            lines.append(f"  is left out: {bad[tool]}")
        if tool in known:
            lines += [f"  {line}" for line in known[tool].definition.changes(definition)]
            continue
        lines += [f"  {line}" for line in cleaned(definition.description or "(no description)", MOST_BYTES).split("\n")]
        lines.append(f"  {cleaned(json.dumps(definition.input_schema, ensure_ascii=False), MOST_BYTES)}")
        if definition.annotations:
            lines.append(
                f"  it says of itself: {cleaned(json.dumps(definition.annotations, ensure_ascii=False), MOST_BYTES)}"
            )
    lines += [f"gone: {described(tool, 60)}" for tool in known if tool not in now.tools]
    return lines


@command.command("serve")
def _serve(
    folder: agent_opt.Workspace = Path(),
    tools: Annotated[str | None, typer.Option("--tools", metavar="NAMES", help="Only these, with commas.")] = None,
    policy: agent_opt.Policy = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Let clients change files; nothing takes it back.")] = False,
    config: agent_opt.Config = None,
    http: Annotated[
        int | None, typer.Option("--http", metavar="PORT", min=0, max=65535, help="On this machine's port, not stdio.")
    ] = None,
    token_env: Annotated[
        str | None, typer.Option("--token-env", metavar="NAME", help="The variable with the token that HTTP asks for.")
    ] = None,
) -> None:
    """Offer our tools to an MCP client: on standard input and output, or over HTTP on this machine."""
    from qafila.agent.mcp.http import token
    from qafila.agent.mcp.server import Service, serve_http, serve_stdio
    from qafila.agent.tools.builtin import Resources, outside_runs

    if token_env is not None and http is None:
        raise UsageError("--token-env goes with --http")
    service = Service(
        outside_runs(tool_names(tools), Resources(load_config(config))),
        workspace=workspace(folder),
        policy=load_policy(yes, policy),
        # Whoever started us on its pipes speaks for its user; over HTTP any program of this machine could.
        asks=http is None,
    )
    if http is None:
        # A thread of the library's waits for input, and nothing else ends it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        asyncio.run(serve_stdio(service))
        return
    bearer = token(token_env, "--token-env")
    asyncio.run(serve_http(service, http, bearer, lambda url: print(f"serving {url}", file=sys.stderr, flush=True)))


def _say(text: str) -> None:
    typer.echo(terminal.printable(text))
