"""The tokenizer metadata of GGUF files (``tokenizer.ggml.*``), both ways; key names as in ggml's `docs/gguf.md`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qafila.errors import TokenizerError
from qafila.native import _native
from qafila.text.bpe_core import spell
from qafila.text.bpe_merges import SpelledMerges
from qafila.text.bpe_patterns import pre_tokenizer_named
from qafila.text.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
)
from qafila.text.tokenizer import Roles, Tokenizer
from qafila.text.tokenizer_special import looks_like_control

if TYPE_CHECKING:
    from qafila.text.bpe import ByteLevelBPE
    from qafila.text.sentencepiece_bpe import SentencePieceBPE

_PREFIX = "tokenizer.ggml."


def tokenizer_from_metadata(metadata: Mapping[str, object]) -> Tokenizer:
    """See `qafila.text.tokenizer.tokenizer_from_gguf`."""
    keys = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
    kind = keys.get("model")
    texts = _list(keys, "tokens", str)
    if not texts:
        raise TokenizerError("tokenizer.ggml.tokens: empty, so there is no vocabulary")
    types = _list(keys, "token_type", int) if keys.get("token_type") is not None else [NORMAL] * len(texts)
    if len(types) != len(texts):
        raise TokenizerError(f"tokenizer.ggml.token_type: {len(types)} entries for {len(texts)} tokens")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise TokenizerError("tokenizer.ggml.tokens: a token is no Unicode text; the file is damaged") from None
    if kind == "llama":
        return _sentencepiece(keys, texts, types)
    if kind == "gpt2":
        return _byte_level(keys, texts, types)
    raise TokenizerError(f"tokenizer.ggml.model: {str(kind)[:60]!r} is not a kind that a Llama has ('llama' or 'gpt2')")


def _sentencepiece(keys: Mapping[str, object], texts: list[str], types: list[int]) -> Tokenizer:
    from qafila.text.sentencepiece_bpe import SentencePieceBPE

    scores = _list(keys, "scores", float)
    if len(scores) != len(texts):
        raise TokenizerError(f"tokenizer.ggml.scores: {len(scores)} entries for {len(texts)} tokens")
    bad = next((i for i, kind in enumerate(types) if not NORMAL <= kind <= BYTE or not _is_float32(scores[i])), None)
    if bad is not None:
        raise TokenizerError(f"tokenizer.ggml.token_type: token {bad} has the unknown type {types[bad]}, or no score")
    # A token without text can never be found; as an ordinary piece it would be found everywhere.
    pieces = [
        Piece(t, s, k) if t else Piece(f"[unused {i}]", 0.0, CONTROL)
        for i, (t, s, k) in enumerate(zip(texts, scores, types, strict=True))
    ]
    if all(piece.type != UNKNOWN for piece in pieces) and pieces[0].text == "<unk>":
        pieces[0] = Piece("<unk>", pieces[0].score, UNKNOWN)
    roles = _roles(keys, len(texts), add_bos=True)
    model = SentencePieceModel(
        tuple(pieces),
        add_dummy_prefix=_flag(keys, "add_space_prefix", True),
        remove_extra_whitespaces=_flag(keys, "remove_extra_whitespaces", False),
    )
    return SentencePieceBPE(model, roles)


def _byte_level(keys: Mapping[str, object], texts: list[str], types: list[int]) -> Tokenizer:
    from qafila.text.bpe import ByteLevelBPE

    name = keys.get("pre", "default")
    if not isinstance(name, str):
        raise TokenizerError("tokenizer.ggml.pre: no text")
    pre = pre_tokenizer_named(name)
    merges = SpelledMerges(_list(keys, "merges", str), "tokenizer.ggml.merges")
    roles = _roles(keys, len(texts), add_bos=pre.add_bos)
    spelled = _native.unspell(texts)
    special: dict[str, int] = {}
    added: dict[str, int] = {}
    tokens = [data or b"" for data in spelled]
    # Nearly all tokens are ordinary ones; the loop is for the others.
    others = [i for i, (data, kind) in enumerate(zip(spelled, types, strict=True)) if kind != NORMAL or not data]
    for i in others:
        text, kind, data = texts[i], types[i], spelled[i]
        control = kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and looks_like_control(text))
        if control or (kind == NORMAL and data is None):
            # Some converters call their control tokens normal; what no bytes can spell is one.
            special[text] = i
        elif kind == USER_DEFINED:
            added[text] = i
        ordinary = kind in (NORMAL, BYTE) and data is not None
        unused = kind == UNUSED or not text
        tokens[i] = b"" if unused else data if ordinary and data is not None else text.encode("utf-8", "replace")
    special.pop("", None)
    added.pop("", None)
    made = ByteLevelBPE.from_merges(
        tokens=tokens,
        merges=merges,
        special_tokens=special,
        added_tokens=added,
        pre=pre,
        ignore_merges=pre.ignore_merges,
        roles=roles,
    )
    if made is not None:
        return made
    from qafila.text.tokenizer_hf import HuggingFaceTokenizer, byte_level_document

    document = byte_level_document(tokens, special, added, pre.spec, merges, pre.ignore_merges, roles)
    return HuggingFaceTokenizer(document, roles, dict(_text_keys(keys)))


def _text_keys(keys: Mapping[str, object]) -> dict[str, object]:
    return {_PREFIX + key: value for key, value in keys.items()}


def _list(keys: Mapping[str, object], name: str, kind: type) -> list[Any]:
    value = keys.get(name)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TokenizerError(f"tokenizer.ggml.{name}: missing, or no list")
    values = list(value)
    if not all(issubclass(found, kind) for found in set(map(type, values))):
        raise TokenizerError(f"tokenizer.ggml.{name}: an entry has the wrong type")
    return values


def _is_float32(score: float) -> bool:
    return not math.isnan(score) and (abs(score) < 3.4028235e38 or math.isinf(score))


def _flag(keys: Mapping[str, object], name: str, default: bool) -> bool:
    value = keys.get(name, default)
    if not isinstance(value, (bool, int)):
        raise TokenizerError(f"tokenizer.ggml.{name}: {str(value)[:60]!r} is neither true nor false")
    return bool(value)


def _roles(keys: Mapping[str, object], size: int, add_bos: bool) -> Roles:
    found: dict[str, int | None] = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        value = keys.get(f"{name}_token_id")
        if value is not None and type(value) is not int:
            raise TokenizerError(f"tokenizer.ggml.{name}_token_id: {str(value)[:60]!r} is no id")
        # Writers put -1, or 2³²-1, for "none".
        found[f"{role}_id"] = None if value is None or value in (-1, 0xFFFF_FFFF) else value
    asked = _flag(keys, "add_bos_token", add_bos and found["bos_id"] is not None)
    return Roles(**found, add_bos=asked)


def _metadata(tokenizer: Tokenizer, model: str, texts: list[str], types: list[int]) -> dict[str, object]:
    keys: dict[str, object] = {"model": model, "tokens": texts, "token_type": types}
    ids = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    for role, name in ids:
        value = getattr(tokenizer, f"{role}_id")
        if value is not None:
            keys[f"{name}_token_id"] = value
    for name, token in (("eot", "<|eot_id|>"), ("eot", "<|eot|>"), ("eom", "<|eom_id|>"), ("eom", "<|eom|>")):
        if token in tokenizer.special_tokens:
            keys[f"{name}_token_id"] = tokenizer.special_tokens[token]
    keys["add_bos_token"] = tokenizer.add_bos
    return keys


def byte_level_metadata(tokenizer: ByteLevelBPE) -> dict[str, object]:
    """The metadata of a byte-level vocabulary."""
    control = set(tokenizer.special_tokens.values())
    added = set(tokenizer.added_tokens.values())
    texts, types = [], []
    for i in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(i)
        kind = CONTROL if i in control else USER_DEFINED if i in added else NORMAL if data else UNUSED
        types.append(kind)
        texts.append(spell(data) if kind == NORMAL else data.decode() if data else f"[PAD{i}]")
    keys = _metadata(tokenizer, "gpt2", texts, types)
    keys |= {"pre": tokenizer.gguf_pre, "merges": [f"{a} {b}" for a, b in tokenizer.merges], "add_space_prefix": False}
    return {_PREFIX + key: value for key, value in keys.items()}


def sentencepiece_metadata(tokenizer: SentencePieceBPE) -> dict[str, object]:
    """The metadata of a SentencePiece vocabulary."""
    pieces = tokenizer.model.pieces
    keys = _metadata(tokenizer, "llama", [piece.text for piece in pieces], [piece.type for piece in pieces])
    keys |= {
        "pre": "default",
        "scores": [piece.score for piece in pieces],
        "add_space_prefix": tokenizer.model.add_dummy_prefix,
        "remove_extra_whitespaces": tokenizer.model.remove_extra_whitespaces,
    }
    return {_PREFIX + key: value for key, value in keys.items()}
