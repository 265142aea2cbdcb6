"""What a generation gives: a `Completion` at its end, or a `Stream` of pieces on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from qafila.text.messages import Message

if TYPE_CHECKING:
    from qafila.engine.handle import Handle
    from qafila.engine.request import Token

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Completion:
    """What one generation gave.

    Attributes:
        text: the answer, without stop tokens and stop strings.
        ids: its token ids, the stop token included where there was one.
        prompt_ids: the ids the model was given.
        logprobs: log-probability (natural) of each id under the model.
        finish_reason: ``stop`` (a stop token or string), ``length`` (``max_tokens`` or the context ran out) or
            ``cancelled`` (the stream was stopped).
        seed: what the random numbers came from; the same seed gives the same answer.
        message: the answer as a message, tool calls parsed; only from `Llama.chat`. It keeps its ids, so that the next
            turn begins with exactly the tokens of this one.
        prompt_seconds: time until the first token. seconds: time in all.
        cached_tokens: tokens of the prompt that were computed before.
        top_logprobs: for each id the likeliest tokens with their log-probabilities, likeliest first, if asked for.
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    seed: int
    message: Message | None = None
    prompt_seconds: float = 0.0
    seconds: float = 0.0
    cached_tokens: int = 0
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probabilities (natural) of a text's tokens.

    Attributes:
        ids: the tokens. logprobs: of each but the first, given those before it.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Log-probability of the whole text after its first token."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean negative log-probability."""
        return math.exp(-self.total / len(self.logprobs))


class Stream:
    """Pieces of text as they are generated; afterwards ``result`` is the whole completion.

    `stop` ends the generation early; ``result`` then holds what there is. So does losing the stream. Another call on
    the same `Llama` meanwhile does not disturb it, and its tokens are computed together with the other's.
    """

    def __init__(self, pieces: Iterator[str], finish: Callable[[], Completion]) -> None:
        self._pieces, self._finish = pieces, finish
        self._result: Completion | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __del__(self) -> None:
        if hasattr(self, "_pieces"):
            self._close()

    @property
    def result(self) -> Completion:
        """The completion so far; asks for the rest first when nothing stopped the stream."""
        for _ in self._pieces:
            pass
        if self._result is None:
            self._result = self._finish()
        return self._result

    def stop(self) -> Completion:
        """Stop generating and give what there is."""
        self._close()
        return self.result

    def _close(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()


class Run:
    """One request under way: pieces of text when iterated over, and the `Completion` that they make.

    Args:
        handle: of the request. prompt_ids: what it asks to continue.
        parse: makes a message of the ids; None where there is none to make.
    """

    def __init__(
        self, handle: Handle, prompt_ids: tuple[int, ...], parse: Callable[[Sequence[int]], Message] | None
    ) -> None:
        self._handle, self._prompt_ids, self._parse = handle, prompt_ids, parse
        self._tokens: list[Token] = []
        self._closed = False
        self._started = time.perf_counter()
        self._first = self._ended = 0.0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._closed:
            try:
                token = next(self._handle)
            except StopIteration:
                self.close()
                break
            except BaseException:
                self.close()
                raise
            self._ended = time.perf_counter()
            if not self._tokens:
                self._first = self._ended
            self._tokens.append(token)
            if token.text:
                return token.text
        raise StopIteration

    def close(self) -> None:
        """End the request here; tokens that were not taken are lost."""
        self._closed = True
        if not self._handle.finished:
            self._handle.cancel()

    def completion(self) -> Completion:
        """What there is so far, as a completion."""
        ids = tuple(token.id for token in self._tokens)
        text = "".join(token.text for token in self._tokens)
        end = self._tokens[-1].finish_reason if self._tokens else None
        message = self._parse(ids) if self._parse is not None else None
        if message is not None and end == "stop_string" and not message.tool_calls:
            message = replace(message, content=text)  # the ids still hold the stop string, the text must not
        return Completion(
            text=text,
            ids=ids,
            prompt_ids=self._prompt_ids,
            logprobs=tuple(token.logprob for token in self._tokens),
            finish_reason="cancelled" if end is None else "length" if end == "length" else "stop",
            seed=self._handle.seed,
            message=message,
            prompt_seconds=max(0.0, self._first - self._started),
            seconds=max(0.0, self._ended - self._started),
            cached_tokens=self._handle.usage.cached,
            top_logprobs=tuple(token.top for token in self._tokens) if self._handle.request.top_logprobs else (),
        )
