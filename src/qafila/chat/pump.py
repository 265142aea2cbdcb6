"""A thread that drives an engine for coroutines: each step's tokens reach their event loop in one call."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from qafila.engine.engine import Engine
from qafila.engine.handle import Handle
from qafila.engine.request import Token
from qafila.errors import ModelClosedError, QafilaError

_log = logging.getLogger(__name__)


class Subscription:
    """The tokens of one request, for one coroutine. Made by `Pump.watch`."""

    def __init__(self, handle: Handle, loop: asyncio.AbstractEventLoop) -> None:
        self.handle = handle
        self.loop = loop
        self._tokens: deque[Token] = deque()
        self._ended = False
        self._error: QafilaError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def take(self) -> list[Token]:
        """The next tokens, at least one; none at the end.

        Raises:
            QafilaError: the request failed; the tokens before were given.
        """
        while not self._tokens and not self._ended:
            self._waiter = self.loop.create_future()
            await self._waiter
        if self._tokens:
            tokens = list(self._tokens)
            self._tokens.clear()
            return tokens
        error = self.handle.error or self._error
        if error is not None:
            raise error
        return []

    def deliver(self, tokens: list[Token], ended: bool, error: QafilaError | None = None) -> None:
        """Called in the loop's thread."""
        self._tokens.extend(tokens)
        self._error = error
        self._ended = self._ended or ended
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


#: Tokens for one subscription, whether they are its last, and what failed.
_News: TypeAlias = tuple[Subscription, list[Token], bool, QafilaError | None]


class Pump:
    """Steps an engine as long as somebody waits for tokens; the thread sleeps otherwise.

    Args:
        engine: whose requests are handed out; it is not closed here.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._watched: list[Subscription] = []
        self._closing = False
        self._thread: threading.Thread | None = None

    def watch(self, handle: Handle) -> Subscription:
        """Hand out a request's tokens in the running event loop from now on.

        Raises:
            ModelClosedError: the pump is closed.
        """
        subscription = Subscription(handle, asyncio.get_running_loop())
        with self._changed:
            if self._closing:
                raise ModelClosedError("the model was closed before the answer began")
            self._watched.append(subscription)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qafila-engine", daemon=True)
                self._thread.start()
            self._changed.notify()
        return subscription

    def close(self) -> None:
        """Cancel what is watched, hand out the ends and stop the thread; a second time does nothing."""
        with self._changed:
            self._closing = True
            for subscription in self._watched:
                subscription.handle.cancel()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        show_thread("qafila-engine")
        while True:
            with self._changed:
                while not self._watched and not self._closing:
                    self._changed.wait()
                if not self._watched:
                    return
                watched = list(self._watched)
            try:
                self._engine.step()
            except Exception as error:
                # No request is to blame, and none can go on; the thread must stay for those to come.
                _log.exception("the engine failed in a step")
                self._hand_out(watched, QafilaError(f"the engine failed ({type(error).__name__}); its log says more"))
                for subscription in watched:
                    subscription.handle.cancel()
            else:
                self._hand_out(watched)

    def _hand_out(self, watched: list[Subscription], error: QafilaError | None = None) -> None:
        news: dict[asyncio.AbstractEventLoop, list[_News]] = {}
        ended = set()
        for subscription in watched:
            # In this order: what is finished now has put all its tokens there.
            finished = subscription.handle.finished
            failed = None if finished else error
            tokens = subscription.handle.take()
            if tokens or finished or failed:
                ends = finished or failed is not None
                news.setdefault(subscription.loop, []).append((subscription, tokens, ends, failed))
            if finished or failed:
                ended.add(subscription)
        for loop, items in news.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:  # the loop is closed: nobody waits any more
                for subscription, *_ in items:
                    subscription.handle.cancel()
        if ended:
            with self._changed:
                self._watched = [subscription for subscription in self._watched if subscription not in ended]


def _deliver(items: list[_News]) -> None:
    for subscription, tokens, ended, error in items:
        subscription.deliver(tokens, ended, error)


def show_thread(name: str) -> None:
    """Give the calling thread a name that Linux's tools show (``top -H``), which Python before 3.14 keeps to itself."""
    with suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:15])
