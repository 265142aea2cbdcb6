"""The forms in which people write examples, read as one thing: text, a conversation, or a pair of answers.

Forms: text {"text"}; messages {"messages", "tools"?} as OpenAI has them; sharegpt {"conversations": [{"from",
"value"}]} (FastChat, LLaMA-Factory); alpaca {"instruction", "input", "output"} (stanford_alpaca); dolly {"instruction",
"context", "response"} (databricks-dolly-15k); prompt {"prompt", "completion"}; preference {"chosen", "rejected",
"margin"?} with the prompt beside them or, as in Anthropic's hh-rlhf, inside both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from qafila.data.problems import ExampleError, Origin
from qafila.errors import ChatError, UsageError
from qafila.text.messages import Message, TextPart, ToolCall, ToolSchema, messages_from_dicts

FormName = Literal["auto", "text", "messages", "sharegpt", "alpaca", "dolly", "prompt", "preference"]
FORMS: Final[tuple[str, ...]] = get_args(FormName)


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn from.

    Attributes:
        kind: ``text``, ``chat`` or ``preference``.
        origin: where it is from.
        text: of a text.
        first, last: the text begins a document, and ends one; a long file comes in portions.
        messages: the conversation; of a preference what stands before both answers.
        learn: one flag a message of the conversation: False for an answer that is only read (OpenAI's ``weight: 0``).
        chosen, rejected: the two ways in which the conversation goes on.
        margin: how much better the chosen one is; 0 where nobody said.
        tools: what the assistant may call.
        has_input: a user message of two parts is an instruction and its input (alpaca, dolly).
    """

    kind: Literal["text", "chat", "preference"]
    origin: Origin
    text: str = ""
    first: bool = True
    last: bool = True
    messages: tuple[Message, ...] = ()
    learn: tuple[bool, ...] = ()
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    margin: float = 0.0
    tools: tuple[ToolSchema, ...] = ()
    has_input: bool = False


def check_form(form: str, fields: Mapping[str, str]) -> None:
    """Raise UsageError where there is no such form, or it has no such fields."""
    if form not in FORMS:
        raise UsageError(f'form "{form}": there is none of that name; there are {", ".join(FORMS)}')
    known = sorted({name for names in _NAMES.values() for name in names})
    for name in fields:
        if name not in known:
            raise UsageError(f'field "{name}": no form has it; there are {", ".join(known)}')


def example(value: object, origin: Origin, form: str = "auto", fields: Mapping[str, str] | None = None) -> Example:
    """One record as an example.

    Args:
        value: parsed JSON; text alone is a text, a list alone is a conversation.
        origin: where it is from.
        form: one of `FORMS`; ``auto`` goes by the names that are there.
        fields: the form's own names for fields -> what this file calls them.

    Raises:
        ExampleError: the record is not of this form.
    """
    if isinstance(value, str) and form in ("auto", "text"):
        value = {"text": value}
    elif isinstance(value, list) and form in ("auto", "messages", "sharegpt"):
        shared = any(isinstance(item, Mapping) and "from" in item for item in value)
        value = {"conversations" if shared or form == "sharegpt" else "messages": value}
    if not isinstance(value, Mapping):
        raise ExampleError("malformed", f"expected an object, not {_shown(value)}")
    record = dict(value)
    for name, theirs in (fields or {}).items():
        if theirs not in record:
            raise ExampleError("malformed", f'no field "{theirs}"; there are {_listed(record)}')
        record[name] = record[theirs]
    if form == "auto":
        form = _form_of(record)
    try:
        return _READERS[form](record, origin)
    except ChatError as error:
        raise ExampleError("malformed", str(error)) from None


# The names that show a form, in the order in which forms are tried; then the other names that it reads.
_SIGNS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("preference", ("chosen", "rejected")),
    ("messages", ("messages",)),
    ("sharegpt", ("conversations",)),
    ("dolly", ("instruction", "response")),
    ("alpaca", ("instruction", "output")),
    ("prompt", ("prompt", "completion")),
    ("prompt", ("prompt", "response")),
    ("prompt", ("question", "answer")),
    ("prompt", ("input", "output")),
    ("text", ("text",)),
    ("text", ("content",)),
)
_NAMES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "text": ("text",),
        "messages": ("messages", "tools"),
        "sharegpt": ("conversations", "tools", "system"),
        "alpaca": ("instruction", "input", "output", "system"),
        "dolly": ("instruction", "context", "response"),
        "prompt": ("prompt", "completion", "system"),
        "preference": ("prompt", "chosen", "rejected", "margin"),
    }
)


def _form_of(record: dict[str, Any]) -> str:
    for form, names in _SIGNS:
        if all(name in record for name in names):
            return form
    lowered = {name.lower(): name for name in record if isinstance(name, str)}
    for form, names in _SIGNS:
        if all(name in lowered for name in names):
            record.update({name: record[lowered[name]] for name in names})
            return form
    raise ExampleError("malformed", f"no form has these fields: {_listed(record)}; name form and fields")


def _text(record: Mapping[str, Any], origin: Origin) -> Example:
    name = "text" if "text" in record else "content"
    text = _string(record, name)
    if not text.strip():
        raise ExampleError("empty", f"{name}: empty")
    return Example("text", origin, text=text)


def _messages(record: Mapping[str, Any], origin: Origin) -> Example:
    source = _field(record, "messages")
    learn = None
    if isinstance(source, list):
        learn = tuple(_weight(item) for item in source)
        source = [{k: v for k, v in m.items() if k != "weight"} if isinstance(m, Mapping) else m for m in source]
    return _chat(messages_from_dicts(source), origin, tools=_tools(record), learn=learn)


def _weight(message: object) -> bool:
    weight = message.get("weight", 1) if isinstance(message, Mapping) else 1
    if weight not in (0, 1):
        raise ExampleError("malformed", f"messages: weight is 0 or 1, not {_shown(weight)}")
    return bool(weight)


def _sharegpt(record: Mapping[str, Any], origin: Origin) -> Example:
    turns = _turns(_field(record, "conversations"), "conversations")
    system = _optional(record, "system")
    if system and not (turns and turns[0].role == "system"):
        turns.insert(0, Message("system", system))
    start = 1 if turns and turns[0].role == "system" else 0
    if len(turns) > start and turns[start].role == "assistant":
        del turns[start]  # as FastChat: shared conversations may begin with the end of an earlier answer
    return _chat(turns, origin, tools=_tools(record))


def _alpaca(record: Mapping[str, Any], origin: Origin) -> Example:
    return _single(record, origin, "instruction", "input", "output")


def _dolly(record: Mapping[str, Any], origin: Origin) -> Example:
    return _single(record, origin, "instruction", "context", "response")


def _prompt(record: Mapping[str, Any], origin: Origin) -> Example:
    prompt = next((n for n in ("prompt", "question", "input", "instruction") if n in record), "prompt")
    answer = next((n for n in ("completion", "response", "answer", "output") if n in record), "completion")
    if isinstance(record.get(prompt), list):
        before = _conversation(record[prompt], prompt)
        return _chat([*before, *_answers(_field(record, answer), answer)], origin, tools=_tools(record))
    return _single(record, origin, prompt, None, answer)


def _single(record: Mapping[str, Any], origin: Origin, ask: str, given: str | None, answer: str) -> Example:
    question, reply = _string(record, ask), _string(record, answer)
    if not question.strip():
        raise ExampleError("empty", f"{ask}: empty")
    if not reply.strip():
        raise ExampleError("empty", f"{answer}: empty")
    context = (_optional(record, given) if given else None) or ""
    user = Message("user", question)
    if context.strip():
        # Formats with a place for the input (alpaca, dolly) know it by the two parts.
        user = Message("user", (TextPart(question), TextPart(context)))
    system = _optional(record, "system")
    turns = [Message("system", system)] if system else []
    return replace(
        _chat([*turns, user, Message("assistant", reply)], origin), has_input=not isinstance(user.content, str)
    )


def _preference(record: Mapping[str, Any], origin: Origin) -> Example:
    name = next((n for n in ("prompt", "messages", "conversations", "instruction", "question") if n in record), None)
    if name is not None:
        before = _conversation(record[name], name)
        chosen, rejected = (_answers(_field(record, side), side) for side in ("chosen", "rejected"))
        if before and chosen[: len(before)] == before and rejected[: len(before)] == before:
            chosen, rejected = chosen[len(before) :], rejected[len(before) :]  # both repeat the prompt
    else:
        whole = [_conversation(_field(record, side), side) for side in ("chosen", "rejected")]
        shared = 0
        while shared < min(map(len, whole)) and whole[0][shared] == whole[1][shared]:
            shared += 1
        while shared and whole[0][shared - 1].role not in ("user", "tool"):
            shared -= 1
        before, chosen, rejected = whole[0][:shared], whole[0][shared:], whole[1][shared:]
    system = _optional(record, "system")
    if system and not (before and before[0].role == "system"):
        before.insert(0, Message("system", system))
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or not (answer[-1].text.strip() or answer[-1].tool_calls or answer[-1].ids):
            raise ExampleError("empty", f"{side}: empty")
        _check_order([*before, *answer])
        if answer[0].role != "assistant" or answer[-1].role != "assistant":
            raise ExampleError("order", f"{side}: must begin and end with the assistant")
    if chosen == rejected:
        raise ExampleError("no-target", "chosen and rejected are the same")
    return Example(
        "preference",
        origin,
        messages=tuple(before),
        chosen=tuple(chosen),
        rejected=tuple(rejected),
        margin=_margin(record.get("margin")),
        tools=_tools(record),
    )


def _chat(
    messages: Sequence[Message],
    origin: Origin,
    *,
    tools: tuple[ToolSchema, ...] = (),
    learn: tuple[bool, ...] | None = None,
) -> Example:
    if not messages:
        raise ExampleError("empty", "messages: none")
    _check_order(messages)
    learn = (True,) * len(messages) if learn is None else learn
    if not any(message.role == "assistant" and wanted for message, wanted in zip(messages, learn, strict=True)):
        raise ExampleError("no-target", "messages: no answer of the assistant to learn")
    for index, message in enumerate(messages):
        if (
            message.role == "assistant"
            and learn[index]
            and not (message.text.strip() or message.tool_calls or message.ids)
        ):
            raise ExampleError("empty", f"messages[{index}]: an empty answer")
    return Example("chat", origin, messages=tuple(messages), learn=learn, tools=tools)


_AFTER: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "": ("system", "user"),
        "system": ("user",),
        "user": ("assistant",),
        "assistant": ("user",),
        "calls": ("tool",),
        "tool": ("tool", "assistant"),
    }
)


def _check_order(messages: Sequence[Message]) -> None:
    """A system message or none, then user and assistant in turn, with answers of tools after calls only."""
    before = ""
    for index, message in enumerate(messages):
        if message.role not in _AFTER[before]:
            place = f"after {before}" if before else "at the start"
            raise ExampleError(
                "order", f"messages[{index}]: {message.role} {place}; expected {' or '.join(_AFTER[before])}"
            )
        before = "calls" if message.tool_calls else message.role


def _conversation(value: object, where: str) -> list[Message]:
    """A prompt, or a whole conversation: text, hh-rlhf's text, or a list of messages of either shape."""
    if isinstance(value, str):
        return _human_assistant(value) if _HH.match(value) else [Message("user", value)]
    if isinstance(value, list) and any(isinstance(item, Mapping) and "from" in item for item in value):
        return _turns(value, where)
    return messages_from_dicts(value, where)


def _answers(value: object, where: str) -> list[Message]:
    """What the assistant said: text, one message, or a list of them."""
    if isinstance(value, str):
        return [Message("assistant", value)]
    return _conversation([value] if isinstance(value, Mapping) else value, where)


_HH: Final = re.compile(r"\s*(?:Human|Assistant): ")
_HH_TURN: Final = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):[ \t]?")


def _human_assistant(text: str) -> list[Message]:
    """Anthropic's hh-rlhf: turns that begin with a blank line and ``Human:`` or ``Assistant:``.

    Two turns of one speaker in a row, which hh-rlhf has here and there, are one message.
    """
    pieces = _HH_TURN.split(text)
    turns: list[Message] = []
    for name, said in zip(pieces[1::2], pieces[2::2], strict=True):
        role: Literal["user", "assistant"] = "user" if name == "Human" else "assistant"
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].text}\n\n{said.strip()}".strip())
        else:
            turns.append(Message(role, said.strip()))
    return turns


_SPEAKERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
        "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "system": "system", "observation": "tool",
        "tool": "tool", "function_call": "calls",
    }
)  # fmt: skip


def _turns(source: object, where: str) -> list[Message]:
    if not isinstance(source, list):
        raise ExampleError("malformed", f"{where}: expected a list of turns, not {_shown(source)}")
    turns = []
    for index, item in enumerate(source):
        place = f"{where}[{index}]"
        if not isinstance(item, Mapping) or not isinstance(item.get("from"), str) or "value" not in item:
            raise ExampleError("malformed", f'{place}: expected {{"from": ..., "value": ...}}')
        role, value = _SPEAKERS.get(item["from"].lower()), item["value"]
        if role is None:
            raise ExampleError("malformed", f"{place}.from: {_shown(item['from'])} is none of {', '.join(_SPEAKERS)}")
        if not isinstance(value, str):
            raise ExampleError("malformed", f"{place}.value: expected text, not {_shown(value)}")
        if role == "calls":
            turns.append(Message("assistant", "", tool_calls=_calls(value, place)))
        else:
            turns.append(Message(role, value))  # type: ignore[arg-type]
    return turns


def _calls(text: str, where: str) -> tuple[ToolCall, ...]:
    calls = _parsed(text, f"{where}.value")
    listed = calls if isinstance(calls, list) else [calls]
    if not listed:
        raise ExampleError("malformed", f"{where}.value: no call")
    return tuple(ToolCall.from_dict({"id": f"call_{i}", "function": c}, where) for i, c in enumerate(listed))


def _tools(record: Mapping[str, Any]) -> tuple[ToolSchema, ...]:
    source = record.get("tools")
    if isinstance(source, str):
        source = _parsed(source, "tools") if source.strip() else None
    if source is None:
        return ()
    if not isinstance(source, list):
        raise ExampleError("malformed", f"tools: expected a list, not {_shown(source)}")
    return tuple(ToolSchema.from_dict(item, f"tools[{i}]") for i, item in enumerate(source))


def _margin(value: object) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e6:
        raise ExampleError("malformed", f"margin: expected a number, not {_shown(value)}")
    return float(value)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ExampleError("malformed", f"{where}: not valid JSON") from None


def _field(record: Mapping[str, Any], name: str) -> Any:
    if record.get(name) is None:
        raise ExampleError("malformed", f'no field "{name}"; there are {_listed(record)}')
    return record[name]


def _string(record: Mapping[str, Any], name: str) -> str:
    value = _field(record, name)
    if not isinstance(value, str):
        raise ExampleError("malformed", f"{name}: expected text, not {_shown(value)}")
    return value


def _optional(record: Mapping[str, Any], name: str) -> str | None:
    return None if record.get(name) is None else _string(record, name)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value[:60], ensure_ascii=True)
    if value is None or isinstance(value, bool | int | float):
        return "null" if value is None else repr(value)[:60]
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else type(value).__name__


def _listed(record: Mapping[Any, Any]) -> str:
    names = [str(name)[:40] for name in list(record)[:12]]
    return (", ".join(names) + (", ..." if len(record) > 12 else "")) or "none"


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any], Origin], Example]]] = MappingProxyType(
    {
        "text": _text,
        "messages": _messages,
        "sharegpt": _sharegpt,
        "alpaca": _alpaca,
        "dolly": _dolly,
        "prompt": _prompt,
        "preference": _preference,
    }
)
