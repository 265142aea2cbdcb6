"""One run being worked on: in a thread with an event loop of its own.

Every event waits for the disk before it counts, and so do the files that a call changes; in the server's loop all
streams would wait with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from qafila.agent.events import Ended
from qafila.agent.loop import Agent
from qafila.agent.run_lock import BusyError
from qafila.agent.signing import Signer
from qafila.errors import QafilaError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qafila.agent.journal import Recorded

_log = logging.getLogger(__name__)

# Seconds until a run whose events cannot be written down is tried again: at first, and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


class Work:
    """Carries one run on until it ends, waits, or the server stops; then another process, or a later one, may.

    Args:
        agent: whose run. run: its id. tell: hears of every event, in the thread.
    """

    def __init__(self, agent: Agent, run: str, tell: Callable[[Recorded], None]) -> None:
        self._agent, self._run, self._tell = agent, run, tell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._leaving = False
        self._in_call = False

    def carry_on(self) -> None:
        """Work, in the thread that this is called in; it never raises."""
        try:
            asyncio.run(self._work())
        except asyncio.CancelledError:
            pass
        except Exception:
            _log.exception("run %s: stopped by an error that nobody foresaw; it can be resumed", self._run)

    def leave(self, *, at_once: bool = False) -> None:
        """Stop working on the run, which stays as it is; from any thread.

        Args:
            at_once: in the middle of a call, too. Else a call that is under way comes to its end first: nobody would
                know whether it happened.
        """
        self._leaving = True
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self._cancel, at_once)

    def _cancel(self, at_once: bool) -> None:
        if self._task is not None and (at_once or not self._in_call):
            self._task.cancel()

    async def _work(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            await self._until_it_rests()
        finally:
            await self._agent.toolbox.close()  # what it holds open belongs to this loop

    async def _until_it_rests(self) -> None:
        pause = _FIRST_PAUSE
        while not self._leaving:
            try:
                if await self._events():
                    self._sign()
                return
            except StorageError as error:
                # Nothing is lost: what was not written down did not happen, or will be found out.
                _log.error("run %s pauses: %s", self._run, error)
            except BusyError as error:
                _log.info("%s", error)
                return
            except QafilaError as error:
                _log.warning("run %s cannot go on: %s", self._run, error)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _events(self) -> bool:
        """Work; whether the run came to an end."""
        work = cast("AsyncGenerator[Recorded, None]", self._agent.work(self._run, only_unfinished=True))
        over = False
        async with aclosing(work):
            async for recorded in work:
                self._in_call = recorded.event.kind == "intended"
                self._tell(recorded)
                over = isinstance(recorded.event, Ended)
                if self._leaving and not (self._in_call or over):
                    break
        if over:
            self._agent.journal.serve(self._run, None)
        return over

    def _sign(self) -> None:
        try:
            self._agent.journal.audit.checkpoint(Signer())
        except QafilaError as error:
            _log.error("the audit log is not signed: %s", error)
