"""The ``tokenizer.json`` of a SentencePiece vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qafila.text.sentencepiece_model import CONTROL, UNKNOWN
from qafila.text.tokenizer_hf import added_token, template_with_bos
from qafila.text.tokenizer_json import LLAMA_DECODER, LLAMA_NORMALIZER

if TYPE_CHECKING:
    from qafila.text.sentencepiece_bpe import SentencePieceBPE


def sentencepiece_json(tokenizer: SentencePieceBPE, merges: Sequence[tuple[str, str]]) -> dict[str, object]:
    """The file, as Hugging Face writes Llama 2's.

    Args:
        tokenizer: the vocabulary.
        merges: the pair that builds each piece, best first.
    """
    model = tokenizer.model
    normalizer, decoder = dict(LLAMA_NORMALIZER), dict(LLAMA_DECODER)
    if not model.add_dummy_prefix:
        normalizer["normalizers"] = LLAMA_NORMALIZER["normalizers"][1:]  # type: ignore[index]
        decoder["decoders"] = LLAMA_DECODER["decoders"][:3]  # type: ignore[index]
    if model.remove_extra_whitespaces:
        steps: list[object] = [
            {"type": "Replace", "pattern": {"Regex": r"\A +"}, "content": ""},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            *normalizer["normalizers"],  # type: ignore[misc]
            {"type": "Replace", "pattern": {"Regex": "\u2581+\\z"}, "content": ""},
        ]
        normalizer["normalizers"] = steps
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(i, piece.text, True) for i, piece in enumerate(model.pieces) if piece.type in (CONTROL, UNKNOWN)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "post_processor": None if bos is None else template_with_bos(tokenizer.token_text(bos), bos),
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if tokenizer.unk_id is None else tokenizer.token_text(tokenizer.unk_id),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: i for i, piece in enumerate(model.pieces)},
            "merges": [list(pair) for pair in merges],
        },
    }
