"""Servers of tools over HTTP: what they send is bounded, and nothing goes to places that nobody named."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from qafila.agent.config import Server
from qafila.agent.mcp.connection import Connection
from qafila.agent.mcp.definition import reached
from qafila.agent.mcp.pins import PinnedServer
from qafila.agent.tool import LostCallError, ToolError
from qafila.errors import AgentError

TOOL = {"name": "say", "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}}


class Peer(ThreadingHTTPServer):
    """A server that answers with plain JSON, well-behaved or not."""

    daemon_threads = True

    def __init__(self, mode: str, elsewhere: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode, self.elsewhere = mode, elsewhere
        self.tokens: list[str | None] = []
        self.sessions = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/mcp"


class Handler(BaseHTTPRequestHandler):
    server: Peer

    def do_POST(self) -> None:
        self.server.tokens.append(self.headers["Authorization"])
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mode, method = self.server.mode, message["method"]
        if mode == "redirects":
            self.answer(307, b"", Location=self.server.elsewhere)
        elif mode == "html":
            self.answer(200, b"<html>hello</html>", content="text/html")
        elif mode == "fails":
            self.answer(500, b"{}")
        elif "id" not in message:
            self.answer(202, b"")
        elif method == "initialize":
            self.server.sessions += 1
            told = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}}
            self.result(message, {**told, "serverInfo": {"name": "peer", "version": "1"}}, **self.session())
        elif method == "tools/list":
            self.result(message, {"tools": [TOOL]})
        elif method == "tools/call":
            self.call(message)
        else:
            refused = {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no such method"}}
            self.answer(200, json.dumps(refused).encode())

    def session(self) -> dict[str, str]:
        return {"Mcp-Session-Id": f"s{self.server.sessions}"} if self.server.mode == "forgets" else {}

    def call(self, message: dict[str, Any]) -> None:
        mode = self.server.mode
        text = "a" * (9 << 20) if mode in ("big", "big_event") else str(message["params"]["arguments"]["text"])
        if mode == "forgets" and self.headers["Mcp-Session-Id"] == "s1":
            self.answer(404, b"")
            return
        found = {"content": [{"type": "text", "text": text}]}
        if mode == "packed":
            body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": found}).encode()
            self.answer(200, gzip.compress(body), **{"Content-Encoding": "gzip"})
            return
        if mode != "big_event":
            self.result(message, found)
            return
        event = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": found}).encode()
        self.answer(200, b"data: " + event + b"\n\n", content="text/event-stream")

    def result(self, message: dict[str, Any], value: dict[str, Any], **headers: str) -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": value}, ensure_ascii=False).encode()
        self.answer(200, body, **headers)

    def answer(self, status: int, body: bytes, content: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        sent = {"Content-Type": content, "Content-Length": str(len(body)), **headers}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        self.answer(405, b"")

    def do_DELETE(self) -> None:
        self.answer(200, b"")

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def peer(mode: str, elsewhere: str = "") -> Iterator[Peer]:
    with Peer(mode, elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def during(server: Peer, work: Callable[[Connection], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        connection = Connection("far", Server(url=server.url, token_env="TOKEN"), {"TOKEN": "t0ken"})
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(asyncio.wait_for(main(), 30))


async def said(connection: Connection, *, acts: bool = True) -> str:
    pins = PinnedServer.of(reached(connection._server), "peer", await connection.definitions())
    return await connection.call(pins.tools["say"], {"text": "مرحبا ١٢٣"}, "k", acts=acts)


def test_a_call_brings_the_token_along() -> None:
    with peer("ok") as server:
        assert during(server, said) == "مرحبا ١٢٣"
        assert set(server.tokens) == {"Bearer t0ken"}


@pytest.mark.parametrize("mode", ["big", "big_event", "packed"])
def test_an_answer_that_is_too_long_or_may_become_so_is_broken_off(mode: str) -> None:
    with peer(mode) as server, pytest.raises(LostCallError, match=r"^far .*; nobody knows whether it was done$"):
        during(server, said)


def test_a_session_that_was_forgotten_is_begun_anew() -> None:
    async def work(connection: Connection) -> str:
        with pytest.raises(ToolError):
            await said(connection)
        return await said(connection)

    with peer("forgets") as server:
        assert during(server, work) == "مرحبا ١٢٣"


def test_a_redirect_to_another_place_is_not_followed() -> None:
    with peer("ok") as other, peer("redirects", other.url) as server:
        with pytest.raises(AgentError, match=r"^mcp\.far: cannot be spoken with \(.*not followed"):
            during(server, Connection.definitions)
        assert other.tokens == []


@pytest.mark.parametrize("mode", ["html", "fails"])
def test_what_is_no_server_of_tools_is_said(mode: str) -> None:
    with peer(mode) as server, pytest.raises(AgentError, match=r"^mcp\.far: cannot be spoken with \(") as error:
        during(server, Connection.definitions)
    assert "\n" not in str(error.value)
