"""Items of ``/v1/responses``: what a conversation is made of there, and the messages that a model reads."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from qafila.server.errors import ApiError
from qafila.text.messages import Message

# Fields that OpenAI's clients send along, and the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "status": (None, "in_progress", "completed", "incomplete"),
    "phase": (None, "commentary", "final_answer"),
    "namespace": (None,),
    "async": (None, False),
    "caller": (None, {"type": "direct"}),
    "created_by": (None,),
    "prompt_cache_breakpoint": (None,),
    "annotations": (None, []),
}
_ROLES = ("user", "assistant", "system", "developer")
_CALL_STATUS = {"status": "completed"}


def new_id(kind: str) -> str:
    """An id nobody can guess, such as ``msg_...``."""
    return f"{kind}_{secrets.token_hex(24)}"


def items_of(given: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items of an input as they are kept and told: each has an id, and content is a list of parts.

    Raises:
        ApiError: an item or part that is not supported, or a field that is missing or wrong; the message names it.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_item(item, f"input[{i}]") for i, item in enumerate(given)]


def messages_of(items: Sequence[Mapping[str, Any]], where: str = "input") -> list[Message]:
    """The messages that items (of `items_of`) are to a model: text and the calls that follow it are one message.

    Raises:
        ChatError: something that no message can be.
    """
    made: list[dict[str, Any]] = []
    first: list[int] = []
    for i, item in enumerate(items):
        if item["type"] == "function_call":
            call = {"id": item["call_id"], "type": "function",
                    "function": {"name": item["name"], "arguments": item["arguments"]}}  # fmt: skip
            if made and made[-1]["role"] == "assistant":
                made[-1].setdefault("tool_calls", []).append(call)
                continue
            made.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif item["type"] == "function_call_output":
            made.append({"role": "tool", "tool_call_id": item["call_id"], "content": _content(item["output"])})
        else:
            role = "system" if item["role"] == "developer" else item["role"]
            made.append({"role": role, "content": _content(item["content"])})
        first.append(i)
    return [Message.from_dict(one, f"{where}[{i}]") for one, i in zip(made, first, strict=True)]


def _item(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "message":
        return _message(item, where)
    if kind == "function_call":
        _fields(item, where, ("id", "type", "call_id", "name", "arguments"))
        call_id, name = _string(item, "call_id", where), _string(item, "name", where)
        arguments = _string(item, "arguments", where)
        if not _is_object(arguments):
            raise _wrong(f"{where}.arguments", "expected a JSON object as text")
        told = {"id": item.get("id") or new_id("fc"), "type": kind, "call_id": call_id, "name": name,
                "arguments": arguments}  # fmt: skip
        return told | _CALL_STATUS
    if kind == "function_call_output":
        _fields(item, where, ("id", "type", "call_id", "output", "name"))
        call_id = _string(item, "call_id", where)
        output = item.get("output")
        if isinstance(output, list):
            output = [_content_part(part, f"{where}.output[{i}]") for i, part in enumerate(output)]
        elif not isinstance(output, str):
            raise _wrong(f"{where}.output", "expected text or a list of parts")
        return {
            "id": item.get("id") or new_id("fco"),
            "type": kind,
            "call_id": call_id,
            "output": output,
        } | _CALL_STATUS
    if kind == "reasoning":
        raise _wrong(f"{where}.type", "reasoning is no part of a conversation here; leave it out")
    if kind == "item_reference":
        raise _wrong(f"{where}.type", "items are not kept by themselves; send them, or use previous_response_id")
    raise _wrong(f"{where}.type", f"{kind!r:.80} is none of message, function_call, function_call_output")


def _message(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    _fields(item, where, ("id", "type", "role", "content"))
    role = item.get("role")
    if role not in _ROLES:
        raise _wrong(f"{where}.role", f"{role!r:.80} is none of {', '.join(_ROLES)}")
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if role == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    if not isinstance(content, list):
        raise _wrong(f"{where}.content", "expected text or a list of parts")
    parts = [_content_part(part, f"{where}.content[{i}]", role == "assistant") for i, part in enumerate(content)]
    return {"id": item.get("id") or new_id("msg"), "type": "message", "role": role, "status": "completed",
            "content": parts}  # fmt: skip


def _content_part(part: object, where: str, output: bool = False) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise _wrong(where, "expected a part, such as {'type': 'input_text', 'text': ...}")
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        _fields(part, where, ("type", "text", "logprobs"))
        text = _string(part, "text", where)
        if output:
            return {"type": "output_text", "text": text, "annotations": []}
        return {"type": "input_text", "text": text}
    if kind == "input_image":
        _fields(part, where, ("type", "image_url", "detail", "file_id"))
        if part.get("file_id") is not None:
            raise _wrong(f"{where}.file_id", "there are no files here; give image_url")
        url = _string(part, "image_url", where)
        return {"type": kind, "image_url": url, "detail": part.get("detail") or "auto", "file_id": None}
    if kind == "refusal":
        raise _wrong(f"{where}.type", "refusals are not supported; send the text as output_text")
    raise _wrong(f"{where}.type", f"{kind!r:.80} is none of input_text, output_text, input_image")


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part as the chat API has it."""
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    return {"type": "text", "text": part["text"]}


def _content(parts: str | Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(parts, str):
        return parts
    if all("text" in part for part in parts):
        return "".join(part["text"] for part in parts)
    return [_part(part) for part in parts]


def _fields(source: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
    for name, value in source.items():
        if name in known:
            continue
        if name not in _NEUTRAL:
            raise _wrong(f"{where}.{name[:80]}", "unknown option")
        if value not in _NEUTRAL[name]:
            raise _wrong(f"{where}.{name}", f"{json.dumps(value)[:80]} is not supported; leave it out")
    item_id = source.get("id")
    if item_id is not None and not (isinstance(item_id, str) and 0 < len(item_id) <= 128):
        raise _wrong(f"{where}.id", "expected a short text")


def _string(source: Mapping[str, Any], name: str, where: str) -> str:
    value = source.get(name)
    if not isinstance(value, str):
        raise _wrong(f"{where}.{name}", "missing; give it as text" if value is None else "expected text")
    return value


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        return False


def _wrong(name: str, problem: str) -> ApiError:
    return ApiError(400, f"{name}: {problem}", param=name)
