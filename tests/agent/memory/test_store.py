"""What is kept, for whom, and how it goes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from qafila.agent.journal import Journal
from qafila.agent.memory import store
from qafila.agent.memory.search import WordIndex
from qafila.agent.memory.store import MOST_TEXT, Memory
from qafila.errors import AgentError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.sqlite3"


@pytest.fixture
def memory(file: Path) -> Iterator[Memory]:
    ticks = itertools.count(1000.0)
    journal = Journal(f"sqlite:///{file}", clock=lambda: next(ticks))
    yield journal.memory
    journal.close()


def texts(memory: Memory, owner: str = "", **which: object) -> list[str]:
    return [one.text for one in memory.list(owner, **which)]  # type: ignore[arg-type]


def test_entries_say_where_they_come_from(memory: Memory) -> None:
    mine = memory.add("", "profile", "  My name\nis Salma ")
    theirs = memory.add("", "fact", "the gate code is 7", source="run 1", trusted=False, state="proposed", run="1")
    assert mine.to_dict() == {
        "id": mine.id, "kind": "profile", "text": "My name is Salma", "source": "user", "trusted": True,
        "state": "kept", "created": 1000, "changed": 1000,
    }  # fmt: skip
    assert theirs.to_dict()["run"] == "1"
    assert texts(memory) == ["the gate code is 7", "My name is Salma"]
    assert texts(memory, kind="profile") == ["My name is Salma"]
    assert texts(memory, state="proposed") == ["the gate code is 7"]


def test_each_owner_has_a_memory_of_its_own(memory: Memory) -> None:
    one = memory.add("a", "fact", "the dentist is Amr")
    assert texts(memory, "b") == texts(memory, "b", words="dentist") == texts(memory, "") == []
    for act in (lambda: memory.edit("b", one.id, "x"), lambda: memory.keep("b", one.id)):
        with pytest.raises(AgentError, match="no entry"):
            act()
    with pytest.raises(AgentError, match="no entry"):
        memory.forget("b", one.id)
    memory.add("b", "fact", "the dentist is Amr")
    assert texts(memory, "a") == texts(memory, "b") == ["the dentist is Amr"]


@pytest.mark.parametrize("full_text", [True, False])
def test_search_finds_the_fitting_first(memory: Memory, full_text: bool) -> None:
    memory._index._full_text = full_text
    memory.add("", "fact", "طبيب الأسنان هو د. عمرو، ورقمه ٠١٢٣")
    memory.add("", "fact", "The dentist's clinic is in Zamalek")
    memory.add("", "fact", "The dentist wants me in Zamalek at nine")
    assert texts(memory, words="رقم طبيب أسنان") == ["طبيب الأسنان هو د. عمرو، ورقمه ٠١٢٣"]
    assert texts(memory, words="0123") == ["طبيب الأسنان هو د. عمرو، ورقمه ٠١٢٣"]
    assert set(texts(memory, words="dentist")) == {
        "The dentist's clinic is in Zamalek", "The dentist wants me in Zamalek at nine",
    }  # fmt: skip
    assert texts(memory, words="is the clinic in Zamalek?")[0] == "The dentist's clinic is in Zamalek"
    assert texts(memory, words="the of is") == texts(memory, words='"*') == texts(memory, words="_") == []
    assert texts(memory, words='x" OR dentist NOT (') == texts(memory, words="dentist")


def test_equal_facts_are_one_and_the_users_spelling_wins(memory: Memory) -> None:
    first = memory.add("", "fact", "the gate code is 7", trusted=False, state="proposed", source="run 1")
    assert memory.add("", "fact", "The  Gate code is 7", trusted=False, state="proposed").id == first.id
    mine = memory.add("", "fact", "The gate code is 7")
    assert (mine.id, mine.text, mine.trusted, mine.state, mine.source) == (
        first.id, "The gate code is 7", True, "kept", "user",
    )  # fmt: skip
    assert memory.add("", "fact", "THE GATE CODE IS 7", trusted=False, state="proposed") == mine
    assert memory.add("", "profile", "The gate code is 7").id != mine.id


def test_the_same_key_is_the_same_entry(memory: Memory) -> None:
    one = memory.add("", "fact", "a", key="k")
    assert memory.add("", "fact", "b", key="k") == one
    assert memory.holds("k")
    assert memory.take_back("k") == one
    assert memory.take_back("k") is None
    assert not memory.holds("k")


def test_what_is_edited_is_the_users_and_what_is_approved_is_not(memory: Memory) -> None:
    one = memory.add("", "fact", "a", trusted=False, state="proposed", source="run 1")
    kept = memory.keep("", one.id)
    assert (kept.state, kept.trusted, kept.source) == ("kept", False, "run 1")
    edited = memory.edit("", one.id, "كود البوابة ٧")
    assert (edited.state, edited.trusted, edited.text) == ("kept", True, "كود البوابة ٧")
    assert texts(memory, words="البوابه 7") == ["كود البوابة ٧"]
    assert memory.find("", one.id[:5]) == edited


def test_what_is_forgotten_is_nowhere_in_the_files(memory: Memory, file: Path) -> None:
    for number in range(50):
        memory.add("", "fact", f"filler number {number} with several words in it")
    secret = memory.add("", "fact", "the zanzibarwordone opens xylophonewordtwo")

    def found() -> bool:
        return any(b"zanzibarwordone" in path.read_bytes() for path in file.parent.glob("m.sqlite3*"))

    assert found()
    assert memory.forget("", secret.id).text.startswith("the zanzibar")
    assert texts(memory, words="zanzibarwordone") == []
    assert not found()
    with pytest.raises(AgentError, match="no entry"):
        memory.forget("", secret.id)


@pytest.mark.parametrize("text", ["", " \n", "x" * (MOST_TEXT + 1), "a\x00b", "\ud800"])
def test_what_is_no_entry_is_refused(memory: Memory, text: str) -> None:
    with pytest.raises(AgentError, match="memory: "):
        memory.add("", "fact", text)
    one = memory.add("", "fact", "a")
    with pytest.raises(AgentError, match="memory: "):
        memory.edit("", one.id, text)
    assert texts(memory) == ["a"]
    with pytest.raises(AgentError, match="none of profile, fact, episode"):
        memory.add("", "wish", "a")  # type: ignore[arg-type]


def test_the_oldest_episodes_and_proposals_fade(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_EPISODES", 2)
    monkeypatch.setattr(store, "MOST_PROPOSED", 2)
    monkeypatch.setattr(store, "MOST_KEPT", 2)
    for number in range(4):
        memory.add("", "episode", f"episode {number}", trusted=False)
        memory.add("", "fact", f"proposed {number}", trusted=False, state="proposed")
    memory.add("", "profile", "me")
    memory.add("", "fact", "mine")
    with pytest.raises(AgentError, match="2 entries are kept already"):
        memory.add("", "fact", "too many")
    memory.consolidate("")
    memory.consolidate("")
    assert texts(memory) == ["mine", "me", "proposed 3", "episode 3", "proposed 2", "episode 2"]
    assert set(texts(memory, words="episode")) == {"episode 2", "episode 3"}


def test_facts_that_came_to_say_the_same_are_made_one(memory: Memory) -> None:
    old = memory.add("", "fact", "one", trusted=False, state="proposed", source="run 1")
    new = memory.add("", "fact", "two")
    memory.edit("", new.id, "ONE")
    memory.consolidate("")
    (left,) = memory.list("")
    assert (left.id, left.text, left.trusted, left.state) == (new.id, "ONE", True, "kept")
    assert old.id != new.id


def test_what_a_run_left_by_itself_goes_with_it(memory: Memory) -> None:
    memory.add("", "episode", "an episode", run="r", trusted=False)
    memory.add("", "fact", "proposed", run="r", trusted=False, state="proposed")
    memory.add("", "fact", "kept", run="r")
    memory.add("", "episode", "another", run="s", trusted=False)
    with store.writing(memory._engine) as connection:
        memory.forget_run(connection, "r")
    assert texts(memory) == ["another", "kept"]


def test_without_full_text_no_index_is_made() -> None:
    index = WordIndex("postgresql")
    assert index.ranked(None, "أحمد", [("1", "x"), ("2", "قال احمد")]) == ["2"]  # type: ignore[arg-type]
