"""The models that requests may name: loaded on first use, unloaded when idle or when another needs their memory."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from qafila.chat.client import ChatClient
from qafila.errors import QafilaError, UsageError
from qafila.memory import gigabytes
from qafila.server.errors import ApiError

_log = logging.getLogger(__name__)

# A request that was sent away for want of room is asked to come back after so many seconds: a model takes about that
# long to be loaded, used and idle again.
_RETRY_AFTER = 5
# After a failure a model is tried again at the earliest so many seconds later: reading a damaged file of many gigabytes
# once a request would keep everybody else waiting.
_FAILURE_PAUSE = 5.0


@dataclass(slots=True, eq=False)
class Entry:
    """One registered model.

    Attributes:
        name: what requests call it. source: what an operator would call it (a path, ``default``, a URL).
        load: opens it; raises QafilaError.
        size: bytes of memory it will take when it is open; raises QafilaError. None for what takes none here (a model
            on another server), which is never unloaded.
        base: the entry whose engine this one shares (an adapter): open as long as this one is in use, and counted for
            both. ``size`` is then what the adapter takes beside it.
        client: the open one. users: requests under way. used: when one last ended, by `time.monotonic`.
        held: bytes that are counted for it now.
        created: when it was registered, seconds since 1970.
    """

    name: str
    source: str
    load: Callable[[], Awaitable[ChatClient]]
    size: Callable[[], Awaitable[int]] | None = None
    base: Entry | None = None
    client: ChatClient | None = None
    users: int = 0
    used: float = 0.0
    held: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    _task: asyncio.Task[None] | None = None
    _waits_for_room: bool = False
    _closing: asyncio.Task[None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _failed: tuple[float, QafilaError] | None = None


@dataclass(slots=True, eq=False)
class _Ticket:
    """A place in the queue for memory."""

    entry: Entry
    since: float


class Models:
    """Names to models. A request's model is one of these names, never a path or a download.

    A model in use is never unloaded. Where memory is short, the idle model that was used longest ago goes first; if
    all are in use, the request waits, and after ``patience`` seconds new requests for open models wait behind it, so
    that one busy model cannot keep another out for ever.

    Args:
        entries: what is registered; the first is the default one.
        memory_limit: bytes that open models may take together; None for no limit.
        idle_unload: seconds without a request after which a model is unloaded; None for never.
        max_wait: seconds that a request waits for memory before it is answered 503.
        patience: seconds after which who waits for memory goes before requests for open models.
        failure_pause: seconds after a failed load in which the same error is answered without trying.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        *,
        memory_limit: int | None = None,
        idle_unload: float | None = None,
        max_wait: float = 30.0,
        patience: float = 2.0,
        failure_pause: float = _FAILURE_PAUSE,
    ) -> None:
        self.entries = dict(entries)
        self.memory_limit, self.idle_unload = memory_limit, idle_unload
        self._max_wait, self._patience, self._failure_pause = max_wait, patience, failure_pause
        self._queue: list[_Ticket] = []
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def held(self) -> int:
        """Bytes that are counted for models that are open, opening or closing."""
        return sum(entry.held for entry in self.entries.values())

    def find(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            ApiError: 404, there is none.
        """
        entry = self.entries.get(name)
        if entry is None:
            known = ", ".join(self.entries)
            raise ApiError(404, f"model {name!r:.120}: not served here; there are {known}", param="model",
                           code="model_not_found")  # fmt: skip
        return entry

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[ChatClient]:
        """The client of a model, which stays open for the length of the block.

        Raises:
            ApiError: 404, there is no such model; 503, it cannot be loaded, or there was no memory for it in time.
        """
        entry = self.find(name)
        chain = (entry,) if entry.base is None else (entry.base, entry)
        deadline = time.monotonic() + self._max_wait
        if self._queue:
            await self._let_others_first(chain[0], deadline)
        for each in chain:
            each.users += 1
            if each._timer is not None:
                each._timer.cancel()
                each._timer = None
        try:
            for each in chain:
                if each.client is None:
                    await self._open(each, deadline)
            assert entry.client is not None
            yield entry.client
        finally:
            now = time.monotonic()
            for each in chain:
                each.users -= 1
                each.used = now
                if not each.users and self.idle_unload is not None and each.base is None and each.size is not None:
                    each._timer = asyncio.get_running_loop().call_later(self.idle_unload, self._idle, each)
            self._changed()

    async def preload(self, name: str) -> None:
        """Open a model before anybody asks, so that the operator sees at once what is wrong.

        Raises:
            ApiError: as `lease`; its ``__cause__`` is the QafilaError that says why a model cannot be loaded.
        """
        async with self.lease(name):
            pass

    async def unload(self, name: str) -> bool:
        """Close a model that nobody uses; whether it was open and idle. An adapter goes when its base does."""
        entry = self.find(name)
        if entry.users or entry.client is None or entry.base is not None:
            return False
        await asyncio.shield(self._start_closing(entry))
        return True

    async def close(self) -> None:
        """Close what is open, once what is being opened is."""
        self._closed = True
        for entry in self.entries.values():
            if entry._timer is not None:
                entry._timer.cancel()
            if entry._task is not None and entry._waits_for_room:
                entry._task.cancel()
        # What runs in a thread cannot be stopped there, and must not be left behind.
        pending = [task for e in self.entries.values() for task in (e._task, e._closing) if task is not None]
        await asyncio.gather(*pending, return_exceptions=True)
        # Adapters before the engine they share.
        for entry in sorted(self.entries.values(), key=lambda each: each.base is None):
            if entry.client is not None:
                client, entry.client = entry.client, None
                entry.held = 0
                await client.close()

    # Opening. One task for each entry, whoever of its requests stays or goes.

    async def _open(self, entry: Entry, deadline: float) -> None:
        while entry.client is None:
            if self._closed:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            if entry._failed is not None:
                since, reason = entry._failed
                if time.monotonic() < since + self._failure_pause:
                    raise _cannot_load(entry.name, self._failure_pause) from reason
            if entry._task is None:
                entry._failed = None
                entry._task = asyncio.create_task(self._load(entry))
                entry._task.add_done_callback(lambda task: _forget_task(entry, task))
            task = entry._task
            await asyncio.wait({task}, timeout=max(0.0, deadline - time.monotonic()))
            if not task.done() and entry._waits_for_room:
                raise _no_room(entry.name)
            # It is being read: that ends, and a bound would only make its next request read it again.
            await asyncio.wait({task})
            if not task.cancelled() and (failure := task.exception()) is not None:
                if isinstance(failure, QafilaError):
                    raise _cannot_load(entry.name, self._failure_pause) from failure
                raise failure

    async def _load(self, entry: Entry) -> None:
        try:
            if entry._closing is not None:
                await entry._closing
            size = 0 if entry.size is None else await entry.size()
            await self._make_room(entry, size)
            try:
                entry.client = await entry.load()
            except BaseException:
                entry.held = 0
                raise
            entry.used = time.monotonic()
        except QafilaError as error:
            _log.error("model %s: cannot be loaded: %s", entry.name, error)
            entry._failed = (time.monotonic(), error)
            raise
        finally:
            self._changed()

    async def _make_room(self, entry: Entry, size: int) -> None:
        """Count ``size`` bytes for the entry, as soon as there is room for them and it is its turn."""
        limit = self.memory_limit
        if limit is None or not size:
            entry.held = size
            return
        base = 0 if entry.base is None else entry.base.held
        if base + size > limit:
            raise UsageError(
                f"it takes {gigabytes(base + size)} and the memory limit is {gigabytes(limit)}; raise --memory-limit, "
                "or give it a shorter context"
            )
        ticket = _Ticket(entry, time.monotonic())
        self._queue.append(ticket)
        entry._waits_for_room = True
        try:
            # Who goes on loading an adapter holds its base, so it may not wait behind who waits for that base.
            while not ((entry.base is not None or self._queue[0] is ticket) and self._take_room(entry, size, limit)):
                if not entry.users:
                    raise asyncio.CancelledError  # all who asked are gone
                await self._change()
        finally:
            entry._waits_for_room = False
            self._queue.remove(ticket)
            self._changed()

    def _take_room(self, entry: Entry, size: int, limit: int) -> bool:
        missing = self.held + size - limit
        if missing <= 0:
            entry.held = size
            return True
        idle = [e for e in self.entries.values() if e.client is not None and e.size and not e.users and e.base is None]
        leaving = sum(self._with_adapters(e) for e in self.entries.values() if e._closing is not None)
        if missing <= leaving + sum(map(self._with_adapters, idle)):
            for each in sorted(idle, key=lambda e: e.used):
                if missing <= leaving:
                    break
                leaving += self._with_adapters(each)
                self._start_closing(each)
        return False

    async def _let_others_first(self, base: Entry, deadline: float) -> None:
        """Wait while somebody has waited too long for memory that this open model may have to give."""
        while (
            self._queue
            and base.client is not None
            and base.size is not None
            and base is not self._queue[0].entry.base
            and time.monotonic() > self._queue[0].since + self._patience
        ):
            try:
                await asyncio.wait_for(self._change(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise _no_room(base.name) from None

    # Closing.

    def _with_adapters(self, entry: Entry) -> int:
        return entry.held + sum(each.held for each in self.entries.values() if each.base is entry)

    def _idle(self, entry: Entry) -> None:
        entry._timer = None
        if not entry.users and entry.client is not None:
            self._start_closing(entry)

    def _start_closing(self, entry: Entry) -> asyncio.Task[None]:
        if entry._closing is None:
            adapters = [each for each in self.entries.values() if each.base is entry]
            leaving = [(each, each.client) for each in (*adapters, entry) if each.client is not None]
            for each, _ in leaving:
                each.client = None
            entry._closing = asyncio.create_task(self._close_all(entry, leaving))
        return entry._closing

    async def _close_all(self, entry: Entry, leaving: list[tuple[Entry, ChatClient]]) -> None:
        try:
            for each, client in leaving:
                try:
                    await client.close()
                except Exception:
                    _log.exception("model %s: closing it failed", each.name)
                each.held = 0
            _log.info("model %s: unloaded", entry.name)
        finally:
            entry._closing = None
            self._changed()

    # Whoever waits looks again when anything has changed.

    def _changed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)


def _forget_task(entry: Entry, task: asyncio.Task[None]) -> None:
    entry._task = None
    if not task.cancelled():
        task.exception()  # whoever asked may be gone: that it was seen keeps asyncio quiet


def _no_room(name: str) -> ApiError:
    return ApiError(
        503,
        f"model {name!r}: other models in use leave no memory for it; try again in {_RETRY_AFTER} seconds",
        param="model",
        code="model_waits_for_memory",
        headers={"Retry-After": str(_RETRY_AFTER)},
    )


def _cannot_load(name: str, pause: float) -> ApiError:
    # Why names files of the server: that is for its log.
    return ApiError(
        503,
        f"model {name!r}: could not be loaded; the server's log says why",
        param="model",
        code="model_not_loaded",
        headers={"Retry-After": str(math.ceil(pause))},
    )
