"""Special tokens: finding them in text, and the lists that Llama 3 and Llama 4 add behind their tiktoken ranks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_CONTROL_LOOKING = re.compile(r"<[|｜][^<>\s]{1,64}[|｜]>")  # DeepSeek's bars are full-width


def looks_like_control(text: str) -> bool:
    """Whether a token's text has the form of a control token (``<|im_start|>``), whatever its file says of it.

    Many files list such tokens as plain added ones, which are found in any text: a message could then open a turn.
    """
    return _CONTROL_LOOKING.fullmatch(text) is not None


class TokenFinder:
    """Splits text at given tokens: leftmost first, the longest where several begin at the same place."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._ids = {text: token_id for text, token_id in tokens.items() if text}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def parts(self, text: str) -> Iterator[str | int]:
        """The text between the tokens (never empty) and the tokens' ids, in order."""
        start = 0
        if self._pattern is not None:
            for match in self._pattern.finditer(text):
                if match.start() > start:
                    yield text[start : match.start()]
                yield self._ids[match.group()]
                start = match.end()
        if start < len(text):
            yield text[start:] if start else text


@dataclass(frozen=True)
class TiktokenFamily:
    """What a tiktoken file does not say of itself: the pre-tokenizer's name and the special tokens behind the ranks."""

    pre: str
    specials: tuple[str, ...]
    bos: str
    eos: str
    pad: str


def _reserved(prefix: str, count: int, start: int = 0) -> list[str]:
    return [f"<|{prefix}reserved_special_token_{i}|>" for i in range(start, start + count)]


def llama3_family() -> TiktokenFamily:
    """Llama 3: 256 special tokens (facts: `llama_models/llama3/tokenizer.py`, in the order of their ids)."""
    named = ["<|begin_of_text|>", "<|end_of_text|>", *_reserved("", 2), "<|finetune_right_pad_id|>", "<|step_id|>"]
    named += ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>"]
    specials = named + _reserved("", 256 - len(named), 2)
    return TiktokenFamily("llama-bpe", tuple(specials), named[0], named[1], "<|finetune_right_pad_id|>")


def llama4_family() -> TiktokenFamily:
    """Llama 4: 2,048 special tokens (facts: `llama_models/llama4/tokenizer.py`, in the order of their ids)."""
    basic = ["<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    text = ["<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>", *_reserved("text_post_train_", 6)]
    text += ["<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>", *_reserved("text_post_train_", 61, 8)]
    vision = ["<|image_start|>", "<|image_end|>", *_reserved("vision_", 2)]
    vision += ["<|tile_x_separator|>", "<|tile_y_separator|>", *_reserved("vision_", 4, 2), "<|image|>"]
    vision += [*_reserved("vision_", 1, 6), "<|patch|>", *_reserved("vision_", 1041, 7)]
    reasoning = [*_reserved("reasoning_", 8), "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"]
    named = basic + text + vision + reasoning
    specials = named + _reserved("", 2048 - len(named))
    return TiktokenFamily("llama4", tuple(specials), basic[0], basic[1], "<|finetune_right_pad|>")


def named_ids(specials: Mapping[str, int]) -> dict[str, int | None]:
    """BOS, EOS and padding of a vocabulary that says nothing about them, by the names that Llamas use."""
    candidates = {
        "bos_id": ("<|begin_of_text|>", "<s>", "<bos>"),
        "eos_id": ("<|end_of_text|>", "</s>", "<|endoftext|>", "<eos>"),
        "pad_id": ("<|finetune_right_pad_id|>", "<|finetune_right_pad|>", "<pad>"),
        "unk_id": ("<unk>",),
    }
    return {
        role: next((specials[text] for text in texts if text in specials), None) for role, texts in candidates.items()
    }
