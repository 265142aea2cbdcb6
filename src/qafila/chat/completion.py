"""What a generation gives: a `Completion` at its end, or a `Stream` of pieces on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from qafila.text.messages import Message

if TYPE_CHECKING:
    from qafila.generation import GeneratedToken

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


@dataclass
class Stream:
    """Pieces of text as they are generated; afterwards ``result`` is the whole completion.

    `stop` ends the generation early; ``result`` then holds what there is. Another call on the same `Llama` meanwhile
    does not disturb it.
    """

    _pieces: Iterator[str]
    _finish: Callable[[], Completion]
    _result: Completion | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

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
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
        return self.result


@dataclass
class Run:
    """What one generation has given so far, and the `Completion` that it makes."""

    prompt_ids: tuple[int, ...]
    seed: int
    parse: Callable[[Sequence[int]], Message] | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason = "cancelled"
    cut: bool = False
    started: float = 0.0
    first: float = 0.0
    ended: float = 0.0

    def take(self, token: GeneratedToken) -> None:
        """Count one generated token."""
        if not self.ids:
            self.first = time.perf_counter()
        self.ids.append(token.id)
        self.logprobs.append(token.logprob)
        self.pieces.append(token.text)
        if token.finish_reason is not None:
            self.cut = token.finish_reason == "stop_string"
            self.finish_reason = "length" if token.finish_reason == "length" else "stop"

    def completion(self) -> Completion:
        """What there is so far, as a completion."""
        text = "".join(self.pieces)
        message = self.parse(self.ids) if self.parse is not None else None
        if message is not None and self.cut and not message.tool_calls:
            message = replace(message, content=text)  # the ids still hold the stop string, the text must not
        return Completion(
            text=text,
            ids=tuple(self.ids),
            prompt_ids=self.prompt_ids,
            logprobs=tuple(self.logprobs),
            finish_reason=self.finish_reason,
            seed=self.seed,
            message=message,
            prompt_seconds=max(0.0, self.first - self.started),
            seconds=max(0.0, self.ended - self.started),
        )
