"""The answers of a remote request on their way: chunks of OpenAI's API in, a client's events out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from qafila.chat.client import CallPiece, Event, Finished, FinishReason, TextPiece, TokenInfo, Usage
from qafila.errors import UpstreamError
from qafila.text.messages import Message, ToolCall

_REASONS: Mapping[str, FinishReason] = {
    "length": "length", "max_tokens": "length", "tool_calls": "tool_calls", "function_call": "tool_calls",
}  # fmt: skip
# vLLM and SGLang say so of a request that was aborted there.
_FAILURES = ("abort", "error")
#: Characters of a request's answers, calls included: more than any model writes, and little enough to be kept.
_MOST = 16 << 20


class _Choice:
    """One answer as far as it has come."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.calls: dict[int, tuple[str, str, list[str]]] = {}
        self.finished = False


class RemoteAnswers:
    """Makes the events of a request's answers.

    Args:
        n: how many answers there are to be. where: how errors call the server.
    """

    def __init__(self, n: int, where: str) -> None:
        self._choices = [_Choice() for _ in range(n)]
        self._where = where
        self._usage: dict[str, Any] = {}
        self._pieces = self._size = 0
        self._began = time.perf_counter()
        self._first = 0.0

    def push(self, chunk: Mapping[str, Any]) -> list[Event]:
        """The events that one chunk makes.

        Raises:
            UpstreamError: it is not what the API says.
        """
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = usage
        events: list[Event] = []
        try:
            for choice in chunk.get("choices") or ():
                self._push(choice, events)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UpstreamError(
                f"{self._where}: its server sent an event that is not understood ({type(error).__name__})", status=502
            ) from None
        if self._size > _MOST:
            raise UpstreamError(f"{self._where}: its server wrote more than {_MOST:,} characters", status=502)
        return events

    def finish(self) -> Usage:
        """The stream is over.

        Raises:
            UpstreamError: an answer is not complete.
        """
        if not all(choice.finished for choice in self._choices):
            raise UpstreamError(
                f"{self._where}: its server ended the stream before the answer was complete", status=502
            )
        now = time.perf_counter()
        details = self._usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else 0
        return Usage(
            _count(self._usage.get("prompt_tokens")),
            _count(cached),
            # A server that does not tell has made at least a token a piece.
            _count(self._usage.get("completion_tokens")) or self._pieces,
            (self._first or now) - self._began,
            now - self._began,
        )

    def _push(self, given: dict[str, Any], events: list[Event]) -> None:
        number = given.get("index", 0)
        if type(number) is not int or not 0 <= number < len(self._choices):
            raise ValueError
        choice, before = self._choices[number], len(events)
        delta = given.get("delta") or {}
        text = given["text"] if "text" in given else delta.get("content")
        tokens = _tokens(given.get("logprobs"))
        calls = delta.get("tool_calls") or ()
        if text or (tokens and not calls):
            text = _string(text or "")
            self._size += len(text)
            choice.text.append(text)
            events.append(TextPiece(number, text, tokens))
            tokens = ()
        for position, call in enumerate(calls):
            events.append(self._call(number, choice, position, call, tokens))
            tokens = ()
        if len(events) > before:
            self._first = self._first or time.perf_counter()
            self._pieces += 1
        reason = given.get("finish_reason")
        if reason in _FAILURES:
            raise UpstreamError(f"{self._where}: its server gave the answer up ({reason})", status=502)
        if reason is not None and not choice.finished:
            choice.finished = True
            events.append(self._finished(number, choice, _string(reason), given.get("stop_reason")))

    def _call(
        self, number: int, choice: _Choice, position: int, call: dict[str, Any], tokens: tuple[TokenInfo, ...]
    ) -> CallPiece:
        function, index = call.get("function") or {}, call.get("index")
        if index is None:  # some servers send whole calls, and do not count them
            index = len(choice.calls) if call.get("id") else max(len(choice.calls) - 1, 0) + position
        if type(index) is not int or index < 0:
            raise ValueError
        arguments = _string(function.get("arguments") or "")
        self._size += len(arguments)
        if index in choice.calls:
            choice.calls[index][2].append(arguments)
            return CallPiece(number, index, None, None, arguments, tokens)
        name, call_id = _string(function["name"]), _string(call.get("id") or f"call_{number}_{index}")
        self._size += len(name) + len(call_id)
        choice.calls[index] = (call_id, name, [arguments])
        return CallPiece(number, index, call_id, name, arguments, tokens)

    def _finished(self, number: int, choice: _Choice, reason: str, stop: Any) -> Finished:
        calls = []
        for call_id, name, pieces in choice.calls.values():
            try:
                arguments = json.loads("".join(pieces) or "{}")
            except ValueError:
                continue  # cut short
            if isinstance(arguments, dict):
                calls.append(ToolCall(call_id, name, arguments))
        ended = _REASONS.get(reason, "stop")
        if ended == "stop" and choice.calls:
            ended = "tool_calls"  # as for a named tool, where OpenAI's servers say ``stop``
        message = Message("assistant", "".join(choice.text), tool_calls=tuple(calls))
        return Finished(number, ended, message, stop if isinstance(stop, str) else None)


def _tokens(logprobs: Any) -> tuple[TokenInfo, ...]:
    if not logprobs:
        return ()
    if logprobs.get("content") is not None:  # of chats
        return tuple(
            TokenInfo(
                None,
                _string(item["token"]),
                _bytes(item),
                _number(item["logprob"]),
                tuple(
                    (None, _string(t["token"]), _bytes(t), _number(t["logprob"]))
                    for t in item.get("top_logprobs") or ()
                ),
            )
            for item in logprobs["content"]
        )
    texts = logprobs.get("tokens") or ()
    tops = logprobs.get("top_logprobs") or [None] * len(texts)
    return tuple(
        TokenInfo(
            None,
            _string(text),
            None,
            _number(logprob),
            tuple((None, _string(t), None, _number(value)) for t, value in (top or {}).items()),
        )
        for text, logprob, top in zip(texts, logprobs["token_logprobs"], tops, strict=True)
    )


def _bytes(item: Mapping[str, Any]) -> bytes | None:
    return None if item.get("bytes") is None else bytes(item["bytes"])


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
