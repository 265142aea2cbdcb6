"""Words as they are searched: one form of each letter, so that a text is found however it was spelt.

Arabic: no tatweel, no diacritics, one alef, ya and ha for their forms, and no article, as in the light stemmer of
Larkey, Ballesteros and Connell (SIGIR 2002: its prefixes, without the single waw).
"""

from __future__ import annotations

import re
import unicodedata

from qafila.agent.spelling import TATWEEL, one_form

_WORD = re.compile(r"\w+")
_ARTICLES = ("وال", "بال", "كال", "فال", "ال", "لل")
#: An article is taken off where at least so many letters stay.
_STAY = 2
#: Words that stand in every text and say nothing of what it is about, before their letters are made one.
_EMPTY_WORDS = (
    "a an and are as at be but by can do does for from has have how i if in is it its me my not of on or our please so "
    "that the them then there this to was we what when where which who will with you your "
    "في من على عن الى هل ما ماذا هذا هذه ذلك التي الذي كان هو هي انا ان او ثم لا مع قد كل بعد قبل يا لي"
)
_EMPTY = frozenset(_EMPTY_WORDS.split())


def words(text: str) -> list[str]:
    """The words of a text, in order, as they are compared."""
    # Decomposed, alef with hamza is alef and a mark; marks are of category Mn in every script.
    letters = unicodedata.normalize("NFKD", text.casefold())
    shown = (letter for letter in letters if letter != TATWEEL and unicodedata.category(letter) not in ("Mn", "Cf"))
    bare = "".join(map(_digit, shown))
    return [without_article(one_form(word)) for word in _WORD.findall(bare) if word not in _EMPTY]


def _digit(letter: str) -> str:
    return str(unicodedata.digit(letter)) if letter.isdigit() else letter


def without_article(word: str) -> str:
    """An Arabic word without its article, and what is written together with that; as it is where too little stays."""
    for article in _ARTICLES:
        if word.startswith(article) and len(word) >= len(article) + _STAY:
            return word[len(article) :]
    return word
