"""Marks in the text that a chat template renders: pairs of private-use characters that are nowhere else in it.

An opening mark carries a number. Text between marks came from a message (the number is its index) or a tool; text
outside is the template's own. With the marks taken out, a rendering must equal the one without marks, or the marks
are not trusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qafila.errors import ChatError
from qafila.text.messages import Message, ToolSchema

_FIRST_PRIVATE = 0x10F000
_LAST_PRIVATE = 0x10FFFD


class Marks:
    """Marks around everything in messages and tools that must not become special tokens, or whose place is needed.

    Args:
        messages: the conversation; the texts of its messages are marked with their index.
        tools: the tools told to the model.
        risky: the characters that special tokens begin with: other text is marked only if it has one of them, so that
            templates may go on comparing roles and types.
        other: text whose characters must not be used as marks either.
    """

    def __init__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], risky: frozenset[str], other: str
    ) -> None:
        self._risky = risky
        taken = set(other)
        for index, message in enumerate(messages):
            for text in strings(message_data(message, index, None)):
                taken.update(text)
        for tool in tools:
            for text in strings(tool.to_dict()):
                taken.update(text)
        free = (chr(c) for c in range(_FIRST_PRIVATE, _LAST_PRIVATE) if chr(c) not in taken)
        try:
            self._open, self._close = next(free), next(free)
        except StopIteration:
            raise ChatError("messages: the text uses every private character there is; remove some") from None
        self._next = len(messages)
        self._pattern = re.compile(f"{self._open}([0-9]*){self._close}")

    def answer(self, index: int) -> int:
        """The number of the mark around the text of an assistant message."""
        return index

    def opening(self, index: int) -> str:
        """The mark in front of the text of a message."""
        return f"{self._open}{index}{self._close}"

    def message(self, text: str, index: int) -> str:
        """Mark the text of a message; outer white space stays outside, where templates trim it."""
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        return text[:start] + self._around(core, index) + text[start + len(core) :]

    def other(self, text: str) -> str:
        """Mark any other text, if a special token could begin in it."""
        return self._around(text, self._next) if any(c in self._risky for c in text) else text

    def _around(self, text: str, number: int) -> str:
        return f"{self._open}{number}{self._close}{text}{self._open}{self._close}"

    def agree(self, text: str, plain: str) -> bool:
        """Whether the marked rendering is the plain one but for the marks, each opened and closed in turn."""
        opened = False
        for match in self._pattern.finditer(text):
            if bool(match.group(1)) == opened:
                return False
            opened = not opened
        return not opened and self._pattern.sub("", text) == plain

    def split(self, text: str) -> list[tuple[str, int, int]]:
        """Pieces of the text, where each starts, and the mark it stands in (-1: none)."""
        pieces = []
        position, mark = 0, -1
        for match in self._pattern.finditer(text):
            if match.start() > position:
                pieces.append((text[position : match.start()], position, mark))
            mark = int(match.group(1)) if match.group(1) else -1
            position = match.end()
        if position < len(text):
            pieces.append((text[position:], position, mark))
        return pieces


def message_data(message: Message, index: int, marks: Marks | None) -> dict[str, Any]:
    """A message as templates expect it: OpenAI's shape, with arguments as objects."""
    data: dict[str, Any] = {"role": message.role}
    data["content"] = marks.message(message.text, index) if marks else message.text
    if message.tool_calls:
        data["tool_calls"] = [
            {
                "type": "function",
                "id": marked(call.id, marks),
                "function": {"name": marked(call.name, marks), "arguments": marked(dict(call.arguments), marks)},
            }
            for call in message.tool_calls
        ]
    if message.name is not None:
        data["name"] = marked(message.name, marks)
    if message.tool_call_id is not None:
        data["tool_call_id"] = marked(message.tool_call_id, marks)
    return data


def marked(value: Any, marks: Marks | None, depth: int = 0) -> Any:
    """Plain data with every risky text marked, keys included; what is no JSON value becomes its type's name."""
    if depth > 100:
        raise ChatError("messages: tool arguments or schemas are nested more than 100 levels deep")
    if isinstance(value, str):
        return marks.other(value) if marks else str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {marked(str(key), marks, depth + 1): marked(item, marks, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [marked(item, marks, depth + 1) for item in value]
    return f"<{type(value).__name__}>"


def strings(value: Any, depth: int = 0) -> list[str]:
    """All text in plain data, keys included."""
    if isinstance(value, str):
        return [value]
    if depth > 100 or not isinstance(value, Mapping | Sequence):
        return []
    items = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
    return [text for item in items for text in strings(item, depth + 1)]
