"""``POST /v1/chat/completions``, as OpenAI's clients expect it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from qafila.chat.client import CallPiece, ChatRequest, Event, Finished, TextPiece, TokenInfo, ToolMode, Usage
from qafila.server.errors import ApiError, as_api_error, error_body
from qafila.server.json_response import Json, encoded
from qafila.server.openai_bodies import AllowedToolsChoice, ChatBody, NamedTool
from qafila.server.service import caller_of, service_of
from qafila.server.streaming import EVENT_STREAM, Streamed, unless_gone
from qafila.text.messages import Message, ToolSchema

router = APIRouter()


@router.post("/v1/chat/completions", summary="Answer a conversation")
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """Answer a conversation, whole or as a stream of server-sent events."""
    service, caller = service_of(request), caller_of(request)
    asked = chat_request(body)
    _, events = await unless_gone(request, service.run(caller, body.model, asked))
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return Streamed(_stream(request, head, events, body.n, usage=usage), EVENT_STREAM)
    return Json(await unless_gone(request, _whole(head, events, body.n)))


def chat_request(body: ChatBody) -> ChatRequest:
    """What a body asks for.

    Raises:
        ApiError, ChatError: a message, tool or option that makes no sense; the message names it.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: only with logprobs", param="top_logprobs")
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    tools = tuple(ToolSchema.from_dict(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ()))
    mode, names = _choice(body)
    if body.tool_choice not in (None, "none", "auto") and not tools:
        raise ApiError(400, "tool_choice: only with tools", param="tool_choice")
    answer = body.response_format.grammar() if body.response_format is not None else None
    return ChatRequest(
        messages=messages_of(body.messages),
        tools=tools,
        tool_mode=mode,
        tool_names=names,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        generation=body.generation(
            max_tokens=limit, logprobs=(body.top_logprobs or 0) if body.logprobs else None, answer=answer
        ),
    )


def messages_of(given: Iterable[dict[str, Any]]) -> tuple[Message, ...]:
    """Messages of a body; ``developer`` is what OpenAI calls the system now."""
    messages = []
    for i, message in enumerate(given):
        where = f"messages[{i}]"
        if message.get("role") == "developer":
            message = {**message, "role": "system"}
        # What clients send back of an answer they got.
        kept = {k: v for k, v in message.items() if not (k in _ECHOED and v in (None, [], ""))}
        messages.append(Message.from_dict(kept, where))
    return tuple(messages)


_ECHOED = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content")


def _choice(body: ChatBody) -> tuple[ToolMode, frozenset[str] | None]:
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        return "required", frozenset({choice.function.name})
    if isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        return allowed.mode, frozenset(tool.function.name for tool in allowed.tools)
    return choice or "auto", None


def token_logprob(info: TokenInfo) -> dict[str, Any]:
    """One token as OpenAI tells log-probabilities."""
    return {
        **_logprob(info.text, info.data, info.logprob),
        "top_logprobs": [_logprob(text, data, logprob) for _, text, data, logprob in info.top],
    }


def _logprob(text: str, data: bytes | None, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": None if data is None else list(data)}


def usage_dict(usage: Usage) -> dict[str, Any]:
    """What a request took, as OpenAI tells it."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


class _Choice:
    """One answer, collected."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: list[dict[str, Any]] | None = None
        self.reason = "stop"

    def add(self, event: TextPiece | CallPiece) -> None:
        if isinstance(event, TextPiece):
            self.text.append(event.text)
        else:
            call = self.calls.setdefault(
                event.index,
                {"id": event.id, "type": "function", "function": {"name": event.name, "arguments": ""}},
            )
            call["function"]["arguments"] += event.arguments
        if event.tokens:
            self.logprobs = [*(self.logprobs or ()), *map(token_logprob, event.tokens)]

    def to_dict(self, index: int) -> dict[str, Any]:
        text = "".join(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if self.calls else ""),
                                   "refusal": None}  # fmt: skip
        if self.calls:
            message["tool_calls"] = [self.calls[i] for i in sorted(self.calls)]
        logprobs = None if self.logprobs is None else {"content": self.logprobs, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self.reason}


async def _whole(head: dict[str, Any], events: AsyncGenerator[Event, None], n: int) -> dict[str, Any]:
    choices = [_Choice() for _ in range(n)]
    usage: dict[str, Any] | None = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextPiece | CallPiece):
                choices[event.answer].add(event)
            elif isinstance(event, Finished):
                choices[event.answer].reason = event.reason
            elif isinstance(event, Usage):
                usage = usage_dict(event)
    listed = [choice.to_dict(i) for i, choice in enumerate(choices)]
    return {**head, "object": "chat.completion", "choices": listed, "usage": usage, "system_fingerprint": None}


def data(value: object) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + encoded(value) + b"\n\n"


async def _stream(
    request: Request, head: dict[str, Any], events: AsyncGenerator[Event, None], n: int, *, usage: bool
) -> AsyncGenerator[bytes, None]:
    # Most events are a piece of text of one answer: its frame is made once.
    head = {**head, "object": "chat.completion.chunk", "system_fingerprint": None}
    tail: dict[str, Any] = {"usage": None} if usage else {}

    def chunk(answer: int, delta: dict[str, Any], reason: str | None = None, tokens: Any = None) -> bytes:
        logprobs = {"content": [token_logprob(t) for t in tokens], "refusal": None} if tokens else None
        choice = {"index": answer, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return data({**head, "choices": [choice], **tail})

    frames = [chunk(i, {"content": "\0"}).split(b'"\\u0000"') for i in range(n)]
    async with aclosing(events):
        try:
            for i in range(n):
                yield chunk(i, {"role": "assistant", "content": "", "refusal": None})
            async for event in events:
                if isinstance(event, TextPiece):
                    if not event.tokens:
                        front, back = frames[event.answer]
                        yield front + json.dumps(event.text, ensure_ascii=False).encode() + back
                    else:
                        yield chunk(event.answer, {"content": event.text}, tokens=event.tokens)
                elif isinstance(event, CallPiece):
                    yield chunk(event.answer, {"tool_calls": [_call_delta(event)]}, tokens=event.tokens)
                elif isinstance(event, Finished):
                    yield chunk(event.answer, {}, event.reason)
                elif isinstance(event, Usage) and usage:
                    yield data({**head, "choices": [], "usage": usage_dict(event)})
        except Exception as error:
            # The status went out long ago; the error is an event of its own, as OpenAI sends it.
            yield data(error_body(request.url.path, as_api_error(error)))
            return
        yield b"data: [DONE]\n\n"


def _call_delta(event: CallPiece) -> dict[str, Any]:
    function = {"arguments": event.arguments}
    if event.id is None:
        return {"index": event.index, "function": function}
    return {"index": event.index, "id": event.id, "type": "function", "function": {"name": event.name, **function}}
