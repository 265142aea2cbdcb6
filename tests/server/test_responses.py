"""``/v1/responses`` over a scripted client: shapes, events, what is kept and for whom, errors."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from scripted_client import ScriptedClient

from qafila.chat.client import Finished
from qafila.database import open_database
from qafila.errors import QafilaError
from qafila.server.app import create_app
from qafila.server.models import Entry, Models
from qafila.server.openai_responses import truncated
from qafila.server.responses_store import ResponseStore
from qafila.server.service import Caller, Service
from qafila.text.messages import Message

EVENT = TypeAdapter(ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": True}


class Chat:
    """One application over a scripted client, and requests to it as any caller."""

    def __init__(self, client, store):
        self.client, self.store = client, store

        async def load():
            return client

        models = Models({"scripted": Entry("scripted", "scripted", load)})
        self.app = create_app(Service(models), responses=store)
        # Behind the guard, which says who asks.
        self.app.add_middleware(lambda inner: lambda scope, *rest: inner({**scope, **self.scope}, *rest))
        self.scope = {}

    def ask(self, method, path, body=None, caller=None):
        self.scope = {} if caller is None else {"caller": caller}

        async def go():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.request(method, path, json=body)

        return asyncio.run(go())

    def create(self, caller=None, **body):
        return self.ask("POST", "/v1/responses", {"model": "scripted", "input": "Hi", **body}, caller)

    def get(self, response, caller=None, path=""):
        return self.ask("GET", f"/v1/responses/{response}{path}", None, caller)


@pytest.fixture
def chat(tmp_path):
    """Makes a `Chat`."""
    stores = []

    def make(*args, days=30, clock=time.time, keep=True, **kwargs):
        store = None
        if keep:
            store = ResponseStore(open_database(f"sqlite:///{tmp_path}/server.sqlite3"), days=days, clock=clock)
            stores.append(store)
        return Chat(ScriptedClient(*args, **kwargs), store)

    yield make
    for store in stores:
        store.close()


def events_of(response):
    """The events of a stream, each checked against OpenAI's own types."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        known(EVENT.validate_python(event), event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def known(model, told):
    """Whether OpenAI's types have a field for each that is told, at the top."""
    assert set(told) <= set(type(model).model_fields) | {"user", "store"}, set(told) - set(type(model).model_fields)


def test_a_text(chat):
    response = chat().create(instructions="Be short.", metadata={"a": "b"}, temperature=0.5, max_output_tokens=9)
    assert response.status_code == 200, response.text
    told = response.json()
    known(Response.model_validate(told), told)
    assert told["status"] == "completed"
    assert told["metadata"] == {"a": "b"}
    assert told["instructions"] == "Be short."
    (item,) = told["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]
    assert told["usage"] == {
        "input_tokens": 5, "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0}, "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 7,
    }  # fmt: skip


def test_what_the_model_is_asked(chat):
    one = chat()
    items = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "A"}, {"type": "input_text", "text": "B"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "phase": "commentary",
         "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}', "id": "fc_1"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rainy"}]},
    ]  # fmt: skip
    response = one.create(
        input=items, instructions="Short.", tools=[WEATHER], parallel_tool_calls=False, max_output_tokens=7,
        tool_choice={"type": "function", "name": "weather"}, top_p=0.5,
        text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}},
    )  # fmt: skip
    assert response.status_code == 200, response.text
    (asked,) = one.client.asked
    roles = [message.role for message in asked.messages]
    assert roles == ["system", "system", "user", "assistant", "tool", "tool"]
    assert [message.text for message in asked.messages] == ["Short.", "Be kind.", "AB", "Let me see.", "sunny", "rainy"]
    assert [(call.id, call.arguments) for call in asked.messages[3].tool_calls] == [
        ("c1", {"city": "Rome"}),
        ("c2", {}),
    ]
    assert (asked.tool_mode, asked.tool_names, asked.parallel_tool_calls) == ("required", {"weather"}, False)
    assert asked.generation.answer.kind == "json_schema"
    assert (asked.generation.max_tokens, asked.generation.top_p, asked.generation.logprobs) == (7, 0.5, None)
    told = response.json()
    assert told["tool_choice"] == {"type": "function", "name": "weather"}
    assert told["text"]["format"]["schema"] == {"type": "object"}
    known(Response.model_validate(told), told)


def test_a_stream_of_text(chat):
    events = events_of(chat().create(stream=True))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    whole = events[-1]["response"]
    assert whole["output"] == [events[-2]["item"]]
    assert whole["output"][0]["content"][0]["text"] == events[6]["text"] == "Hello"
    assert {event["item_id"] for event in events if "item_id" in event} == {whole["output"][0]["id"]}


def test_a_stream_of_text_and_calls(chat):
    one = chat(calls=[("weather", '{"city": "Rome"}'), ("time", "{}")])
    events = events_of(one.create(stream=True, tools=[WEATHER]))
    kinds = [event["type"].removeprefix("response.") for event in events]
    call = ["output_item.added", *["function_call_arguments.delta"] * 2, "function_call_arguments.done"]
    assert kinds[8:] == ["output_item.done", *call, "output_item.done", *call, "output_item.done", "completed"]
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert [(item["name"], item["arguments"]) for item in output[1:]] == [
        ("weather", '{"city": "Rome"}'),
        ("time", "{}"),
    ]
    assert [event["output_index"] for event in events if event["type"] == "response.output_item.done"] == [0, 1, 2]
    whole = one.create(tools=[WEATHER]).json()["output"]
    assert [{**item, "id": ""} for item in whole] == [{**item, "id": ""} for item in output]


def test_an_empty_answer_is_an_empty_message(chat):
    (item,) = chat([]).create().json()["output"]
    assert item["content"][0]["text"] == ""


def cut(client):
    """Answers of a client end for want of tokens."""
    events = client._events

    async def shortened(request):
        async for event in events(request):
            yield replace(event, reason="length") if isinstance(event, Finished) else event

    client._events = shortened


@pytest.mark.parametrize("calls", [[], [("weather", '{"ci')]])
def test_an_answer_that_was_cut_is_incomplete(chat, calls):
    one = chat(calls=calls)
    cut(one.client)
    *_, last = events_of(one.create(stream=True, tools=[WEATHER], max_output_tokens=2))
    assert last["type"] == "response.incomplete"
    told = last["response"]
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert told["output"][-1]["status"] == "incomplete"
    assert one.create(previous_response_id=told["id"]).status_code == 200


def test_log_probabilities(chat):
    one = chat()
    events = events_of(one.create(stream=True, include=["message.output_text.logprobs"], top_logprobs=2))
    assert one.client.asked[0].generation.logprobs == 2
    assert [event["logprobs"] for event in events if event["type"].endswith("text.delta")] == [
        [{"token": "Hel", "logprob": -0.5, "top_logprobs": []}], [{"token": "lo", "logprob": -0.5, "top_logprobs": []}]
    ]  # fmt: skip
    told = events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert told[0] == {"token": "Hel", "logprob": -0.5, "bytes": [72, 101, 108], "top_logprobs": []}
    chat().create(include=["message.output_text.logprobs"])


def test_an_error_in_mid_stream_is_a_failed_response(chat):
    one = chat(error=QafilaError("the engine broke"))
    *_, last = events_of(one.create(stream=True))
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "invalid_prompt", "message": "the engine broke"}
    assert one.get(last["response"]["id"]).status_code == 404
    hidden = events_of(chat(error=RuntimeError("secret")).create(stream=True))[-1]
    assert hidden["response"]["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(hidden)


def test_an_error_of_a_whole_answer(chat):
    one = chat(error=RuntimeError("secret"))
    response = one.create()
    assert response.status_code == 500
    assert "secret" not in response.text
    assert one.client.running == 0


# What is kept.


def test_a_conversation_goes_on_with_the_same_tokens(chat):
    one = chat()
    answer = one.client._events

    async def with_ids(request):
        async for event in answer(request):
            if isinstance(event, Finished):
                event = replace(event, message=replace(event.message, ids=(7, 8, 9)))
            yield event

    one.client._events = with_ids
    first = one.create(instructions="Old.", input="One").json()["id"]
    second = one.create(instructions="New.", input="Two", previous_response_id=first).json()
    one.create(input="Three", previous_response_id=second["id"], stream=True)
    assert second["previous_response_id"] == first
    texts = [[message.text for message in asked.messages] for asked in one.client.asked]
    assert texts == [["Old.", "One"], ["New.", "One", "Hello", "Two"], ["One", "Hello", "Two", "Hello", "Three"]]
    assert one.client.asked[2].messages[1] == Message("assistant", "Hello", ids=(7, 8, 9))


def test_calls_are_answered_by_the_next_response(chat):
    one = chat([], calls=[("weather", "{}")])
    first = one.create(tools=[WEATHER]).json()
    output = {"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "sunny"}
    assert one.create(tools=[WEATHER], previous_response_id=first["id"], input=[output]).status_code == 200
    messages = one.client.asked[1].messages
    assert [message.role for message in messages] == ["user", "assistant", "tool"]
    assert messages[1].tool_calls[0].id == messages[2].tool_call_id == "call_0"


def test_a_response_is_kept_and_forgotten(chat):
    one = chat()
    told = one.create(store=True).json()
    assert told["store"] is True
    assert one.get(told["id"]).json() == told
    gone = one.ask("DELETE", f"/v1/responses/{told['id']}").json()
    assert gone == {"id": told["id"], "object": "response", "deleted": True}
    assert one.get(told["id"]).status_code == 404
    assert one.ask("DELETE", f"/v1/responses/{told['id']}").status_code == 404
    assert one.create(previous_response_id=told["id"]).status_code == 404


def test_what_is_not_to_be_kept_is_not(chat):
    one = chat()
    told = one.create(store=False).json()
    assert told["store"] is False
    assert one.get(told["id"]).status_code == 404


def test_nobody_else_reads_continues_or_deletes_a_response(chat):
    one = chat()
    mine = Caller("laptop", "home")
    told = one.create(mine).json()["id"]
    for other in (Caller("phone", "home"), Caller("laptop", "work"), None):
        assert one.get(told, other).status_code == 404
        assert one.get(told, other, "/input_items").status_code == 404
        assert one.create(other, previous_response_id=told).status_code == 404
        assert one.ask("DELETE", f"/v1/responses/{told}", None, other).status_code == 404
    assert one.get(told, mine).status_code == 200
    assert one.create(mine, previous_response_id=told).status_code == 200


def test_a_conversation_with_a_hole_is_not_continued(chat):
    one = chat()
    first = one.create().json()["id"]
    second = one.create(previous_response_id=first).json()["id"]
    one.ask("DELETE", f"/v1/responses/{first}")
    response = one.create(previous_response_id=second)
    assert response.status_code == 404
    assert "earlier response of its conversation was deleted" in response.json()["error"]["message"]
    assert one.get(second).status_code == 200


def test_what_is_not_used_expires_and_what_is_used_does_not(chat):
    day = [0.0]
    one = chat(days=30, clock=lambda: day[0] * 86400)
    first = one.create().json()["id"]
    lonely = one.create().json()["id"]
    day[0] = 20
    second = one.create(previous_response_id=first).json()["id"]
    day[0] = 40
    assert one.create(previous_response_id=second).status_code == 200
    assert one.get(first).status_code == 200
    assert one.get(lonely).status_code == 404
    with one.store._engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM responses").scalar() == 3  # the lonely one is gone


def test_another_process_sees_what_is_kept(chat, tmp_path):
    told = chat().create(input="سلام \u0000 🐪").json()
    store = ResponseStore.open(f"sqlite:///{tmp_path}/server.sqlite3")
    assert store.get("", "anonymous", told["id"]).input[0]["content"][0]["text"] == "سلام \u0000 🐪"
    store.close()


def test_a_server_that_keeps_nothing_says_so(chat):
    one = chat(keep=False)
    told = one.create(store=True).json()
    assert told["store"] is False
    assert one.get(told["id"]).status_code == 404
    error = one.create(previous_response_id=told["id"]).json()["error"]
    assert error["param"] == "previous_response_id"
    assert "keeps no responses" in error["message"]


def test_a_store_that_fails_is_an_error_without_its_place(chat, tmp_path):
    one = chat()
    with one.store._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE responses")
    response = one.create()
    assert response.status_code == 503
    assert str(tmp_path) not in response.text
    assert events_of(one.create(stream=True))[-1]["type"] == "response.failed"
    assert one.create(store=False).status_code == 200


def test_input_items_come_in_pages(chat):
    one = chat()
    texts = ["a", "b", "c"]
    told = one.create(input=[{"role": "user", "content": text} for text in texts]).json()["id"]

    def page(query):
        got = one.get(told, path=f"/input_items?{query}").json()
        return [item["content"][0]["text"] for item in got["data"]], got

    newest, got = page("")
    assert (newest, got["has_more"], got["object"]) == (["c", "b", "a"], False, "list")
    first, got = page("order=asc&limit=2")
    assert (first, got["has_more"], got["first_id"]) == (["a", "b"], True, got["data"][0]["id"])
    rest, got = page(f"order=asc&after={got['last_id']}")
    assert (rest, got["has_more"]) == (["c"], False)
    for bad in ("order=up", "limit=0", "limit=101", "limit=x", "after=msg_0", "nonsense=1", "include=x"):
        assert one.get(told, path=f"/input_items?{bad}").status_code == 400, bad


def test_only_what_runs_in_the_background_is_cancelled(chat):
    one = chat()
    told = one.create().json()["id"]
    response = one.ask("POST", f"/v1/responses/{told}/cancel")
    assert response.status_code == 400
    assert "background" in response.json()["error"]["message"]
    assert one.ask("POST", "/v1/responses/resp_0/cancel").status_code == 404


def test_input_tokens(chat):
    one = chat()
    previous = one.create().json()["id"]
    body = {"model": "scripted", "input": "12345", "previous_response_id": previous, "instructions": "1"}
    told = one.ask("POST", "/v1/responses/input_tokens", body).json()
    assert told == {"object": "response.input_tokens", "input_tokens": 1 + 2 + 5 + 5}


# What is wrong.


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["a"]}, "input"),
        ({"input": [{"role": "nobody", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": ["a"]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": "a", "x": 1}]}, "input[0].x"),
        ({"input": [{"role": "user", "content": "a", "id": 1}]}, "input[0].id"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b", "arguments": "{"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b", "arguments": "[]"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call", "name": "b", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**WEATHER, "async": True}]}, "tools[0].async"),
        ({"tools": [{**WEATHER, "x": 1}]}, "tools[0].x"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"truncation": "some"}, "truncation"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream_options": {}}, "stream_options"),
        ({"previous_response_id": "resp_00"}, "previous_response_id"),
        ({"previous_response_id": "\u0000' OR 1=1"}, "previous_response_id"),
        ({"nonsense": 1}, "nonsense"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_is_wrong_is_named(chat, body, param):
    one = chat()
    response = one.create(**body)
    assert response.status_code == (404 if param in ("model", "previous_response_id") else 400), response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert one.client.asked == []


def test_harmless_options_are_accepted(chat):
    harmless = {
        "user": "me", "safety_identifier": "x", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "service_tier": "auto", "reasoning": {"effort": "low"}, "max_tool_calls": 3, "background": False,
        "conversation": None, "previous_response_id": None, "include": None, "tools": [], "tool_choice": "auto",
        "text": {"verbosity": "low"}, "prompt_cache_options": {"mode": "implicit"},
    }  # fmt: skip
    assert chat().create(**harmless).status_code == 200


def test_half_a_surrogate_pair_comes_back_as_it_came(chat):
    one = chat()
    body = (
        b'{"model": "scripted", "input": "Hi", "tools": [{"type": "function", "name": "f", "description": "\\ud800"}]}'
    )

    async def go():
        transport = httpx.ASGITransport(one.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.post("/v1/responses", content=body, headers={"content-type": "application/json"})

    response = asyncio.run(go())
    assert response.status_code == 200
    assert response.json()["tools"][0]["description"] == "\ud800"


# What is left out.


class Counting(ScriptedClient):
    """Counts a token a character; 40 fit."""

    context_length = 40


@pytest.mark.parametrize(
    ("texts", "limit", "kept"),
    [
        (["u" * 10], 10, ["u" * 10]),
        (["s" * 5, "u" * 10, "a" * 10, "u" * 9], 10, ["s" * 5, "u" * 9]),
        (["s" * 5, "u" * 10, "a" * 10, "u" * 9], 2, ["s" * 5, "u" * 10, "a" * 10, "u" * 9]),
        (["u" * 10, "a" * 10, "u" * 10, "a" * 10, "u" * 5], None, ["u" * 10, "a" * 10, "u" * 5]),
        (["u" * 99, "a" * 99, "u" * 99], None, ["u" * 99]),
        (["u" * 8, "a" * 8, "t" * 8, "a" * 8, "u" * 8], 10, ["u" * 8]),
    ],
)
def test_the_oldest_turns_are_left_out(texts, limit, kept):
    from qafila.chat.client import ChatRequest, Generation

    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    asked = ChatRequest(tuple(Message(roles[text[0]], text) for text in texts), generation=Generation(max_tokens=limit))
    short = asyncio.run(truncated(Counting(), asked))
    assert [message.text for message in short.messages] == kept


def test_truncation_on_request_only(chat):
    one = chat()
    one.client.context_length = 10
    items = [
        {"role": "user", "content": "x" * 9},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": "z"},
    ]
    one.create(input=items)
    one.create(input=items, truncation="auto")
    assert [len(asked.messages) for asked in one.client.asked] == [3, 1]


def test_nothing_runs_on_or_is_kept_when_the_client_goes_away(scripted_server, tmp_path):
    store = ResponseStore.open(f"sqlite:///{tmp_path}/server.sqlite3")
    url, client = scripted_server(["x"] * 1000, delay=0.01, responses=store)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=0.3) as official:
        with official.responses.create(model="scripted", input="Hi", stream=True) as events:
            told = next(iter(events)).response.id
        with pytest.raises(openai.APITimeoutError):
            official.responses.create(model="scripted", input="Hi")
        for _ in range(200):
            if client.running:
                asyncio.run(asyncio.sleep(0.01))
        assert (client.running, client.cancelled) == (0, 2)
        with pytest.raises(openai.NotFoundError):
            official.responses.retrieve(told)
