"""What a generation is made of, whoever generates: its tokens, its text, and the checks of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from qafila.errors import UsageError

FinishReason = Literal["stop", "stop_string", "length"]


class TextStream(Protocol):
    """Turns ids into text as they come, never showing half a character."""

    def push(self, token_id: int) -> str:
        """The text that is certain now that ``token_id`` has come; may be empty."""

    def finish(self) -> str:
        """The text still held back, at the end."""


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One step of a generation.

    ``text`` is what may be shown now: it can lag behind the ids while a character or a stop string may be under way,
    and the last token brings what was held back. ``logprob`` is natural, under the model's distribution before any
    filter. ``finish_reason`` is set on the last token alone: ``stop`` (it is a stop token, which has no text),
    ``stop_string`` or ``length`` (``max_tokens`` or the context's end).
    """

    id: int
    logprob: float
    text: str = ""
    finish_reason: FinishReason | None = None


def check_ids(prompt_ids: Sequence[int], rows: int) -> None:
    """Raise :class:`UsageError` unless every id is a whole number below ``rows``, the embedding's."""
    for i in prompt_ids:
        # NumPy's integers will do; a float would be cut off without a word.
        if isinstance(i, bool) or not hasattr(i, "__index__") or not 0 <= i < rows:
            raise UsageError(f"the prompt has token {i!r:.40}, but the model's tokens go from 0 to {rows - 1}")


class StoppingText:
    """Decoded text with stop strings taken out: what may be the start of one is held back.

    Attributes:
        stopped_by: the stop string that came, if one did.
    """

    def __init__(self, stream: TextStream | None, stop_strings: Sequence[str]) -> None:
        self._stream = stream
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.stopped_by: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.stopped_by is not None

    def push(self, token_id: int) -> tuple[str, bool]:
        """Text to show now, and whether a stop string has come."""
        if self._stream is None:
            return "", False
        return self._take(self._stream.push(token_id)), self.stopped

    def finish(self) -> str:
        """The rest of the text; a stop string that the last characters complete is still taken out."""
        if self._stream is None:
            return ""
        shown = self._take(self._stream.finish())
        rest, self._held = self._held, ""
        return shown if self.stopped else shown + rest

    def _take(self, new: str) -> str:
        text = self._held + new
        found = [(at, stop) for stop in self._stop_strings if (at := text.find(stop)) >= 0]
        if found:
            # Of those that begin at the same place, the one named first.
            at, self.stopped_by = min(found, key=lambda pair: pair[0])
            self._held = ""
            return text[:at]
        held = max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
