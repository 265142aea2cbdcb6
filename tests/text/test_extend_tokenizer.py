"""Extended vocabularies: new pieces for one script only, every other text cut as before, equal to `tokenizers`."""

from __future__ import annotations

import itertools
import json
import lzma
import random
from dataclasses import replace
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.errors import DataError, TokenizerError, UsageError
from qafila.text.extend_tokenizer import (
    Extension,
    check_extension,
    compare_texts,
    extend_tokenizer,
    is_of_script,
)
from qafila.text.scripts import ARABIC, LATIN, script_named, scripts
from qafila.text.sentencepiece_bpe import SentencePieceBPE
from qafila.text.sentencepiece_model import Piece, SentencePieceModel
from qafila.text.text_sources import Mixture, TextSource
from qafila.text.tokenizer import load_tokenizer, tokenizer_from_gguf
from qafila.text.train_tokenizer import train_tokenizer
from qafila.weights.load import gguf_tokenizer

ARABIC_TEXT = "سارت القافلة في الصحراء، وحملت الجِمالُ ما لم يحمله المسافرون من المتاع؛ ١٢٥٠ حملاً والكلاب تنبح"
HINDI_TEXT = "कारवाँ रेगिस्तान में चलता रहा और ऊँटों ने वह सब ढोया जो यात्री नहीं ढो सके थे उस दिन"
ENGLISH_TEXT = (
    "The caravan went on through the desert, and the camels carried what the travellers couldn't: 1,250 loads."
)


def texts(sentence: str, seed: int = 0, lines: int = 400) -> list[str]:
    draw = random.Random(seed)
    words = sentence.split()
    made = [draw.choice(words)[:4] + draw.choice(words)[-3:] for _ in range(400)] + words
    return [" ".join(made[int(draw.paretovariate(0.5)) % len(made)] for _ in range(14)) + "\n" for _ in range(lines)]


def mixture(*sentences: str) -> Mixture:
    return Mixture([TextSource(s[:10], lambda s=s: iter(texts(s, 1))) for s in sentences])


@cache
def english(specials: str = "chatml", pattern: str = "llama-3"):
    source = TextSource("en", lambda: iter([ENGLISH_TEXT, *texts(ENGLISH_TEXT)]))
    reserved = 2 if specials == "llama-3" else None
    return train_tokenizer([source], 470, specials=specials, reserved=reserved, pattern=pattern).tokenizer


@cache
def extended(specials: str = "chatml", pattern: str = "llama-3") -> Extension:
    return extend_tokenizer(english(specials, pattern), mixture(ARABIC_TEXT), 240)


@pytest.mark.parametrize("pattern", ["llama-3", "llama-4", "gpt-2", "digits"])
@pytest.mark.parametrize("specials", ["llama-3", "chatml"])
def test_new_pieces_come_behind_and_old_ids_stay(specials, pattern):
    old, new = english(specials, pattern), extended(specials, pattern).new
    assert new.vocab_size == old.vocab_size + 240
    assert all(new.token_bytes(i) == old.token_bytes(i) for i in range(old.vocab_size))
    assert (new.special_tokens, new.roles) == (old.special_tokens, old.roles)
    assert new.merges[: len(old.merges)] == list(old.merges)
    for line in texts(ENGLISH_TEXT, 5):
        assert new.encode(line) == old.encode(line)
    shorter = sum(len(new.encode(line)) for line in texts(ARABIC_TEXT, 5))
    assert shorter < 0.6 * sum(len(old.encode(line)) for line in texts(ARABIC_TEXT, 5))


@pytest.mark.parametrize("pattern", ["llama-3", "llama-4", "gpt-2", "digits"])
def test_files_of_it_are_read_with_equal_ids_by_tokenizers_and_by_us(pattern, tmp_path):
    new = extended("chatml", pattern).new
    (tmp_path / "tokenizer.json").write_text(json.dumps(new.to_tokenizer_json()))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours, gguf = load_tokenizer(tmp_path / "tokenizer.json"), tokenizer_from_gguf(new.to_gguf())
    for line in [*texts(ARABIC_TEXT, 6, 200), *texts(ENGLISH_TEXT + ARABIC_TEXT, 7, 200), " َ مَ\n\n  و", "😀م١"]:
        expected = theirs.encode(line, add_special_tokens=False).ids
        assert new.encode(line) == ours.encode(line) == gguf.encode(line) == expected
        assert new.decode(expected) == line


def test_every_new_piece_is_whole_characters_of_the_script_and_is_what_it_replaces():
    found = extended()
    for i, ids in enumerate(found.replaces, found.old.vocab_size):
        piece = found.new.token_bytes(i)
        text = piece.decode()
        assert text.count(" ") == text.startswith(" ")
        assert all(0x600 <= ord(letter) < 0x700 for letter in text.strip())
        assert b"".join(found.old.token_bytes(old) for old in ids) == piece
        assert ids == tuple(found.old.encode(text)) or len(ids) > 1
    used = {i for line in texts(ARABIC_TEXT, 1) for i in found.new.encode(line)}
    assert len([i for i in used if i >= found.old.vocab_size]) > 100


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_without_the_script_is_cut_as_before(text):
    found = extended()
    text = ARABIC.pattern.sub("", text)
    assert found.new.encode(text) == found.old.encode(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="سلام َة،ab 1\n😀é", max_size=40))
def test_mixed_text_is_cut_as_by_tokenizers_and_comes_back(text):
    found = extended()
    assert found.new.encode(text) == library().encode(text, add_special_tokens=False).ids
    assert found.new.decode(found.new.encode(text)) == text


@cache
def library():
    return tokenizers.Tokenizer.from_str(json.dumps(extended().new.to_tokenizer_json()))


def test_a_script_of_three_bytes_a_character():
    found = extend_tokenizer(english(), mixture(ENGLISH_TEXT, HINDI_TEXT), 150)
    assert found.script.name == "devanagari"
    agreement = compare_texts(found, [*texts(ENGLISH_TEXT, 3), *texts(HINDI_TEXT, 3), *texts(ARABIC_TEXT, 3)])
    assert agreement.same_lines == 800
    assert agreement.tokens_after < agreement.tokens_before / 3
    pieces = [found.new.token_bytes(i) for i in range(found.old.vocab_size, found.new.vocab_size)]
    # The two first bytes of a character: two such beginnings have all of the script, with and without a space.
    assert sum(not_whole(piece) for piece in pieces) <= 4


def not_whole(piece: bytes) -> bool:
    return "\ufffd" in piece.decode("utf-8", "replace")


def test_the_script_is_found_in_the_text_or_named():
    assert extended().script is ARABIC
    named = extend_tokenizer(english(), mixture(HINDI_TEXT, ARABIC_TEXT), 60, script=script_named("Devanagari"))
    assert named.script.name == "devanagari"
    assert named.new.encode(ARABIC_TEXT) == english().encode(ARABIC_TEXT)


def test_an_extension_can_be_extended():
    again = extend_tokenizer(extended().new, mixture(HINDI_TEXT), 50)
    for line in texts(ARABIC_TEXT + ENGLISH_TEXT, 8, 50):
        assert again.new.encode(line) == extended().new.encode(line)


def test_pieces_of_a_script():
    for good in ("ال", " ال", "،", "مَ", " ١"):
        assert is_of_script(good.encode(), ARABIC)
    for bad in (b"", b" ", b"a", "«ا".encode(), "  ا".encode(), "ا ".encode(), "اa".encode(), b"\xd8", b"\xa7\xd9"):
        assert not is_of_script(bad, ARABIC) or bad == b"\xd8"
    # 0xD8 to 0xDB begin Arabic's letters and no others, 0xDC begins Syriac's.
    assert [lead for lead in range(256) if is_of_script(bytes([lead]), ARABIC)] == [0xD8, 0xD9, 0xDA, 0xDB]
    assert is_of_script(b" \xe0\xa4", script_named("devanagari"))
    assert not is_of_script(b"\xe0", script_named("devanagari"))


@pytest.mark.parametrize("name", list(scripts()))
def test_the_beginnings_of_characters_against_all_code_points(name):
    script = script_named(name)
    begun: dict[bytes, set[bool]] = {}
    for code in itertools.chain(range(0x80, 0xD800), range(0xE000, 0x10000)):
        data = chr(code).encode()
        for end in range(1, len(data)):
            begun.setdefault(data[:end], set()).add(script.holds(code))
    for data, inside in begun.items():
        assert is_of_script(data, script) == (inside == {True}), data


def test_what_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--pieces 0"):
        extend_tokenizer(english(), mixture(ARABIC_TEXT), 0)
    with pytest.raises(UsageError, match="train a tokenizer instead"):
        extend_tokenizer(english(), mixture(ENGLISH_TEXT), 10, script=LATIN)
    with pytest.raises(DataError, match="no script but Latin"):
        extend_tokenizer(english(), mixture(ENGLISH_TEXT), 10)
    with pytest.raises(DataError, match="no Arabic text in it"):
        extend_tokenizer(english(), mixture(ENGLISH_TEXT), 10, script=ARABIC)
    with pytest.raises(DataError, match=r"give \d+ new Arabic pieces and no more"):
        extend_tokenizer(english(), mixture(ARABIC_TEXT), 50_000)
    with pytest.raises(UsageError, match="script 'klingon'"):
        script_named("klingon")
    pieces = [Piece("<unk>", 0.0, 2), *(Piece(f"<0x{b:02X}>", 0.0, 6) for b in range(256))]
    with pytest.raises(TokenizerError, match="only byte-level"):
        extend_tokenizer(SentencePieceBPE.from_model(SentencePieceModel(tuple(pieces))), mixture(ARABIC_TEXT), 10)


def test_an_extension_that_would_touch_old_text_is_refused():
    found = extended()
    with pytest.raises(TokenizerError, match="could stand in text without Hebrew"):
        check_extension(replace(found, script=script_named("hebrew")))
    with pytest.raises(TokenizerError, match="changes old tokens or merges"):
        check_extension(replace(found, old=english("llama-3")))
    # A vocabulary with more merges for English, passed off as an extension.
    source = TextSource("en", lambda: iter([ENGLISH_TEXT, *texts(ENGLISH_TEXT)]))
    larger = train_tokenizer([source], 485, specials="chatml").tokenizer
    with pytest.raises(TokenizerError, match="in another way than before"):
        compare_texts(replace(found, new=larger), texts(ENGLISH_TEXT))


def test_the_same_text_gives_the_same_extension(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    again = extend_tokenizer(english(), mixture(ARABIC_TEXT), 240)
    assert list(again.new.merges) == list(extended().new.merges)


def test_the_default_model_learns_arabic_pieces(default_gguf, shared_data):
    def books(name, start, stop):
        with lzma.open(shared_data / name, "rt", encoding="utf-8") as file:
            return [json.loads(line)["text"][:60_000] for line in itertools.islice(file, start, stop)]

    old = gguf_tokenizer(default_gguf)
    found = extend_tokenizer(old, Mixture([TextSource("ar", lambda: iter(books("books_ar.jsonl.xz", 0, 6)))]), 2048)
    assert found.new.special_tokens == old.special_tokens
    held_out = compare_texts(found, [*books("books_ar.jsonl.xz", 6, 8), *books("books_en.jsonl.xz", 0, 4)])
    assert held_out.same_lines > 500
    assert held_out.tokens_after < 0.45 * held_out.tokens_before
    theirs = tokenizers.Tokenizer.from_str(json.dumps(found.new.to_tokenizer_json()))
    for text in books("books_ar.jsonl.xz", 8, 9):
        assert found.new.encode(text) == theirs.encode(text, add_special_tokens=False).ids
