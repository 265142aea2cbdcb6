"""What is made one before texts are compared, and what stays different: each use has its own degree."""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.agent.agenda import words as dates
from qafila.agent.spelling import one_alef, one_form, plain, spaced, without_vowels
from qafila.agent.words import words

#: Every character there is, but for halves of surrogate pairs.
EVERY = "".join(map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1))))
ALEFS = dict.fromkeys("\u0622\u0623\u0625\u0671", "\u0627")

#: Arabic as people write it, and what could be put into it so that it looks the same.
texts = st.text(alphabet="ابحذيوهٱأإآىیةؤئء\u064b\u064f\u0651\u0670ـ\u200b\u200f ٣۴3a.-٫", max_size=12)


@pytest.mark.parametrize(
    ("fold", "changed"),
    [(one_alef, ALEFS), (one_form, {**ALEFS, "\u0649": "\u064a", "\u06cc": "\u064a", "\u0629": "\u0647"})],
)
def test_no_letters_are_made_one_but_these(fold: Callable[[str], str], changed: dict[str, str]) -> None:
    assert {a: b for a, b in zip(EVERY, fold(EVERY), strict=True) if a != b} == changed


def test_no_signs_are_left_out_but_arabics_that_may_be() -> None:
    left_out = set(EVERY) - set(without_vowels(EVERY))
    assert left_out == {*map(chr, range(0x064B, 0x0660)), "\u0670"}
    assert {unicodedata.category(sign) for sign in left_out} == {"Mn"}


def test_plain_keeps_letters_and_vowels_that_make_another_name() -> None:
    different = (
        "احمد",
        "أحمد",
        "ٱحمد",
        "إحمد",
        "آحمد",
        "على",
        "علي",
        "علی",
        "مدرسة",
        "مدرسه",
        "كَتب",
        "كتب",
        "وؤ",
        "وو",
    )
    assert len(set(map(plain, different))) == len(different)
    assert plain("كتـــاب\u200f ٣٫٥ ﻛ") == plain("كتاب  3.5 ك")
    assert spaced(" A \n B ") == "a b"
    assert spaced("٣ـ\u200b") == "٣ـ\u200b"


@settings(derandomize=True, deadline=None)
@given(text=texts)
def test_each_makes_no_less_one_than_the_one_before(text: str) -> None:
    degrees: list[Callable[[str], str]] = [
        spaced,
        plain,
        lambda text: spaced(without_vowels(plain(text))),
        lambda text: spaced(one_alef(without_vowels(plain(text)))),
        lambda text: spaced(one_form(without_vowels(plain(text)))),
        dates.plain,
    ]
    for less, more in itertools.pairwise(degrees):
        assert more(less(text)) == more(text)


@pytest.mark.parametrize(
    ("one", "other"), [("أَحْمَد", "احمد"), ("مَبنى", "مبني"), ("بنی", "بني"), ("مدرسة", "مدرسه"), ("ٱسم", "اسم")]
)
def test_dates_and_searches_find_what_is_spelt_otherwise(one: str, other: str) -> None:
    assert plain(one) != plain(other)
    assert dates.plain(one) == dates.plain(other)
    assert words(one) == words(other)
