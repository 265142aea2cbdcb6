"""Log-probabilities in the form of OpenAI's text completions: four lists side by side."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any

from qafila.chat.client import TokenInfo


class Logprobs:
    """Collects the tokens of one answer.

    ``text_offset`` counts characters from the start of the choice's text, the echoed prompt included. A token that is
    no text by itself is named by its bytes (``bytes:\\xe2\\x80``), as OpenAI does. The first token of a prompt has
    neither a log-probability nor likelier ones.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        self._new: list[TokenInfo] = []

    def add(self, tokens: Sequence[TokenInfo]) -> None:
        """More tokens."""
        self._new.extend(tokens)

    def take(self) -> dict[str, Any]:
        """The tokens since the last time."""
        told: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for info in self._new:
            name = _named(info.text, info.data)
            first = math.isnan(info.logprob)
            told["tokens"].append(name)
            told["token_logprobs"].append(None if first else info.logprob)
            told["top_logprobs"].append(None if first else _likeliest(name, info))
            told["text_offset"].append(self._offset)
            data = info.text.encode("utf-8", "replace") if info.data is None else info.data
            self._offset += len(self._decoder.decode(data))
        self._new.clear()
        return told


def _likeliest(name: str, info: TokenInfo) -> dict[str, float]:
    told = {name: info.logprob}
    for _, text, data, logprob in info.top:
        # Two tokens of one text (a special one and its spelling): the likelier is told.
        told.setdefault(_named(text, data), logprob)
    return told


def _named(text: str, data: bytes | None) -> str:
    if data is None:
        return text
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
