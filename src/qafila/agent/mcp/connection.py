"""A connection to one MCP server: made when it is first needed, made anew a few times, closed at the end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qafila.agent.config import Server
from qafila.agent.mcp.definition import MOST_BYTES, Definition, canonical, described, reached
from qafila.agent.mcp.http import connected, token
from qafila.agent.mcp.pins import Pinned
from qafila.agent.mcp.results import as_text
from qafila.agent.mcp.stdio import Log, child
from qafila.agent.tool import LostCallError, ToolError
from qafila.errors import AgentError, QafilaError

if TYPE_CHECKING:
    from mcp.client import Client, Transport

#: Seconds to start and greet a server, to list its tools, and for a call.
CONNECT_SECONDS, LIST_SECONDS, CALL_SECONDS = 60.0, 30.0, 60.0
#: Tools of one server, pages that they come in, and how often in a row a server is started.
MOST_TOOLS, MOST_PAGES, MOST_STARTS = 128, 32, 4
#: Seconds for which a list of tools is taken to hold, unless the server says that it changed.
_FRESH_SECONDS = 30.0
#: Under this key of a request's ``_meta`` a call carries its idempotency key.
META_KEY = "qafila/idempotency-key"


class Connection:
    """One server. Whatever it does ends as an error that says so.

    Args:
        name: in the settings. server: how it is reached. environment: where its variables come from.
    """

    def __init__(self, name: str, server: Server, environment: Mapping[str, str] = os.environ) -> None:
        self.name, self._server, self._environment = name, server, environment
        self._owner: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._over, self._closing = asyncio.Event(), False
        self._opening, self._listing = asyncio.Lock(), asyncio.Lock()
        self._starts = self._changes = 0
        self._log = Log()
        self._listed: tuple[float, dict[str, Definition]] | None = None

    @property
    def server_name(self) -> str:
        """What the server calls itself; "" while it is not connected, or where it does not say."""
        info = self._client.server_info if self._client is not None else None
        return info.name[:200] if info is not None else ""

    async def definitions(self) -> dict[str, Definition]:
        """Its tools by name, as it describes them now.

        Raises:
            AgentError: it cannot be reached, or does not say what tools it has.
        """
        client, over = await self._connected()
        return await self._definitions(client, over)

    async def _definitions(self, client: Client, over: asyncio.Event) -> dict[str, Definition]:
        async with self._listing:
            if self._listed is not None and time.monotonic() - self._listed[0] < _FRESH_SECONDS:
                return self._listed[1]
            began, changes = time.monotonic(), self._changes
            try:
                async with asyncio.timeout(LIST_SECONDS):
                    found = await self._list(client)
            except TimeoutError:
                over.set()
                raise self._error(f"does not say in {LIST_SECONDS:g} seconds what tools it has") from None
            except QafilaError:
                raise
            except Exception as error:
                over.set()
                raise self._error(f"does not say what tools it has ({_told(error)}){self._why()}") from None
            if changes == self._changes:
                self._listed = began, found
            return found

    async def _list(self, client: Client) -> dict[str, Definition]:
        found: dict[str, Definition] = {}
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            page = await client.list_tools(cursor=cursor, cache_mode="bypass")
            for one in page.tools:
                annotations = one.annotations.model_dump(by_alias=True, exclude_none=True) if one.annotations else {}
                definition = Definition(
                    name=one.name,
                    title=one.title,
                    description=one.description,
                    input_schema=one.input_schema,
                    output_schema=one.output_schema,
                    annotations=annotations,
                )
                where = described(one.name, 60)
                try:
                    size = len(canonical(definition.model_dump()))
                except (ValueError, RecursionError):
                    raise self._error(f"describes its tool {where} in what is no JSON") from None
                if size > MOST_BYTES:
                    raise self._error(f"describes its tool {where} in more than {MOST_BYTES >> 10} KiB")
                if one.name in found:
                    raise self._error(f"has two tools of the name {where}")
                found[one.name] = definition
            if len(found) > MOST_TOOLS:
                raise self._error(f"has more than {MOST_TOOLS} tools")
            cursor = page.next_cursor
            if cursor is None:
                return found
        raise self._error(f"lists its tools on more than {MOST_PAGES} pages")

    async def call(self, pinned: Pinned, arguments: dict[str, Any], key: str, *, acts: bool) -> str:
        """Call a tool and wait for what comes of it.

        Args:
            pinned: the tool, as the user trusted it. arguments: validated ones. key: that stands for this very call.
            acts: it changes something, so that a call whose answer is lost may have been done.

        Raises:
            AgentError: the server cannot be reached. ToolError: the tool or the server says no, or the tool is not
                what was trusted. LostCallError: an answer that was to come did not.
        """
        from mcp_types import CallToolRequest, CallToolRequestParams, CallToolResult

        client, over = await self._connected()
        was = pinned.definition
        now = (await self._definitions(client, over)).get(was.name)
        if now is None or now.sha256(reached(self._server), self.server_name) != pinned.sha256:
            what = f"changed ({was.changed_parts(now) or 'the name of the server'})" if now is not None else "is gone"
            raise ToolError(
                f"{self.name}: its tool {described(was.name, 60)} {what} since it was trusted, so the call was not "
                f"made; `qafila mcp trust {self.name}` shows the difference"
            )
        # Not the library's `call_tool`: it would match the result with the server's schema, and so with its patterns.
        params = {"name": was.name, "arguments": arguments, "_meta": {META_KEY: key}}
        request = CallToolRequest(params=CallToolRequestParams.model_validate(params))
        try:
            async with asyncio.timeout(CALL_SECONDS):
                result = await client.session.send_request(request, CallToolResult)
        except TimeoutError:
            raise self._lost(f"gave no answer in {CALL_SECONDS:g} seconds", acts) from None
        except Exception as error:
            raise self._failed(error, over, acts) from None
        self._starts = 1  # it works: those that it took before count no more
        text = as_text(result)
        if result.is_error:
            raise ToolError(text or f"{self.name} says that it went wrong, and not how")
        return text

    def _failed(self, error: Exception, over: asyncio.Event, acts: bool) -> ToolError:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST

        if isinstance(error, MCPError) and error.code != CONNECTION_CLOSED:
            if error.code == INVALID_REQUEST:  # so it says, over HTTP, that it has forgotten the session
                over.set()
            return ToolError(f"{self.name} refused: {_told(error)}")
        over.set()
        if isinstance(error, MCPError):
            return self._lost(f"ended in the middle of the call{self._why()}", acts)
        return self._lost(f"answered with what is no result of a call ({_told(error)})", acts)

    def _lost(self, problem: str, acts: bool) -> ToolError:
        if not acts:
            return ToolError(f"{self.name} {problem}")
        return LostCallError(f"{self.name} {problem}; nobody knows whether it was done")

    async def close(self) -> None:
        """End the connection, and the server where it is a child of ours; safe to call twice."""
        self._closing = True
        self._over.set()
        if self._owner is not None:
            await asyncio.wait([self._owner])

    async def _connected(self) -> tuple[Client, asyncio.Event]:
        """The session, and what ends it."""
        async with self._opening:
            if self._client is not None and not self._over.is_set():
                return self._client, self._over
            if self._owner is not None:
                await asyncio.wait([self._owner])
            if self._closing:
                raise self._error("was closed")
            if self._starts == MOST_STARTS:
                raise self._error(f"failed {MOST_STARTS} times and is not tried again{self._why()}")
            self._starts += 1
            self._changes += 1
            self._listed, self._log, self._over = None, Log(), asyncio.Event()
            ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            self._owner = asyncio.create_task(self._own(ready), name=f"qafila-mcp-{self.name}")
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await asyncio.shield(ready), self._over
            except TimeoutError:
                self._owner.cancel()
                raise self._error(f"was not ready in {CONNECT_SECONDS:g} seconds{self._why()}") from None
            except asyncio.CancelledError:
                self._owner.cancel()
                raise
            except QafilaError:
                raise
            except Exception as error:
                raise self._error(f"cannot be spoken with ({_told(error)}){self._why()}") from None

    async def _own(self, ready: asyncio.Future[Client]) -> None:
        """Hold the session: what it is made of has to be opened and closed by one task."""
        from mcp import Client
        from mcp_types import Implementation

        from qafila import __version__

        info = Implementation(name="qafila", version=__version__)
        try:
            async with Client(self._transport(), cache=None, client_info=info, message_handler=self._heard) as client:
                self._client = client
                ready.set_result(client)
                await self._over.wait()
        except Exception as error:
            if not ready.done():
                ready.set_exception(_first(error))
        finally:
            self._client = None

    def _transport(self) -> Transport:
        where = f"mcp.{self.name}"
        if self._server.url is not None:
            return connected(self._server.url, token(self._server.token_env, where, self._environment), where)
        named = ("PATH", *self._server.env)
        variables = {name: self._environment[name] for name in named if name in self._environment}
        return child(self._server.command, variables, self._log, self._over)

    async def _heard(self, message: object) -> None:
        from mcp_types import ToolListChangedNotification

        if isinstance(message, ToolListChangedNotification):
            self._listed = None
            self._changes += 1

    def _why(self) -> str:
        """What is known of why a server ended, in brackets."""
        known = self._log.fault or self._log.last_line
        return f" ({described(known, 200)})" if known else ""

    def _error(self, problem: str) -> AgentError:
        return AgentError(f"mcp.{self.name}: {problem}")


def _first(error: BaseException) -> Exception:
    """What went wrong first, out of the groups that task groups make."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else RuntimeError(type(error).__name__)


def _told(error: Exception) -> str:
    found = _first(error)
    return described(str(found), 300) or type(found).__name__
