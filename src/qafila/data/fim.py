"""Infilling as Code Llama learned it (arXiv 2308.12950 section 2.3, after arXiv 2207.14255)."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

from qafila.data.encode import Document, EncoderSettings, TextEncoder, Unit
from qafila.data.forms import Example
from qafila.errors import ChatError, UsageError
from qafila.text.formats_llama2 import CodeLlamaInfill
from qafila.text.tokenizer import Tokenizer


class InfillEncoder(TextEncoder):
    """Texts, most of them with their middle moved to the end.

    Of the documents that a row does not cut, ``fim_rate`` are cut at two characters chosen uniformly. ``fim_spm`` of
    those are written suffix-prefix-middle, the rest prefix-suffix-middle, in the tokens of `CodeLlamaInfill`, so that
    what is learned is what infilling asks for; the middle ends with EOT. The marks themselves are no targets. A
    document's cuts depend on its text and the seed alone.

    Raises:
        UsageError: the tokenizer has no infilling tokens.
    """

    def __init__(self, settings: EncoderSettings, tokenizer: Tokenizer) -> None:
        super().__init__(settings, tokenizer)
        try:
            self._infill = CodeLlamaInfill(tokenizer)
        except ChatError as error:
            raise UsageError(f"objective fim: {error}") from None
        self._end = self._infill.stop_ids[0]
        marks = self._infill.infill("", "")  # PRE, SUF and MID, and the BOS where there is one
        self._marks = np.array(marks, dtype=np.uint32)

    def _units(self, example: Example) -> list[Unit]:
        plain = self.ids(example)
        whole = example.first and example.last and len(plain) <= self.settings.sequence
        random = np.random.default_rng(_seed(self.settings.seed, example.text))
        if not whole or len(example.text) < 2 or random.random() >= self.settings.fim_rate:
            return self.split(plain)
        ids = self.rearranged(example.text, *sorted(random.integers(0, len(example.text) + 1, 2).tolist()),
                              spm=bool(random.random() < self.settings.fim_spm))  # fmt: skip
        if len(ids) > self.settings.sequence:
            return self.split(plain)  # the marks made it too long
        array = np.array(ids, dtype=np.uint32)
        mask = ~np.isin(array, self._marks)
        mask[0] = False
        return [(Document(array, mask),)]

    def rearranged(self, text: str, start: int, end: int, *, spm: bool) -> list[int]:
        """Tokens of a text whose characters ``start:end`` are the middle."""
        prompt = self._infill.infill(text[:start], text[end:], spm=spm)
        return [*prompt, *self.tokenizer.encode_continuation(text[start:end]), self._end]


def _seed(seed: int, text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=16, key=seed.to_bytes(_SEED_BYTES, "little", signed=False))
    return int.from_bytes(digest.digest(), "little")


_SEED_BYTES: Final = 16
