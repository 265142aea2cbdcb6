"""`Limits`: who is let in when. Each key has its rates, and all share a bounded queue."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from qafila.server.errors import ApiError
from qafila.server.service import Caller
from qafila.server.settings import Settings

# How long anybody is asked to wait before trying again, in seconds.
_LEAST, _MOST = 1, 120
# Before the first request has finished, they are taken to last so many seconds.
_FIRST_GUESS = 2.0
_SMOOTHING = 0.1


class Bucket:
    """Refills evenly, so much a minute, and holds a minute's worth; it may be overdrawn.

    Args:
        per_minute: what flows in. now: the time, in seconds.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """What is in it."""
        self._level = min(float(self.per_minute), self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take something out, though it may not be there."""
        self._level = self.level(now) - amount

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much is in it."""
        return max(0.0, (amount - self.level(now)) * 60 / self.per_minute)


@dataclass(slots=True)
class _Account:
    """What one key used."""

    requests: Bucket | None
    tokens: Bucket | None
    most: int | None
    running: int = 0
    rates: tuple[int | None, int | None, int | None] = field(default=(None, None, None))


class Limits:
    """The doors of a server: rates of each key, requests at once of each key, and one queue with an end.

    A token rate is a debt: how long an answer gets is known when it is there, so a request comes in while the bucket
    is not empty, and takes out what it took. Who waits is let in key by key in turn: a hundred requests of one key
    keep another key's waiting for one of them.

    Args:
        settings: the server's limits. clock: seconds, monotonic.

    Attributes:
        running: requests inside. rejected: how many were sent away, by reason.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._accounts: dict[str, _Account] = {}
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._seconds = _FIRST_GUESS
        self.running = 0
        self.rejected: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def admit(self, caller: Caller) -> AsyncIterator[None]:
        """Room for one request for the length of the block; waits for it in the queue.

        Raises:
            ApiError: 429, with Retry-After: a limit of the key, or the queue is full.
        """
        account = self._account(caller)
        now = self._clock()
        self._check_rates(account, now)
        if self._is_full() and self.waiting >= self._settings.max_waiting:
            wait = self._seconds * (self.waiting + 1) / self._settings.max_running
            raise self._refusal("queue_full", "the server is busy and its queue is full", wait, "server_busy")
        if account.requests is not None:
            account.requests.take(1, now)
        account.running += 1
        try:
            await self._enter(caller.name)
            began = self._clock()
            try:
                yield
            finally:
                self._seconds += _SMOOTHING * (self._clock() - began - self._seconds)
                self._leave()
        finally:
            account.running -= 1

    def spent(self, caller: Caller, tokens: int) -> None:
        """Take a request's tokens out of its key's bucket."""
        bucket = self._account(caller).tokens
        if bucket is not None and tokens:
            bucket.take(tokens, self._clock())

    def headers(self, caller: Caller) -> list[tuple[bytes, bytes]]:
        """What is left to a key, in OpenAI's ``x-ratelimit-*`` headers; none where it has no rates."""
        account, now = self._account(caller), self._clock()
        found: list[tuple[bytes, bytes]] = []
        for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is not None:
                left = max(0, math.floor(bucket.level(now)))
                found += [
                    (f"x-ratelimit-limit-{name}".encode(), str(bucket.per_minute).encode()),
                    (f"x-ratelimit-remaining-{name}".encode(), str(left).encode()),
                    (f"x-ratelimit-reset-{name}".encode(), f"{bucket.wait(bucket.per_minute, now):.3f}s".encode()),
                ]
        return found

    def _account(self, caller: Caller) -> _Account:
        default = self._settings
        rates = (
            caller.requests_per_minute or default.requests_per_minute,
            caller.tokens_per_minute or default.tokens_per_minute,
            caller.max_concurrent or default.max_concurrent,
        )
        account = self._accounts.get(caller.name)
        if account is None or account.rates != rates:  # new, or its limits were changed meanwhile
            now = self._clock()
            requests, tokens = (None if rate is None else Bucket(rate, now) for rate in rates[:2])
            running = 0 if account is None else account.running
            if account is None:
                account = self._accounts[caller.name] = _Account(requests, tokens, rates[2], running, rates)
            else:  # the same object: requests under way count down in it
                account.requests, account.tokens, account.most, account.rates = requests, tokens, rates[2], rates
        return account

    def _check_rates(self, account: _Account, now: float) -> None:
        if account.most is not None and account.running >= account.most:
            what = f"this key has {account.most} request{'s' * (account.most != 1)} under way, which is its limit"
            raise self._refusal("concurrent", what, self._seconds / account.most)
        if account.requests is not None and (wait := account.requests.wait(1, now)):
            what = f"this key's limit of {account.requests.per_minute} requests per minute is reached"
            raise self._refusal("requests", what, wait)
        if account.tokens is not None and (wait := account.tokens.wait(1, now)):
            what = f"this key's limit of {account.tokens.per_minute} tokens per minute is reached"
            raise self._refusal("tokens", what, wait)

    def _refusal(self, reason: str, what: str, wait: float, code: str = "rate_limit_exceeded") -> ApiError:
        self.rejected[reason] += 1
        seconds = min(_MOST, max(_LEAST, math.ceil(wait)))
        return ApiError(
            429,
            f"{what}; try again in {seconds} second{'s' * (seconds != 1)}",
            code=code,
            headers={"Retry-After": str(seconds)},
        )

    # The queue. A place is handed from who leaves to who waits, so nobody slips in between.

    def _is_full(self) -> bool:
        return self.running >= self._settings.max_running

    async def _enter(self, name: str) -> None:
        if not self._is_full():
            self.running += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(name, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()  # the place came at the same moment: somebody else's now
            else:
                self._forget(name, place)
            raise

    def _forget(self, name: str, place: asyncio.Future[None]) -> None:
        queue = self._queues.get(name)
        if queue is not None and place in queue:
            queue.remove(place)
            if not queue:
                del self._queues[name]

    def _leave(self) -> None:
        while self._queues:
            name, queue = next(iter(self._queues.items()))
            place = queue.popleft()
            if queue:
                self._queues.move_to_end(name)  # the next place is another key's
            else:
                del self._queues[name]
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1
