"""Reading ``tokenizer.json``: structures that are known run on tiktoken's core, any other on ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qafila.errors import TokenizerError
from qafila.text.bpe_core import unspell
from qafila.text.bpe_merges import parse_merges
from qafila.text.bpe_patterns import pre_tokenizer_like
from qafila.text.tokenizer import Roles, Tokenizer
from qafila.text.tokenizer_special import looks_like_control, named_ids

_SPACE = "\u2581"
LLAMA_NORMALIZER: dict[str, object] = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ],
}
LLAMA_DECODER: dict[str, object] = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


def tokenizer_from_document(document: Mapping[str, Any], config: Mapping[str, object]) -> Tokenizer:
    """The tokenizer of a parsed ``tokenizer.json``.

    Args:
        document: the file.
        config: ``tokenizer_config.json`` beside it ({} without): names of BOS, EOS and so on, ``add_bos_token``.

    Raises:
        TokenizerError: the file is damaged.
    """
    model = document.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("tokenizer.json: no 'model' in it")
    added = _added_tokens(document)
    document = {**document, "added_tokens": list(added.values())}
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise TokenizerError("tokenizer.json: it holds half a surrogate pair or is nested too deep; damaged") from None
    roles = _roles(document, config, added)
    if model.get("type", "BPE") == "BPE" and _plain_bpe(model):
        vocab, merges = _vocab(model), _merges(model)
        simple = all(not entry.get(flag) for entry in added.values() for flag in ("single_word", "lstrip", "rstrip"))
        made: Tokenizer | None = None
        if simple and _types(document.get("decoder"), "decoders") == ["ByteLevel"] and not document.get("normalizer"):
            made = _byte_level(document, vocab, merges, added, roles)
        elif simple and document.get("normalizer") == LLAMA_NORMALIZER and document.get("decoder") == LLAMA_DECODER:
            made = _sentencepiece(document, vocab, merges, added, roles)
        if made is not None:
            return made
    from qafila.text.tokenizer_hf import HuggingFaceTokenizer

    return HuggingFaceTokenizer(document, roles)


def _byte_level(
    document: Mapping[str, Any],
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    added: dict[int, dict[str, Any]],
    roles: Roles,
) -> Tokenizer | None:
    pre = pre_tokenizer_like(document.get("pre_tokenizer"))
    model = document["model"]
    if pre is None or model.get("byte_fallback"):
        return None
    tokens = [b""] * (max([*vocab.values(), *added], default=-1) + 1)
    for text, token_id in vocab.items():
        if token_id in added:
            continue
        data = unspell(text)
        if data is None or tokens[token_id]:
            return None
        tokens[token_id] = data
    for token_id, entry in added.items():
        tokens[token_id] = entry["content"].encode("utf-8", "replace")
    if model.get("unk_token") is not None and any(bytes([b]) not in set(tokens) for b in range(256)):
        return None
    from qafila.text.bpe import ByteLevelBPE

    return ByteLevelBPE.from_merges(
        tokens=tokens,
        merges=merges,
        special_tokens={e["content"]: i for i, e in added.items() if e["special"]},
        added_tokens={e["content"]: i for i, e in added.items() if not e["special"]},
        pre=pre,
        ignore_merges=bool(model.get("ignore_merges")),
        roles=roles,
    )


def _sentencepiece(
    document: Mapping[str, Any],
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    added: dict[int, dict[str, Any]],
    roles: Roles,
) -> Tokenizer | None:
    model = document["model"]
    # Hugging Face cuts at added tokens before it prepends the space; only for special ones do we mean the same by it.
    if document.get("pre_tokenizer") is not None or not model.get("byte_fallback") or model.get("ignore_merges"):
        return None
    if any(not e["special"] for e in added.values()) or any(f"<0x{b:02X}>" not in vocab for b in range(256)):
        return None
    from qafila.text.sentencepiece_bpe import SentencePieceBPE

    return SentencePieceBPE.from_merges(vocab, merges, {e["content"]: i for i, e in added.items()}, roles)


def _types(step: object, inner: str) -> list[str]:
    if not isinstance(step, dict):
        return []
    steps = step.get(inner)
    return (
        [str(s.get("type")) for s in steps if isinstance(s, dict)]
        if isinstance(steps, list)
        else [str(step.get("type"))]
    )


def _plain_bpe(model: Mapping[str, Any]) -> bool:
    """No dropout, no word prefixes or suffixes: what Llamas never have."""
    return not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))


def _vocab(model: Mapping[str, Any]) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise TokenizerError("tokenizer.json: 'model.vocab' is no object of tokens and ids")
    if vocab and max(vocab.values()) > 16 * len(vocab) + 65_536:
        raise TokenizerError(f"tokenizer.json: {len(vocab)} tokens, but ids up to {max(vocab.values())}")
    return vocab


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError("tokenizer.json: 'model.merges' is no list")
    return parse_merges(merges, "tokenizer.json: 'model.merges'")


def _added_tokens(document: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    entries = document.get("added_tokens") or []
    added: dict[int, dict[str, Any]] = {}
    vocab = document["model"].get("vocab")
    limit = 65_536 + 16 * (len(vocab) if isinstance(vocab, (dict, list)) else 0)
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("content"), str):
            raise TokenizerError("tokenizer.json: an entry of 'added_tokens' has no id or no content")
        if not 0 <= entry["id"] < limit or not entry["content"] or entry["id"] in added:
            raise TokenizerError(
                f"tokenizer.json: 'added_tokens' has the id {entry['id']} twice, or it is out of range"
            )
        special = bool(entry.get("special")) or looks_like_control(entry["content"])
        added[entry["id"]] = {**entry, "special": special}
    return added


def _roles(document: Mapping[str, Any], config: Mapping[str, object], added: dict[int, dict[str, Any]]) -> Roles:
    model = document["model"]
    vocab = model.get("vocab")
    by_text: dict[str, int] = {t: i for t, i in vocab.items() if type(i) is int} if isinstance(vocab, dict) else {}
    by_text |= {entry["content"]: i for i, entry in added.items()}
    guessed = named_ids({entry["content"]: i for i, entry in added.items() if entry["special"]})
    front = _front_token(document.get("post_processor"))
    found: dict[str, int | None] = {}
    for name in ("bos", "eos", "unk", "pad"):
        text = special_text(config, f"{name}_token")
        found[f"{name}_id"] = by_text.get(text) if text is not None else guessed[f"{name}_id"]
    if not config and front is not None:
        found["bos_id"] = by_text.get(front, found["bos_id"])
    asked = config.get("add_bos_token")
    if not isinstance(asked, bool):
        asked = front is not None and by_text.get(front) == found["bos_id"]
    return Roles(**found, add_bos=asked and found["bos_id"] is not None)


def special_text(config: Mapping[str, object], key: str) -> str | None:
    """The text of a token that ``tokenizer_config.json`` names (``bos_token`` and the like), however it is written."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _front_token(processor: object) -> str | None:
    """The special token that the post-processor puts in front of a text, if it does."""
    if not isinstance(processor, dict):
        return None
    for step in [processor, *(processor.get("processors") or [])]:
        single = step.get("single") if isinstance(step, dict) else None
        if isinstance(single, list) and single and isinstance(single[0], dict):
            token = single[0].get("SpecialToken")
            if isinstance(token, dict) and isinstance(token.get("id"), str):
                name: str = token["id"]
                return name
    return None
