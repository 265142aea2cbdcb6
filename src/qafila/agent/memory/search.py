"""Words as they are searched: one form of each letter, so that a text is found however it was spelt.

Arabic: no tatweel, no diacritics, one alef, ya and ha for their forms, and no article, as in the light stemmer of
Larkey, Ballesteros and Connell (SIGIR 2002: its prefixes, without the single waw).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import sqlalchemy as sa

_WORD = re.compile(r"\w+")
_SAME = str.maketrans({"ٱ": "ا", "ى": "ي", "ة": "ه"})
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
_TABLE = "agent_memory_words"


def words(text: str) -> list[str]:
    """The words of a text, in order, as they are compared."""
    # Decomposed, alef with hamza is alef and a mark; marks are of category Mn in every script.
    letters = unicodedata.normalize("NFKD", text.casefold())
    shown = (letter for letter in letters if letter != "ـ" and unicodedata.category(letter) not in ("Mn", "Cf"))
    bare = "".join(map(_digit, shown))
    return [_without_article(word.translate(_SAME)) for word in _WORD.findall(bare) if word not in _EMPTY]


def _digit(letter: str) -> str:
    return str(unicodedata.digit(letter)) if letter.isdigit() else letter


def _without_article(word: str) -> str:
    for article in _ARTICLES:
        if word.startswith(article) and len(word) >= len(article) + _STAY:
            return word[len(article) :]
    return word


class WordIndex:
    """Finds entries by their words: with SQLite's FTS5, elsewhere by looking at each.

    Args:
        dialect: of the database.
    """

    def __init__(self, dialect: str) -> None:
        self._full_text = dialect == "sqlite"

    def prepare(self, connection: sa.Connection) -> None:
        """Make the table of words, where there is one."""
        if self._full_text:
            connection.exec_driver_sql(f"CREATE VIRTUAL TABLE IF NOT EXISTS {_TABLE} USING fts5(words, id UNINDEXED)")

    def put(self, connection: sa.Connection, entry: str, text: str) -> None:
        """Index an entry's text, in place of what it had."""
        if self._full_text:
            self.drop(connection, [entry])
            connection.exec_driver_sql(
                f"INSERT INTO {_TABLE} (words, id) VALUES (?, ?)",  # noqa: S608 - a constant name
                (" ".join(words(text)), entry),
            )

    def drop(self, connection: sa.Connection, entries: Sequence[str]) -> None:
        """Take entries out, so that nothing of them stays in the index."""
        if not self._full_text or not entries:
            return
        for entry in entries:
            connection.exec_driver_sql(f"DELETE FROM {_TABLE} WHERE id = ?", (entry,))  # noqa: S608
        # A deleted row stays in FTS5's segments until they are merged (sqlite.org/fts5.html, "optimize").
        connection.exec_driver_sql(f"INSERT INTO {_TABLE} ({_TABLE}) VALUES ('optimize')")  # noqa: S608

    def ranked(self, connection: sa.Connection, wanted: str, texts: Sequence[tuple[str, str]]) -> list[str]:
        """Ids of the entries that hold a word of ``wanted``, or one that begins so; best first.

        Args:
            connection: to the database. wanted: what is looked for. texts: id and text of each that may be found.
        """
        asked = list(dict.fromkeys(words(wanted)))
        if not asked:
            return []
        known = {entry for entry, _ in texts}
        if self._full_text:
            match = " OR ".join(f'"{word}"*' for word in asked)
            rows = connection.exec_driver_sql(
                f"SELECT id FROM {_TABLE} WHERE {_TABLE} MATCH ? ORDER BY rank, id",  # noqa: S608
                (match,),
            )
            return [row.id for row in rows if row.id in known]
        hits = {entry: _hits(asked, words(text)) for entry, text in texts}
        return sorted((entry for entry in hits if hits[entry]), key=lambda entry: (-hits[entry], entry))


def _hits(asked: Sequence[str], there: Sequence[str]) -> int:
    return sum(any(word.startswith(one) for word in there) for one in asked)
