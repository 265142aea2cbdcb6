"""Merge lists and merge ranks: two ways to write a BPE vocabulary down, and when they mean the same.

Hugging Face and GGUF list merges: only a listed pair may merge. tiktoken (and SentencePiece) rank tokens: any two
neighbours whose bytes together are a token may merge. Both always merge the best-ranked pair first, the leftmost of
equals.

What makes them equal: as long as nothing merges across the ends of a stretch, what happens inside it depends on the
stretch alone. So in any text a token ``t`` comes about only by the last merge of ``t`` encoded alone, its *canonical*
pair; other pairs that spell ``t`` never fire, and a token that does not come out when it is encoded alone never comes
out at all. Hence:

* ranks → merges: list the canonical pair of each token, in the order of the ranks;
* merges → ranks: rank each token by its canonical pair, and leave out the tokens that the merges cannot build (they
  would allow pairs that are not listed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar, overload

from qafila.errors import TokenizerError
from qafila.native import _native

T = TypeVar("T", str, bytes)

_MAX_SCATTERED = 4096
_MAX_PARTS = 4096


def last_pair(parts: list[T], rank: Callable[[T, T], int | None]) -> tuple[T, T] | None:
    """The last merge that makes ``parts`` one, or None where merging stops before; ``rank`` is lowest for the first."""
    parts = list(parts)
    ranks = [rank(left, right) for left, right in pairwise(parts)]
    while len(parts) > 2:
        best = -1
        for i, value in enumerate(ranks):
            if value is not None and (best < 0 or value < ranks[best]):  # type: ignore[operator]
                best = i
        if best < 0:
            return None
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
        del ranks[best]
        if best > 0:
            ranks[best - 1] = rank(parts[best - 1], parts[best])
        if best < len(ranks):
            ranks[best] = rank(parts[best], parts[best + 1])
    return (parts[0], parts[1]) if len(parts) == 2 and ranks[0] is not None else None


def canonical_merges(ranks: dict[bytes, int], characters: bool = False) -> list[tuple[bytes, bytes]]:
    """The merges of a ranked vocabulary, in order; tokens that no merging builds have none.

    Args:
        ranks: rank of every token.
        characters: merging begins with characters (SentencePiece), not with bytes.
    """

    def rank(left: bytes, right: bytes) -> int | None:
        return ranks.get(left + right)

    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = [c.encode() for c in token.decode()] if characters else [token[i : i + 1] for i in range(len(token))]
        if 2 <= len(parts) <= _MAX_PARTS:
            pair = last_pair(parts, rank)
            if pair is not None:
                merges.append(pair)
    return merges


def ranked_tokens(merges: Sequence[tuple[str, str]], vocab: dict[str, int]) -> tuple[list[str], set[str]] | None:
    """The tokens that ``merges`` build, best rank first, and those of them that they cannot build after all.

    None where the ranks cannot be told for sure: such a list has to be run as it is.

    Raises:
        TokenizerError: a merge has a part, or a result, that is no token.
    """
    order: dict[str, int] = {}
    scattered: set[str] = set()
    last = None
    for i, (left, right) in enumerate(merges):
        token = left + right
        if not left or not right or left not in vocab or right not in vocab or token not in vocab:
            raise TokenizerError(f"tokenizer: merge {i} ({left[:40]!r} + {right[:40]!r}) is not made of tokens")
        if token not in order:
            order[token] = i
        elif token != last:
            scattered.add(token)
        last = token
    if scattered:
        pairs = {pair: i for i, pair in enumerate(merges)}
        if len(scattered) > _MAX_SCATTERED or len(pairs) != len(merges) or any(len(t) > 256 for t in scattered):
            return None
        for token in scattered:
            pair = last_pair(list(token), lambda left, right: pairs.get((left, right)))
            if pair is not None:
                order[token] = pairs[pair]
    if any(len(token) > _MAX_PARTS for token in order):
        return None
    from tokenizers import models

    model = models.BPE(vocab=vocab, merges=list(merges))
    return sorted(order, key=order.__getitem__), {t for t in order if len(model.tokenize(t)) != 1}


def parse_merges(merges: list[Any], where: str) -> list[tuple[str, str]]:
    """Merges as pairs, from ``"a b"`` or ``["a", "b"]``.

    Raises:
        TokenizerError: an entry is neither.
    """
    pairs = []
    for number, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
            raise TokenizerError(f"{where}: entry {number} is no pair of tokens")
        pairs.append((parts[0], parts[1]))
    return pairs


class SpelledMerges(Sequence[tuple[str, str]]):
    """A list of merges as vocabularies write them (``"a b"``), taken apart when somebody asks for the pairs.

    Args:
        texts: the entries. where: what holds them, for messages.
    """

    def __init__(self, texts: list[str], where: str) -> None:
        self.texts, self._where = texts, where

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        return parse_merges(self.texts, self._where)

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, str]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | list[tuple[str, str]]:
        return self._pairs[index]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)


def byte_ranks(tokens: list[bytes], merges: SpelledMerges) -> tuple[list[int], list[int]] | None:
    """`ranked_tokens` in one native step, as ids: the order of the tokens, and those that the merges cannot build.

    Args:
        tokens: bytes of every id, empty where it has no ordinary token.
        merges: in GPT-2's alphabet.

    Returns:
        None where anything is out of the ordinary: `ranked_tokens` then says what, or finds its way.
    """
    return _native.merge_order(tokens, merges.texts)
