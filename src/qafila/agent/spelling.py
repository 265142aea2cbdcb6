"""Spelling: which texts are one and the same when they are compared.

Each of these makes more texts equal than the one before; who compares takes no more than the comparison can bear. Whose
a value is must not be settled by letters that look alike, so that `provenance` compares values by `plain` alone; it
looks for words that ask for a tool without vowels and with one alef. Dates, units and searches take one form of all
letters that people write for each other.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

#: A stroke that stretches Arabic words and says nothing.
TATWEEL: Final = "\u0640"
# Letters that show nothing and could make equal values look different, or different ones equal: bidirectional controls,
# zero-width marks, tatweel.
_INVISIBLE = re.compile(f"[\u00ad{TATWEEL}\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_SPACE = re.compile(r"\s+")
_SIGNS = str.maketrans({"\u2212": "-", "\u066b": ".", "\u066c": ","})  # minus; Arabic decimal and thousands separators
_VOWELS = re.compile("[\u064b-\u065f\u0670]")
_ALEFS: Final = dict.fromkeys("أإآٱ", "ا")
_ONE_ALEF = str.maketrans(_ALEFS)
# The second ya is Persian's, which keyboards write for the Arabic one.
_ONE_FORM = str.maketrans(_ALEFS | {"ى": "ي", "\u06cc": "ي", "ة": "ه"})


def plain(text: str) -> str:
    """A text in one form of each letter and digit (NFKC), with no case, no invisible letters and single spaces."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_SIGNS)
    return spaced("".join(str(unicodedata.decimal(one)) if one.isdecimal() else one for one in text))


def spaced(text: str) -> str:
    """A text with no case and single spaces."""
    return _SPACE.sub(" ", text).strip().lower()


def without_vowels(text: str) -> str:
    """A text without the signs that Arabic may be written with or without: vowels, shadda, sukun, hamza as a mark."""
    return _VOWELS.sub("", text)


def one_alef(text: str) -> str:
    """A text with one alef for those with hamza, madda or wasla, which most people leave out."""
    return text.translate(_ONE_ALEF)


def one_form(text: str) -> str:
    """A text with one alef, one ya (ى is often written for ي at the end of a word) and ha for ta marbuta (ة)."""
    return text.translate(_ONE_FORM)
