"""Fertility counts what can be counted by hand, and language is told by script."""

from __future__ import annotations

import pytest
import tokenizers

from qafila.text.fertility import Fertility, language_of, measure
from qafila.text.text_sources import TextSource
from qafila.text.train_tokenizer import train_tokenizer

TEXT = "the caravan the caravan, the desert القافلة القافلة\n" * 50


@pytest.mark.parametrize(
    ("line", "language"),
    [
        ("The end.", "English"),
        ("é ü", "English"),
        ("السلام عليكم", "Arabic"),
        ("قال: ok", "Arabic"),
        ("he said نعم to us", "English"),
        ("Привет, мир", "Cyrillic"),
        ("नमस्ते", "Devanagari"),
        ("12 -- !", "other"),
        ("١٢٣", "Arabic"),
        ("Это слово Word", "Cyrillic"),
    ],
)
def test_the_language_of_a_line(line, language):
    assert language_of(line) == language


def test_counts():
    made = train_tokenizer([TextSource("t", lambda: iter([TEXT]))], 280, specials="plain", reserved=0).tokenizer
    table = measure([made], ["the caravan went\n\nقافلة، --\n", "the\r\n"])[0]
    assert list(table) == ["English", "Arabic"]
    english, arabic = table["English"], table["Arabic"]
    tokens = [made.encode(line) for line in ("the caravan went", "the")]
    assert (english.lines, english.words, english.chars, english.nbytes) == (2, 4, 19, 19)
    assert english.tokens == sum(map(len, tokens))
    assert english.tokens_per_word == english.tokens / 4
    assert english.counted == 4
    whole = [len(made.encode(" " + word)) == 1 for word in ("the", "caravan", "went", "the")]
    assert english.whole == sum(whole) >= 3
    assert (arabic.words, arabic.chars, arabic.nbytes, arabic.counted) == (2, 9, 15, 1)
    assert arabic.bytes_per_token == 15 / arabic.tokens
    assert arabic.report()["chars_per_token"] == pytest.approx(9 / arabic.tokens, abs=1e-4)


def test_tokens_are_those_of_the_library_and_tokenizers_are_compared_on_the_same_lines():
    first = train_tokenizer([TextSource("t", lambda: iter([TEXT]))], 270, specials="plain", reserved=0).tokenizer
    second = train_tokenizer([TextSource("t", lambda: iter([TEXT]))], 284, specials="plain", reserved=0).tokenizer
    tables = measure([first, second], iter([TEXT]))
    assert tables[0]["English"].words == tables[1]["English"].words == 8 * 50
    assert tables[1]["English"].tokens < tables[0]["English"].tokens
    import json

    theirs = tokenizers.Tokenizer.from_str(json.dumps(second.to_tokenizer_json()))
    line = TEXT.splitlines()[0]
    assert tables[1]["English"].tokens == 50 * len(theirs.encode(line, add_special_tokens=False).ids)


def test_vowel_signs_belong_to_a_word_and_nothing_is_divided_by_nothing():
    made = train_tokenizer([TextSource("t", lambda: iter(["كَتَبَ " * 50]))], 264, specials="plain", reserved=0)
    row = measure([made.tokenizer], ["«كَتَبَ»"])[0]["Arabic"]
    assert (row.words, row.counted) == (1, 1)
    assert Fertility().report()["tokens_per_word"] == 0
    assert measure([made.tokenizer], ["", "\n \n"]) == [{}]
