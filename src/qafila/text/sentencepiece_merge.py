"""SentencePiece's merging as tiktoken's core can run it, and the slow merging for vocabularies where it cannot.

SentencePiece merges the neighbours whose joined text is the piece with the highest score, the leftmost of equals; it
begins with characters. tiktoken begins with bytes, so the ranks here first put every character together from its bytes
(they come before all pieces, and UTF-8 leaves only one way to do it) and then rank the pieces by their score.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from qafila.text.bpe_core import MergeCore
from qafila.text.sentencepiece_model import BYTE, NORMAL, UNUSED, Piece

SPACE = "\u2581"
_WORDS = f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+"
_WHOLE = r"[\s\S]+"
_SPACE_INSIDE = re.compile(f"[^{SPACE}]{SPACE}")
_STOP = b"\xff"

Encode = Callable[[str], list[int]]


def byte_ids(pieces: Sequence[Piece]) -> list[int] | None:
    """The ids of the 256 byte pieces, or None where the vocabulary lacks one."""
    found = {piece.text: i for i, piece in enumerate(pieces) if piece.type == BYTE}
    ids = [found.get(f"<0x{b:02X}>", -1) for b in range(256)]
    return None if -1 in ids else ids


def piece_order(pieces: Sequence[Piece]) -> list[str] | None:
    """Pieces of more than one character, best first, or None where no order of ranks gives what the scores give.

    Equal scores mean "the leftmost", which ranks cannot say, with one exception: the runs of spaces of Llama 2, two to
    sixteen, all tied behind everything else. Leftmost first means there that one run grows to its end before the next
    begins, and so does longest first.
    """
    if any(piece.type == UNUSED for piece in pieces):
        return None
    scored = sorted(
        {p.text: p for p in pieces if p.type == NORMAL and len(p.text) > 1}.values(), key=lambda p: -p.score
    )
    tied = {a.score for a, b in pairwise(scored) if a.score == b.score}
    if not tied:
        return [p.text for p in scored]
    last = scored[-1].score
    runs = sorted((p.text for p in scored if p.score == last), key=len, reverse=True)
    if tied != {last} or runs != [SPACE * n for n in range(len(runs) + 1, 1, -1)]:
        return None
    return [p.text for p in scored if p.score != last] + runs


class RankedPieces:
    """SentencePiece's merging on tiktoken's core.

    Args:
        pieces: the vocabulary.
        order: what `piece_order` gave.
        unk_id: the id for characters that the vocabulary cannot write.
    """

    def __init__(self, pieces: Sequence[Piece], order: Sequence[str], unk_id: int) -> None:
        ids = {piece.text: i for i, piece in enumerate(pieces) if piece.type == NORMAL}
        letters = {text for text in ids if len(text) == 1}.union(*map(set, order))
        ranks = {bytes([b]): b for b in range(256)}
        for letter in sorted(letters):
            data = letter.encode()
            for size in range(2, len(data) + 1):
                ranks.setdefault(data[:size], len(ranks))
        self.characters = dict(ranks)
        tokens = [text.encode() for text in order]
        for token in tokens:
            ranks[token] = len(ranks)
        pattern = _WHOLE if any(map(_SPACE_INSIDE.search, order)) else _WORDS
        core = MergeCore(pattern, ranks)
        self.unbuilt = core.unbuildable(tokens, _STOP)
        if self.unbuilt:
            # They never come out of merging, but tiktoken would give them for a piece of text that is just that.
            ranks = dict(self.characters)
            for token in tokens:
                if token not in self.unbuilt:
                    ranks[token] = len(ranks)
            core = MergeCore(pattern, ranks)
        self.ranks, self._core = ranks, core
        fallback = byte_ids(pieces)
        self._unk_id, self._fuses = unk_id, fallback is None
        # Below zero: the place, counted from -1, of what a rank stands for that is no piece.
        self._table: list[int] = []
        self._spelled: list[list[int]] = []
        by_bytes = {text.encode(): i for text, i in ids.items()}
        for data in ranks:
            if data in by_bytes:
                self._table.append(by_bytes[data])
            else:
                self._spelled.append([unk_id] if fallback is None else [fallback[b] for b in data])
                self._table.append(-len(self._spelled))

    def encode(self, text: str) -> list[int]:
        """Ids of normalised text."""
        table = self._table
        ids = [table[rank] for rank in self._core.encode(text)]
        if not ids or min(ids) >= 0:
            return ids
        out: list[int] = []
        for i in ids:
            if i >= 0:
                out.append(i)
            elif not self._fuses or out[-1:] != [self._unk_id]:
                out += self._spelled[-1 - i]
        return out


class ScoredPieces:
    """SentencePiece's merging for any vocabulary: ties, unused pieces. In Python, so some hundred times slower."""

    def __init__(self, pieces: Sequence[Piece], unk_id: int) -> None:
        self._ids = {p.text: i for i, p in enumerate(pieces) if p.type in (NORMAL, UNUSED)}
        self._scores = {p.text: -p.score for p in pieces if p.type in (NORMAL, UNUSED)}
        self._unused = {p.text for p in pieces if p.type == UNUSED}
        self._fallback, self._unk_id = byte_ids(pieces), unk_id
        words = not any(_SPACE_INSIDE.search(text) for text in self._ids)
        self._pattern = re.compile(_WORDS if words else _WHOLE)

    def encode(self, text: str) -> list[int]:
        """Ids of normalised text."""
        ids: list[int] = []
        for match in self._pattern.finditer(text):
            for piece in self._merge(match.group()):
                token_id = self._ids.get(piece)
                if token_id is not None:
                    ids.append(token_id)
                elif self._fallback is not None:
                    ids += [self._fallback[b] for b in piece.encode()]
                elif ids[-1:] != [self._unk_id]:
                    ids.append(self._unk_id)
        return ids

    def _merge(self, text: str) -> list[str]:
        parts: list[str] = list(text)
        before, after = list(range(-1, len(parts) - 1)), [*range(1, len(parts)), -1]
        queue: list[tuple[float, int, int, int]] = []
        made: dict[str, tuple[str, str]] = {}

        def offer(left: int, right: int) -> None:
            joined = parts[left] + parts[right]
            score = self._scores.get(joined)
            if score is not None:
                heapq.heappush(queue, (score, left, right, len(joined)))
                if joined in self._unused:
                    made[joined] = (parts[left], parts[right])

        for i in range(len(parts) - 1):
            offer(i, i + 1)
        while queue:
            _, left, right, size = heapq.heappop(queue)
            if not parts[left] or not parts[right] or len(parts[left]) + len(parts[right]) != size:
                continue
            parts[left] += parts[right]
            parts[right] = ""
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
                offer(left, after[left])
            if before[left] >= 0:
                offer(before[left], left)
        return [piece for part in parts if part for piece in _resplit(part, made)]


def _resplit(piece: str, made: Mapping[str, tuple[str, str]]) -> list[str]:
    """An unused piece is taken apart again, as far as it takes."""
    todo, done = [piece], []
    while todo:
        part = todo.pop()
        if part in made:
            todo += reversed(made[part])
        else:
            done.append(part)
    return done
