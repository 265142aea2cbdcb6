"""Which lines an answer rests on: each of its sentences is held against the passages that it was made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qafila.agent.documents.passages import Passage
from qafila.agent.words import words

#: Of a sentence's words, the share that must stand in the lines it is said to rest on.
SUPPORTED = 0.6
#: Lines that one sentence may rest on together.
_MOST_LINES = 3
# After a mark that ends a sentence, in Latin or Arabic script, or at a line's end.
_SENTENCE = re.compile(r"(?<=[.!?؟۔])\s+|\n+")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an answer. ``source``: the fewest lines that hold most of its words; None: nothing supports it."""

    text: str
    source: Passage | None


def cited(answer: str, sources: Sequence[Passage]) -> tuple[Sentence, ...]:
    """The sentences of an answer, each once, with the lines that it rests on."""
    pieces = dict.fromkeys(piece.strip() for piece in _SENTENCE.split(answer))
    return tuple(Sentence(piece, _source(piece, sources)) for piece in pieces if piece)


def _source(sentence: str, sources: Sequence[Passage]) -> Passage | None:
    said = set(words(sentence))
    if not said:
        return None
    best: Passage | None = None
    most = 0.0
    for passage in sources:
        lines = passage.text.split("\n")
        known = [set(words(line)) for line in lines]
        for count in range(1, _MOST_LINES + 1):
            for start in range(len(lines) - count + 1):
                there = set().union(*known[start : start + count])
                share = len(said & there) / len(said)
                # More lines only where they hold more of the words.
                if share > most:
                    most = share
                    first = passage.first + start
                    best = Passage(passage.path, first, first + count - 1, "\n".join(lines[start : start + count]))
    return best if most >= SUPPORTED else None
