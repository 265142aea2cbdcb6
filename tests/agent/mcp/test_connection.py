"""Servers of tools that work, die, hang and lie, over standard input and output."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import mcp_peer_at
import pytest

from qafila.agent.config import Server
from qafila.agent.mcp import connection as module
from qafila.agent.mcp.connection import MOST_STARTS, Connection
from qafila.agent.mcp.definition import reached
from qafila.agent.mcp.pins import PinnedServer
from qafila.agent.tool import LostCallError, ToolError
from qafila.errors import AgentError

ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/home/salma", "SECRET": "hush"}


def serve(mode: str, *files: Path, env: tuple[str, ...] = ()) -> Connection:
    server = Server(command=mcp_peer_at.command(mode, *files), env=env)
    return Connection("peer", server, ENVIRONMENT)


def during(mode: str, work: Callable[[Connection], Awaitable[Any]], *files: Path, env: tuple[str, ...] = ()) -> Any:
    """What work with a connection comes to; the connection is closed in any case."""

    async def main() -> Any:
        connection = serve(mode, *files, env=env)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(asyncio.wait_for(main(), 30))


async def said(connection: Connection, text: str = "مرحبا ١٢٣", *, acts: bool = True) -> str:
    """Trust the server as it is now, and call its tool."""
    return await again(connection, await trusted(connection), text, acts=acts)


async def trusted(connection: Connection) -> PinnedServer:
    definitions = await connection.definitions()
    return PinnedServer.of(reached(connection._server), connection.server_name, definitions)


async def again(connection: Connection, pins: PinnedServer, text: str = "again", *, acts: bool = True) -> str:
    return await connection.call(pins.tools["say"], {"text": text}, "key-1", acts=acts)


def test_a_tool_is_called_and_its_answer_comes_back() -> None:
    async def work(connection: Connection) -> None:
        pins = await trusted(connection)
        assert pins.server_name == "peer"
        assert pins.tools["say"].definition.description == "Say a text."
        assert await asyncio.gather(*(again(connection, pins, f"قافلة {i}") for i in range(5))) == [
            f"قافلة {i}" for i in range(5)
        ]

    during("ok", work)


def test_calls_at_once_on_a_connection_that_is_still_to_be_made() -> None:
    pins = during("ok", trusted)

    async def work(connection: Connection) -> list[str]:
        return await asyncio.gather(*(again(connection, pins, f"{i}") for i in range(3)))

    assert during("ok", work) == ["0", "1", "2"]


def test_lines_that_are_no_messages_are_passed_over() -> None:
    assert during("garbage", said) == "مرحبا ١٢٣"


def test_tools_come_on_several_pages() -> None:
    assert list(during("pages", Connection.definitions)) == ["first", "say"]


def test_a_call_carries_its_key() -> None:
    assert json.loads(during("key", said))[module.META_KEY] == "key-1"


def test_a_server_gets_the_variables_that_are_named_and_the_path() -> None:
    assert set(during("environment", said, env=("HOME", "MISSING")).split()) - {"LC_CTYPE"} == {"HOME", "PATH"}


def test_what_a_server_asks_of_us_is_refused() -> None:
    assert during("asks", said) == "refused refused"


def test_images_files_and_structured_results_are_described() -> None:
    assert during("parts", said).split("\n") == [
        "مرحبا ١٢٣",
        "[image, image/png, 12 bytes, not shown]",
        "[file:///a.txt]",
        "inside",
        "[file:///a.bin, bytes, 12 bytes, not shown]",
        "[link: page https://example.org/]",
        '{"مجموع": 3}',
    ]


def test_bytes_that_are_no_text_are_replaced() -> None:
    async def work(connection: Connection) -> str:
        return await said(connection, "why?")

    assert during("bad_utf8", work) == "why\ufffd"


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("fails", "مرحبا ١٢٣"),
        ("refuses", "peer refused: no not today[2J"),
    ],
)
def test_what_a_tool_or_server_says_no_to_is_an_error_for_the_model(mode: str, message: str) -> None:
    with pytest.raises(ToolError) as error:
        during(mode, said)
    assert str(error.value) == message
    assert not isinstance(error.value, LostCallError)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("dies", "peer ended in the middle of the call (حظ سيئ)"),
        ("big", "peer ended in the middle of the call (sent a message of more than 8 MiB)"),
        ("no_result", "peer answered with what is no result of a call ("),
        ("hangs", "peer gave no answer in 0.5 seconds"),
        ("wrong_id", "peer gave no answer in 0.5 seconds"),
    ],
)
def test_of_a_call_whose_answer_is_lost_nobody_knows(mode: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALL_SECONDS", 0.5 if mode in ("hangs", "wrong_id") else 30.0)
    with pytest.raises(LostCallError) as error:
        during(mode, said)
    assert str(error.value).startswith(message)
    assert str(error.value).endswith("; nobody knows whether it was done")
    with pytest.raises(ToolError) as error:
        during(mode, lambda connection: said(connection, acts=False))
    assert str(error.value).startswith(message)
    assert not isinstance(error.value, LostCallError)


def test_a_server_that_died_is_started_again(tmp_path: Path) -> None:
    async def work(connection: Connection) -> str:
        pins = await trusted(connection)
        with pytest.raises(LostCallError):
            await again(connection, pins)
        return await again(connection, pins, "مرة أخرى")

    assert during("dies_once", work, tmp_path / "started") == "مرة أخرى"


def test_a_server_that_always_dies_is_given_up() -> None:
    async def work(connection: Connection) -> None:
        pins = await trusted(connection)
        for _ in range(MOST_STARTS):
            with pytest.raises(LostCallError):
                await again(connection, pins)
        with pytest.raises(AgentError, match=r"^mcp\.peer: failed 4 times and is not tried again \(حظ سيئ\)$"):
            await again(connection, pins)

    during("dies", work)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("crashes", "mcp.peer: cannot be spoken with (Connection closed) (cannot start: no license)"),
        ("noise", "mcp.peer: cannot be spoken with (Connection closed) (writes what is no JSON-RPC"),
        ("never", "mcp.peer: was not ready in 0.5 seconds"),
        ("no_schema", "mcp.peer: does not say what tools it has ("),
        ("big_definition", "mcp.peer: describes its tool say in more than 64 KiB"),
        ("infinite", "mcp.peer: describes its tool say in what is no JSON"),
        ("twice", "mcp.peer: has two tools of the name say"),
        ("many", "mcp.peer: has more than 128 tools"),
        ("endless", "mcp.peer: lists its tools on more than 32 pages"),
    ],
)
def test_a_server_that_cannot_be_used_is_said(mode: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode == "never":
        monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    with pytest.raises(AgentError) as error:
        during(mode, Connection.definitions)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_program_that_is_not_there_is_said() -> None:
    async def main() -> None:
        await Connection("peer", Server(command=("/nowhere/server",)), ENVIRONMENT).definitions()

    with pytest.raises(AgentError, match=r"^/nowhere/server: cannot be started \(No such file or directory\)$"):
        asyncio.run(main())


def test_a_tool_that_changes_while_it_is_used_is_refused() -> None:
    async def work(connection: Connection) -> None:
        pins = await trusted(connection)
        assert await again(connection, pins, "once") == "once"
        with pytest.raises(
            ToolError, match=r"^peer: its tool say changed \(description\) since it was trusted"
        ) as error:
            await again(connection, pins)
        assert "the call was not made; `qafila mcp trust peer`" in str(error.value)

    during("changes", work)


def test_a_server_that_comes_back_under_another_name_is_refused(tmp_path: Path) -> None:
    async def work(connection: Connection) -> PinnedServer:
        return await trusted(connection)

    file = tmp_path / "started"
    pins = during("renamed", work, file)
    with pytest.raises(ToolError, match=r"its tool say changed \(the name of the server\) since it was trusted"):
        during("renamed", lambda connection: again(connection, pins), file)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int]) -> bool:
    for _ in range(100):
        if not any(map(alive, pids)):
            return True
        time.sleep(0.02)
    return False


def test_nothing_of_a_server_stays_behind(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    during("stays", Connection.definitions, file)
    pids = [int(one) for one in file.read_text().split()]
    assert len(pids) == 2
    assert gone(pids)


def test_nothing_of_a_server_stays_behind_when_its_run_is_cancelled(tmp_path: Path) -> None:
    file = tmp_path / "pids"

    async def main() -> None:
        connection = serve("stays", file)
        await connection.definitions()
        raise KeyboardInterrupt  # nobody closes the connection

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert gone([int(one) for one in file.read_text().split()])


def test_a_call_that_is_cancelled_leaves_the_connection_in_order() -> None:
    async def work(connection: Connection) -> str:
        pins = await trusted(connection)
        task = asyncio.create_task(again(connection, pins))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await again(connection, pins, "still here")

    assert during("ok", work) == "still here"


def test_a_connection_that_was_closed_stays_so() -> None:
    async def work(connection: Connection) -> None:
        await connection.definitions()
        await connection.close()
        await connection.close()
        with pytest.raises(AgentError, match=r"^mcp\.peer: was closed$"):
            await connection.definitions()

    during("ok", work)
