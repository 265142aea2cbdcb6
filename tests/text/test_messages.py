from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.errors import ChatError
from qafila.text.messages import ImagePart, Message, TextPart, ToolCall, ToolSchema, messages_from_dicts

EXAMPLES = [
    Message("system", "Be brief."),
    Message("user", "مرحبا"),
    Message("user", (TextPart("What is this?"), ImagePart(url="https://example.org/a.png"))),
    Message("user", (ImagePart(data=b"\x89PNG\r\n", media_type="image/jpeg"),)),
    Message("assistant", "", tool_calls=(ToolCall("call_0", "add", {"a": 1, "b": [True, None, "ج"]}),)),
    Message("tool", "3", tool_call_id="call_0", name="add"),
    Message("assistant", "3.", ids=(5, 7, 2)),
]


@pytest.mark.parametrize("message", EXAMPLES)
def test_there_and_back(message: Message) -> None:
    assert Message.from_dict(message.to_dict()) == message


def test_openais_shape() -> None:
    assert EXAMPLES[4].to_dict() == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_0",
                "type": "function",
                "function": {"name": "add", "arguments": '{"a": 1, "b": [true, null, "ج"]}'},
            }
        ],
    }
    assert EXAMPLES[3].to_dict()["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,iVBORw0K"}}
    ]
    assert Message.from_dict({"role": "assistant", "content": None}) == Message("assistant", "")


def test_text_of_parts() -> None:
    assert Message("user", (TextPart("a"), TextPart("b"))).text == "ab"
    with pytest.raises(ChatError, match="image"):
        _ = EXAMPLES[2].text


@pytest.mark.parametrize(
    ("source", "where"),
    [
        (None, "messages[0]"),
        ("hi", "messages[0]"),
        ({}, "messages[0].role"),
        ({"role": "developer", "content": "x"}, "messages[0].role"),
        ({"role": ["user"], "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": b"x"}, "messages[0].content"),
        ({"role": "user", "content": "x", "contnet": "y"}, '"contnet"'),
        ({"role": "user", "content": [{"type": "audio"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}, "image_url.url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x;base64,?"}}]}, "base64"),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, "messages[0].tool_calls"),
        ({"role": "user", "content": "x", "ids": [1]}, "messages[0].ids"),
        ({"role": "user", "content": "x", "tool_call_id": "c"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "ids": [1, -1]}, "messages[0].ids"),
        ({"role": "assistant", "ids": [True]}, "messages[0].ids"),
        ({"role": "assistant", "ids": "12"}, "messages[0].ids"),
        ({"role": "assistant", "refusal": "no"}, "messages[0].refusal"),
        ({"role": "assistant", "tool_calls": "f()"}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "function.arguments"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "function.arguments"),
        ({"role": "assistant", "tool_calls": [{"type": "magic", "function": {"name": "f"}}]}, "tool_calls[0].type"),
    ],
)
def test_errors_name_the_field(source: object, where: str) -> None:
    with pytest.raises(ChatError) as caught:
        messages_from_dicts([source])
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_name_the_message() -> None:
    with pytest.raises(ChatError, match=r"messages\[1\]\.role"):
        messages_from_dicts([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}])
    with pytest.raises(ChatError, match="expected a list"):
        messages_from_dicts({"role": "user"})


def test_constructor_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ChatError, match="role"):
        Message("ipython", "x")  # type: ignore[arg-type]
    with pytest.raises(ChatError, match="content"):
        Message("user", ("text",))  # type: ignore[arg-type]
    with pytest.raises(ChatError, match="image"):
        ImagePart()


def test_tool_schema() -> None:
    source: dict[str, Any] = {
        "type": "function",
        "function": {"name": "add", "description": "Add", "parameters": {"type": "object", "properties": {}}},
    }
    tool = ToolSchema.from_dict(source)
    assert tool.to_dict() == source
    assert ToolSchema.from_dict(source["function"]) == tool
    for wrong, where in [
        ({"function": {}}, "tools[0].function.name"),
        ({"name": "f", "parameters": []}, "tools[0].parameters"),
        ({"name": "f", "paramters": {}}, '"paramters"'),
        ({"type": "web", "function": {"name": "f"}}, "tools[0].type"),
    ]:
        with pytest.raises(ChatError) as caught:
            ToolSchema.from_dict(wrong)
        assert where in str(caught.value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "tool_calls", "type", "text", "function", "name", "arguments", "ids", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(anything, st.sampled_from(["user", "assistant", "tool", None]))
def test_any_object_is_a_message_or_an_error(source: Any, role: str | None) -> None:
    if isinstance(source, dict) and role:
        source = {**source, "role": role}
    try:
        message = Message.from_dict(source)
    except ChatError as error:
        problem = str(error)
    else:
        assert Message.from_dict(message.to_dict()) == message
        return
    assert "\n" not in problem
