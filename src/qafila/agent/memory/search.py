"""Finding entries of the memory by their words."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from qafila.agent.words import words

_TABLE = "agent_memory_words"
# Of FTS5 are the column of ranks, and one of the table's own name: all of a row, or a command (sqlite.org/fts5.html).
_WORDS = sa.table(_TABLE, sa.column("words"), sa.column("id"), sa.column("rank"), sa.column(_TABLE))


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
            connection.execute(_WORDS.insert().values(words=" ".join(words(text)), id=entry))

    def drop(self, connection: sa.Connection, entries: Sequence[str]) -> None:
        """Take entries out, so that nothing of them stays in the index."""
        if not self._full_text or not entries:
            return
        for entry in entries:
            connection.execute(_WORDS.delete().where(_WORDS.c.id == entry))
        # A deleted row stays in FTS5's segments until they are merged.
        connection.execute(_WORDS.insert().values({_TABLE: "optimize"}))

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
            matching = sa.select(_WORDS.c.id).where(_WORDS.c[_TABLE].match(match)).order_by(_WORDS.c.rank, _WORDS.c.id)
            return [entry for entry in connection.scalars(matching) if entry in known]
        hits = {entry: _hits(asked, words(text)) for entry, text in texts}
        return sorted((entry for entry in hits if hits[entry]), key=lambda entry: (-hits[entry], entry))


def _hits(asked: Sequence[str], there: Sequence[str]) -> int:
    return sum(any(word.startswith(one) for word in there) for one in asked)
