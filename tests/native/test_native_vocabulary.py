"""Vocabularies in bulk: the native steps say what the slow ones say, or nothing, and no length is followed blindly."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from qafila.native import _native
from qafila.text.bpe_core import byte_alphabet, spell, unspell
from qafila.text.bpe_merges import SpelledMerges, byte_ranks, parse_merges, ranked_tokens
from qafila.weights.gguf import read_gguf


def packed(*strings: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(struct.pack("<Q", len(s)) + s for s in strings), np.uint8)


def test_strings_come_out_as_python_decodes_them():
    strings = [b"", b"plain", "كلمة".encode(), b"\xff\x80 stray", b"a\x00b"]
    data = packed(*strings)
    found = _native.read_strings(data, 0, len(data), len(strings))
    assert found == (tuple(s.decode("utf-8", "surrogateescape") for s in strings), len(data))
    assert _native.read_strings(data, 8, len(data), 1) == (("plain",), 8 + 8 + 5)
    assert _native.read_strings(data, 0, len(data), 0) == ((), 0)


@pytest.mark.parametrize("length", [6, 2**31, 2**63, 2**64 - 1, 2**64 - 13])
def test_a_length_that_leaves_the_data_gives_nothing(length):
    data = np.frombuffer(struct.pack("<Q", length) + b"12345", np.uint8)
    assert _native.read_strings(data, 0, len(data), 1) is None


def test_limits_and_counts_that_are_lies():
    data = packed(b"one", b"two")
    assert _native.read_strings(data, 0, len(data), 3) is None
    assert _native.read_strings(data, 0, len(data) - 1, 2) is None
    assert _native.read_strings(data, 0, len(data), 2**62) is None  # and no memory is taken for it
    for position, limit in ((len(data) + 1, len(data)), (0, len(data) + 1), (5, 4)):
        with pytest.raises(ValueError, match="within"):
            _native.read_strings(data, position, limit, 1)
    with pytest.raises(TypeError):
        _native.read_strings(data.astype(np.int16), 0, 4, 1)


def test_every_letter_of_the_alphabet_and_nothing_else_spells_a_byte():
    letters = [chr(c) for c in (*range(0xD800), *range(0xE000, 0x11000))]
    assert _native.unspell(letters) == [unspell(letter) for letter in letters]
    assert _native.unspell(["", "Ġthe", "a b", "".join(byte_alphabet())]) == [b"", b" the", None, bytes(range(256))]


def slow(tokens: list[bytes], texts: list[str]) -> tuple[list[int], list[int]] | None:
    spelled = {spell(token): i for i, token in enumerate(tokens) if token}
    ranked = ranked_tokens(parse_merges(texts, "merges"), spelled)
    return None if ranked is None else ([spelled[t] for t in ranked[0]], sorted(spelled[t] for t in ranked[1]))


def test_the_default_model_merges_as_the_slow_way_says(default_gguf):
    file = read_gguf(default_gguf)
    tokens = [token or b"" for token in _native.unspell(file.get_strings("tokenizer.ggml.tokens"))]
    kinds = file.get_ints("tokenizer.ggml.token_type")
    tokens = [token if kind == 1 else b"" for token, kind in zip(tokens, kinds, strict=True)]
    texts = list(file.get_strings("tokenizer.ggml.merges"))
    found = byte_ranks(tokens, SpelledMerges(texts, "merges"))
    assert found is not None
    assert (found[0], sorted(found[1])) == slow(tokens, texts)


def test_random_vocabularies_merge_as_the_slow_way_says():
    rng = np.random.default_rng(7)
    proven = with_unbuilt = 0
    for _ in range(400):
        tokens = [bytes([b]) for b in b"abcd"]
        texts: list[str] = []
        for _ in range(int(rng.integers(1, 14))):
            left, right = (tokens[i] for i in rng.integers(0, len(tokens), 2))
            texts.insert(int(rng.integers(0, len(texts) + 1)), f"{spell(left)} {spell(right)}")
            if left + right not in tokens:
                tokens.append(left + right)
        found = byte_ranks(tokens, SpelledMerges(texts, "merges"))
        if found is not None:
            proven += 1
            with_unbuilt += bool(found[1])
            assert (found[0], sorted(found[1])) == slow(tokens, texts)
    assert proven > 100
    assert with_unbuilt > 20


@pytest.mark.parametrize(
    ("tokens", "merges"),
    [
        ([b"a", b"b", b"ab"], ["ab"]),
        ([b"a", b"b", b"ab"], ["a b c"]),
        ([b"a", b"b", b"ab"], [" b"]),
        ([b"a", b"b", b"ab"], ["a "]),
        ([b"a", b"b", b"ab"], ["a \u0444"]),
        ([b"a", b"b", b"ab"], ["a \ud800"]),
        ([b"a", b"b", b"ab"], ["a b", "a b"]),
        ([b"a", b"b"], ["a b"]),
        ([b"a", b"ab"], ["a b"]),
        ([b"a", b"b", b"ab", b"ab"], ["a b"]),
        ([b"a", b"bc", b"abc"], ["a bc"]),  # b and c are no tokens
        ([b"a" * 200, b"a" * 100, b"a" * 300, b"a"], [f"{'a' * 200} {'a' * 100}"]),
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_the_slow_way(tokens, merges):
    assert byte_ranks(tokens, SpelledMerges(merges, "merges")) is None


def test_tokens_that_are_no_bytes_are_refused():
    with pytest.raises(TypeError):
        _native.merge_order(["a"], [])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        _native.merge_order([b"a"], 5)  # type: ignore[arg-type]
