"""Our tools as an MCP server: with our checks of arguments, and our policy, for whoever calls them.

Nobody can be asked over MCP, so that what the policy asks about is refused; and no argument counts as the user's own
words, as nobody knows who wrote it.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qafila import __version__
from qafila.agent.calls import HARMLESS
from qafila.agent.carry_out import checked, do_edits, outcome
from qafila.agent.events import Intended
from qafila.agent.observation import Observation, observation
from qafila.agent.policy import Policy, Proposed
from qafila.agent.provenance import Trusted, untrusted
from qafila.agent.sandbox.sandbox import Sandbox, find_sandbox
from qafila.agent.tool import Draft, Surroundings, Tool, Toolbox

if TYPE_CHECKING:
    from mcp.server import Server, ServerRequestContext
    from mcp_types import (
        CallToolRequestParams,
        CallToolResult,
        ListToolsResult,
        PaginatedRequestParams,
        ToolAnnotations,
    )
    from starlette.types import ASGIApp, Receive, Scope, Send


class Service:
    """Carries out what clients call.

    Args:
        toolbox: what may be called. workspace: the folder that the tools see. policy: what is allowed.
        sandbox: walls for commands; by default this machine's best, found when first needed.
    """

    def __init__(
        self,
        toolbox: Toolbox,
        *,
        workspace: Path,
        policy: Policy | None = None,
        sandbox: Callable[[], Sandbox] = find_sandbox,
    ) -> None:
        self.toolbox, self._workspace = toolbox, workspace.resolve()
        self._policy, self._sandbox = policy or Policy(), sandbox
        self._acting = asyncio.Lock()

    async def call(self, tool: Tool, given: dict[str, Any]) -> Observation:
        """What comes of a call. What changes something is done one after another."""
        arguments = checked(tool, given)
        if isinstance(arguments, Observation):
            return arguments
        foreign = untrusted(given, Trusted(()))
        verdict, why = self._policy.judge(Proposed(tool.name, tool.effect, given, foreign, tool.controls))
        if verdict == "ask":
            why = f"needs a person's word, and over MCP nobody can be asked ({why}); a policy or --yes can allow it"
        if verdict != "allow":
            return observation(why, "refused")
        surroundings = Surroundings(self._workspace, self._sandbox, secrets.token_hex(16))
        if tool.effect in HARMLESS:
            found = await outcome(tool, arguments, surroundings)
            return found if isinstance(found, Observation) else _no_draft(tool)
        async with self._acting:
            found = await outcome(tool, arguments, surroundings)
            if isinstance(found, Observation):
                return found
            if not tool.drafts:
                return _no_draft(tool)
            return await asyncio.to_thread(_edited, tool, given, found, surroundings)

    def server(self, name: str = "qafila") -> Server[Any]:
        """The MCP server, to be run over some transport."""
        from mcp import MCPError
        from mcp.server import Server
        from mcp_types import INVALID_PARAMS, CallToolResult, ListToolsResult, TextContent
        from mcp_types import Tool as Listed

        async def listed(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
            return ListToolsResult(
                tools=[
                    Listed(
                        name=one.name,
                        description=one.schema.description,
                        input_schema=dict(one.schema.parameters),
                        annotations=hints(one),
                    )
                    for one in self.toolbox.tools
                ]
            )

        async def called(_: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
            tool = self.toolbox.by_name.get(params.name)
            if tool is None:
                raise MCPError(code=INVALID_PARAMS, message=f"there is no tool {params.name!r:.80}")
            found = await self.call(tool, params.arguments or {})
            return CallToolResult(content=[TextContent(text=found.told())], is_error=found.status != "ok")

        return Server(name, version=__version__, on_list_tools=listed, on_call_tool=called)


def hints(tool: Tool) -> ToolAnnotations:
    """What a tool does, in MCP's words."""
    from mcp_types import ToolAnnotations

    reads = tool.effect in HARMLESS
    return ToolAnnotations(
        read_only_hint=reads,
        destructive_hint=None if reads else tool.effect in ("write", "irrevocable"),
        idempotent_hint=None if reads else tool.repeats,
        open_world_hint=tool.effect in ("egress", "irrevocable") or tool.origin not in ("built-in", "python"),
    )


def _edited(tool: Tool, given: dict[str, Any], draft: Draft, surroundings: Surroundings) -> Observation:
    """Do the edits of a draft; the answer shows them."""
    intent = Intended(
        call=surroundings.key,
        name=tool.name,
        arguments=given,
        effect=tool.effect,
        key=surroundings.key,
        edits=draft.edits,
        told=draft.text,
    )
    done = do_edits(intent, surroundings)
    if done.status != "ok" or not draft.edits:
        return done
    return observation("\n".join([done.text, *(edit.diff().rstrip("\n") for edit in draft.edits)]))


def _no_draft(tool: Tool) -> Observation:
    return observation(f"{tool.name} has the effect {tool.effect} and may not change files", "error")


async def serve_stdio(service: Service) -> None:
    """Serve one client on standard input and output until it closes them."""
    from mcp.server.stdio import stdio_server

    server = service.server()
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def http_app(server: Server[Any], bearer: str | None) -> ASGIApp:
    """The server as streamable HTTP at ``/mcp``, for this machine: other names in Host and Origin are refused.

    Args:
        server: of a `Service`. bearer: a token that each request must bring along; None for none.
    """
    app = server.streamable_http_app(host="127.0.0.1")
    if bearer is None:
        return app
    wanted = f"Bearer {bearer}".encode()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] == "http" and not hmac.compare_digest(headers.get(b"authorization", b""), wanted):
            head = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 401, "headers": head})
            await send({"type": "http.response.body", "body": b""})
            return
        await app(scope, receive, send)

    return guarded


async def serve_http(service: Service, port: int, bearer: str | None, ready: Callable[[str], None]) -> None:
    """Serve clients of this machine over HTTP until Ctrl-C.

    Args:
        service: what they call. port: on 127.0.0.1; 0 for a free one. bearer: as for `http_app`.
        ready: is told the URL once it can be called.

    Raises:
        OSError: the port is taken.
    """
    import uvicorn

    with socket.create_server(("127.0.0.1", port)) as listening:
        app = http_app(service.server(), bearer)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if server.started:
            ready(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp")
        await serving
