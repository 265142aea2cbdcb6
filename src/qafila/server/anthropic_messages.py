"""``POST /v1/messages`` and ``/v1/messages/count_tokens``, as Anthropic's clients expect them."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from qafila.chat.client import CallPiece, ChatRequest, Event, Finished, Generation, GrammarSpec, TextPiece, Usage
from qafila.server.anthropic_bodies import AnthropicCountTokensBody, AnthropicMessagesBody
from qafila.server.anthropic_content import choice, conversation, tools
from qafila.server.errors import ApiError, as_api_error, error_body
from qafila.server.json_response import Json, encoded
from qafila.server.service import caller_of, service_of
from qafila.server.streaming import EVENT_STREAM, Streamed, unless_gone

router = APIRouter()


@router.post("/v1/messages", summary="Answer a conversation, as Anthropic's API does")
async def messages(request: Request, body: AnthropicMessagesBody) -> Response:
    """Answer a conversation, whole or as a stream of server-sent events."""
    service, caller = service_of(request), caller_of(request)
    asked = chat_request(body)
    started, events = await unless_gone(request, service.run(caller, body.model, asked))
    head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": body.model}
    if body.stream:
        return Streamed(_stream(request, head, started.prompt_tokens, events, body), EVENT_STREAM)
    return Json(await unless_gone(request, _whole(head, events, body)))


@router.post("/v1/messages/count_tokens", summary="Count a conversation's tokens, as Anthropic's API does")
async def count_tokens(request: Request, body: AnthropicCountTokensBody) -> dict[str, int]:
    """The tokens of the prompt that a conversation becomes."""
    service, caller = service_of(request), caller_of(request)
    told, given = conversation(body), tools(body)
    if choice(body)[0] == "none":
        given = ()

    async def count() -> int:
        async with service.lease(caller, body.model) as client:
            return await client.count(told, given)

    return {"input_tokens": await unless_gone(request, count())}


def chat_request(body: AnthropicMessagesBody) -> ChatRequest:
    """What a body asks for.

    Raises:
        ApiError, RequestValidationError: a message, tool or option that makes no sense; the message names it.
    """
    told = conversation(body)
    if not told or told[-1].role == "assistant":
        message = "messages: continuing the assistant's words (prefill) is not supported; end with a user message"
        raise ApiError(400, message, param="messages")
    stops = tuple(body.stop_sequences or ())
    if any(not text for text in stops):
        raise ApiError(400, "stop_sequences: an empty string ends nothing; leave it out", param="stop_sequences")
    form = (body.output_config and body.output_config.format) or body.output_format
    mode, names, parallel = choice(body)
    return ChatRequest(
        messages=told,
        tools=tools(body),
        tool_mode=mode,
        tool_names=names,
        parallel_tool_calls=parallel,
        generation=Generation(
            # 0 asks to read the prompt into the cache and for no answer: one token is generated and not told.
            max_tokens=max(1, body.max_tokens),
            stop=stops,
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            answer=None if form is None else GrammarSpec("json_schema", json.dumps(form.schema_)),
        ),
    )


def _end(finished: Finished, usage: Usage, body: AnthropicMessagesBody) -> dict[str, Any]:
    """Why the answer ended, in the API's words."""
    stop: str | None = None
    if body.max_tokens == 0:
        reason = "max_tokens"
    elif finished.reason == "length":
        window = 0 < usage.generated < body.max_tokens
        reason = "model_context_window_exceeded" if window else "max_tokens"
    elif finished.reason == "tool_calls":
        reason = "tool_use"
    elif finished.stop_string is not None and finished.stop_string in (body.stop_sequences or ()):
        reason, stop = "stop_sequence", finished.stop_string
    else:
        reason = "end_turn"
    return {"stop_reason": reason, "stop_sequence": stop}


def _usage(prompt: int, cached: int, generated: int) -> dict[str, int]:
    # The three kinds of input tokens add up to the prompt. What this prompt adds to the cache is not told apart.
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": generated,
    }


def _spent(usage: Usage, body: AnthropicMessagesBody) -> dict[str, int]:
    return _usage(usage.prompt, usage.cached, usage.generated if body.max_tokens else 0)


async def _whole(
    head: dict[str, Any], events: AsyncGenerator[Event, None], body: AnthropicMessagesBody
) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    arguments: dict[int, list[str]] = {}
    finished: Finished | None = None
    usage = Usage(0, 0, 0)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextPiece) and event.text:
                if not content or content[-1]["type"] != "text":
                    content.append({"type": "text", "text": ""})
                content[-1]["text"] += event.text
            elif isinstance(event, CallPiece):
                if event.index not in arguments:
                    arguments[event.index] = []
                    content.append({"type": "tool_use", "id": event.id, "name": event.name, "input": event.index})
                arguments[event.index].append(event.arguments)
            elif isinstance(event, Finished):
                finished = event
            elif isinstance(event, Usage):
                usage = event
    assert finished is not None
    told = [each for block in content if (each := _with_input(block, arguments)) is not None]
    end = _end(finished, usage, body)
    return {**head, "content": told if body.max_tokens else [], **end, "usage": _spent(usage, body)}


def _with_input(block: dict[str, Any], arguments: dict[int, list[str]]) -> dict[str, Any] | None:
    """A block with its input; None for a call that the token limit cut short: nobody should run it."""
    if block["type"] != "tool_use":
        return block
    try:
        return {**block, "input": json.loads("".join(arguments[block["input"]]) or "{}")}
    except ValueError:
        return None


def _event(name: str, value: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + encoded({"type": name, **value}) + b"\n\n"


def _delta(index: int, kind: str, key: str) -> tuple[bytes, bytes]:
    """What stands before and after the text of a delta."""
    whole = _event("content_block_delta", {"index": index, "delta": {"type": kind, key: "\0"}})
    front, back = whole.split(b'"\\u0000"')
    return front, back


async def _stream(
    request: Request,
    head: dict[str, Any],
    prompt: int,
    events: AsyncGenerator[Event, None],
    body: AnthropicMessagesBody,
) -> AsyncGenerator[bytes, None]:
    message = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(prompt, 0, 0)}
    index = -1
    part: str | int | None = None  # of the answer, in the open block: "text", or the number of a call
    front = back = b""
    finished: Finished | None = None

    def opening(which: str | int, block: dict[str, Any]) -> bytes:
        nonlocal index, part, front, back
        closed = closing()
        index, part = index + 1, which
        text = which == "text"
        # Most events are a piece of the open block: its frame is made once.
        front, back = _delta(index, "text_delta", "text") if text else _delta(index, "input_json_delta", "partial_json")
        return closed + _event("content_block_start", {"index": index, "content_block": block})

    def closing() -> bytes:
        return b"" if part is None else _event("content_block_stop", {"index": index})

    async with aclosing(events):
        try:
            yield _event("message_start", {"message": message}) + _event("ping", {})
            async for event in events:
                piece = ""
                if isinstance(event, TextPiece):
                    piece = event.text
                    if piece and part != "text" and body.max_tokens:
                        yield opening("text", {"type": "text", "text": ""})
                elif isinstance(event, CallPiece):
                    piece = event.arguments
                    if part != event.index and body.max_tokens:
                        call: dict[str, Any] = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
                        yield opening(event.index, call)
                elif isinstance(event, Finished):
                    finished = event
                elif isinstance(event, Usage):
                    assert finished is not None
                    end = {"delta": _end(finished, event, body), "usage": _spent(event, body)}
                    yield closing() + _event("message_delta", end) + _event("message_stop", {})
                if piece and body.max_tokens:
                    yield front + encoded(piece) + back
        except Exception as error:
            # The status went out long ago; the error is an event of its own, as Anthropic sends it.
            yield _event("error", error_body(request.url.path, as_api_error(error)))
