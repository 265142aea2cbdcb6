"""Passages: nothing of a text is lost, each knows its lines, none is too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qafila.agent.documents.passages import MOST, Passage, passages

LINES = st.lists(st.text(alphabet="ab سلام.", max_size=200), max_size=40)


@given(LINES)
def test_every_line_with_words_is_in_one_passage_at_its_place(lines: list[str]) -> None:
    found = list(passages("f", "\n".join(lines)))
    covered: dict[int, str] = {}
    for one in found:
        inner = one.text.split("\n")
        assert len(inner) == one.last - one.first + 1
        assert inner[0].strip()
        assert inner[-1].strip()
        for number, line in enumerate(inner, one.first):
            assert number not in covered
            covered[number] = line
    for number, line in enumerate(lines, 1):
        assert covered.get(number, line if not line.strip() else None) == line
    assert all(len(one.text) <= 2 * MOST + len(one.text.split("\n")) for one in found)


def test_a_long_line_is_cut_and_a_short_paragraph_stays_with_the_next() -> None:
    text = "# Title\n\nfirst\n\n" + "x" * 2000 + "\nlast"
    found = list(passages("a.md", text))
    assert found[0] == Passage("a.md", 1, 3, "# Title\n\nfirst")
    assert found[1].text == "x" * MOST
    assert [one.span for one in found] == ["a.md:1-3", "a.md:5", "a.md:6"]
    assert list(passages("empty", "\n \n")) == []
