"""One answer of a local request on its way: engine tokens in, a client's events out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from qafila.chat.client import CallPiece, Event, Finished, FinishReason, TextPiece, TokenInfo
from qafila.engine.request import Token
from qafila.text.call_stream import CallDelta, CallStream, TextDelta
from qafila.text.messages import Message, ToolCall
from qafila.text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Call:
    """A tool call as far as it has come."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class Answer:
    """Makes the events of one answer.

    Args:
        number: of the answer. tokenizer: of the model.
        calls: tells tool calls from prose; None where there are no tools.
        logprobs: whether pieces carry their tokens.
    """

    def __init__(
        self,
        number: int,
        tokenizer: Tokenizer,
        *,
        calls: CallStream | None,
        logprobs: bool,
    ) -> None:
        self._number = number
        self._tokenizer = tokenizer
        self._calls = calls
        self._logprobs = logprobs
        self._ids: list[int] = []
        self._text: list[str] = []
        self._made: dict[int, _Call] = {}

    def push(self, token: Token, stop_string: Callable[[], str | None]) -> list[Event]:
        """The events that one more token makes; the last one ends with `Finished`."""
        self._ids.append(token.id)
        infos = (describe(token, self._tokenizer),) if self._logprobs else ()
        pieces: list[TextPiece | CallPiece] = []
        if self._calls is None:
            if token.text or infos:
                self._text.append(token.text)
                pieces.append(TextPiece(self._number, token.text, infos))
        else:
            deltas = self._calls.push(token.text) if token.text else []
            if token.finish_reason is not None:
                deltas += self._calls.finish()
            pieces += [self._piece(delta) for delta in deltas]
            if infos:
                pieces[:1] = [replace(pieces[0], tokens=infos) if pieces else TextPiece(self._number, "", infos)]
        events: list[Event] = list(pieces)
        if token.finish_reason is not None:
            events.append(self._finished(token.finish_reason, stop_string()))
        return events

    def _piece(self, delta: TextDelta | CallDelta) -> TextPiece | CallPiece:
        if isinstance(delta, CallDelta):
            if delta.index not in self._made:
                self._made[delta.index] = _Call(delta.id or "", delta.name or "")
            self._made[delta.index].arguments.append(delta.arguments)
            return CallPiece(self._number, delta.index, delta.id, delta.name, delta.arguments)
        self._text.append(delta.text)
        return TextPiece(self._number, delta.text)

    def _finished(self, reason: str, stop_string: str | None) -> Finished:
        calls = tuple(
            ToolCall(call.id, call.name, arguments)
            for call in self._made.values()
            if (arguments := _arguments("".join(call.arguments))) is not None
        )
        message = Message("assistant", "".join(self._text), tool_calls=calls, ids=tuple(self._ids))
        ended: FinishReason = "length" if reason == "length" else "tool_calls" if self._made else "stop"
        return Finished(self._number, ended, message, stop_string)


def _arguments(text: str) -> dict[str, Any] | None:
    """The arguments of a call; None of one that was cut short."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def describe(token: Token, tokenizer: Tokenizer) -> TokenInfo:
    """A token as log-probabilities are told."""
    return TokenInfo(
        token.id,
        token_text(tokenizer, token.id),
        tokenizer.token_bytes(token.id),
        token.logprob,
        tuple((i, token_text(tokenizer, i), tokenizer.token_bytes(i), logprob) for i, logprob in token.top),
    )


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's own text; bytes that are no UTF-8 by themselves become U+FFFD."""
    return tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")
