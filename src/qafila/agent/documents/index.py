"""The index of a folder's documents: words in SQLite's FTS5, meanings as vectors; kept up to date as files change.

What is found by words and what is found by meaning are joined by reciprocal rank fusion (Cormack, Clarke and Buettcher,
SIGIR 2009, with its constant of 60). The index is a cache: deleted, it is made again.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from qafila.agent.documents.passages import Passage, passages
from qafila.agent.words import words
from qafila.database import TABLES, Schema, open_database, prepare, reading, writing

_DOCUMENTS = sa.Table(
    "documents",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("folder", "path"),
)
_PASSAGES = sa.Table(
    "document_passages",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("document", sa.Integer, sa.ForeignKey("documents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("first", sa.Integer, nullable=False),
    sa.Column("last", sa.Integer, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
_VECTORS = sa.Table(
    "document_vectors",
    TABLES,
    sa.Column("passage", sa.Integer, sa.ForeignKey("document_passages.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
)
SCHEMA = Schema("documents", (_DOCUMENTS, _PASSAGES, _VECTORS))
_WORDS_TABLE = "document_words"
# Of FTS5 are the column of ranks, and one of the table's own name, which is all of a row (sqlite.org/fts5.html).
_WORDS = sa.table(_WORDS_TABLE, sa.column("rowid"), sa.column("words"), sa.column("rank"), sa.column(_WORDS_TABLE))
#: Of reciprocal rank fusion.
_FUSION = 60
#: Passages of each ranking that are joined.
_DEEP = 50

Embed = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What tells meanings apart.

    Attributes:
        model: its fingerprint or name; vectors of another one are not compared. embed: vectors of texts.
        seconds: most time for vectors that are not kept yet; the rest is left to the next question.
    """

    model: str
    embed: Embed
    seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Found:
    """Passages, best first; ``compared`` of ``passages`` in all were compared by meaning."""

    best: tuple[Passage, ...]
    passages: int
    compared: int


class DocumentIndex:
    """Passages of documents, by folder.

    Args:
        url: of a SQLite database. clock: seconds, for the time that vectors may take.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = open_database(url)
        self._clock = clock
        prepare(self._engine, SCHEMA)
        with writing(self._engine) as connection:
            connection.exec_driver_sql(f"CREATE VIRTUAL TABLE IF NOT EXISTS {_WORDS_TABLE} USING fts5(words)")

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def update(self, folder: str, files: Iterable[tuple[str, bytes]]) -> None:
        """Bring a folder up to date: these are its documents now, by path and content; what did not change is kept."""
        with writing(self._engine) as connection:
            rows = connection.execute(sa.select(_DOCUMENTS).where(_DOCUMENTS.c.folder == folder))
            known = {row.path: (row.id, row.sha256) for row in rows}
            for path, content in files:
                digest = hashlib.sha256(content).digest()
                document, old = known.pop(path, (None, None))
                if old == digest:
                    continue
                if document is not None:
                    self._drop(connection, document)
                self._add(connection, folder, path, digest, content)
            for document, _ in known.values():
                self._drop(connection, document)

    def _add(self, connection: sa.Connection, folder: str, path: str, digest: bytes, content: bytes) -> None:
        added = connection.execute(_DOCUMENTS.insert().values(folder=folder, path=path, sha256=digest))
        assert added.inserted_primary_key is not None
        document = added.inserted_primary_key[0]
        for one in passages(path, content.decode("utf-8", "replace")):
            row = connection.execute(
                _PASSAGES.insert().values(document=document, first=one.first, last=one.last, text=one.text)
            )
            assert row.inserted_primary_key is not None
            # A file's name tells what it is about, too.
            found = " ".join(words(f"{path} {one.text}"))
            connection.execute(_WORDS.insert().values(rowid=row.inserted_primary_key[0], words=found))

    def _drop(self, connection: sa.Connection, document: int) -> None:
        gone = sa.select(_PASSAGES.c.id).where(_PASSAGES.c.document == document)
        connection.execute(_WORDS.delete().where(_WORDS.c.rowid.in_(gone)))
        connection.execute(_DOCUMENTS.delete().where(_DOCUMENTS.c.id == document))

    async def search(self, folder: str, question: str, *, most: int = 4, meaning: Meaning | None = None) -> Found:
        """The passages of a folder that a question is about, best first.

        Args:
            folder: which. question: what is asked. most: passages at most.
            meaning: compares by meaning besides; without it words alone count.
        """
        with reading(self._engine) as connection:
            every = self._passages(connection, folder)
            by_words = self._by_words(connection, question, every)
        rankings = [by_words]
        compared = 0
        if meaning is not None and every and question.strip():
            by_meaning, compared = await self._by_meaning(question, every, by_words, meaning)
            rankings.append(by_meaning)
        scores: dict[int, float] = defaultdict(float)
        for ranking in rankings:
            for place, passage in enumerate(ranking[:_DEEP]):
                scores[passage] += 1 / (_FUSION + 1 + place)
        best = sorted(scores, key=lambda passage: (-scores[passage], passage))[:most]
        return Found(tuple(every[passage] for passage in best), len(every), compared)

    @staticmethod
    def _passages(connection: sa.Connection, folder: str) -> dict[int, Passage]:
        rows = connection.execute(
            sa.select(_PASSAGES.c.id, _DOCUMENTS.c.path, _PASSAGES.c.first, _PASSAGES.c.last, _PASSAGES.c.text)
            .join(_DOCUMENTS)
            .where(_DOCUMENTS.c.folder == folder)
            .order_by(_DOCUMENTS.c.path, _PASSAGES.c.first)
        )
        return {row.id: Passage(row.path, row.first, row.last, row.text) for row in rows}

    @staticmethod
    def _by_words(connection: sa.Connection, question: str, every: dict[int, Passage]) -> list[int]:
        asked = list(dict.fromkeys(words(question)))
        if not asked:
            return []
        match = " OR ".join(f'"{word}"' if len(word) < 3 else f'"{word}"*' for word in asked)
        matching = sa.select(_WORDS.c.rowid).where(_WORDS.c[_WORDS_TABLE].match(match))
        ranked = connection.scalars(matching.order_by(_WORDS.c.rank, _WORDS.c.rowid))
        return [passage for passage in ranked if passage in every]

    def _keep(self, passage: int, text: str, model: str, vector: bytes) -> None:
        """Keep a vector, unless another search did, or the passage has changed since its text was read."""
        with writing(self._engine) as connection:
            connection.exec_driver_sql(
                "INSERT OR IGNORE INTO document_vectors (passage, model, vector) "
                "SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM document_passages WHERE id = ? AND text = ?)",
                (passage, model, vector, passage, text),
            )

    async def _by_meaning(
        self, question: str, every: dict[int, Passage], first: Sequence[int], meaning: Meaning
    ) -> tuple[list[int], int]:
        """Passages by the likeness of their vectors to the question's, and how many have one by now."""
        with reading(self._engine) as connection:
            chosen = sa.select(_VECTORS.c.passage, _VECTORS.c.vector).where(_VECTORS.c.model == meaning.model)
            vectors = {row.passage: _unpacked(row.vector) for row in connection.execute(chosen) if row.passage in every}
        end = self._clock() + meaning.seconds
        # Those first that words found: where time runs out, they are the ones that it helps to tell apart.
        for passage in dict.fromkeys((*first, *every)):
            if passage in vectors:
                continue
            if self._clock() >= end:
                break
            (vector,) = await meaning.embed([every[passage].text])
            vectors[passage] = np.array(vector, np.float32)
            self._keep(passage, every[passage].text, meaning.model, np.array(vector, "<f2").tobytes())
        if not vectors:
            return [], 0
        (asked,) = await meaning.embed([question])
        ids = sorted(vectors)
        table = np.stack([vectors[passage] for passage in ids])
        # All vectors of a language model lean one way; what is left without it tells texts apart.
        middle = table.mean(axis=0) if len(ids) > 1 else np.zeros_like(table[0])
        likeness = _unit(table - middle) @ _unit(np.array(asked, np.float32)[None] - middle)[0]
        return [ids[place] for place in np.argsort(-likeness, kind="stable")], len(ids)


def _unpacked(data: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(data, "<f2").astype(np.float32)


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), np.float32)
