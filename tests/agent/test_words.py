"""Words are found however they are spelt."""

from __future__ import annotations

import pytest

from qafila.agent.words import words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("مدرسة", "مدرسه"), ("كِتَابٌ", "كتاب"), ("كتـــاب", "كتاب"), ("أحمد", "احمد"), ("إلى آخر", "الى اخر"),
        ("مستشفى", "مستشفي"), ("الكتاب", "كتاب"), ("والكتاب", "كتاب"), ("للمدرسة", "مدرسة"), ("٢٠٢٦", "2026"),
        ("۱۲", "12"), ("Café", "cafe"), ("STRASSE", "straße"), ("مسؤول", "مسوول"), ("ﻛﺘﺎﺏ", "كتاب"),
        ("علی", "علي"), ("a\u200fb", "ab"),
    ],
)  # fmt: skip
def test_the_same_word(one: str, other: str) -> None:
    assert words(one) == words(other) != []


def test_what_says_nothing_is_left_out_and_short_words_keep_their_letters() -> None:
    assert words("What is the name of my dentist?") == ["name", "dentist"]
    assert words("ما هو اسم طبيبي؟") == ["اسم", "طبيبي"]
    assert words("على إلى") == []
    assert words("عليّ وأحمد") == ["علي", "واحمد"]
    assert words("الم") == ["الم"]
    assert words("...") == []
