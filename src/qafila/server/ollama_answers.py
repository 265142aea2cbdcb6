"""Answers as Ollama tells them: lines of JSON, the last one with what it took."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

from fastapi import Request, Response

from qafila.chat.client import CallPiece, Event, Finished, TextPiece, TokenInfo, Usage
from qafila.server.errors import as_api_error, error_body
from qafila.server.json_response import Json, encoded
from qafila.server.streaming import NDJSON, Streamed, unless_gone

#: How an endpoint writes text and tool calls.
Shape: TypeAlias = Callable[[str, Sequence[dict[str, Any]]], dict[str, Any]]


def now() -> str:
    """The time as Ollama writes it."""
    return written(datetime.now(UTC))


def written(moment: datetime) -> str:
    """A time in UTC as Ollama writes it."""
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def since(began: float) -> int:
    """Nanoseconds since a `time.perf_counter`."""
    return round((time.perf_counter() - began) * 1e9)


def logprobs(tokens: Sequence[TokenInfo]) -> list[dict[str, Any]]:
    """Tokens with their log-probabilities and the likeliest in their places."""
    return [
        {
            **_logprob(token.text, token.data, token.logprob),
            "top_logprobs": [_logprob(text, data, value) for _, text, data, value in token.top],
        }
        for token in tokens
    ]


def _logprob(text: str, data: bytes | None, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": None if data is None else list(data)}


@dataclass(slots=True)
class _Call:
    """A tool call on its way; Ollama tells calls whole."""

    index: int
    id: str | None
    name: str | None
    arguments: list[str] = field(default_factory=list)

    def told(self) -> list[dict[str, Any]]:
        """The call; nothing if the token limit cut it short: nobody should run it."""
        try:
            arguments = json.loads("".join(self.arguments) or "{}")
        except ValueError:
            return []
        return [{"id": self.id, "function": {"index": self.index, "name": self.name, "arguments": arguments}}]


@dataclass(slots=True)
class _Piece:
    """What one line tells."""

    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[TokenInfo] = field(default_factory=list)
    end: dict[str, Any] | None = None


async def _pieces(events: AsyncGenerator[Event, None], began: float) -> AsyncGenerator[_Piece, None]:
    call: _Call | None = None
    tokens: list[TokenInfo] = []
    finished: Finished | None = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextPiece):
                if event.text or event.tokens:
                    yield _Piece(event.text, tokens=list(event.tokens))
            elif isinstance(event, CallPiece):
                if call is not None and call.index != event.index:
                    yield _Piece(calls=call.told(), tokens=tokens)
                    call, tokens = None, []
                call = call or _Call(event.index, event.id, event.name)
                call.arguments.append(event.arguments)
                tokens.extend(event.tokens)
            elif isinstance(event, Finished):
                finished = event
                if call is not None:
                    yield _Piece(calls=call.told(), tokens=tokens)
            elif isinstance(event, Usage):
                assert finished is not None
                yield _Piece(end=_end(finished, event, began))


def _end(finished: Finished, usage: Usage, began: float) -> dict[str, Any]:
    total = since(began)
    return {
        "done": True,
        "done_reason": "length" if finished.reason == "length" else "stop",
        "total_duration": total,
        # All that came before the model's own work: waiting for room, opening it.
        "load_duration": max(0, total - round(usage.seconds * 1e9)),
        "prompt_eval_count": usage.prompt,
        "prompt_eval_duration": round(usage.prompt_seconds * 1e9),
        "eval_count": usage.generated,
        "eval_duration": round(max(0.0, usage.seconds - usage.prompt_seconds) * 1e9),
    }


async def answer(
    request: Request,
    model: str,
    began: float,
    events: AsyncGenerator[Event, None],
    shape: Shape,
    *,
    stream: bool,
) -> Response:
    """The events of a request as a response.

    Args:
        request: of HTTP. model: as the client called it. began: when the request came, by `time.perf_counter`.
        events: of one answer; closed at the end. shape: of its pieces. stream: as lines, or whole.
    """
    if stream:
        return Streamed(_lines(request, model, began, events, shape), NDJSON)
    return Json(await unless_gone(request, _whole(model, began, events, shape)))


async def _lines(
    request: Request, model: str, began: float, events: AsyncGenerator[Event, None], shape: Shape
) -> AsyncGenerator[bytes, None]:
    async with aclosing(_pieces(events, began)) as pieces:
        try:
            async for piece in pieces:
                line = {"model": model, "created_at": now(), **shape(piece.text, piece.calls)}
                if piece.tokens:
                    line["logprobs"] = logprobs(piece.tokens)
                yield encoded({**line, **(piece.end or {"done": False})}) + b"\n"
        except Exception as error:
            # The status went out long ago; the error is a line of its own, as Ollama sends it.
            yield encoded(error_body(request.url.path, as_api_error(error))) + b"\n"


async def _whole(model: str, began: float, events: AsyncGenerator[Event, None], shape: Shape) -> dict[str, Any]:
    text: list[str] = []
    calls: list[dict[str, Any]] = []
    tokens: list[TokenInfo] = []
    end: dict[str, Any] = {}
    async with aclosing(_pieces(events, began)) as pieces:
        async for piece in pieces:
            text.append(piece.text)
            calls += piece.calls
            tokens += piece.tokens
            end = piece.end or end
    told = {"model": model, "created_at": now(), **shape("".join(text), calls)}
    return {**told, **({"logprobs": logprobs(tokens)} if tokens else {}), **end}


def loaded(model: str, shape: Shape) -> Response:
    """What is answered to a request without a prompt, which asks for the model to be loaded."""
    return Json({"model": model, "created_at": now(), **shape("", ()), "done": True, "done_reason": "load"})
