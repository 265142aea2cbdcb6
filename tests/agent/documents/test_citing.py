"""Answers are held against the lines that they were made from."""

from __future__ import annotations

from qafila.agent.documents.citing import cited
from qafila.agent.documents.passages import Passage

CARAVAN = Passage(
    "caravan.txt",
    4,
    6,
    "The caravan leaves Cairo on Monday.\nIt carries salt, dates and books.\nThe guide is called Salma.",
)
ARABIC = Passage("القافلة.txt", 1, 2, "تنطلق القافلةُ من القاهرة يوم الاثنين.\nاسم المرشدة سلمى.")


def spans(answer: str, *sources: Passage) -> list[str | None]:
    return [one.source.span if one.source is not None else None for one in cited(answer, sources)]


def test_each_sentence_has_the_fewest_lines_that_say_it() -> None:
    answer = "The guide is Salma. The caravan carries salt and books. It arrives in Khartoum by ship."
    assert spans(answer, ARABIC, CARAVAN) == ["caravan.txt:6", "caravan.txt:4-5", None]


def test_arabic_is_compared_without_marks_articles_and_forms_of_letters() -> None:
    assert spans("إسم المرشده سلمي. تنطلق قافلة من القاهره الإثنين؟ تحمل الذهب والفضة.", CARAVAN, ARABIC) == [
        "القافلة.txt:2",
        "القافلة.txt:1",
        None,
    ]


def test_a_sentence_that_is_repeated_counts_once_and_one_without_words_rests_on_nothing() -> None:
    assert spans("The guide is Salma. The guide is Salma.\n\n...", CARAVAN) == ["caravan.txt:6", None]
    assert spans("", CARAVAN) == []
    assert spans("The guide is Salma.") == [None]
