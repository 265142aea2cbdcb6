"""How finely tokenizers cut text, by language: tokens per word, bytes and characters per token, words kept whole.

The language of a line is told by its script: most of its letters decide, and Latin letters are taken for English.
Fertility (tokens per word) is as in Rust et al. 2021, "How Good is Your Tokenizer?"; words are what white space parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from qafila.text.scripts import ARABIC, LATIN, main_script
from qafila.text.tokenizer import Tokenizer

OTHER = "other"
_MOST_CACHED = 500_000


@dataclass
class Fertility:
    """Counts over the lines of one language, and what follows from them (0 where nothing was counted).

    Attributes:
        lines, words, chars, nbytes: of the text, words being what white space parts, bytes those of UTF-8.
        tokens: of whole lines, without BOS.
        whole: words that are one token where they stand inside a text, punctuation at their ends left aside.
        counted: words that could be: those with a letter or digit in them.
    """

    lines: int = 0
    words: int = 0
    chars: int = 0
    nbytes: int = 0
    tokens: int = 0
    whole: int = 0
    counted: int = 0

    @property
    def tokens_per_word(self) -> float:
        """Tokens per word: lower is better, 1 is a token a word."""
        return self.tokens / self.words if self.words else 0.0

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 that a token stands for."""
        return self.nbytes / self.tokens if self.tokens else 0.0

    @property
    def chars_per_token(self) -> float:
        """Characters that a token stands for; comparable between scripts."""
        return self.chars / self.tokens if self.tokens else 0.0

    @property
    def whole_share(self) -> float:
        """Share of the words, each as often as it comes, that are one token."""
        return self.whole / self.counted if self.counted else 0.0

    def report(self) -> dict[str, float]:
        """Counts and ratios under their names."""
        names = ("tokens_per_word", "bytes_per_token", "chars_per_token", "whole_share")
        return {**asdict(self), **{name: round(float(getattr(self, name)), 4) for name in names}}


def language_of(line: str) -> str:
    """English, Arabic, or the name of another script; ``other`` for lines without letters."""
    arabic, latin = ARABIC.count(line), LATIN.count(line)
    if arabic + latin == 0 or 2 * (arabic + latin) < sum(map(str.isalpha, line)):
        script = main_script(line)
        return OTHER if script is None else script.label
    return ARABIC.label if arabic >= latin else LATIN.label


def measure(tokenizers: Iterable[Tokenizer], texts: Iterable[str]) -> list[dict[str, Fertility]]:
    """One table a tokenizer, by language; languages in the order in which they first came. Empty lines do not count.

    Args:
        tokenizers: at least one.
        texts: read once, line by line.
    """
    tables: list[tuple[Tokenizer, dict[str, Fertility], dict[str, bool]]] = [(t, {}, {}) for t in tokenizers]
    for text in texts:
        for line in text.splitlines():
            words = line.split()
            if not words:
                continue
            language = language_of(line)
            bare = [word for word in map(_bare, words) if word]
            nbytes = len(line.encode("utf-8", "surrogatepass"))
            for tokenizer, table, whole in tables:
                row = table.setdefault(language, Fertility())
                row.lines += 1
                row.words += len(words)
                row.chars += len(line)
                row.nbytes += nbytes
                row.tokens += len(tokenizer.encode(line))
                row.counted += len(bare)
                for word in bare:
                    kept = whole.get(word)
                    if kept is None:
                        kept = len(tokenizer.encode_continuation(" " + word)) == 1
                        if len(whole) < _MOST_CACHED:
                            whole[word] = kept
                    row.whole += kept
    return [table for _, table, _ in tables]


def _bare(word: str) -> str:
    """A word without what is neither letter nor digit at its ends; vowel signs behind an Arabic letter stay."""
    start, end = 0, len(word)
    while start < end and not word[start].isalnum():
        start += 1
    while end > start and not (word[end - 1].isalnum() or _is_mark(word[end - 1])):
        end -= 1
    return word[start:end]


def _is_mark(letter: str) -> bool:
    import unicodedata

    return unicodedata.category(letter) in ("Mn", "Mc")
