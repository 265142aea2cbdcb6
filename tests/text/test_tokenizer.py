"""The Tokenizer's promises: one BOS, special text is plain text, exact decoding and streaming, no crash on any file."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.errors import ModelNotFoundError, QafilaError, TokenizerError
from qafila.text.bpe_core import byte_alphabet
from qafila.text.sentencepiece_bpe import SentencePieceBPE
from qafila.text.sentencepiece_model import Piece, SentencePieceModel, parse_model, write_model
from qafila.text.tokenizer import Roles, Tokenizer, load_tokenizer, tokenizer_from_gguf
from qafila.text.tokenizer_files import tokenizer_from_bytes, tokenizer_from_tiktoken
from qafila.text.tokenizer_json import tokenizer_from_document


@cache
def tiktoken_data() -> bytes:
    """A tiktoken file of Llama 3's kind with a few merges, Arabic among them."""
    tokens = [bytes([b]) for b in range(256)]
    tokens += [b"he", b"ll", b"llo", b"hello", b" w", "م".encode(), "ر".encode(), "مر".encode(), b"  ", b"10"]
    return b"\n".join(base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)) + b"\n"


@cache
def bytes_tokenizer() -> Tokenizer:
    return tokenizer_from_tiktoken(tiktoken_data())


@cache
def sentencepiece_data() -> bytes:
    pieces = [Piece("<unk>", 0.0, 2), Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3)]
    pieces += [Piece(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    words = ["▁h", "el", "lo", "▁hel", "▁hello", "▁w", "▁▁", "مر"]
    pieces += [Piece(word, -float(n)) for n, word in enumerate(words)]
    pieces += [Piece(letter, -50.0 - n) for n, letter in enumerate("▁helowمر")]
    return write_model(SentencePieceModel(tuple(pieces)))


@cache
def pieces_tokenizer() -> SentencePieceBPE:
    return SentencePieceBPE.from_model(parse_model(sentencepiece_data()))


@cache
def byte_document() -> str:
    return json.dumps(bytes_tokenizer().to_tokenizer_json())


@cache
def pieces_document() -> str:
    return json.dumps(pieces_tokenizer().to_tokenizer_json())


@cache
def kinds() -> dict[str, Tokenizer]:
    """One small tokenizer of each implementation."""
    other = json.loads(byte_document())
    other["normalizer"] = {"type": "NFC"}
    return {"bytes": bytes_tokenizer(), "pieces": pieces_tokenizer(), "any": tokenizer_from_document(other, {})}


KINDS = ["bytes", "pieces", "any"]
BOS_TEXT = {"bytes": "<|begin_of_text|>", "pieces": "<s>", "any": "<|begin_of_text|>"}


@pytest.mark.parametrize("kind", KINDS)
def test_one_bos_where_it_is_asked_for_and_never_two(kind: str) -> None:
    ours, bos = kinds()[kind], BOS_TEXT[kind]
    assert ours.add_bos
    plain = ours.encode("hello")
    assert ours.encode("hello", bos=True) == [ours.bos_id, *plain]
    assert ours.encode(bos + "hello", bos=True, special=True) == [ours.bos_id, *plain]
    assert ours.encode("", bos=True) == [ours.bos_id]
    assert ours.bos_id not in ours.encode(bos + "hello", bos=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_asks_for_no_bos_gets_none(kind: str) -> None:
    document = json.loads(pieces_document() if kind == "pieces" else byte_document())
    if kind == "any":
        document["normalizer"] = {"type": "NFC"}
    ours = tokenizer_from_document(document, {"bos_token": BOS_TEXT[kind], "add_bos_token": False})
    assert ours.bos_id is not None
    assert not ours.add_bos
    assert ours.encode("hello", bos=True) == ours.encode("hello")


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_looks_special_is_plain_unless_asked_for(kind: str) -> None:
    ours = kinds()[kind]
    control = set(ours.special_tokens.values())
    for text, token_id in list(ours.special_tokens.items())[:20]:
        line = f"hello {text}hello"
        plain = ours.encode(line)
        assert not control & set(plain), text
        assert ours.decode(plain) == line
        assert ours.encode(line, special=True).count(token_id) == 1
        assert ours.decode([token_id], skip_special=True) in ("", " ⁇ ")
        assert ours.token_id(text) == token_id
        assert ours.token_text(token_id) == text


def test_the_longest_special_token_wins() -> None:
    document = json.loads(byte_document())
    size = bytes_tokenizer().vocab_size
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document["added_tokens"] += [{"id": size, "content": "<|a", **flags}, {"id": size + 1, "content": "<|a|>", **flags}]
    ours = tokenizer_from_document(document, {})
    assert ours.encode("<|a|><|a", special=True) == [size + 1, size]


def test_added_tokens_that_are_not_special_are_found_always() -> None:
    document = json.loads(byte_document())
    size = bytes_tokenizer().vocab_size
    document["added_tokens"].append(
        {"id": size, "content": "hell", "single_word": False, "lstrip": False, "rstrip": False, "special": False}
    )
    ours = tokenizer_from_document(document, {})
    assert type(ours) is type(bytes_tokenizer())
    assert ours.encode("hello")[0] == size
    assert "hell" not in ours.special_tokens
    assert ours.decode([size], skip_special=True) == "hell"
    assert tokenizer_from_gguf(ours.to_gguf() | {"tokenizer.ggml.pre": "llama-bpe"}).encode("hello")[0] == size


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_decoding_gives_the_text_back(kind: str, text: str) -> None:
    ours = kinds()[kind]
    expected = text.replace("▁", " ") if kind == "pieces" else text
    if kind == "any":
        import unicodedata

        expected = unicodedata.normalize("NFC", text)
    if kind == "any" and ours.decode(ours.encode(text)) != expected:
        assert any(unicodedata.category(c) == "Cn" for c in text)  # newer characters than this Python knows
        return
    assert ours.decode(ours.encode(text)) == expected


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_streaming_joins_to_the_whole_and_shows_no_half_character(kind: str, data: st.DataObject) -> None:
    ours = kinds()[kind]
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=12))
    if data.draw(st.booleans()):
        ids += ours.encode(data.draw(st.text(alphabet="مرحبا😀é中 hello", max_size=20)))
    skip = data.draw(st.booleans())
    stream = ours.stream(skip_special=skip)
    for _ in range(2):  # a finished decoder is as new
        shown = [stream.push(i) for i in ids] + [stream.finish()]
        assert "".join(shown) == ours.decode(ids, skip_special=skip)


@pytest.mark.parametrize("kind", KINDS)
def test_streaming_holds_back_until_a_character_is_whole(kind: str) -> None:
    ours = kinds()[kind]
    stream = ours.stream()
    shown = [stream.push(i) for i in ours.encode("😀é中")]
    assert "\ufffd" not in "".join(shown)
    assert "".join(shown) == "😀é中"
    assert "" in shown
    stream, ids = ours.stream(), ours.encode_continuation("😀")[:-1]
    assert stream.push(ids[0]) == ""
    assert "\ufffd" in "".join(map(stream.push, ids[1:])) + stream.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_token_bytes_join_to_the_text(kind: str) -> None:
    ours = kinds()[kind]
    text = "hello مرحبا 😀 10"
    joined = b"".join(map(ours.token_bytes, ours.encode(text))).decode()
    assert joined == (" " + text if kind == "pieces" else text)


def test_going_on_from_earlier_tokens_adds_no_space() -> None:
    ours = pieces_tokenizer()
    assert [ours.token_text(i) for i in ours.encode("hello")] == ["▁hello"]
    assert "".join(ours.token_text(i) for i in ours.encode_continuation("hello")) == "hello"
    assert ours.encode_continuation(" hello") == ours.encode("hello")
    assert bytes_tokenizer().encode_continuation("hello") == bytes_tokenizer().encode("hello")


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_refused(kind: str) -> None:
    with pytest.raises(TokenizerError, match=r"character 2 is U\+D83D"):
        kinds()[kind].encode("ab\ud83d")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [-1, 10**9])
def test_ids_outside_the_vocabulary_are_refused(kind: str, wrong: int) -> None:
    ours = kinds()[kind]
    for use in (lambda: ours.decode([0, wrong]), lambda: ours.token_bytes(wrong), lambda: ours.stream().push(wrong)):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            use()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["a", " ", "\n", "م", "1", " \t"])
def test_a_megabyte_of_one_thing_is_no_trouble(kind: str, unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    ours = kinds()[kind]
    assert ours.decode(ours.encode(text)) == text


def test_a_tokenizer_may_be_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_data())
    assert load_tokenizer(tmp_path).encode("hello") == pieces_tokenizer().encode("hello")
    (tmp_path / "oddly.named").write_bytes(tiktoken_data())
    assert load_tokenizer(tmp_path / "oddly.named").encode("hello") == bytes_tokenizer().encode("hello")
    (tmp_path / "tokenizer.json").write_text(byte_document())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|eot_id|>"}, "add_bos_token": False})
    )
    opened = load_tokenizer(tmp_path)
    assert opened.eos_id == opened.special_tokens["<|eot_id|>"]
    assert not opened.add_bos


def test_exports_of_small_tokenizers_read_back() -> None:
    for ours in (bytes_tokenizer(), pieces_tokenizer()):
        write = ours.to_sentencepiece if isinstance(ours, SentencePieceBPE) else ours.to_tiktoken
        document = json.loads(json.dumps(ours.to_tokenizer_json()))
        for other in (
            tokenizer_from_bytes(write()),
            tokenizer_from_document(document, ours.to_tokenizer_config()),
            tokenizer_from_gguf(ours.to_gguf()),
        ):
            assert type(other) is type(ours)
            assert other.roles == ours.roles
            for text in ("hello  hello 10", "مرحبا", "<s>\n"):
                assert other.encode(text, bos=True, special=True) == ours.encode(text, bos=True, special=True)
    with pytest.raises(TokenizerError, match="no SentencePiece vocabulary"):
        bytes_tokenizer().to_sentencepiece()
    with pytest.raises(TokenizerError, match="tiktoken"):
        pieces_tokenizer().to_tiktoken()


BAD_FILES = {
    "empty": (b"", "empty"),
    "text": (b"hello there\nthis is a poem\n", "line 1"),
    "json that is a list": (b'{"model": [', "damaged"),
    "no model": (b"{}", "no 'model'"),
    "deep": (b'{"a":' * 100_000, "damaged"),
    "gguf": (b"GGUF\3\0\0\0", "GGUF"),
    "huge field": (b"\n\xff\xff\xff\xff\x0f", "cut short"),
    "endless varint": (b"\n" + b"\xff" * 40, "cut short"),
    "huge rank": (b"IQ== 999999999\n", "ranks"),
    "same token twice": (b"IQ== 0\nIQ== 1\n", "line 2"),
    "huge id": (b'{"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}', "ids up to"),
    "huge added id": (b'{"model": {"vocab": {}}, "added_tokens": [{"id": 999999999, "content": "x"}]}', "out of range"),
    "merge of no tokens": (
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}, "decoder": {"type": "ByteLevel"},'
        b' "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}}',
        "not made of tokens",
    ),
    "surrogate": (b'{"model": {"type": "BPE", "vocab": {"\\ud800": 0}, "merges": []}}', "surrogate"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, name: str) -> None:
    data, reason = BAD_FILES[name]
    file = tmp_path / "tokenizer.json"
    file.write_bytes(data)
    with pytest.raises(TokenizerError, match=reason) as caught:
        load_tokenizer(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert len(str(caught.value)) < 600


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.model"):
        with pytest.raises(ModelNotFoundError, match=r"tokenizer\.model"):
            load_tokenizer(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "bert"}, "bert"),
        ({"tokens": None}, "tokens"),
        ({"tokens": []}, "empty"),
        ({"token_type": [1]}, "token_type"),
        ({"merges": ["a"]}, "no pair"),
        ({"merges": None}, "merges"),
        ({"pre": "wonderful"}, "wonderful"),
        ({"bos_token_id": 10**9}, "bos id"),
        ({"bos_token_id": "one"}, "bos_token_id"),
        ({"add_bos_token": "yes"}, "add_bos_token"),
    ],
)
def test_bad_gguf_metadata_names_the_key(changes: dict[str, Any], reason: str) -> None:
    metadata = bytes_tokenizer().to_gguf() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(TokenizerError, match=reason):
        tokenizer_from_gguf(metadata)


def use(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello  مر 10\x00😀<s>", bos=True, special=True)
    tokenizer.decode(ids)
    stream = tokenizer.stream()
    assert isinstance("".join(map(stream.push, ids)) + stream.finish(), str)
    for write in (
        tokenizer.to_tokenizer_json,
        tokenizer.to_tokenizer_config,
        tokenizer.to_gguf,
        tokenizer.to_sentencepiece,
    ):
        try:
            write()
        except QafilaError:
            continue


def loads_or_is_an_error(load: Callable[[], Tokenizer]) -> None:
    line = ""
    try:
        use(load())
    except QafilaError as error:
        line = str(error)
    assert "\n" not in line


def mutated(data: bytes, seed: int) -> bytes:
    draw = random.Random(seed)
    out = bytearray(data)
    for _ in range(draw.randrange(1, 6)):
        at, how = draw.randrange(len(out) + 1), draw.randrange(4)
        if how == 0:
            out[at : at + 1] = bytes([draw.randrange(256)])
        elif how == 1:
            del out[at : at + draw.choice([1, 2, 50, len(out)])]
        elif how == 2:
            out[at:at] = out[draw.randrange(len(out) + 1) :][: draw.randrange(60)]
        else:
            out[at : at + 2] = draw.choice([b"\xff\xff", b"\x80\x80", b"99", b'""', b"{}", b"\0\0"])
        if not out:
            break
    return bytes(out)


@pytest.mark.parametrize("kind", ["tiktoken", "sentencepiece", "byte json", "pieces json"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_mutated_file_loads_or_is_an_error(kind: str, seed: int) -> None:
    data = {
        "tiktoken": tiktoken_data,
        "sentencepiece": sentencepiece_data,
        "byte json": lambda: byte_document().encode(),
        "pieces json": lambda: pieces_document().encode(),
    }[kind]()
    loads_or_is_an_error(lambda: tokenizer_from_bytes(mutated(data, seed)))


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 10**12),
    st.floats(),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.just([[]]),
)


@pytest.mark.parametrize("kind", ["byte json", "pieces json"])
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_tokenizer_json_with_any_value_anywhere_loads_or_is_an_error(kind: str, data: st.DataObject) -> None:
    document = json.loads(byte_document() if kind == "byte json" else pieces_document())
    node: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
        if isinstance(node[key], (dict, list)) and node[key] and data.draw(st.integers(0, 3)):
            node = node[key]
            continue
        node[key] = data.draw(ANYTHING)
        break
    config = data.draw(
        st.dictionaries(st.sampled_from(["bos_token", "eos_token", "add_bos_token", "unk_token"]), ANYTHING)
    )
    loads_or_is_an_error(lambda: tokenizer_from_document(document, config))


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_gguf_metadata_with_any_value_anywhere_loads_or_is_an_error(kind: str, data: st.DataObject) -> None:
    metadata = dict(kinds()[kind].to_gguf())
    key = data.draw(st.sampled_from(sorted(metadata)))
    value = metadata[key]
    if isinstance(value, list) and value and data.draw(st.booleans()):
        value = list(value)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(value) - 1))
            value[at] = data.draw(st.one_of(ANYTHING, st.sampled_from(value), st.integers(0, 7), st.just("\udc80")))
        metadata[key] = value
    else:
        metadata[key] = data.draw(ANYTHING)
    loads_or_is_an_error(lambda: tokenizer_from_gguf(metadata))


def test_a_byte_that_the_vocabulary_lacks_is_dropped_as_tokenizers_drops_it() -> None:
    texts = [letter for b, letter in enumerate(byte_alphabet()) if b != 0x07]
    document = {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate([*texts, "ab"])}, "merges": ["a b"]},
    }
    ours = tokenizer_from_document(document, {})
    assert type(ours) is type(bytes_tokenizer())
    assert ours.decode(ours.encode("xab\x07y")) == "xaby"
    assert ours.roles == Roles()


@pytest.mark.parametrize("token", ["<|im_start|>", "<\uff5cUser\uff5c>"])
def test_control_tokens_listed_as_plain_ones_are_still_control_tokens(token: str) -> None:
    """Files that call them plain added tokens would let any text open a turn."""
    document = json.loads(byte_document())
    size = 1 + max(entry["id"] for entry in document["added_tokens"])
    document["added_tokens"].append({**document["added_tokens"][0], "id": size, "content": token, "special": False})
    metadata = dict(bytes_tokenizer().to_gguf())
    for key, value in (("tokens", token), ("token_type", 4)):
        metadata[f"tokenizer.ggml.{key}"] = [*metadata[f"tokenizer.ggml.{key}"], value]  # type: ignore[misc]
    unusual = {**document, "normalizer": {"type": "NFC"}}
    pieces = parse_model(sentencepiece_data()).pieces
    with_pieces = SentencePieceBPE.from_model(SentencePieceModel((*pieces, Piece(token, 0.0, 4))))
    files = [tokenizer_from_document(document, {}), tokenizer_from_gguf(metadata), with_pieces]
    for tokenizer in (*files, tokenizer_from_document(unusual, {})):
        token_id = tokenizer.special_tokens[token]
        assert token_id not in tokenizer.encode(f"a{token}b")
        assert tokenizer.encode(f"a{token}b", special=True).count(token_id) == 1
        assert tokenizer.decode(tokenizer.encode(f"a{token}b")) == f"a{token}b"
