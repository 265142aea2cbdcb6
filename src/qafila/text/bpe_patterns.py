"""How byte-level BPE cuts text into pieces before it merges: the patterns of Llama checkpoints, under all their names.

Each one is written twice: as one regular expression for tiktoken's core, and as the ``pre_tokenizer`` of a
``tokenizer.json``. The two are held together by tests over every Unicode character and thousands of lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from qafila.errors import TokenizerError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

# Llama 3 (llama_models/llama3/tokenizer.py), Llama 4 and o200k (llama4/tokenizer.py), GPT-2 (openai/gpt-2 encoder.py).
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits one by one, then GPT-2 on what lies between: the spaces in front of a digit are the end of their stretch, so
# all of them are one piece, where GPT-2 alone would leave the last one out.
DIGITS_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"

_BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_BYTES_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(*patterns: str) -> dict[str, object]:
    splits: list[object] = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, dict(_BYTES_ONLY)]}


@dataclass(frozen=True)
class PreTokenizer:
    """One way to cut text into pieces.

    Attributes:
        names: its names in ``tokenizer.ggml.pre``; the first is the one that is written.
        pattern: one regular expression for tiktoken's core; None where it takes several passes (on ``tokenizers``).
        spec: the ``pre_tokenizer`` of a ``tokenizer.json``.
        ignore_merges: a piece that is a token is that token, whatever the merges say (as tiktoken does).
        add_bos: GGUF files of this kind want a BOS even where they do not say so.
    """

    names: tuple[str, ...]
    pattern: str | None
    spec: dict[str, object]
    ignore_merges: bool = False
    add_bos: bool = False


@cache
def pre_tokenizers() -> tuple[PreTokenizer, ...]:
    """All that are known; names as in llama.cpp's `llama-vocab.cpp`."""
    digits: dict[str, object] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, dict(_BYTES_GPT2)],
    }
    return (
        PreTokenizer(("llama-bpe", "llama3", "llama-v3"), LLAMA3, _split(LLAMA3), ignore_merges=True, add_bos=True),
        # llama.cpp merges here even where the piece is a token; Meta's tokenizer, which is tiktoken, does not.
        PreTokenizer(("llama4",), O200K, _split(O200K), ignore_merges=True),
        PreTokenizer(("gpt-4o",), O200K, _split(O200K)),
        PreTokenizer(("tekken",), TEKKEN, _split(TEKKEN), ignore_merges=True, add_bos=True),
        PreTokenizer(("smollm", "starcoder", "refact", "command-r", "codeshell"), DIGITS_GPT2, digits),
        PreTokenizer(("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "mellum"), GPT2, dict(_BYTES_GPT2)),
        PreTokenizer(
            ("deepseek-coder",),
            None,
            _split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
        ),
        PreTokenizer(
            ("default",),
            None,
            _split(r"[\p{P}\$\+<=>\^~\|]+", GPT2.removesuffix(r"|\s+"), r"\p{N}+", r"[0-9][0-9][0-9]"),
        ),
    )


def pre_tokenizer_named(name: str) -> PreTokenizer:
    """The one that ``tokenizer.ggml.pre`` means.

    Raises:
        TokenizerError: the name is not known.
    """
    for known in pre_tokenizers():
        if name in known.names:
            return known
    names = ", ".join(name for known in pre_tokenizers() for name in known.names)
    raise TokenizerError(
        f"tokenizer.ggml.pre: {name[:60]!r} is not a known pre-tokenizer ({names}); use the checkpoint's tokenizer.json"
    )


def pre_tokenizer_like(spec: object) -> PreTokenizer | None:
    """The known one that a ``tokenizer.json`` describes, if it is one."""
    wanted = _plain(spec)
    return next((known for known in pre_tokenizers() if _plain(known.spec) == wanted), None)


def _plain(spec: object) -> object:
    """``spec`` without what does not change ids: offsets, one-element sequences, keys left to their defaults."""
    if not isinstance(spec, dict):
        return spec
    if spec.get("type") == "Sequence" and isinstance(spec.get("pretokenizers"), list):
        steps = [_plain(step) for step in spec["pretokenizers"]]
        return steps[0] if len(steps) == 1 else steps
    plain = {key: value for key, value in spec.items() if key != "trim_offsets"}
    if plain.get("type") == "ByteLevel":
        plain.setdefault("use_regex", True)
    return plain
