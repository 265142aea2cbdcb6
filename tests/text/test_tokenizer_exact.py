"""Ids and texts held to the original libraries, on more than 10,000 varied lines, for every reader and every writer."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from collections.abc import Callable, Iterable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from qafila.errors import TokenizerError
from qafila.text.bpe import ByteLevelBPE
from qafila.text.bpe_patterns import LLAMA3, O200K
from qafila.text.sentencepiece_bpe import SentencePieceBPE
from qafila.text.sentencepiece_merge import ScoredPieces
from qafila.text.sentencepiece_model import (
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
    parse_model,
    write_model,
)
from qafila.text.tokenizer import Roles, Tokenizer, load_tokenizer, tokenizer_from_gguf
from qafila.text.tokenizer_files import tokenizer_from_bytes
from qafila.text.tokenizer_json import tokenizer_from_document

ENGLISH_TEXT = "The caravan won't stop here; she said it's 3 days' ride, I'LL see. Once upon a time there was a lamb"
ARABIC_TEXT = "القافلة تسير والكلاب تنبح السَّلامُ عَلَيْكُمْ وَرَحْمَةُ اللهِ ١٢٣٤ مرحباً بِكُم في الصحراء، كتابٌ ـــ لا"
ENGLISH, ARABIC = ENGLISH_TEXT.split(), ARABIC_TEXT.split()
CODE = [
    "def f(x):",
    "    return x[i]*2 ** 3",
    "\tif (a!=b) {",
    "}",
    "<div class='x'>",
    "// TODO",
    "a_b.c->d",
    "\r\n",
    "\n\n  ",
]
EMOJI = [
    "😀",
    "👩‍👩‍👧",
    "🇱🇾",
    "❤️",
    "🐫",
    "é",
    "e\u0301",
    "中文字",
    "ไทย",
    "한국어",
    "हिन्दी",
    "𝔘𝔫𝔦",
    "\U00012345",
    "\ufffd",
]
CONTROL = [chr(c) for c in range(32)] + [
    "\x7f",
    "\x85",
    "\xa0",
    "\u200b",
    "\u200f",
    "\u202e",
    "\u2028",
    "\ufeff",
    "\U000e0001",
]
SPACES = [" ", "  ", "   ", "\t", " \n", "\u3000", "\u2003", "▁", "▁▁", " ▁ "]
MARKS = ["...", "!?", "--", "'s", "'RE", "²", "½", "Ⅷ", "٣", "100,000.5", "0", "12345678", "$", "%", "“x”"]
LOOKALIKES = ["<s>", "</s>", "<|eot_id|>", "<|im_start|>", "<0x0A>", "[INST]", "<|begin_of_text|>", "<unk>"]


@cache
def varied_lines() -> tuple[str, ...]:
    """Deterministic lines of every kind, very long runs last."""
    draw = random.Random(20_260_101)
    kinds = [ENGLISH, ARABIC, CODE, EMOJI, CONTROL, SPACES, MARKS, LOOKALIKES, ENGLISH + ARABIC]
    lines = [""]
    for _ in range(12_000):
        words = draw.choice(kinds) + draw.choice(kinds)
        glue = draw.choice(["", " ", " ", "  "])
        lines.append(glue.join(draw.choice(words) for _ in range(draw.randrange(1, 14))))
    lines += [f"a{chr(c)}{chr(c)} {chr(c)}1" for c in range(0x3000) if not 0xD800 <= c < 0xE000]
    lines += [" " * n + "the" + " " * (n // 3) + "x" for n in range(70)]
    lines += [unit * 3000 for unit in ("a", " ", "ab", "م", "\n", "1", "=", "😀", " x", "\t ")]
    return tuple(lines)


def real_lines(folder: Path) -> list[str]:
    """Sentences and passages of the shared corpora."""
    with gzip.open(folder / "tatoeba_en_ar_10000.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [value for line in islice(file, 1500) for value in json.loads(line).values() if isinstance(value, str)]
    for name in ("books_en.jsonl.xz", "books_ar.jsonl.xz"):
        with lzma.open(folder / name, "rt", encoding="utf-8") as file:
            for line in islice(file, 3):
                text = json.loads(line)["text"][:150_000]
                lines += [text[i : i + 700] for i in range(0, len(text), 700)]
    return lines


def assert_equal(ours: Callable[[str], list[int]], theirs: Callable[[str], list[int]], lines: Iterable[str]) -> None:
    for line in lines:
        expected = theirs(line)
        assert ours(line) == expected, repr(line[:200])


def hf_tokenizer(document: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer as HfTokenizer

    return HfTokenizer.from_str(json.dumps(document))


def hf_plain(document: dict[str, Any]) -> Callable[[str], list[int]]:
    made = hf_tokenizer(document)
    made.encode_special_tokens = True
    return lambda text: list(made.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def default(default_gguf: Path) -> Tokenizer:
    return tokenizer_from_gguf(default_metadata(default_gguf))


@cache
def default_metadata(path: Path) -> dict[str, object]:
    from qafila.weights.gguf import read_gguf
    from qafila.weights.load import plain_metadata

    return dict(plain_metadata(read_gguf(path)))


@pytest.fixture(scope="module")
def llama3(llama3_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(llama3_tokenizer)


@pytest.fixture(scope="module")
def llama2(shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "models" / "llama2_tokenizer.model")


def tiktoken_oracle(path: Path, pattern: str, special_tokens: dict[str, int]) -> Any:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    return tiktoken.Encoding(
        "oracle", pat_str=pattern, mergeable_ranks=load_tiktoken_bpe(str(path)), special_tokens=special_tokens
    )


def test_there_are_ten_thousand_different_lines() -> None:
    assert len(set(varied_lines())) > 20_000


@pytest.mark.parametrize("model", ["llama2_tokenizer.model", "tok512.model"])
def test_sentencepiece_ids_and_texts_are_sentencepieces(shared_data: Path, model: str) -> None:
    import sentencepiece

    path = shared_data / "models" / model
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = load_tokenizer(path)
    assert isinstance(ours, SentencePieceBPE)
    assert ours._ranked is not None
    lines = [*varied_lines(), *real_lines(shared_data)]
    assert_equal(ours.encode, oracle.encode, lines)
    for line in lines:
        ids = oracle.encode(line)
        assert ours.decode(ids, skip_special=True) == oracle.decode(ids)
    draw = random.Random(7)
    for _ in range(5000):
        ids = [
            draw.choice([draw.randrange(3, 259), draw.randrange(ours.vocab_size), 0, 1, 2])
            for _ in range(draw.randrange(9))
        ]
        stream = ours.stream()
        text = oracle.decode(ids)
        assert ours.decode(ids, skip_special=True) == text, ids
        assert "".join(map(stream.push, ids)) + stream.finish() == text, ids


def test_llama3_ids_are_tiktokens(llama3: Tokenizer, llama3_tokenizer: Path, shared_data: Path) -> None:
    oracle = tiktoken_oracle(llama3_tokenizer, LLAMA3, dict(llama3.special_tokens))
    lines = [*varied_lines(), *real_lines(shared_data)]
    assert_equal(llama3.encode, oracle.encode_ordinary, lines)
    assert_equal(lambda s: llama3.encode(s, special=True), lambda s: oracle.encode(s, allowed_special="all"), lines)
    for line in lines:
        assert llama3.decode(llama3.encode(line)) == line


def test_llama4_ids_are_tiktokens(llama4_tokenizer: Path, shared_data: Path) -> None:
    ours = load_tokenizer(llama4_tokenizer)
    assert ours.vocab_size == 202_048
    oracle = tiktoken_oracle(llama4_tokenizer, O200K, dict(ours.special_tokens))
    assert_equal(ours.encode, oracle.encode_ordinary, [*varied_lines(), *real_lines(shared_data)])


def reference_pieces(text: str, piece: int = 400_000, run: int = 25_000) -> list[str]:
    """Meta's rule for very long text, the slow way: count every character."""
    pieces = []
    for begin in range(0, len(text), piece):
        part, length, start = text[begin : begin + piece], 0, 0
        for i, character in enumerate(part):
            length = length + 1 if i and character.isspace() == part[i - 1].isspace() else 1
            if length > run:
                pieces.append(part[start:i])
                start, length = i, 1
        pieces.append(part[start:])
    return pieces


@pytest.mark.parametrize("seed", range(6))
def test_very_long_text_is_cut_where_metas_tokenizer_cuts_it(
    llama3: Tokenizer, llama3_tokenizer: Path, seed: int
) -> None:
    oracle = tiktoken_oracle(llama3_tokenizer, LLAMA3, {})
    draw = random.Random(seed)
    text = ""
    while len(text) < 450_000:
        text += draw.choice(["a", " ", "xy", "\n", "م", "= ", "\x1c", "1"]) * draw.choice(
            [1, 7, 12_500, 24_999, 25_001, 60_000]
        )
    expected = [i for part in reference_pieces(text) for i in oracle.encode_ordinary(part)]
    assert llama3.encode(text) == expected


def test_the_tables_of_special_tokens_are_metas(llama3: Tokenizer, llama4_tokenizer: Path) -> None:
    three = {
        128000: "<|begin_of_text|>",
        128001: "<|end_of_text|>",
        128004: "<|finetune_right_pad_id|>",
        128005: "<|step_id|>",
    }
    three |= {128006: "<|start_header_id|>", 128007: "<|end_header_id|>", 128008: "<|eom_id|>", 128009: "<|eot_id|>"}
    three |= {128010: "<|python_tag|>", 128011: "<|image|>"}
    assert {i: llama3.token_text(i) for i in three} == three
    assert (llama3.vocab_size, llama3.bos_id, llama3.eos_id, llama3.add_bos) == (128_256, 128_000, 128_001, True)
    four = load_tokenizer(llama4_tokenizer)
    names = {
        200000: "begin_of_text",
        200001: "end_of_text",
        200002: "fim_prefix",
        200003: "fim_middle",
        200004: "fim_suffix",
    }
    names |= {200005: "header_start", 200006: "header_end", 200007: "eom", 200008: "eot", 200009: "step"}
    names |= {200016: "python_start", 200017: "python_end", 200018: "finetune_right_pad", 200080: "image_start"}
    names |= {
        200081: "image_end",
        200084: "tile_x_separator",
        200085: "tile_y_separator",
        200090: "image",
        200092: "patch",
    }
    names |= {201142: "reasoning_thinking_start", 201143: "reasoning_thinking_end"}
    assert {i: four.token_text(i) for i in names} == {i: f"<|{name}|>" for i, name in names.items()}


def default_oracle(metadata: dict[str, Any]) -> Any:
    """The default model's tokenizer built with `tokenizers` out of its vocabulary, nothing of ours in between."""
    from tokenizers import Tokenizer as HfTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {text: i for i, text in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    oracle = HfTokenizer(models.BPE(vocab=vocab, merges=merges))
    oracle.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    oracle.decoder = decoders.ByteLevel()
    return oracle


def test_default_model_ids_are_tokenizers(default: Tokenizer, default_gguf: Path, shared_data: Path) -> None:
    oracle = default_oracle(default_metadata(default_gguf))
    assert isinstance(default, ByteLevelBPE)
    lines = [*varied_lines(), *real_lines(shared_data), " " * 30_000 + "5", "x" + "\n " * 30_000]
    assert_equal(default.encode, lambda text: oracle.encode(text).ids, lines)
    for line in lines:
        ids = default.encode(line)
        assert default.decode(ids) == oracle.decode(ids)


def test_every_character_is_cut_alike(default: Tokenizer, default_gguf: Path) -> None:
    # Not among them: 13 digits of Unicode 17, which Rust's own tables know and those of its regular expressions do not.
    newer = {*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)}
    oracle = default_oracle(default_metadata(default_gguf))
    # Of the great blocks of ideographs and syllables, which are all letters, the edges are enough.
    plain = {*range(0x3500, 0x4D00), *range(0x4F00, 0x9E00), *range(0xAD00, 0xD600), *range(0xE100, 0xF800)}
    left_out = plain | newer
    wanted = [c for c in (*range(0xD800), *range(0xE000, 0x1FC00), *range(0xE0000, 0xE0200)) if c not in left_out]
    for start in range(0, len(wanted), 64):
        line = "".join(f"a{chr(c)} {chr(c)}{chr(c)}  " for c in wanted[start : start + 64])
        assert default.encode(line) == oracle.encode(line).ids, hex(wanted[start])


def roundtrips(tokenizer: Tokenizer) -> dict[str, Tokenizer]:
    document = json.loads(json.dumps(tokenizer.to_tokenizer_json()))
    made = {
        "json": tokenizer_from_document(document, json.loads(json.dumps(tokenizer.to_tokenizer_config()))),
        "gguf": tokenizer_from_gguf(tokenizer.to_gguf()),
    }
    for write in ("to_sentencepiece", "to_tiktoken"):
        try:
            data = getattr(tokenizer, write)()
        except TokenizerError:
            continue
        made[write] = tokenizer_from_bytes(data)
    return made


@pytest.mark.parametrize("name", ["default", "llama2", "llama3"])
def test_exports_read_back_with_equal_ids(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    lines = varied_lines()[::5] + varied_lines()[-200:]
    expected = [tokenizer.encode(line) for line in lines]
    made = roundtrips(tokenizer)
    assert (
        set(made)
        >= {"json", "gguf"} | {"default": set(), "llama2": {"to_sentencepiece"}, "llama3": {"to_tiktoken"}}[name]
    )
    oracle = hf_plain(tokenizer.to_tokenizer_json())
    assert [oracle(line) for line in lines] == expected
    for how, other in made.items():
        assert type(other) is type(tokenizer), how
        assert other.roles == tokenizer.roles, how
        assert dict(other.special_tokens) == dict(tokenizer.special_tokens), how
        assert [other.encode(line) for line in lines] == expected, how
        assert [other.token_bytes(i) for i in range(0, tokenizer.vocab_size, 17)] == [
            tokenizer.token_bytes(i) for i in range(0, tokenizer.vocab_size, 17)
        ], how


@pytest.mark.slow
def test_llama4_exports_read_back_with_equal_ids(llama4_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(llama4_tokenizer)
    lines = varied_lines()
    expected = [tokenizer.encode(line) for line in lines]
    oracle = hf_plain(tokenizer.to_tokenizer_json())
    assert [oracle(line) for line in lines] == expected
    for how, other in roundtrips(tokenizer).items():
        assert [other.encode(line) for line in lines] == expected, how


@pytest.mark.parametrize("name", ["default", "llama2", "llama3"])
def test_transformers_opens_the_export_with_equal_ids(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = request.getfixturevalue(name)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.to_tokenizer_json()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer.to_tokenizer_config()))
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert (opened.bos_token_id, opened.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    for line in varied_lines()[1:3000:7]:
        if not any(mark in line for mark in LOOKALIKES):
            expected = tokenizer.encode(line, bos=True)
            assert opened.encode(line) == expected, repr(line)
            assert opened.decode(expected) == tokenizer.decode(expected) or name == "llama2"


def test_exported_sentencepiece_file_is_read_by_sentencepiece(llama2: Tokenizer) -> None:
    import sentencepiece

    assert isinstance(llama2, SentencePieceBPE)
    rebuilt = SentencePieceBPE(llama2.model, llama2.roles).to_sentencepiece()
    assert parse_model(rebuilt) == llama2.model
    oracle = sentencepiece.SentencePieceProcessor(model_proto=rebuilt)
    assert_equal(llama2.encode, oracle.encode, varied_lines()[:3000])
    assert (oracle.bos_id(), oracle.eos_id(), oracle.unk_id()) == (1, 2, 0)


def small_model(pieces: list[Piece], byte_pieces: bool = True, **options: Any) -> SentencePieceModel:
    front = [Piece("<unk>", 0.0, 2), Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3)]
    if byte_pieces:
        front += [Piece(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    return SentencePieceModel((*front, *pieces), **options)


def test_odd_vocabularies_merge_as_sentencepiece_merges() -> None:
    """Ties, unused and user-defined pieces, spaces inside pieces, no byte pieces, letters that are no pieces."""
    import sentencepiece

    draw = random.Random(3)
    letters = "ab▁مé"
    ranked = 0
    for trial in range(150):
        words = {
            "".join(draw.choice(letters) for _ in range(draw.randrange(2, 5))) for _ in range(draw.randrange(3, 30))
        }
        singles = [x for x in letters if draw.random() < 0.9]
        pieces = [Piece(w, -float(draw.randrange(6) if trial % 3 else n), NORMAL) for n, w in enumerate(sorted(words))]
        if trial % 5 == 0:
            pieces[0] = Piece(pieces[0].text, pieces[0].score, UNUSED)
        if trial % 7 == 0:
            pieces[-1] = Piece(pieces[-1].text, pieces[-1].score, USER_DEFINED)
        pieces += [Piece(x, -100.0 - n) for n, x in enumerate(singles)]
        options = {"add_dummy_prefix": draw.random() < 0.7, "remove_extra_whitespaces": draw.random() < 0.3}
        model = small_model(pieces, byte_pieces=trial % 4 != 0, **options)
        oracle = sentencepiece.SentencePieceProcessor(model_proto=write_model(model))
        ours = SentencePieceBPE.from_model(parse_model(write_model(model)))
        ranked += ours._ranked is not None
        slow = ScoredPieces(model.pieces, 0)
        for _ in range(60):
            text = "".join(draw.choice("ab مé▁中") for _ in range(draw.randrange(24)))
            expected = oracle.encode(text)
            assert ours.encode(text) == expected, (trial, text)
            assert ours.decode(expected, skip_special=True) == oracle.decode(expected), (trial, text)
            if trial % 7 and not options["remove_extra_whitespaces"] and not options["add_dummy_prefix"]:
                assert slow.encode(text.replace(" ", "▁")) == expected, (trial, text)
    assert 20 < ranked < 140


def test_odd_merge_lists_run_as_tokenizers_runs_them() -> None:
    """Random merges: several for one token, out of order, tokens that no merge builds, with and without their use."""
    draw = random.Random(5)
    on_core = 0
    for trial in range(200):
        letters = "abcd"
        words, merges = list(letters), []
        for _ in range(draw.randrange(4, 25)):
            left, right = draw.choice(words), draw.choice(words)
            if len(left + right) < 7 and (left, right) not in merges:
                merges.append((left, right))
                words.append(left + right)
        if trial % 3 == 0:
            draw.shuffle(merges)
        from qafila.text.bpe_core import byte_alphabet

        texts = list(dict.fromkeys([*byte_alphabet(), *words, *(["abcd", "ddd"] if trial % 2 else [])]))
        document: dict[str, Any] = {
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "ignore_merges": bool(trial % 4 == 1),
                "vocab": {text: i for i, text in enumerate(texts)},
                "merges": [list(pair) for pair in merges],
            },
        }
        oracle = hf_plain({"version": "1.0", **document})
        ours = tokenizer_from_document(document, {})
        on_core += isinstance(ours, ByteLevelBPE)
        for _ in range(80):
            text = "".join(draw.choice("abcd ") for _ in range(draw.randrange(1, 20)))
            assert ours.encode(text) == oracle(text), (trial, text)
    assert on_core > 120


def test_unknown_structures_run_on_tokenizers(default: Tokenizer) -> None:
    document: dict[str, Any] = json.loads(json.dumps(default.to_tokenizer_json()))
    document["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    ours = tokenizer_from_document(document, {"bos_token": "<|im_start|>", "add_bos_token": True})
    assert not isinstance(ours, ByteLevelBPE)
    assert ours.bos_id == 1
    oracle = hf_plain(document)
    lines = varied_lines()[:2000]
    assert_equal(ours.encode, oracle, lines)
    for line in lines[::20]:
        ids, stream = ours.encode(line), ours.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids)


PRES: list[Any] = ["gpt-2", "llama4", "default"]
PRES += [pytest.param(p, marks=pytest.mark.slow) for p in ("gpt-4o", "tekken", "llama-bpe", "smollm", "deepseek-coder")]


@pytest.mark.parametrize("pre", PRES)
def test_gguf_pre_tokenizers_cut_as_their_tokenizer_json_does(default_gguf: Path, pre: str) -> None:
    ours = tokenizer_from_gguf(default_metadata(default_gguf) | {"tokenizer.ggml.pre": pre})
    assert_equal(ours.encode, hf_plain(ours.to_tokenizer_json()), varied_lines()[1::9])
    assert ours.to_gguf()["tokenizer.ggml.pre"] == pre


def test_metaspace_and_other_normalisers_run_as_tokenizers_runs_them(llama2: Tokenizer) -> None:
    document: dict[str, Any] = json.loads(json.dumps(llama2.to_tokenizer_json()))
    document["normalizer"] = None
    document["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    ours = tokenizer_from_document(document, {})
    assert not isinstance(ours, SentencePieceBPE)
    assert_equal(ours.encode, hf_plain(document), varied_lines()[1:2000:5])
    assert ours.roles == Roles(1, 2, 0, None, add_bos=True)
    for line in varied_lines()[1:400:7]:
        ids, stream = ours.encode(line), ours.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids, skip_special=True)
