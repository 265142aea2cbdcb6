"""The index of documents: found by words and by meaning, and always what the files are now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from qafila.agent.documents.index import DocumentIndex, Found, Meaning

FILES = {
    "caravan.txt": "The caravan leaves Cairo on Monday.\nThe guide is called Salma.",
    "ships.txt": "Vessels sail from Alexandria each spring.",
    "القافلة.txt": "تنطلق القافلةُ من أسوان يومَ الثلاثاء",
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class Meanings:
    """Vectors by topic: what is about the sea is alike, whatever its words."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        self.asked += texts
        sea = ("boat", "Vessels", "sea")
        return [(1.0, 5.0) if any(word in text for word in sea) else (5.0, 1.0) for text in texts]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[DocumentIndex]:
    made = DocumentIndex(f"sqlite:///{tmp_path}/documents.sqlite3", clock=Clock())
    yield made
    made.close()


def put(index: DocumentIndex, files: dict[str, str], folder: str = "here") -> None:
    index.update(folder, [(path, text.encode()) for path, text in files.items()])


def ask(index: DocumentIndex, question: str, meaning: Meaning | None = None, folder: str = "here") -> Found:
    return asyncio.run(index.search(folder, question, meaning=meaning))


def paths(found: Found) -> list[str]:
    return [one.path for one in found.best]


def test_passages_are_found_by_their_words_in_both_languages(index: DocumentIndex) -> None:
    put(index, FILES)
    assert paths(ask(index, "Who is the guide?")) == ["caravan.txt"]
    assert paths(ask(index, "متى تنطلق قافلة؟")) == ["القافلة.txt"]
    assert paths(ask(index, '"* OR NEAR(')) == []
    assert ask(index, "nothing like it").passages == 3
    assert paths(ask(index, "ships")) == ["ships.txt"]  # by its name


def test_by_meaning_what_shares_no_word_is_found(index: DocumentIndex) -> None:
    put(index, FILES)
    meanings = Meanings()
    found = ask(index, "Where is a boat?", Meaning("m", meanings, seconds=100))
    assert paths(found)[0] == "ships.txt"
    assert found.compared == 3
    assert len(meanings.asked) == 4
    ask(index, "Where is a boat?", Meaning("m", meanings, seconds=100))
    assert meanings.asked[4:] == ["Where is a boat?"]  # vectors are kept
    ask(index, "Where is a boat?", Meaning("other", meanings, seconds=100))
    assert len(meanings.asked) == 9  # but not of another model


def test_what_there_is_no_time_for_is_compared_later(index: DocumentIndex) -> None:
    put(index, FILES)
    meanings = Meanings()
    assert ask(index, "Salma", Meaning("m", meanings, seconds=1.5)).compared == 1
    assert meanings.asked[0] == FILES["caravan.txt"]  # what words found goes first
    assert ask(index, "Salma", Meaning("m", meanings, seconds=100)).compared == 3


def test_files_that_change_or_go_are_found_as_they_are_now(index: DocumentIndex) -> None:
    put(index, FILES)
    ask(index, "x", Meaning("m", Meanings(), seconds=100))
    put(index, {**FILES, "caravan.txt": "The guide is called Omar."})
    assert [one.text for one in ask(index, "guide").best] == ["The guide is called Omar."]
    assert paths(ask(index, "Monday")) == []
    put(index, {"ships.txt": FILES["ships.txt"]})
    assert paths(ask(index, "guide قافلة")) == []
    assert ask(index, "guide").passages == 1


def test_folders_are_apart(index: DocumentIndex) -> None:
    put(index, FILES)
    put(index, {"other.txt": "Another guide."}, "there")
    assert paths(ask(index, "guide")) == ["caravan.txt"]
    assert paths(ask(index, "guide", folder="there")) == ["other.txt"]
    assert paths(ask(index, "guide", folder="nowhere")) == []


def test_searches_at_once_keep_each_vector_once(index: DocumentIndex) -> None:
    put(index, FILES)
    meaning = Meaning("m", Meanings(), seconds=100)

    async def both() -> list[Found]:
        return await asyncio.gather(*(index.search("here", "boat", meaning=meaning) for _ in range(2)))

    assert [found.compared for found in asyncio.run(both())] == [3, 3]


def test_a_vector_of_a_text_that_has_changed_meanwhile_is_not_kept(index: DocumentIndex) -> None:
    put(index, {"a.txt": "Vessels sail."})

    class Late(Meanings):
        async def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
            put(index, {"a.txt": "Camels walk."})
            return await super().__call__(texts)

    ask(index, "boat", Meaning("m", Late(), seconds=100))
    meanings = Meanings()
    ask(index, "boat", Meaning("m", meanings, seconds=100))
    assert meanings.asked == ["Camels walk.", "boat"]
