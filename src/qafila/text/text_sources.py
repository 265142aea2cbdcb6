"""Texts that a vocabulary is learned from: several sources, mixed by weight, as chunks of a size that trainers like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from qafila.errors import DataError, UsageError

CHUNK = 16_384
_MOST_PASSES = 4


@dataclass(frozen=True)
class TextSource:
    """Texts that can be read more than once.

    Attributes:
        name: for reports and messages.
        texts: begins to read them, from the start each time.
        weight: the source's share of the bytes, in proportion to the others'.
    """

    name: str
    texts: Callable[[], Iterator[str]]
    weight: float = 1.0


@dataclass
class Consumed:
    """What was read of a source: bytes (UTF-8), texts (each one as often as it was read), and begun passes over it."""

    name: str
    weight: float
    nbytes: int = 0
    texts: int = 0
    passes: int = 1


@dataclass
class Mixture:
    """Chunks of several sources, the one that is furthest behind its share next: the same ones each time.

    Without ``weighted`` every source is read once, one after the other. With it a source that ends too soon is read
    again (up to four times in all) until the others are through, for otherwise the shares would not be met; what is
    learned from counts does not mind that a text comes twice.

    Args:
        sources: at least one.
        limit: most bytes in all; it is shared out by weight in both cases.
        weighted: keep to the weights.
    """

    sources: Sequence[TextSource]
    limit: int | None = None
    weighted: bool = False
    consumed: list[Consumed] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.sources:
            raise UsageError("texts: none given; name at least one file")
        bad = next((s for s in self.sources if not 0 < s.weight < 1e9), None)
        if bad is not None:
            raise UsageError(f"{bad.name}: the weight {bad.weight:g} must be above 0")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--bytes {self.limit}: must be 1 or more")

    @property
    def nbytes(self) -> int:
        """Bytes given out so far."""
        return sum(source.nbytes for source in self.consumed)

    def chunks(self) -> Iterator[str]:
        """The mixture, from its start.

        Raises:
            DataError: a text is no Unicode, or all of them are empty.
        """
        self.consumed = [Consumed(source.name, source.weight) for source in self.sources]
        together = self.weighted or self.limit is not None
        if together:
            yield from self._by_weight()
        else:
            for source, state in zip(self.sources, self.consumed, strict=True):
                yield from _counted(source, state)
        if not self.nbytes:
            raise DataError(f"{self.sources[0].name}: there is no text in it")

    def _by_weight(self) -> Iterator[str]:
        running = {i: _counted(s, self.consumed[i]) for i, s in enumerate(self.sources)}
        unread = set(running)
        while running and unread and (self.limit is None or self.nbytes < self.limit):
            at = min(running, key=lambda i: (self.consumed[i].nbytes / self.sources[i].weight, i))
            chunk = next(running[at], None)
            if chunk is not None:
                yield chunk
                continue
            unread.discard(at)
            state = self.consumed[at]
            if not self.weighted or state.passes == _MOST_PASSES or not state.nbytes:
                del running[at]
            elif unread:
                state.passes += 1
                running[at] = _counted(self.sources[at], state)


def _counted(source: TextSource, state: Consumed) -> Iterator[str]:
    for text in source.texts():
        state.texts += 1
        for chunk in chunks_of(text):
            try:
                state.nbytes += len(chunk.encode())
            except UnicodeEncodeError:
                raise DataError(
                    f"{source.name}: text {state.texts} holds half a surrogate pair, which is no Unicode text"
                ) from None
            yield chunk


def chunks_of(text: str, size: int = CHUNK) -> Iterator[str]:
    """``text`` in pieces of about ``size`` characters, cut where no word is cut: at the start of a line if possible."""
    start = 0
    while len(text) - start > size:
        cut = _line_start(text, start, start + size)
        if cut < 0:
            cut = text.rfind(" ", start + 1, start + size)
        if cut <= start:
            cut = start + size
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:] if start else text


def _line_start(text: str, start: int, stop: int) -> int:
    """Where the last line that begins with a letter begins between the two places; -1 where none does."""
    at = stop
    while (at := text.rfind("\n", start, at)) > start:
        if not text[at + 1].isspace():
            return at + 1
    return -1
