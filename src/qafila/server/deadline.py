"""A time limit for a stream of events that several tasks read one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from qafila.server.errors import ApiError

T = TypeVar("T")


async def within(events: AsyncGenerator[T, None], seconds: float) -> AsyncGenerator[T, None]:
    """The same events, as long as they come in time.

    `asyncio.timeout` belongs to one task; here the first event is awaited by another task than the rest.

    Raises:
        ApiError: 504, the time is over; the events are closed.
    """
    loop = asyncio.get_running_loop()
    over = False
    waiting: asyncio.Task[object] | None = None

    def expire() -> None:
        nonlocal over
        over = True
        if waiting is not None:
            waiting.cancel()

    timer = loop.call_later(seconds, expire)
    try:
        async with aclosing(events):
            while True:
                waiting = asyncio.current_task()
                assert waiting is not None
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError:
                    # Ours alone: somebody else's cancelling goes on.
                    if over and waiting.uncancel() == 0:
                        raise _too_late(seconds) from None
                    raise
                finally:
                    waiting = None
                yield event
                if over:
                    raise _too_late(seconds)
    finally:
        timer.cancel()


def _too_late(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"the answer took longer than the {seconds:g} seconds that a request may take here; ask for fewer tokens",
        code="timeout",
    )
