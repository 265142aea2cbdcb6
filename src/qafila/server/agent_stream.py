"""A run's events as a stream of server-sent events: what there is, and then what happens, until it ends or waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from qafila.agent.events import Answered, Ended
from qafila.agent.journal import Recorded, RunLine
from qafila.agent.subrun import waiting
from qafila.server.agent_runs import Agents
from qafila.server.agent_views import event_object, run_object
from qafila.server.errors import as_api_error, error_body
from qafila.server.health import Lifecycle
from qafila.server.json_response import encoded

# Seconds between looks at the journal: another process may work on the run, and tells nobody here.
_LOOK = 1.0
# Seconds of silence after which a comment is sent, which keeps proxies from closing the connection.
_SILENCE = 15.0


async def events(
    agents: Agents, line: RunLine, after: int, lifecycle: Lifecycle, *, seconds: float, first: bytes = b""
) -> AsyncGenerator[bytes, None]:
    """The events of a run after number ``after``, as they are sent.

    Without ``event: end`` it ends when the server stops, and after so many seconds: who wants to see more comes back
    with the number of the last event.

    Args:
        agents: whose run. line: of it. after: -1 for all. lifecycle: of the server. seconds: most of them.
        first: sent before.
    """
    if first:
        yield first
    until = time.monotonic() + seconds
    try:
        async with agents.watching(line.id) as changed:
            async for piece in _live(agents, line, after, changed, until, lifecycle):
                yield piece
    except Exception as error:
        yield sent("error", error_body("/v1/agent", as_api_error(error)))


async def _live(
    agents: Agents, line: RunLine, after: int, changed: asyncio.Event, until: float, lifecycle: Lifecycle
) -> AsyncGenerator[bytes, None]:
    seen, step, last = 0, 0, None
    heard = time.monotonic()
    while not lifecycle.stopping and time.monotonic() < until:
        changed.clear()
        working = agents.is_active(line.id)  # asked first: what it writes after this is seen in the next round
        for one in await asyncio.to_thread(agents.journal.events, line.id, seen):
            seen, last = one.number + 1, one
            step += isinstance(one.event, Answered)
            if one.number > after:
                yield sent(one.event.kind, event_object(one, step), one.number)
                heard = time.monotonic()
        if not working and last is not None and await _is_over(agents, line, last):
            yield sent("end", await told(agents, line))
            return
        if time.monotonic() - heard > _SILENCE:
            yield b": still here\n\n"
            heard = time.monotonic()
        try:
            async with asyncio.timeout(min(_LOOK, max(0.0, until - time.monotonic()))):
                await changed.wait()
        except TimeoutError:
            pass


async def _is_over(agents: Agents, line: RunLine, last: Recorded) -> bool:
    """Whether nothing will happen until somebody makes the run go on."""
    if isinstance(last.event, Ended):
        return True
    return not await asyncio.to_thread(agents.journal.worked_on, line.id)


async def told(agents: Agents, line: RunLine) -> dict[str, Any]:
    """A run as it is now."""
    working = agents.is_active(line.id)

    def look() -> dict[str, Any]:
        recorded = agents.journal.events(line.id)
        held = working or (not isinstance(recorded[-1].event, Ended) and agents.journal.worked_on(line.id))
        return run_object(line, recorded, waiting(agents.journal, line.id), working=held)

    return await asyncio.to_thread(look)


def sent(kind: str, data: object, number: int | None = None) -> bytes:
    """One event as it is sent."""
    name = b"" if number is None else b"id: %d\n" % number
    return name + b"event: " + kind.encode() + b"\ndata: " + encoded(data) + b"\n\n"
