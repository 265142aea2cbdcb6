"""Anthropic's messages, content blocks and tools as ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qafila.chat.client import ToolMode
from qafila.server.anthropic_bodies import (
    BLOCKS,
    HARMLESS_BLOCKS,
    REFUSED_BLOCKS,
    REFUSED_TOOLS,
    AnthropicCountTokensBody,
    AnthropicMessage,
    TextBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
)
from qafila.server.body import Body
from qafila.server.body_parts import read_part
from qafila.server.errors import ApiError
from qafila.text.messages import Message, ToolCall, ToolSchema

_ROLES: dict[str, tuple[str, ...]] = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use"),
    "system": ("text",),
}
#: Between the text blocks of a prompt, and between turns of one role that follow one another: one turn to the API.
_PARAGRAPH = "\n\n"


def conversation(body: AnthropicCountTokensBody) -> tuple[Message, ...]:
    """The system prompt and the messages of a body.

    Raises:
        ApiError, RequestValidationError: what is wrong with one; the message names it.
    """
    for i, edit in enumerate((body.context_management and body.context_management.edits) or ()):
        kind = edit.get("type")
        if not (isinstance(kind, str) and kind.startswith("clear_thinking_")):
            name = f"context_management.edits[{i}]"
            raise ApiError(400, f"{name}: {kind!r:.60} is not supported: edit the messages in your program", param=name)
    messages: list[Message] = []
    if body.system:
        messages.append(Message("system", _PARAGRAPH.join(_texts(body.system, "system"))))
    calls: dict[str, str] = {}
    for i, given in enumerate(body.messages):
        for message in _turn(given, f"messages[{i}]", calls):
            _append(messages, message)
    return tuple(messages)


def tools(body: AnthropicCountTokensBody) -> tuple[ToolSchema, ...]:
    """The tools of a body.

    Raises:
        ApiError, RequestValidationError: one that is not a custom tool, or what is wrong with it.
    """
    return tuple(_tool(given, f"tools[{i}]") for i, given in enumerate(body.tools or ()))


def choice(body: AnthropicCountTokensBody) -> tuple[ToolMode, frozenset[str] | None, bool]:
    """Whether tools may or must be called, which, and whether several at once.

    Raises:
        ApiError: a choice that makes no sense.
    """
    given = body.tool_choice
    if given is None:
        return "auto", None, True
    if (given.type == "tool") != (given.name is not None):
        wrong = "missing" if given.name is None else f"only with the type tool, not {given.type}"
        raise ApiError(400, f"tool_choice.name: {wrong}", param="tool_choice.name")
    if given.type in ("any", "tool") and not body.tools:
        raise ApiError(400, "tool_choice: only with tools", param="tool_choice")
    modes: dict[str, ToolMode] = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}
    names = None if given.name is None else frozenset({given.name})
    return modes[given.type], names, not given.disable_parallel_tool_use


def _append(messages: list[Message], message: Message) -> None:
    last = messages[-1] if messages else None
    if last is None or last.role != message.role or last.role == "tool":
        messages.append(message)
        return
    text = _PARAGRAPH.join(part for part in (last.text, message.text) if part)
    messages[-1] = replace(last, content=text, tool_calls=(*last.tool_calls, *message.tool_calls))


def _turn(given: AnthropicMessage, where: str, calls: dict[str, str]) -> list[Message]:
    """What one message of the API is to us; ``calls`` are the names of the calls so far by id."""
    if isinstance(given.content, str):
        return [Message(given.role, given.content)]
    blocks = [
        (block, f"{where}.content[{i}]")
        for i, source in enumerate(given.content)
        if (block := _block(source, f"{where}.content[{i}]", _ROLES[given.role])) is not None
    ]
    if given.role == "assistant":
        uses = [block for block, _ in blocks if isinstance(block, ToolUseBlock)]
        calls |= {use.id: use.name for use in uses}
        # Text blocks of one answer follow one another without a seam: they were cut where citations changed.
        text = "".join(block.text for block, _ in blocks if isinstance(block, TextBlock))
        return [Message("assistant", text, tool_calls=tuple(ToolCall(use.id, use.name, use.input) for use in uses))]
    if not blocks:
        raise ApiError(400, f"{where}.content: empty; give it text", param=f"{where}.content")
    turn: list[Message] = []
    for block, name in blocks:
        if isinstance(block, TextBlock):
            _append(turn, Message(given.role, block.text))
        elif isinstance(block, ToolResultBlock):
            turn.append(_result(block, name, calls))
    return turn


def _result(block: ToolResultBlock, where: str, calls: Mapping[str, str]) -> Message:
    name = calls.get(block.tool_use_id)
    if name is None:
        field = f"{where}.tool_use_id"
        raise ApiError(400, f"{field}: no tool_use block before it has the id {block.tool_use_id!r:.80}", param=field)
    text = _PARAGRAPH.join(_texts(block.content or "", f"{where}.content"))
    # No chat format of a Llama has a mark for it, so it is said in words.
    if block.is_error:
        text = f"Error: {text}"
    return Message("tool", text, name=name, tool_call_id=block.tool_use_id)


def _texts(content: str | Sequence[dict[str, Any]], where: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    blocks = (_block(source, f"{where}[{i}]", ("text",)) for i, source in enumerate(content))
    return [block.text for block in blocks if isinstance(block, TextBlock)]


def _block(source: dict[str, Any], where: str, allowed: Sequence[str]) -> Body | None:
    """One content block; None of one that is left out."""
    kind = source.get("type")
    if isinstance(kind, str):  # else it may not even be looked up
        if kind in allowed:
            return read_part(BLOCKS[kind], source, where)
        if kind in HARMLESS_BLOCKS:
            return None
        if (reason := REFUSED_BLOCKS.get(kind)) is not None:
            raise ApiError(400, f"{where}: blocks of type {kind} are not supported: {reason}", param=where)
    message = f"{where}.type: {kind!r:.60} cannot be here; there are {', '.join(allowed)}"
    raise ApiError(400, message if "type" in source else f"{where}.type: missing", param=f"{where}.type")


def _tool(source: dict[str, Any], where: str) -> ToolSchema:
    kind = source.get("type")
    if isinstance(kind, str) and kind != "custom":
        reason = next((why for start, why in REFUSED_TOOLS.items() if kind.startswith(start)), "there is no such type")
        message = f"{where}.type: {kind!r:.60} is not supported: {reason}; describe a tool that your program runs"
        raise ApiError(400, message, param=f"{where}.type")
    tool = read_part(Tool, source, where)
    description = tool.description
    if tool.input_examples:
        examples = "\n".join(json.dumps(example, ensure_ascii=False) for example in tool.input_examples)
        description = f"{description}\nExamples of its input:\n{examples}".strip()
    return ToolSchema(tool.name, description, tool.input_schema)
