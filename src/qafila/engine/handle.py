"""One submitted request, as its sender sees it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from qafila.engine.request import EndReason, Request, Token, Usage
from qafila.errors import QafilaError

if TYPE_CHECKING:
    from qafila.engine.engine import Engine


class Handle:
    """The tokens of a request's answers, as they come; iterating drives the engine.

    Tokens of several answers come interleaved, each with its answer's number. Leaving a ``with`` block over a handle
    cancels what is still under way.

    Attributes:
        request: what was asked.
        seed: the seed that was used, drawn if the request gave none.
        finish_reasons: one for each answer, None while it is under way.
        stop_strings: one for each answer, the stop string that ended it if one did.
        error: what failed, if an answer ended with ``error``; iterating raises it after the tokens that came before.
    """

    def __init__(self, engine: Engine, request: Request, seed: int) -> None:
        self.request = request
        self.seed = seed
        self.finish_reasons: list[EndReason | None] = [None] * request.n
        self.stop_strings: list[str | None] = [None] * request.n
        self.error: QafilaError | None = None
        self._engine = engine
        self._tokens: deque[Token] = deque()
        self._unfinished = request.n
        self._generated = 0
        self._cached = 0

    @property
    def finished(self) -> bool:
        """Whether no more tokens will be generated (some may still wait to be taken)."""
        return self._unfinished == 0

    @property
    def usage(self) -> Usage:
        """Tokens so far; the prompt is counted once for all answers."""
        return Usage(len(self.request.prompt_ids), self._cached, self._generated)

    def take(self) -> list[Token]:
        """The tokens that wait to be taken, without driving the engine: for who has a thread of his own for that."""
        tokens = []
        while True:
            try:
                tokens.append(self._tokens.popleft())
            except IndexError:
                return tokens

    def cancel(self) -> None:
        """End all answers that are under way, at the latest after the step that is running now."""
        self._engine._cancel(self)

    def __iter__(self) -> Handle:
        return self

    def __next__(self) -> Token:
        while True:
            try:
                return self._tokens.popleft()
            except IndexError:
                pass
            if self._unfinished == 0 and not self._tokens:
                if self.error is not None:
                    raise self.error
                raise StopIteration
            self._engine._drive(self)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        if self._unfinished:
            self.cancel()

    @property
    def _ready(self) -> bool:
        return bool(self._tokens) or self._unfinished == 0

    def _put(self, token: Token) -> None:
        self._generated += 1
        if token.finish_reason is not None:
            self.finish_reasons[token.answer] = token.finish_reason
            # The token first: whoever sees the end must find it.
            self._tokens.append(token)
            self._unfinished -= 1
        else:
            self._tokens.append(token)

    def _end(self, reason: EndReason, error: QafilaError | None = None) -> None:
        self.error = error
        self.finish_reasons = [done or reason for done in self.finish_reasons]
        self._unfinished = 0
