"""A tokenizer for tests of chat formats: one token a byte, special tokens, SentencePiece's dummy space if asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qafila.text.tokenizer import Roles, StreamDecoder, Tokenizer

LLAMA2 = ("<s>", "</s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "<step>")
LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
LLAMA4 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eot|>",
    "<|eom|>",
    "<|python_start|>",
    "<|python_end|>",
)
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class ByteTokenizer(Tokenizer):
    def __init__(
        self,
        special: Sequence[str] = (),
        *,
        bos: str | None = None,
        eos: str | None = None,
        add_bos: bool = False,
        dummy_space: bool = False,
    ) -> None:
        self._names = list(special)
        ids = {name: 256 + i for i, name in enumerate(special)}
        roles = Roles(bos_id=ids[bos] if bos else None, eos_id=ids[eos] if eos else None, add_bos=add_bos)
        super().__init__(256 + len(special), ids, roles)
        self._dummy_space = dummy_space

    def _encode(self, text: str, special: bool, continuation: bool) -> list[int]:
        if self._dummy_space and not continuation and text:
            text = " " + text
        pattern = "|".join(map(re.escape, self._names)) or "(?!)"
        pieces = re.split(f"({pattern})", text) if special else [text]
        ids: list[int] = []
        for piece in pieces:
            if special and piece in self.special_tokens:
                ids.append(self.special_tokens[piece])
            else:
                ids.extend(piece.encode())
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        kept = [i for i in ids if i < 256 or not skip_special]
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else self._names[token_id - 256].encode()

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("latin-1") if token_id < 256 else self._names[token_id - 256]

    def token_id(self, text: str) -> int | None:
        if text in self.special_tokens:
            return self.special_tokens[text]
        encoded = text.encode()
        return encoded[0] if len(encoded) == 1 else None

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        raise NotImplementedError

    def to_tokenizer_json(self) -> dict[str, object]:
        raise NotImplementedError

    @property
    def _kind(self) -> str:
        return "a byte tokenizer for tests"


def llama2() -> ByteTokenizer:
    return ByteTokenizer(LLAMA2, bos="<s>", eos="</s>", add_bos=True, dummy_space=True)


def llama3() -> ByteTokenizer:
    return ByteTokenizer(LLAMA3, bos="<|begin_of_text|>", eos="<|end_of_text|>", add_bos=True)


def llama4() -> ByteTokenizer:
    return ByteTokenizer(LLAMA4, bos="<|begin_of_text|>", eos="<|end_of_text|>", add_bos=True)


def chatml() -> ByteTokenizer:
    return ByteTokenizer(CHATML, bos="<|im_start|>", eos="<|im_end|>")
