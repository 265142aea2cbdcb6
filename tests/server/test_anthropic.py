"""Anthropic's API: shapes, streams, errors and cancellation over scripted clients, and its own client over a server."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
import typing
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from fastapi import Request

from qafila.chat.client import ChatRequest, Event, Finished, Started, Usage
from qafila.errors import ChatError, ContextLengthError
from qafila.server import anthropic_bodies as bodies
from qafila.server.anthropic_models import model_page
from qafila.server.errors import ApiError
from qafila.server.models import Entry, Models
from qafila.text.messages import Message, ToolCall

anthropic = pytest.importorskip("anthropic")

HELLO = {"model": "scripted", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]}
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def post(client: httpx.AsyncClient, body: dict[str, Any], path: str = "/v1/messages") -> httpx.Response:
    async def go() -> httpx.Response:
        async with client:
            return await client.post(path, json=body)

    return asyncio.run(go())


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of server-sent events."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        found.append((name[7:], json.loads(data[6:])))
    for name, value in found:
        assert value["type"] == name
    return found


def test_a_whole_answer(scripted) -> None:
    client, model = scripted()
    answer = post(client, {**HELLO, "system": "Be brief.", "stop_sequences": ["END"], "temperature": 0.5, "top_k": 3,
                           "top_p": 0.9, "metadata": {"user_id": "x"}, "service_tier": "auto"})  # fmt: skip
    assert answer.status_code == 200
    told = answer.json()
    assert told.pop("id").startswith("msg_")
    assert told == {
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 2,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 2,
        },
    }
    asked = model.asked[0]
    assert isinstance(asked, ChatRequest)
    assert asked.messages == (Message("system", "Be brief."), Message("user", "hi"))
    generation = asked.generation
    assert (generation.max_tokens, generation.stop, generation.temperature) == (16, ("END",), 0.5)
    assert (generation.top_k, generation.top_p, generation.answer) == (3, 0.9, None)


def test_a_stream(scripted) -> None:
    client, _ = scripted(["Hel", "", "lo\n\0"])
    answer = post(client, {**HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.text)
    assert [name for name, _ in found] == [
        "message_start", "ping", "content_block_start", "content_block_delta", "content_block_delta",
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    start = found[0][1]["message"]
    assert start["content"] == []
    assert start["stop_reason"] is None
    assert start["usage"]["input_tokens"] == 5
    assert found[2][1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert [data["delta"] for name, data in found if name == "content_block_delta"] == [
        {"type": "text_delta", "text": "Hel"},
        {"type": "text_delta", "text": "lo\n\0"},
    ]
    end = found[-2][1]
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == 3
    assert end["usage"]["input_tokens"] + end["usage"]["cache_read_input_tokens"] == 5


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(scripted, stream: bool) -> None:
    calls = [("get_weather", '{"city": "Sana\'a"}'), ("get_weather", '{"city": "عدن"}')]
    client, model = scripted(["Let me see."], calls=calls)
    answer = post(client, {**HELLO, "stream": stream, "tools": [WEATHER]})
    expected = [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "call_0", "name": "get_weather", "input": {"city": "Sana'a"}},
        {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "عدن"}},
    ]
    if not stream:
        assert answer.json()["content"] == expected
        assert answer.json()["stop_reason"] == "tool_use"
    else:
        found = events(answer.text)
        blocks: list[dict[str, Any]] = []
        inputs: dict[int, str] = {}
        open_block = None
        for name, data in found:
            if name == "content_block_start":
                assert open_block is None
                open_block = data["index"]
                assert open_block == len(blocks)
                blocks.append(data["content_block"])
            elif name == "content_block_delta":
                assert data["index"] == open_block
                if data["delta"]["type"] == "text_delta":
                    blocks[-1]["text"] += data["delta"]["text"]
                else:
                    assert data["delta"]["type"] == "input_json_delta"
                    inputs[open_block] = inputs.get(open_block, "") + data["delta"]["partial_json"]
            elif name == "content_block_stop":
                assert data["index"] == open_block
                open_block = None
        for index, text in inputs.items():
            blocks[index]["input"] = json.loads(text)
        assert blocks == expected
        assert found[-2][1]["delta"]["stop_reason"] == "tool_use"
    asked = model.asked[0]
    assert [tool.name for tool in asked.tools] == ["get_weather"]
    assert asked.tools[0].parameters == WEATHER["input_schema"]
    assert asked.parallel_tool_calls


def test_a_call_that_was_cut_short_is_no_call(scripted) -> None:
    client, _ = scripted(["Well."], calls=[("get_weather", '{"city": "Sa')])
    answer = post(client, {**HELLO, "tools": [WEATHER]})
    assert answer.json()["content"] == [{"type": "text", "text": "Well."}]


@pytest.mark.parametrize(
    ("choice", "mode", "names", "parallel"),
    [
        ({"type": "auto"}, "auto", None, True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", None, False),
        ({"type": "tool", "name": "get_weather"}, "required", {"get_weather"}, True),
        ({"type": "none"}, "none", None, True),
    ],
)
def test_tool_choice(scripted, choice, mode, names, parallel) -> None:
    client, model = scripted()
    assert post(client, {**HELLO, "tools": [WEATHER], "tool_choice": choice}).status_code == 200
    asked = model.asked[0]
    assert (asked.tool_mode, asked.tool_names, asked.parallel_tool_calls) == (mode, names, parallel)


@pytest.mark.parametrize("stream", [False, True])
def test_which_stop_sequence_it_was(scripted, stream: bool) -> None:
    client, _ = scripted(stop_string="END")
    answer = post(client, {**HELLO, "stream": stream, "stop_sequences": ["x", "END"]})
    told = events(answer.text)[-2][1]["delta"] if stream else answer.json()
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", "END")


def test_a_stop_string_of_the_chat_format_is_the_end_of_the_turn(scripted) -> None:
    client, _ = scripted(stop_string="<|im_end|>")
    answer = post(client, {**HELLO, "stop_sequences": ["END"]}).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_asked_for_none_told(scripted, stream: bool) -> None:
    client, model = scripted()
    answer = post(client, {**HELLO, "max_tokens": 0, "stream": stream})
    if stream:
        found = events(answer.text)
        assert [name for name, _ in found] == ["message_start", "ping", "message_delta", "message_stop"]
        told = {**found[-2][1]["delta"], "usage": found[-2][1]["usage"]}
    else:
        told = answer.json()
        assert told["content"] == []
    assert told["stop_reason"] == "max_tokens"
    assert told["usage"]["output_tokens"] == 0
    assert model.asked[0].generation.max_tokens == 1


@pytest.mark.parametrize(("generated", "reason"), [(16, "max_tokens"), (9, "model_context_window_exceeded")])
def test_which_limit_ended_the_answer(scripted_server, monkeypatch, generated: int, reason: str) -> None:
    """An answer that is shorter than asked for and was cut all the same met the end of the context."""
    url, model = scripted_server()

    async def chat(request: ChatRequest) -> AsyncIterator[Event]:
        yield Started(5)
        yield Finished(0, "length", Message("assistant", ""))
        yield Usage(5, 0, generated)

    monkeypatch.setattr(model, "chat", chat)
    assert httpx.post(f"{url}/v1/messages", json=HELLO).json()["stop_reason"] == reason


def test_blocks_become_messages(scripted) -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = {
        **HELLO,
        "cache_control": {"type": "ephemeral"},
        "system": [{"type": "text", "text": "One.", **cached}, {"type": "text", "text": "Two."}],
        "tools": [{**WEATHER, **cached, "strict": True, "type": "custom", "input_examples": [{"city": "Aden"}]}],
        "messages": [
            {"role": "user", "content": "First"},
            {"role": "user", "content": [{"type": "text", "text": "second", **cached}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I ", "citations": None},
                    {"type": "text", "text": "look."},
                    {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Aden"}, **cached},
                    {"type": "tool_use", "id": "b", "name": "get_weather", "input": {}, "caller": {"type": "direct"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "hot", **cached},
                    {"type": "tool_result", "tool_use_id": "b", "is_error": True,
                     "content": [{"type": "text", "text": "no city"}]},
                    {"type": "text", "text": "and now?"},
                ],
            },
            {"role": "system", "content": [{"type": "text", "text": "Hurry."}]},
        ],
    }  # fmt: skip
    client, model = scripted()
    answer = post(client, body)
    assert answer.status_code == 200, answer.text
    asked = model.asked[0]
    assert asked.messages == (
        Message("system", "One.\n\nTwo."),
        Message("user", "First\n\nsecond"),
        Message(
            "assistant",
            "I look.",
            tool_calls=(ToolCall("a", "get_weather", {"city": "Aden"}), ToolCall("b", "get_weather", {})),
        ),
        Message("tool", "hot", name="get_weather", tool_call_id="a"),
        Message("tool", "Error: no city", name="get_weather", tool_call_id="b"),
        Message("user", "and now?"),
        Message("system", "Hurry."),
    )
    assert asked.tools[0].description == 'Weather of a city\nExamples of its input:\n{"city": "Aden"}'


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_a_schema_for_the_answer(scripted, name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "schema": schema}
    client, model = scripted()
    body = {**HELLO, name: {"format": form, "effort": "low"} if name == "output_config" else form}
    assert post(client, body).status_code == 200
    spec = model.asked[0].generation.answer
    assert spec.kind == "json_schema"
    assert json.loads(spec.text) == schema


def test_what_asks_for_nothing_is_accepted(scripted) -> None:
    client, model = scripted()
    body = {
        **HELLO,
        "thinking": {"type": "adaptive"},
        "mcp_servers": [],
        "fallbacks": [],
        "container": None,
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "speed": "fast",
    }
    assert post(client, body, "/v1/messages?beta=true").status_code == 200
    assert len(model.asked) == 1


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def with_blocks(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {**HELLO, "messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({**HELLO, "container": "c"}, "container: not supported"),
        ({**HELLO, "inference_geo": "eu"}, "inference_geo: not supported"),
        ({**HELLO, "mcp_servers": [{"type": "url"}]}, "mcp_servers: not supported"),
        ({**HELLO, "frobnicate": 1}, "frobnicate: unknown option"),
        ({**HELLO, "max_tokens": -1}, "max_tokens: "),
        ({**HELLO, "temperature": 1.5}, "temperature: "),
        ({**HELLO, "stop_sequences": [""]}, "stop_sequences: "),
        ({**HELLO, "messages": []}, "messages: "),
        ({key: HELLO[key] for key in ("model", "messages")}, "max_tokens: Field required"),
        ({**HELLO, "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: "),
        ({**HELLO, "messages": [{"role": "user"}]}, "messages[0].content: "),
        ({**HELLO, "messages": [{"role": "assistant", "content": "The sun is"}]}, "messages: continuing"),
        (with_blocks(), "messages[0].content: empty"),
        (with_blocks(IMAGE), "messages[0].content[0]: blocks of type image"),
        (with_blocks({"type": "document", "source": {}}), "messages[0].content[0]: blocks of type document"),
        (with_blocks({"type": "server_tool_use"}), "messages[0].content[0]: blocks of type server_tool_use"),
        (with_blocks({"type": "text"}), "messages[0].content[0].text: "),
        (with_blocks({"type": "text", "text": "a", "b": 1}), "messages[0].content[0].b: unknown option"),
        (with_blocks({"type": "nonsense"}), "messages[0].content[0].type: 'nonsense'"),
        (with_blocks({"type": ["text"]}), "messages[0].content[0].type: ['text'] cannot be here"),
        (with_blocks({"text": "a"}), "messages[0].content[0].type: missing"),
        (with_blocks({"type": "tool_use"}), "messages[0].content[0].type: 'tool_use' cannot be here"),
        (with_blocks({"type": "tool_use", "id": "a", "name": "b"}, role="assistant"),
         "messages[0].content[0].input: "),
        (with_blocks({"type": "tool_result", "tool_use_id": "zz", "content": "x"}),
         "messages[0].content[0].tool_use_id: no tool_use block"),
        ({**HELLO, "system": [IMAGE]}, "system[0]: blocks of type image"),
        ({**HELLO, "tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "tools[0].type: "),
        ({**HELLO, "tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type: "),
        ({**HELLO, "tools": [{"name": "f"}]}, "tools[0].input_schema: Field required"),
        ({**HELLO, "tools": [{**WEATHER, "defer_loading": True}]}, "tools[0]: defer_loading: not supported"),
        ({**HELLO, "tool_choice": {"type": "any"}}, "tool_choice: only with tools"),
        ({**HELLO, "tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name: missing"),
        ({**HELLO, "tool_choice": {"type": "auto", "name": "x"}}, "tool_choice.name: only"),
        ({**HELLO, "output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema: "),
        ({**HELLO, "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
         "context_management.edits[0]: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(scripted, body: dict[str, Any], said: str) -> None:
    client, model = scripted()
    answer = post(client, body)
    assert answer.status_code == 400
    told = answer.json()
    assert told["type"] == "error"
    assert told["error"]["type"] == "invalid_request_error"
    assert told["error"]["message"].startswith(said)
    assert not model.asked


def test_errors_of_the_model(scripted) -> None:
    client, _ = scripted()
    answer = post(client, {**HELLO, "model": "gpt"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    client, _ = scripted(refusal=ContextLengthError("the prompt is too long"))
    answer = post(client, {**HELLO, "stream": True})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "the prompt is too long")


def test_an_error_in_mid_stream_is_an_event(scripted) -> None:
    client, _ = scripted(error=ChatError("it broke"))
    found = events(post(client, {**HELLO, "stream": True}).text)
    assert found[-1] == (
        "error",
        {"type": "error", "error": {"type": "invalid_request_error", "message": "it broke"}},
    )
    assert "message_stop" not in dict(found)


def test_count_tokens(scripted) -> None:
    body = {"model": "scripted", "system": "abc", "messages": HELLO["messages"], "tools": [WEATHER]}
    path = "/v1/messages/count_tokens"
    client, model = scripted()
    assert post(client, {**body, "thinking": {"type": "disabled"}}, path).json() == {"input_tokens": 6}
    client, _ = scripted()
    assert post(client, {**body, "tool_choice": {"type": "none"}}, path).json() == {"input_tokens": 5}
    client, _ = scripted()
    wrong = post(client, {**body, "max_tokens": 3}, path)
    assert wrong.json()["error"]["message"] == "max_tokens: unknown option"
    client, _ = scripted()
    assert post(client, {**body, "model": "x"}, path).status_code == 404
    assert not model.asked


def test_pages_of_models() -> None:
    async def load() -> Any:
        raise AssertionError("nothing is loaded for a list")

    models = Models({name: Entry(name, name, load) for name in "abcd"})

    def page(**query: str) -> tuple[list[str], bool]:
        scope = {"type": "http", "query_string": urlencode(query).encode(), "headers": []}
        found = model_page(Request(scope), models)
        assert (found["first_id"], found["last_id"]) == (found["data"][0]["id"], found["data"][-1]["id"])
        return [model["id"] for model in found["data"]], found["has_more"]

    assert page() == (["a", "b", "c", "d"], False)
    assert page(limit="3") == (["a", "b", "c"], True)
    assert page(limit="3", after_id="a") == (["b", "c", "d"], False)
    assert page(limit="2", before_id="d") == (["b", "c"], True)
    for wrong in ({"limit": "0"}, {"limit": "x"}, {"limit": "1001"}, {"after_id": "e"}, {"before_id": ""}):
        with pytest.raises(ApiError, match=next(iter(wrong))):
            page(**wrong)


def test_a_client_that_goes_away_ends_its_request(scripted_server) -> None:
    url, model = scripted_server(["x"] * 1000, delay=0.01)
    with (
        httpx.Client() as client,
        client.stream("POST", f"{url}/v1/messages", json={**HELLO, "stream": True}) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("event: content_block_delta"):
                break
    with httpx.Client(timeout=0.2) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{url}/v1/messages", json=HELLO)
    deadline = time.monotonic() + 10
    while model.cancelled < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (model.cancelled, model.running) == (2, 0)


# Every parameter of the installed client stands in one of the lists.


def known(body: type[bodies.Body]) -> set[str]:
    return {f.alias or n for n, f in body.model_fields.items()} | set(body.harmless) | set(body.refused)


OF_THE_TRANSPORT = {"self", "extra_headers", "extra_query", "extra_body", "timeout", "betas"}


@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("method", ["create", "stream", "parse", "count_tokens"])
def test_every_parameter_of_the_client_is_listed(beta: bool, method: str) -> None:
    from anthropic.resources.beta.messages import Messages as BetaMessages
    from anthropic.resources.messages import Messages

    given = set(inspect.signature(getattr(BetaMessages if beta else Messages, method)).parameters) - OF_THE_TRANSPORT
    body = bodies.AnthropicCountTokensBody if method == "count_tokens" else bodies.AnthropicMessagesBody
    assert len(given) >= 8
    assert given - known(body) == set()


def members(kind: Any) -> Iterator[Any]:
    if typing.get_origin(kind) is typing.Union:
        for each in typing.get_args(kind):
            yield from members(each)
    elif typing.get_origin(kind) is typing.Annotated:
        yield from members(typing.get_args(kind)[0])
    else:
        yield kind


def types_of(union: Any) -> set[str]:
    """What ``type`` may be in the members of a union."""
    found: set[str] = set()
    for each in members(union):
        fields = getattr(each, "model_fields", None)
        hint = fields["type"].annotation if fields else typing.get_type_hints(each)["type"]
        found |= {name for part in members(hint) for name in typing.get_args(part)}
    return found


def test_every_type_of_block_and_tool_is_listed() -> None:
    from anthropic.types import ToolUnionParam
    from anthropic.types.beta.beta_content_block_param import BetaContentBlockParam
    from anthropic.types.beta.beta_tool_result_block_param import Content
    from anthropic.types.beta.beta_tool_union_param import BetaToolUnionParam
    from anthropic.types.content_block_param import ContentBlockParam

    blocks = types_of(ContentBlockParam) | types_of(BetaContentBlockParam) | types_of(Content)
    assert len(blocks) > 20
    assert blocks - set(bodies.BLOCKS) - set(bodies.HARMLESS_BLOCKS) - set(bodies.REFUSED_BLOCKS) == set()
    tools = types_of(ToolUnionParam) | types_of(BetaToolUnionParam)
    assert len(tools) > 20
    assert {t for t in tools if not any(t.startswith(start) for start in bodies.REFUSED_TOOLS)} == {"custom"}


@pytest.mark.parametrize(
    ("module", "name", "body"),
    [
        ("tool_param", "ToolParam", bodies.Tool),
        ("text_block_param", "TextBlockParam", bodies.TextBlock),
        ("tool_use_block_param", "ToolUseBlockParam", bodies.ToolUseBlock),
        ("tool_result_block_param", "ToolResultBlockParam", bodies.ToolResultBlock),
        ("tool_choice_tool_param", "ToolChoiceToolParam", bodies.ToolChoice),
        ("output_config_param", "OutputConfigParam", bodies.OutputConfig),
        ("beta.beta_output_config_param", "BetaOutputConfigParam", bodies.OutputConfig),
        ("json_output_format_param", "JSONOutputFormatParam", bodies.OutputFormat),
    ],
)
def test_every_key_of_what_is_inside_is_listed(module: str, name: str, body: type[bodies.Body]) -> None:
    import importlib

    kind = getattr(importlib.import_module(f"anthropic.types.{module}"), name)
    assert set(typing.get_type_hints(kind)) - known(body) == set()


def test_every_body_is_documented() -> None:
    mine = {
        kind
        for name, kind in vars(bodies).items()
        if isinstance(kind, type) and issubclass(kind, bodies.Body) and kind is not bodies.Body and name[0] != "_"
    }
    assert mine == {*bodies.PARTS.values(), *(bodies.AnthropicMessagesBody, bodies.AnthropicCountTokensBody)}


# The real client against the real server.


@pytest.fixture
def real(base_url: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


ASK = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


def test_real_messages(real) -> None:
    message = real.messages.create(model="default", max_tokens=20, messages=ASK, system="You are brief.",
                                   extra_body={"temperature": 0})  # fmt: skip
    assert isinstance(message, anthropic.types.Message)
    assert "Paris" in message.content[0].text
    assert message.stop_reason in ("end_turn", "max_tokens")
    usage = message.usage
    counted = real.messages.count_tokens(model="default", messages=ASK, system="You are brief.")
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    again = real.messages.create(model="default", max_tokens=20, system="You are brief.",
                                 messages=[*ASK, message.to_param(), {"role": "user", "content": "Sure?"}],
                                 extra_body={"temperature": 0})  # fmt: skip
    assert again.usage.cache_read_input_tokens > 0


def test_real_models(real) -> None:
    page = real.models.list(limit=1)
    assert [model.id for model in page] == ["default"]
    assert page.has_more is False
    assert real.models.retrieve("default").type == "model"
    with pytest.raises(anthropic.NotFoundError):
        real.models.retrieve("claude")


def test_real_stream(real) -> None:
    raw = list(real.messages.create(model="default", max_tokens=8, messages=ASK, stream=True))
    assert [event.type for event in raw[:2]] == ["message_start", "content_block_start"]
    assert raw[-1].type == "message_stop"
    assert raw[-2].delta.stop_reason in ("end_turn", "max_tokens")
    with real.messages.stream(model="default", max_tokens=8, messages=ASK, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = real.messages.create(model="default", max_tokens=8, messages=ASK, extra_body={"temperature": 0})
    assert text == final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == whole.stop_reason


def test_real_max_tokens_and_stop_sequences(real) -> None:
    short = real.messages.create(model="default", max_tokens=3, messages=ASK)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)
    ask = [{"role": "user", "content": "Count from 1 to 9, separated by commas."}]
    stopped = real.messages.create(model="default", max_tokens=60, messages=ask, stop_sequences=["3", ","],
                                   extra_body={"temperature": 0})  # fmt: skip
    assert stopped.stop_reason == "stop_sequence"
    assert stopped.stop_sequence in ("3", ",")
    assert stopped.stop_sequence not in stopped.content[0].text
    primed = real.messages.create(model="default", max_tokens=0, messages=ASK)
    assert (primed.content, primed.stop_reason, primed.usage.output_tokens) == ([], "max_tokens", 0)


def test_real_async(base_url: str) -> None:
    async def go() -> None:
        async with anthropic.AsyncAnthropic(base_url=base_url, auth_token="none", max_retries=0) as client:
            options = {"model": "default", "max_tokens": 8, "messages": ASK, "extra_body": {"temperature": 0}}
            one, two = await asyncio.gather(client.messages.create(**options), client.messages.create(**options))
            assert one.content == two.content
            async with client.messages.stream(**options) as stream:
                text = "".join([piece async for piece in stream.text_stream])
            assert text == one.content[0].text
            assert (await client.messages.count_tokens(model="default", messages=ASK)).input_tokens > 10

    asyncio.run(go())


def test_real_tools(real) -> None:
    options = {"model": "default", "max_tokens": 200, "tools": [WEATHER], "extra_body": {"temperature": 0},
               "tool_choice": {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}}  # fmt: skip
    ask = [{"role": "user", "content": "What is the weather in Paris?"}]
    message = real.messages.create(messages=ask, **options)
    assert message.stop_reason == "tool_use"
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert call.name == "get_weather"
    assert set(call.input) == {"city"}
    assert isinstance(call.input["city"], str)
    with real.messages.stream(messages=ask, **options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds
    assert [b.input for b in final.content if b.type == "tool_use"] == [call.input]
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "22 degrees"}]}
    answer = real.messages.create(
        model="default", max_tokens=24, tools=[WEATHER], messages=[*ask, message.to_param(), result],
        tool_choice={"type": "none"}, extra_body={"temperature": 0},
    )  # fmt: skip
    assert answer.content[0].type == "text"
    assert real.messages.count_tokens(model="default", messages=ask, tools=[WEATHER]).input_tokens > 30


def test_real_structured_output(real) -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        name: str
        coastal: bool

    ask = [{"role": "user", "content": "Describe the city of Aden as JSON."}]
    parsed = real.messages.parse(model="default", max_tokens=100, messages=ask, output_format=City,
                                 extra_body={"temperature": 0})  # fmt: skip
    assert isinstance(parsed.parsed_output, City)


def test_real_errors(real) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        real.messages.create(model="claude", max_tokens=3, messages=ASK)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="container: not supported"):
        real.messages.create(model="default", max_tokens=3, messages=ASK, container="c")
    with pytest.raises(anthropic.BadRequestError, match="the prompt has"):
        real.messages.create(model="default", max_tokens=3, messages=[{"role": "user", "content": "word " * 20_000}])
