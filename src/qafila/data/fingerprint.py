"""What tells one tokenizer from another, whatever file each was read from."""

from __future__ import annotations

import hashlib
from typing import Final

from qafila.text.tokenizer import Tokenizer


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer: the bytes of all its tokens, the special ones, and its ids of a few texts.

    Two files of one vocabulary (GGUF, tokenizer.json, tiktoken) have the same. The texts show other merges and another
    way of cutting text into words.
    """
    digest = hashlib.sha256(f"{tokenizer.vocab_size}\n".encode())
    for token_id in range(tokenizer.vocab_size):
        piece = tokenizer.token_bytes(token_id)
        digest.update(len(piece).to_bytes(4, "little") + piece)
    for text, token_id in sorted(tokenizer.special_tokens.items()):
        digest.update(f"{text}\0{token_id}\n".encode())
    for text in _PROBES:
        digest.update(repr(tokenizer.encode(text)).encode())
        digest.update(repr(tokenizer.encode_continuation(text)).encode())
    return digest.hexdigest()


_PROBES: Final = (
    "The quick brown fox doesn't jump over 12,345.67 lazy dogs;  it'LL walk.\n\n\tif (x != 0) { return -1; }  \n",
    "السَّلامُ عليكم ورحمة الله، كيف حالُكم اليوم؟ في عام ١٩٥٥ كتب المؤلِّف 3 كتبٍ.",
    "Ünïcödé — “quotes”… 你好，世界 🐪🐪 \u200f\u200e\u00a0 end",
)
