"""``POST /api/chat``, as Ollama's clients expect it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from qafila.chat.client import ChatRequest
from qafila.server.body_parts import read_part
from qafila.server.errors import ApiError
from qafila.server.ollama_answers import answer, loaded
from qafila.server.ollama_bodies import OllamaChatBody, OllamaMessage, OllamaToolCall
from qafila.server.ollama_models import load, registered
from qafila.server.service import caller_of, service_of
from qafila.server.streaming import unless_gone
from qafila.text.messages import Message, ToolCall, ToolSchema

router = APIRouter()


@router.post("/api/chat", summary="Answer a conversation, as Ollama's API does")
async def chat(request: Request, body: OllamaChatBody) -> Response:
    """Answer a conversation, as lines of JSON or whole; without messages: load the model."""
    began = time.perf_counter()
    service, caller = service_of(request), caller_of(request)
    name = registered(service.models, body.model).name
    if not body.messages:
        await unless_gone(request, load(service, caller, name))
        return loaded(body.model, message_shape)
    _, events = await unless_gone(request, service.run(caller, name, chat_request(body)))
    return await answer(request, body.model, began, events, message_shape, stream=body.stream)


def message_shape(text: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A piece of an answer as a message."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def chat_request(body: OllamaChatBody) -> ChatRequest:
    """What a body asks for.

    Raises:
        ApiError, ChatError, RequestValidationError: a message, tool or option that makes no sense; it is named.
    """
    return ChatRequest(
        messages=conversation(body.messages or ()),
        tools=tuple(ToolSchema.from_dict(_tool(tool), f"tools[{i}]") for i, tool in enumerate(body.tools or ())),
        generation=body.generation(),
    )


def conversation(given: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages as ours.

    Ollama's clients answer calls by the name of the tool, or in order, where they do not give a call's id: each call
    gets an id here, and each answer the id and the name of its call.

    Raises:
        ApiError, RequestValidationError: what is wrong with one; the message names it.
    """
    messages: list[Message] = []
    open_calls: list[ToolCall] = []
    count = 0
    for i, source in enumerate(given):
        where = f"messages[{i}]"
        message = read_part(OllamaMessage, source, where)
        calls = []
        for j, each in enumerate(message.tool_calls or ()):
            call = read_part(OllamaToolCall, each, f"{where}.tool_calls[{j}]")
            calls.append(ToolCall(call.id or f"call_{count}", call.function.name, call.function.arguments))
            count += 1
        if calls and message.role != "assistant":
            name = f"{where}.tool_calls"
            raise ApiError(400, f"{name}: only an assistant message has them", param=name)
        open_calls += calls
        if message.role != "tool":
            messages.append(Message(message.role, message.content, tool_calls=tuple(calls)))
            continue
        answered = _answered(message, open_calls)
        if answered is not None:
            open_calls.remove(answered)
        messages.append(
            Message(
                "tool",
                message.content,
                name=message.tool_name or (answered and answered.name) or None,
                tool_call_id=message.tool_call_id or (answered and answered.id) or None,
            )
        )
    return tuple(messages)


def _answered(message: OllamaMessage, calls: Sequence[ToolCall]) -> ToolCall | None:
    """The open call that a tool's message answers, if it can be told."""
    if message.tool_call_id:
        return next((call for call in calls if call.id == message.tool_call_id), None)
    if message.tool_name:
        return next((call for call in calls if call.name == message.tool_name), None)
    return calls[0] if calls else None


def _tool(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool whose types JSON Schema knows.

    ollama-python makes a tool out of a Python function, and writes a parameter of two types as ``"string, integer"``.
    """
    function: Any = source.get("function")
    parameters = function.get("parameters") if isinstance(function, dict) else None
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(parameters, dict) or not isinstance(properties, dict):
        return source
    mended = {
        name: {**schema, "type": schema["type"].split(", ")}
        for name, schema in properties.items()
        if isinstance(schema, dict) and isinstance(schema.get("type"), str) and ", " in schema["type"]
    }
    if not mended:
        return source
    return {**source, "function": {**function, "parameters": {**parameters, "properties": {**properties, **mended}}}}
