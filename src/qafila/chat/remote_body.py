"""Requests as bodies of OpenAI's API, for one kind of server. What it does not take is refused, never left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from qafila.chat.client import ChatRequest, Generation, PromptRequest
from qafila.chat.dialects import Dialect
from qafila.engine.request import GrammarSpec
from qafila.errors import ChatError, UsageError
from qafila.text.messages import Message, ToolSchema

_SHARED = ("seed", "temperature", "top_p", "presence_penalty", "frequency_penalty")
_EXTRA = ("top_k", "min_p", "repetition_penalty")


def chat_body(request: ChatRequest, model: str, dialect: Dialect) -> dict[str, Any]:
    """The body of ``POST /v1/chat/completions``, streaming.

    Raises:
        UsageError: an option that this kind of server does not take. ChatError: tools that make no sense.
    """
    generation = request.generation
    body = {"model": model, "messages": messages_of(request.messages), **_sampling(generation, dialect)}
    if generation.max_tokens is not None:
        body[dialect.limit] = generation.max_tokens
    if generation.logprobs is not None:
        body["logprobs"] = True
        if generation.logprobs:
            body["top_logprobs"] = generation.logprobs
    if generation.answer is not None:
        _merge(body, _answer(generation.answer, dialect))
    body |= _tools(request)
    return body


def prompt_body(request: PromptRequest, model: str, dialect: Dialect) -> dict[str, Any]:
    """The body of ``POST /v1/completions``, streaming.

    Raises:
        UsageError: an option that this kind of server does not take.
    """
    generation = request.generation
    prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
    body: dict[str, Any] = {"model": model, "prompt": prompt, **_sampling(generation, dialect)}
    # Without a limit text completions stop after 16 tokens (OpenAI's reference): ours go on as far as they may.
    if generation.max_tokens is not None:
        body["max_tokens"] = generation.max_tokens
    if request.suffix is not None:
        body["suffix"] = request.suffix
    if generation.logprobs is not None:
        body["logprobs"] = generation.logprobs
    if generation.answer is not None:
        if generation.answer.kind in ("json_schema", "json_object") and not dialect.completion_schema:
            raise UsageError("response_format: the model's server takes it in chats only")
        _merge(body, _answer(generation.answer, dialect))
    return body


def messages_of(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages in OpenAI's shape: without token ids, which mean something to the engine alone that made them."""
    told = []
    for message in messages:
        fields = message.to_dict()
        fields.pop("ids", None)
        told.append(fields)
    return told


def _sampling(generation: Generation, dialect: Dialect) -> dict[str, Any]:
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    body |= {name: value for name in _SHARED if (value := getattr(generation, name)) is not None}
    for name in _EXTRA:
        value = getattr(generation, name)
        if value is None:
            continue
        if name not in dialect.sampling:
            raise UsageError(f"{name}: the model's server ({dialect.name}) has no such option; leave it out")
        body[dialect.sampling[name]] = value
    if generation.stop:
        body["stop"] = list(generation.stop)
    if generation.logit_bias:
        body["logit_bias"] = {str(token): value for token, value in generation.logit_bias.items()}
    if generation.n != 1:
        body["n"] = generation.n
    if generation.tenant and dialect.salt:
        # A tenant may be named after a key: the other server need not know it.
        body["cache_salt"] = hashlib.blake2b(generation.tenant.encode(), digest_size=16).hexdigest()
    return body


def _answer(grammar: GrammarSpec, dialect: Dialect) -> dict[str, Any]:
    if grammar.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if grammar.kind == "json_schema":
        try:
            schema = json.loads(grammar.text)
        except ValueError as error:
            raise UsageError(f"response_format.json_schema: is no JSON ({error})") from None
        told = {"name": "answer", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": told}}
    path = dialect.regex if grammar.kind == "regex" else dialect.lark
    if path is None:
        option = "regex" if grammar.kind == "regex" else "grammar"
        raise UsageError(
            f"{option}: the model's server ({dialect.name}) takes none; give a JSON schema, or leave it out"
        )
    value: Any = grammar.text
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def _merge(body: dict[str, Any], more: dict[str, Any]) -> None:
    assert not body.keys() & more.keys()
    body |= more


def _tools(request: ChatRequest) -> dict[str, Any]:
    tools = (*request.tools, *request.untold)
    if request.tool_mode == "required" and not tools:
        raise ChatError("tool_choice: a call is required, and there are no tools")
    if not tools or request.tool_mode == "none":
        return {}
    if request.tool_names is not None:
        unknown = sorted(request.tool_names - {tool.name for tool in tools})
        if unknown:
            raise ChatError(f"tool_choice: there is no tool {unknown[0]!r:.80} among tools")
        if not request.tool_names:
            return {"tools": [_told(tool) for tool in tools], "tool_choice": "none"}
        # OpenAI's ``allowed_tools`` is known to few servers; what may not be called is not told of instead.
        tools = tuple(tool for tool in tools if tool.name in request.tool_names)
    body: dict[str, Any] = {"tools": [_told(tool) for tool in tools], "tool_choice": request.tool_mode}
    if request.tool_mode == "required" and len(tools) == 1 and request.tool_names is not None:
        body["tool_choice"] = {"type": "function", "function": {"name": tools[0].name}}
    if not request.parallel_tool_calls:
        body["parallel_tool_calls"] = False
    return body


def _told(tool: ToolSchema) -> dict[str, Any]:
    """A tool in OpenAI's shape; some servers want it said that arguments are an object."""
    return replace(tool, parameters={"type": "object", **tool.parameters}).to_dict()
