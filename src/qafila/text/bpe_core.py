"""tiktoken's core, guarded: what Qafila asks of it, with ids that need not be ranks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from qafila.errors import TokenizerError

# llama_models/llama3/tokenizer.py: longer stretches (in characters) overflow the stack of tiktoken's regexes.
MAX_PIECE = 400_000
MAX_RUN = 25_000


@cache
def byte_alphabet() -> tuple[str, ...]:
    """The character that stands for each byte in GPT-2's vocabularies (openai/gpt-2, `bytes_to_unicode`)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(shown)]
    letters = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return tuple(letters[b] for b in range(256))


@cache
def _alphabet_bytes() -> dict[str, int]:
    return {letter: b for b, letter in enumerate(byte_alphabet())}


def spell(data: bytes) -> str:
    """Bytes as GPT-2's vocabularies write them."""
    return data.decode("latin-1").translate(_latin_to_alphabet())


@cache
def _latin_to_alphabet() -> dict[int, str]:
    return dict(enumerate(byte_alphabet()))


def unspell(token: str) -> bytes | None:
    """The bytes of a token of GPT-2's vocabularies, or None where it is not written in that alphabet."""
    table = _alphabet_bytes()
    try:
        return bytes([table[letter] for letter in token])
    except KeyError:
        return None


def is_panic(error: BaseException) -> bool:
    """Whether ``error`` is a panic of a Rust library: it is a BaseException, so `except Exception` does not see it."""
    return type(error).__name__ == "PanicException"


class MergeCore:
    """Ranked merging over the pieces that a pattern cuts.

    Args:
        pattern: regular expression of the pieces.
        ranks: rank of every token, the 256 single bytes included.
    """

    def __init__(self, pattern: str, ranks: dict[bytes, int]) -> None:
        import tiktoken

        try:
            self._encoding = tiktoken.Encoding("qafila", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        except BaseException as error:
            if isinstance(error, Exception) or is_panic(error):
                raise TokenizerError(f"tokenizer: tiktoken does not take this vocabulary: {one_line(error)}") from None
            raise

    def encode(self, text: str) -> list[int]:
        """Ranks of ``text``."""
        try:
            return self._encoding.encode_ordinary(text)
        except BaseException as error:
            if is_panic(error):
                raise TokenizerError(f"text: tiktoken cannot cut it into pieces: {one_line(error)}") from None
            raise

    def unbuildable(self, tokens: Iterable[bytes], stop: bytes) -> set[bytes]:
        """Those of ``tokens`` that merging does not build; ``stop`` is a byte that no longer token contains.

        tiktoken takes a piece that is a token for that token without merging, so each is tried with ``stop`` behind it.
        """
        single = self._encoding._encode_single_piece
        return {token for token in tokens if len(single(token + stop)) != 2}


def one_line(error: BaseException) -> str:
    """The first line of a library's message."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def long_run(text: str, spaces_only: bool = False) -> bool:
    """Whether ``text`` has a run of more than `MAX_RUN` characters that are all white space, or (if asked) all none.

    May say yes from half that length on: it looks only at every so many characters, so that it costs next to nothing.
    """
    step = MAX_RUN // 2
    run = _runs(step)[0 if spaces_only else 1]
    return any(run.match(text, at) for at in range(0, len(text) - step + 1, step))


@cache
def _runs(length: int) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return re.compile(rf"\s{{{length}}}"), re.compile(rf"\s{{{length}}}|\S{{{length}}}")


def reference_pieces(text: str) -> Iterator[str]:
    """``text`` cut where Meta's tokenizer cuts it: every `MAX_PIECE` characters, and runs of white space or of none
    that go beyond `MAX_RUN` characters (llama_models/llama3/tokenizer.py)."""
    for start in range(0, len(text), MAX_PIECE):
        piece = text[start : start + MAX_PIECE] if len(text) > MAX_PIECE else text
        if len(piece) <= MAX_RUN or not long_run(piece):
            yield piece
            continue
        begin = 0
        for match in re.finditer(r"\s+|\S+", piece):
            for cut in range(match.start() + MAX_RUN, match.end(), MAX_RUN):
                yield piece[begin:cut]
                begin = cut
        yield piece[begin:]


def checked_ids(ids: Iterable[int], size: int) -> Sequence[int]:
    """``ids`` as a list, all within the vocabulary.

    Raises:
        TokenizerError: one is not.
    """
    known = list(ids)
    if known and not (min(known) >= 0 and max(known) < size):
        wrong = next(i for i in known if not 0 <= i < size)
        raise TokenizerError(f"decode: id {wrong} is outside the vocabulary of {size} tokens")
    return known
