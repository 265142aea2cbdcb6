"""An MCP server as a child process: newline-delimited JSON-RPC on its standard input and output.

MCP specification 2025-11-25, "Transports", stdio. The `mcp` library brings a transport of its own, which hands on more
variables than a server was given and holds lines of any length; this one does neither, and ends the whole group of
processes whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from qafila.errors import AgentError

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.shared.message import SessionMessage

#: Bytes of one message, lines that are no messages before a server is given up, bytes kept of its standard error.
MOST_LINE, MOST_GARBAGE, MOST_LOG = 8 << 20, 100, 4096
_CHUNK = 1 << 16
# For a server to end by itself once its input is closed, and once it is told to.
_PATIENCE_SECONDS = 1.0


class Log:
    """The end of what a server wrote to standard error, and what was wrong with it."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.fault = ""

    def add(self, chunk: bytes) -> None:
        """Remember some of it."""
        self._bytes += chunk
        del self._bytes[: max(0, len(self._bytes) - MOST_LOG)]

    @property
    def last_line(self) -> str:
        """The last line that says something."""
        lines = bytes(self._bytes).decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


@asynccontextmanager
async def child(
    command: Sequence[str], variables: Mapping[str, str], log: Log, over: asyncio.Event
) -> AsyncGenerator[
    tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]
]:
    """Start a server and speak with it; when the block ends, so does the server and whatever it started.

    Args:
        command: the program and its arguments. variables: its environment. log: gets what it says on standard error.
        over: is set once nothing more will come of it.

    Raises:
        AgentError: it cannot be started.
    """
    import anyio

    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(variables),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise AgentError(f"{command[0]}: cannot be started ({getattr(error, 'strerror', None) or error})") from None
    try:
        to_us, incoming = anyio.create_memory_object_stream["SessionMessage | Exception"](0)
        outgoing, to_it = anyio.create_memory_object_stream["SessionMessage"](0)
        async with to_us, incoming, outgoing, to_it, asyncio.TaskGroup() as tasks:
            pumps = (
                tasks.create_task(_read(process, to_us, log, over)),
                tasks.create_task(_write(process, to_it)),
                tasks.create_task(_drain(process, log)),
            )
            try:
                yield incoming, outgoing
            finally:
                for pump in pumps:
                    pump.cancel()
    finally:
        await _end(process)


async def _read(
    process: asyncio.subprocess.Process,
    to_us: MemoryObjectSendStream[SessionMessage | Exception],
    log: Log,
    over: asyncio.Event,
) -> None:
    """Hand on messages until the server closes its output; lines that are none are dropped, up to a number."""
    import anyio
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    assert process.stdout is not None
    buffer, garbage = bytearray(), 0
    async with to_us:
        try:
            while not log.fault and (chunk := await process.stdout.read(_CHUNK)):
                searched = len(buffer)
                buffer += chunk
                while (end := buffer.find(b"\n", searched)) >= 0:
                    # What is no UTF-8 is shown as such, so that whoever waits for this message gets it.
                    line = buffer[:end].decode("utf-8", "replace").strip()
                    del buffer[: end + 1]
                    searched = 0
                    try:
                        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                    except ValueError:
                        garbage += bool(line)
                        continue
                    with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                        await to_us.send(SessionMessage(message))
                if garbage > MOST_GARBAGE:
                    log.fault = "writes what is no JSON-RPC to its standard output"
                if len(buffer) > MOST_LINE:
                    log.fault = f"sent a message of more than {MOST_LINE >> 20} MiB"
        finally:
            over.set()


async def _write(process: asyncio.subprocess.Process, to_it: MemoryObjectReceiveStream[SessionMessage]) -> None:
    assert process.stdin is not None
    async with to_it:
        async for message in to_it:
            text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            try:
                process.stdin.write(text.encode() + b"\n")
                await process.stdin.drain()
            except (ConnectionError, RuntimeError):
                return  # it has gone; the end of its output says so


async def _drain(process: asyncio.subprocess.Process, log: Log) -> None:
    assert process.stderr is not None
    while chunk := await process.stderr.read(_CHUNK):
        log.add(chunk)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the server: its input is closed, then it is told to, then it is killed, with its whole group."""
    try:
        if process.stdin is not None:
            process.stdin.close()
        if not await _gone(process):
            _signal(process, signal.SIGTERM)
            await _gone(process)
    finally:
        _signal(process, signal.SIGKILL)  # what it started may have outlived it
    await _gone(process)
    # What a survivor still holds open would keep the transport alive, and complain when it is collected.
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()


async def _gone(process: asyncio.subprocess.Process) -> bool:
    """Whether it ends in time. Not `process.wait`: that also waits for pipes which its children may hold."""
    deadline = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
    while process.returncode is None:
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
