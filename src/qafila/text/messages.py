"""Messages: what people, models and tools say to one another, before any of it is tokens.

The dictionaries read and written here have the shape of OpenAI's chat API, so that a request body, a line of a training
file and a saved conversation are the same thing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from qafila.errors import ChatError

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text in a message of several parts."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image in a message: its encoded bytes (PNG, JPEG, ...) or a URL, exactly one of the two.

    Formats of text models refuse it with a ``ChatError``.
    """

    data: bytes | None = None
    url: str | None = None
    media_type: str = "image/png"

    def __post_init__(self) -> None:
        if (self.data is None) == (self.url is None):
            raise ChatError("an image part needs either data or url, and not both")


Part: TypeAlias = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one tool by the model: ``arguments`` are JSON values by parameter name."""

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The call in OpenAI's shape, its arguments as JSON text."""
        arguments = json.dumps(dict(self.arguments), ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}

    @classmethod
    def from_dict(cls, source: object, where: str = "tool_calls[0]") -> ToolCall:
        """Read a call in OpenAI's shape; arguments may be JSON text or an object.

        Raises:
            ChatError: a key is missing, unknown or of the wrong type; the message names it.
        """
        call = _object(source, where, required=("function",), optional=("id", "type", "index"))
        if call.get("type", "function") != "function":
            raise ChatError(f'{where}.type: expected "function", not {_shown(call["type"])}')
        function = _object(call["function"], f"{where}.function", required=("name",), optional=("arguments",))
        name = _string(function["name"], f"{where}.function.name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise ChatError(f"{where}.function.arguments: not valid JSON") from None
        if not isinstance(arguments, Mapping):
            raise ChatError(f"{where}.function.arguments: expected a JSON object, not {_shown(arguments)}")
        return cls(_string(call.get("id", ""), f"{where}.id"), name, dict(arguments))


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A tool that the model may call; ``parameters`` is a JSON Schema of an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def to_dict(self) -> dict[str, Any]:
        """The tool in OpenAI's shape."""
        return {"type": "function", "function": self.function()}

    def function(self) -> dict[str, Any]:
        """Name, description and parameters, as Llama's pythonic prompts list them."""
        return {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}

    @classmethod
    def from_dict(cls, source: object, where: str = "tools[0]") -> ToolSchema:
        """Read a tool in OpenAI's shape, or its inner ``function`` object alone.

        Raises:
            ChatError: a key is missing, unknown or of the wrong type; the message names it.
        """
        if isinstance(source, Mapping) and "function" in source:
            tool = _object(source, where, required=("function",), optional=("type",))
            if tool.get("type", "function") != "function":
                raise ChatError(f'{where}.type: expected "function", not {_shown(tool["type"])}')
            source, where = tool["function"], f"{where}.function"
        optional = ("description", "parameters", "strict")
        function = _object(source, where, required=("name",), optional=optional)
        name = _string(function["name"], f"{where}.name")
        description = _string(function.get("description") or "", f"{where}.description")
        parameters = function.get("parameters")
        if parameters is None:
            return cls(name, description)
        if not isinstance(parameters, Mapping):
            raise ChatError(f"{where}.parameters: expected a JSON Schema object, not {_shown(parameters)}")
        return cls(name, description, dict(parameters))


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Args:
        role: who speaks; ``tool`` is the answer of a tool.
        content: text, or parts of text and images.
        tool_calls: calls the assistant makes in this message.
        name: the tool (or person) that speaks, where a format has a place for it.
        tool_call_id: the call that a ``tool`` message answers.
        ids: the token ids that an assistant message was generated as, with its end token where the model produced
            one. Rendering uses them as they are and never tokenises the text again, so that what the model saw in one
            turn is what it sees in the next.

    Raises:
        ChatError: a role that does not exist, or a field that this role cannot have.
    """

    role: Role
    content: str | tuple[Part, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ChatError(f"role: {_shown(self.role)} is none of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            if isinstance(self.content, list):
                object.__setattr__(self, "content", tuple(self.content))
            if not isinstance(self.content, tuple) or not all(
                isinstance(p, TextPart | ImagePart) for p in self.content
            ):
                raise ChatError("content: expected text, or a tuple of TextPart and ImagePart")
        if self.tool_calls and self.role != "assistant":
            raise ChatError(f"tool_calls: only an assistant message has them, not one of {self.role}")
        if self.ids is not None and self.role != "assistant":
            raise ChatError(f"ids: only an assistant message has them, not one of {self.role}")
        if self.tool_call_id is not None and self.role != "tool":
            raise ChatError(f"tool_call_id: only a tool message has one, not one of {self.role}")

    @property
    def text(self) -> str:
        """The text of the message: its text parts joined.

        Raises:
            ChatError: the message has an image.
        """
        if isinstance(self.content, str):
            return self.content
        texts = []
        for part in self.content:
            if isinstance(part, ImagePart):
                raise ChatError("content: this format takes text only, and the message has an image; remove the image")
            texts.append(part.text)
        return "".join(texts)

    def to_dict(self) -> dict[str, Any]:
        """The message in OpenAI's shape; ``ids``, which OpenAI has not, only where there are some."""
        result: dict[str, Any] = {"role": self.role}
        if isinstance(self.content, str):
            result["content"] = self.content
        else:
            result["content"] = [_part_to_dict(part) for part in self.content]
        if self.tool_calls:
            result["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.name is not None:
            result["name"] = self.name
        if self.tool_call_id is not None:
            result["tool_call_id"] = self.tool_call_id
        if self.ids is not None:
            result["ids"] = list(self.ids)
        return result

    @classmethod
    def from_dict(cls, source: object, where: str = "messages[0]") -> Message:
        """Read a message in OpenAI's shape.

        Args:
            source: the dictionary.
            where: how to name the message in an error.

        Raises:
            ChatError: a key is missing, unknown or of the wrong type, or the role does not exist; the message names it.
        """
        optional = ("content", "tool_calls", "name", "tool_call_id", "ids", "refusal")
        fields = _object(source, where, required=("role",), optional=optional)
        role = fields["role"]
        if role not in ROLES:
            raise ChatError(f"{where}.role: {_shown(role)} is none of {', '.join(ROLES)}")
        if fields.get("refusal") is not None:
            raise ChatError(f"{where}.refusal: not supported; put the text into content")
        calls = fields.get("tool_calls") or ()
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise ChatError(f"{where}.tool_calls: expected a list, not {_shown(calls)}")
        tool_calls = tuple(ToolCall.from_dict(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls))
        content = fields.get("content")
        if content is None and role != "assistant":
            raise ChatError(f"{where}.content: missing; give it as text")
        try:
            return cls(
                role=role,
                content=_content(content, f"{where}.content"),
                tool_calls=tool_calls,
                name=_optional_string(fields.get("name"), f"{where}.name"),
                tool_call_id=_optional_string(fields.get("tool_call_id"), f"{where}.tool_call_id"),
                ids=_ids(fields.get("ids"), f"{where}.ids"),
            )
        except ChatError as error:
            message = str(error)
            raise ChatError(message if message.startswith(where) else f"{where}.{message}") from None


def messages_from_dicts(source: object, where: str = "messages") -> list[Message]:
    """Read a conversation: a list of messages in OpenAI's shape.

    Raises:
        ChatError: as ``Message.from_dict``, naming the message by its place in the list.
    """
    if not isinstance(source, Sequence) or isinstance(source, str):
        raise ChatError(f"{where}: expected a list of messages, not {_shown(source)}")
    return [Message.from_dict(item, f"{where}[{i}]") for i, item in enumerate(source)]


def _content(source: object, where: str) -> str | tuple[Part, ...]:
    if source is None:
        return ""
    if isinstance(source, str):
        return source
    if not isinstance(source, Sequence) or isinstance(source, bytes):
        raise ChatError(f"{where}: expected text or a list of parts, not {_shown(source)}")
    return tuple(_part(part, f"{where}[{i}]") for i, part in enumerate(source))


def _part(source: object, where: str) -> Part:
    part = _object(source, where, required=("type",), optional=("text", "image_url"))
    if part["type"] == "text":
        _object(source, where, required=("type", "text"))
        return TextPart(_string(part["text"], f"{where}.text"))
    if part["type"] == "image_url":
        _object(source, where, required=("type", "image_url"))
        image = _object(part["image_url"], f"{where}.image_url", required=("url",), optional=("detail",))
        url = _string(image["url"], f"{where}.image_url.url")
        if not url.startswith("data:"):
            return ImagePart(url=url)
        head, comma, body = url.partition(",")
        media_type, semicolon, encoding = head[len("data:") :].partition(";")
        if not comma or not semicolon or encoding != "base64":
            raise ChatError(f"{where}.image_url.url: expected data:<type>;base64,<data>")
        try:
            return ImagePart(data=base64.b64decode(body, validate=True), media_type=media_type or "image/png")
        except ValueError:
            raise ChatError(f"{where}.image_url.url: not valid base64") from None
    raise ChatError(f'{where}.type: {_shown(part["type"])} is neither "text" nor "image_url"')


def _part_to_dict(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    url = part.url
    if part.data is not None:
        url = f"data:{part.media_type};base64,{base64.b64encode(part.data).decode('ascii')}"
    return {"type": "image_url", "image_url": {"url": url}}


def _ids(source: object, where: str) -> tuple[int, ...] | None:
    if source is None:
        return None
    plain = isinstance(source, Sequence) and not isinstance(source, str | bytes)
    if not plain or not all(type(i) is int and i >= 0 for i in source):  # type: ignore[attr-defined]
        raise ChatError(f"{where}: expected a list of token ids")
    return tuple(source)  # type: ignore[arg-type]


def _object(source: object, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, Any]:
    if not isinstance(source, Mapping):
        raise ChatError(f"{where}: expected an object, not {_shown(source)}")
    known = (*required, *optional)
    for key in source:
        if key not in known:
            raise ChatError(f"{where}: unknown key {_shown(key)}; known are {', '.join(known)}")
    for key in required:
        if key not in source:
            raise ChatError(f"{where}.{key}: missing")
    return source


def _string(source: object, where: str) -> str:
    if not isinstance(source, str):
        raise ChatError(f"{where}: expected text, not {_shown(source)}")
    return source


def _optional_string(source: object, where: str) -> str | None:
    return None if source is None else _string(source, where)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value[:60], ensure_ascii=True)
    if value is None or isinstance(value, bool | int | float):
        return "null" if value is None else str(value)[:60]
    return type(value).__name__
