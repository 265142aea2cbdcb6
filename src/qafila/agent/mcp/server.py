"""Our tools as an MCP server: with our checks of arguments, and our policy, for whoever calls them.

What the policy asks about is refused, unless the client can put the question to its user. No argument counts as the
user's own words, as nobody knows who wrote it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qafila import __version__
from qafila.agent.calls import HARMLESS, intended
from qafila.agent.carry_out import checked, do_edits, outcome
from qafila.agent.events import Intended
from qafila.agent.mcp.asking import AnswerNeededError, ask, can_ask
from qafila.agent.observation import Observation, observation
from qafila.agent.policy import Policy, Proposed, Verdict, as_done
from qafila.agent.provenance import Trusted, untrusted
from qafila.agent.reasons import Reason
from qafila.agent.result import Result
from qafila.agent.sandbox.sandbox import Sandbox, find_sandbox
from qafila.agent.tool import Surroundings, Tool, Toolbox
from qafila.text.messages import ToolCall

if TYPE_CHECKING:
    from mcp.server import Server, ServerRequestContext
    from mcp_types import (
        CallToolRequestParams,
        CallToolResult,
        InputRequiredResult,
        ListToolsResult,
        PaginatedRequestParams,
        ToolAnnotations,
    )
    from starlette.types import ASGIApp, Receive, Scope, Send


class Service:
    """Carries out what clients call.

    Args:
        toolbox: what may be called. workspace: the folder that the tools see. policy: what is allowed.
        asks: clients may answer what the policy asks about: theirs is then the user's word.
        sandbox: walls for commands; by default this machine's best, found when first needed.
    """

    def __init__(
        self,
        toolbox: Toolbox,
        *,
        workspace: Path,
        policy: Policy | None = None,
        asks: bool = False,
        sandbox: Callable[[], Sandbox] = find_sandbox,
    ) -> None:
        self.toolbox, self._workspace = toolbox, workspace.resolve()
        self._policy, self._asks, self._sandbox = policy or Policy(), asks, sandbox
        self._acting = asyncio.Lock()

    async def call(
        self, tool: Tool, given: dict[str, Any], ask: Callable[[Intended, str], Awaitable[bool]] | None = None
    ) -> Observation:
        """What comes of a call. What changes something is done one after another.

        Args:
            tool: one of the toolbox. given: its arguments, not checked yet.
            ask: puts a question to a person; None where nobody can be asked.
        """
        arguments = checked(tool, given)
        if isinstance(arguments, Observation):
            return arguments
        foreign = untrusted(given, Trusted(()))
        judged = Proposed(tool.name, tool.effect, as_done(tool, given), foreign, tool.controls)
        verdict, why = self._policy.judge(judged)
        if verdict == "deny" or (verdict == "ask" and ask is None):
            return _refused(verdict, why)
        place = Surroundings(self._workspace, self._sandbox, secrets.token_hex(16))
        call = ToolCall(place.key, tool.name, given)
        alone = contextlib.nullcontext() if tool.effect in HARMLESS else self._acting
        async with alone:
            intent = await intended(tool, call, arguments, place)
            if isinstance(intent, Observation):
                return intent
            verdict, why = self._policy.judge_paths(judged, intent.edits)
            if verdict == "allow":
                return await _carried_out(tool, intent, arguments, place)
        if verdict == "deny" or ask is None:
            return _refused(verdict, why)
        if not await ask(intent, why):
            return observation(Reason("said_no"), "refused")
        async with alone:
            return await _carried_out(tool, intent, arguments, place)

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

        async def called(
            context: ServerRequestContext[Any], params: CallToolRequestParams
        ) -> CallToolResult | InputRequiredResult:
            tool = self.toolbox.by_name.get(params.name)
            if tool is None:
                raise MCPError(code=INVALID_PARAMS, message=f"there is no tool {params.name!r:.80}")
            person = partial(ask, context, params) if self._asks and can_ask(context) else None
            try:
                found = await self.call(tool, params.arguments or {}, person)
            except AnswerNeededError as needed:
                return needed.result
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


def _refused(verdict: Verdict, why: str) -> Observation:
    """What the client is told of a call that is not allowed, or that a person would have to allow."""
    if verdict == "ask":
        why = f"needs a person's word, and nobody can be asked here ({why}); a policy or --yes can allow it"
    return observation(why, "refused")


async def _carried_out(tool: Tool, intent: Intended, arguments: dict[str, Any], place: Surroundings) -> Observation:
    """Do what a call is to do; of edits the answer shows what they changed."""
    if tool.drafts:
        done = await asyncio.to_thread(do_edits, intent, place)
        if done.status != "ok":
            return done
        return observation("\n".join([done.text, *(edit.diff().rstrip("\n") for edit in intent.edits)]))
    found = await outcome(tool, arguments, place)
    if isinstance(found, Result):
        return found.observation
    if isinstance(found, Observation):
        return found
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
