"""Ollama's API: shapes, streams, errors and cancellation over scripted clients, and its own client over a server."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest

from qafila.chat.client import ChatRequest, PromptRequest
from qafila.errors import ChatError
from qafila.server import ollama_bodies as bodies
from qafila.server.ollama_chat import conversation
from qafila.server.ollama_models import registered
from qafila.text.messages import Message, ToolCall

ollama = pytest.importorskip("ollama")

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
COUNTS = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")


def ask(client: httpx.AsyncClient, path: str, body: Any = None, method: str = "POST") -> httpx.Response:
    async def go() -> httpx.Response:
        async with client:
            return await client.request(method, path, json=body)

    return asyncio.run(go())


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def check_end(end: dict[str, Any], reason: str = "stop") -> None:
    assert (end["done"], end["done_reason"]) == (True, reason)
    assert all(isinstance(end[name], int) and end[name] >= 0 for name in COUNTS)


def test_chat_streams_unless_told_otherwise(scripted) -> None:
    client, model = scripted(["Hel", "", "lo\n"])
    *pieces, end = lines(ask(client, "/api/chat", HELLO))
    assert [piece["message"] for piece in pieces] == [
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "lo\n"},
    ]
    assert all(piece["model"] == "scripted" and piece["done"] is False for piece in pieces)
    assert datetime.fromisoformat(pieces[0]["created_at"]).tzinfo is not None
    assert end["message"] == {"role": "assistant", "content": ""}
    check_end(end)
    assert (end["prompt_eval_count"], end["eval_count"]) == (5, 3)
    client, _ = scripted(["Hel", "lo"])
    whole = ask(client, "/api/chat", {**HELLO, "stream": False}).json()
    assert whole["message"] == {"role": "assistant", "content": "Hello"}
    check_end(whole)
    assert model.asked[0].messages == (Message("user", "hi"),)


def test_options(scripted) -> None:
    client, model = scripted()
    options = {"temperature": 0.5, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "seed": 3, "num_predict": 9, "stop": ["x"],
               "repeat_penalty": 1.5, "presence_penalty": 0.25, "frequency_penalty": 1, "num_ctx": 4096, "num_gpu": 1,
               "num_thread": 2, "repeat_last_n": -1, "mirostat": 0, "typical_p": 1.0, "tfs_z": 1}  # fmt: skip
    body = {**HELLO, "options": options, "keep_alive": "5m", "think": False, "format": "", "tools": []}
    assert ask(client, "/api/chat", body).status_code == 200
    asked = model.asked[0].generation
    assert (asked.temperature, asked.top_k, asked.top_p, asked.min_p) == (0.5, 7, 0.8, 0.1)
    assert (asked.seed, asked.max_tokens, asked.stop, asked.answer) == (3, 9, ("x",), None)
    assert (asked.repetition_penalty, asked.presence_penalty, asked.frequency_penalty) == (1.5, 0.25, 1)


def test_options_that_mean_none(scripted) -> None:
    client, model = scripted()
    body = {**HELLO, "options": {"num_predict": -1, "seed": -1, "top_k": -1, "stop": "x"}}
    assert ask(client, "/api/chat", body).status_code == 200
    asked = model.asked[0].generation
    assert (asked.max_tokens, asked.seed, asked.top_k, asked.stop) == (None, None, 0, ("x",))


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_format(scripted, path: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for form, kind in (("json", "json_object"), (schema, "json_schema")):
        client, model = scripted()
        assert ask(client, path, {**HELLO_OF[path], "format": form}).status_code == 200
        assert model.asked[0].generation.answer.kind == kind
    assert json.loads(model.asked[0].generation.answer.text) == schema


HELLO_OF = {"/api/chat": HELLO, "/api/generate": {"model": "scripted", "prompt": "hi"}}


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(scripted, path: str, stream: bool) -> None:
    client, model = scripted(["Hel", "lo"])
    answer = ask(client, path, {**HELLO_OF[path], "stream": stream, "logprobs": True, "top_logprobs": 2})
    told = [one for line in lines(answer) for one in line.get("logprobs", [])] if stream else answer.json()["logprobs"]
    assert told == [
        {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []} for text in ("Hel", "lo")
    ]
    assert model.asked[0].generation.logprobs == 2
    client, model = scripted()
    assert "logprobs" not in ask(client, path, HELLO_OF[path] | {"stream": False}).json()
    assert model.asked[0].generation.logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(scripted, stream: bool) -> None:
    calls = [("get_weather", '{"city": "Aden"}'), ("get_weather", '{"city": "عدن"}'), ("get_weather", '{"ci')]
    client, model = scripted(["Hm."], calls=calls)
    answer = ask(client, "/api/chat", {**HELLO, "stream": stream, "tools": [WEATHER]})
    expected = [
        {"id": "call_0", "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Aden"}}},
        {"id": "call_1", "function": {"index": 1, "name": "get_weather", "arguments": {"city": "عدن"}}},
    ]  # and none for the one that was cut short
    if stream:
        told = lines(answer)
        assert [call for line in told for call in line["message"].get("tool_calls", [])] == expected
        assert "".join(line["message"]["content"] for line in told) == "Hm."
        check_end(told[-1])
    else:
        assert answer.json()["message"] == {"role": "assistant", "content": "Hm.", "tool_calls": expected}
    assert [tool.name for tool in model.asked[0].tools] == ["get_weather"]


def test_conversations() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    assert conversation(
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "U", "images": []},
            {"role": "assistant", "thinking": "hm", "tool_calls": [call, {"function": {"name": "g"}}, call]},
            {"role": "tool", "content": "1", "tool_name": "g"},
            {"role": "tool", "content": "2"},
            {"role": "tool", "content": "3", "tool_name": "f"},
            {"role": "assistant", "content": "A", "tool_calls": [{"id": "z", "type": "function", **call}]},
            {"role": "tool", "content": "4", "tool_call_id": "z"},
        ]
    ) == (
        Message("system", "S"),
        Message("user", "U"),
        Message(
            "assistant",
            "",
            tool_calls=(ToolCall("call_0", "f", {"a": 1}), ToolCall("call_1", "g"), ToolCall("call_2", "f", {"a": 1})),
        ),
        Message("tool", "1", name="g", tool_call_id="call_1"),
        Message("tool", "2", name="f", tool_call_id="call_0"),
        Message("tool", "3", name="f", tool_call_id="call_2"),
        Message("assistant", "A", tool_calls=(ToolCall("z", "f", {"a": 1}),)),
        Message("tool", "4", name="f", tool_call_id="z"),
    )


def test_generate_asks_as_a_message(scripted) -> None:
    client, model = scripted(["Hel", "lo"])
    body = {"model": "scripted", "prompt": "hi", "system": "S", "template": "", "context": [], "images": []}
    *pieces, end = lines(ask(client, "/api/generate", body))
    assert [piece["response"] for piece in pieces] == ["Hel", "lo"]
    assert end["response"] == ""
    check_end(end)
    asked = model.asked[0]
    assert isinstance(asked, ChatRequest)
    assert asked.messages == (Message("system", "S"), Message("user", "hi"))
    client, _ = scripted(["Hel", "lo"])
    assert ask(client, "/api/generate", {**body, "stream": False}).json()["response"] == "Hello"


def test_generate_raw_and_suffix(scripted, monkeypatch) -> None:
    client, model = scripted()
    assert ask(client, "/api/generate", {"model": "scripted", "prompt": "def f", "raw": True}).status_code == 200
    client, second = scripted()
    gap = {"model": "scripted", "prompt": "a", "suffix": "b"}
    assert ask(client, "/api/generate", gap).status_code == 200
    for asked, prompt, suffix in ((model.asked[0], "def f", None), (second.asked[0], "a", "b")):
        assert isinstance(asked, PromptRequest)
        assert (asked.prompt, asked.suffix) == (prompt, suffix)

    async def tokenize(text: str, *, special: bool = False) -> list[int]:
        return [1] if special else [2, 3]

    client, third = scripted()
    monkeypatch.setattr(third, "tokenize", tokenize)
    ask(client, "/api/generate", {"model": "scripted", "prompt": "<|im_start|>", "raw": True})
    assert third.asked[0].prompt == (1,)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_no_prompt_loads_the_model(scripted, path: str) -> None:
    client, model = scripted()
    answer = ask(client, path, {"model": "scripted", "keep_alive": -1}).json()
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert not model.asked
    client, _ = scripted()
    assert ask(client, path, {"model": "other"}).status_code == 404


def test_embed(scripted) -> None:
    client, _ = scripted()
    answer = ask(client, "/api/embed", {"model": "scripted", "input": ["ab", "cde"], "options": {}}).json()
    assert answer["embeddings"] == [[0.6, 0.8], [0.6, 0.8]]
    assert answer["prompt_eval_count"] == 5
    assert answer["total_duration"] >= answer["load_duration"] >= 0
    client, _ = scripted()
    assert ask(client, "/api/embed", {"model": "scripted", "input": "ab", "dimensions": 1}).json()["embeddings"] == [
        [1.0]
    ]
    client, _ = scripted()
    assert ask(client, "/api/embed", {"model": "scripted", "input": []}).json()["embeddings"] == []
    client, _ = scripted()
    assert ask(client, "/api/embeddings", {"model": "scripted", "prompt": "x"}).json() == {"embedding": [0.6, 0.8]}
    client, _ = scripted()
    assert ask(client, "/api/embeddings", {"model": "scripted"}).json() == {"embedding": []}


def test_embed_cuts_what_does_not_fit_unless_told_otherwise(scripted) -> None:
    for truncate, length in ((None, 2040), (True, 2040), (False, 5000)):
        client, _ = scripted()
        answer = ask(client, "/api/embed", {"model": "scripted", "input": "a" * 5000, "truncate": truncate})
        assert answer.json()["prompt_eval_count"] == length


def test_what_is_served(scripted) -> None:
    client, _ = scripted()
    (model,) = ask(client, "/api/tags", method="GET").json()["models"]
    assert (model["name"], model["model"]) == ("scripted", "scripted")
    assert len(model["digest"]) == 64
    client, _ = scripted()
    assert ask(client, "/api/ps", method="GET").json() == {"models": []}
    client, _ = scripted()
    shown = ask(client, "/api/show", {"model": "scripted"}).json()
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["llama.context_length"] == 2048
    client, _ = scripted()
    assert ask(client, "/api/show", {"name": "scripted"}).json() == shown
    client, _ = scripted()
    assert ask(client, "/api/version", method="GET").json()["version"].count(".") == 2


def test_the_tag_latest_is_as_good_as_none(scripted) -> None:
    client, model = scripted()
    told = lines(ask(client, "/api/chat", {**HELLO, "model": "scripted:latest"}))
    assert told[0]["model"] == "scripted:latest"
    assert len(model.asked) == 1
    models = client._transport.app.state.service.models
    models.entries["other:latest"] = models.entries["scripted"]
    assert registered(models, "other") is registered(models, "other:latest")
    client, _ = scripted()
    assert ask(client, "/api/chat", {**HELLO, "model": "scripted:8b"}).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/create"), ("POST", "/api/copy"),
     ("DELETE", "/api/delete"), ("POST", "/api/blobs/sha256:00")],
)  # fmt: skip
def test_requests_change_nothing(scripted, method: str, path: str) -> None:
    client, _ = scripted()
    answer = ask(client, path, {"model": "x"}, method)
    assert answer.status_code == 403
    assert answer.json()["error"].startswith("models are registered by the operator")


GENERATE = {"model": "scripted", "prompt": "hi"}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/chat", {**HELLO, "think": True}, "think: not supported"),
        ("/api/chat", {**HELLO, "truncate": True}, "truncate: not supported"),
        ("/api/chat", {**HELLO, "frobnicate": 1}, "frobnicate: unknown option"),
        ("/api/chat", {**HELLO, "options": {"mirostat": 2}}, "options: mirostat: not supported"),
        ("/api/chat", {**HELLO, "options": {"repeat_last_n": 64}}, "options: repeat_last_n: not supported"),
        ("/api/chat", {**HELLO, "options": {"nonsense": 1}}, "options.nonsense: unknown option"),
        ("/api/chat", {**HELLO, "options": {"temperature": -1}}, "options.temperature: "),
        ("/api/chat", {**HELLO, "options": {"stop": ["", "x"]}}, "options.stop: "),
        ("/api/chat", {**HELLO, "top_logprobs": 3}, "top_logprobs: only with logprobs"),
        ("/api/chat", {**HELLO, "format": "xml"}, "format: "),
        ("/api/chat", {"messages": []}, "model: Field required"),
        ("/api/chat", {**HELLO, "messages": [{"role": "user", "images": ["AA"]}]}, "messages[0]: images: not"),
        ("/api/chat", {**HELLO, "messages": [{"role": "robot"}]}, "messages[0].role: "),
        ("/api/chat", {**HELLO, "messages": [{"role": "user", "content": [1]}]}, "messages[0].content: "),
        ("/api/chat", {**HELLO, "messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
         "messages[0].tool_calls[0].function.name: "),
        ("/api/chat", {**HELLO, "messages": [{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}]},
         "messages[0].tool_calls: only"),
        ("/api/chat", {**HELLO, "tools": [{"type": "function", "function": {}}]}, "tools[0].function.name: missing"),
        ("/api/generate", {**GENERATE, "template": "{{ .Prompt }}"}, "template: not supported"),
        ("/api/generate", {**GENERATE, "context": [1, 2]}, "context: not supported"),
        ("/api/generate", {**GENERATE, "images": ["AA"]}, "images: not supported"),
        ("/api/generate", {**GENERATE, "raw": True, "system": "S"}, "system: it does not go with raw"),
        ("/api/generate", {**GENERATE, "suffix": "x", "system": "S"}, "system: it does not go with suffix"),
        ("/api/embed", {"model": "scripted", "input": ["a", ""]}, "input[1]: it is empty"),
        ("/api/embed", {"model": "scripted"}, "input: Field required"),
        ("/api/show", {}, "model: missing"),
        ("/api/show", {"model": "scripted", "verbose": True}, "verbose: not supported"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(scripted, path: str, body: dict[str, Any], said: str) -> None:
    client, model = scripted()
    answer = ask(client, path, body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"].startswith(said)
    assert not model.asked


def test_errors_of_the_model(scripted) -> None:
    client, _ = scripted(refusal=ChatError("no chat format"))
    answer = ask(client, "/api/chat", HELLO)
    assert (answer.status_code, answer.json()) == (400, {"error": "no chat format"})
    client, _ = scripted(error=ChatError("it broke"))
    *_, last = lines(ask(client, "/api/chat", HELLO))
    assert last == {"error": "it broke"}
    client, _ = scripted(error=ChatError("it broke"))
    answer = ask(client, "/api/chat", {**HELLO, "stream": False})
    assert (answer.status_code, answer.json()) == (400, {"error": "it broke"})


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_client_that_goes_away_ends_its_request(scripted_server, path: str) -> None:
    url, model = scripted_server(["x"] * 1000, delay=0.01)
    with httpx.Client() as client, client.stream("POST", url + path, json=HELLO_OF[path]) as answer:
        next(answer.iter_lines())
    with httpx.Client(timeout=0.2) as client, pytest.raises(httpx.ReadTimeout):
        client.post(url + path, json={**HELLO_OF[path], "stream": False})
    deadline = time.monotonic() + 10
    while model.cancelled < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (model.cancelled, model.running) == (2, 0)


# Every parameter of the installed client stands in one of the lists.


def known(body: type[bodies.Body]) -> set[str]:
    return {f.alias or n for n, f in body.model_fields.items()} | set(body.harmless) | set(body.refused)


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("chat", bodies.OllamaChatBody),
        ("generate", bodies.OllamaGenerateBody),
        ("embed", bodies.OllamaEmbedBody),
        ("embeddings", bodies.OllamaEmbeddingsBody),
        ("show", bodies.OllamaShowBody),
    ],
)
def test_every_parameter_of_the_client_is_listed(method: str, body: type[bodies.Body]) -> None:
    given = set(inspect.signature(getattr(ollama.Client, method)).parameters) - {"self"}
    assert given
    assert given - known(body) == set()


def test_every_option_and_every_field_of_a_message_is_listed() -> None:
    assert set(ollama.Options.model_fields) - known(bodies.OllamaOptions) == set()
    assert set(ollama.Message.model_fields) - known(bodies.OllamaMessage) == set()


def test_every_body_is_documented() -> None:
    mine = {
        kind
        for name, kind in vars(bodies).items()
        if isinstance(kind, type) and issubclass(kind, bodies.Body) and kind is not bodies.Body and name[0] != "_"
    }
    assert mine == {
        *bodies.PARTS.values(),
        *(
            bodies.OllamaChatBody,
            bodies.OllamaGenerateBody,
            bodies.OllamaEmbedBody,
            bodies.OllamaEmbeddingsBody,
            bodies.OllamaShowBody,
        ),
    }


# The real client against the real server.


@pytest.fixture
def real(base_url: str) -> Iterator[Any]:
    with ollama.Client(host=base_url) as client:
        yield client


ASK = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
GREEDY = {"temperature": 0, "num_predict": 12}


def test_real_chat(real) -> None:
    whole = real.chat("default", ASK, options=GREEDY)
    assert isinstance(whole, ollama.ChatResponse)
    assert "Paris" in whole.message.content
    assert whole.done
    assert whole.done_reason in ("stop", "length")
    assert whole.eval_count > 0
    assert whole.total_duration >= whole.eval_duration > 0
    pieces = list(real.chat("default:latest", ASK, options=GREEDY, stream=True))
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == whole.eval_count
    again = real.chat("default", [*ASK, whole.message, {"role": "user", "content": "Sure?"}], options=GREEDY)
    assert again.prompt_eval_count > whole.prompt_eval_count
    assert real.chat("default").done_reason == "load"


def test_real_seeds_limits_and_logprobs(real) -> None:
    options = {"seed": 7, "temperature": 1.0, "num_predict": 6}
    one, two = (real.chat("default", ASK, options=options, logprobs=True, top_logprobs=3) for _ in range(2))
    assert one.message.content == two.message.content
    assert (one.eval_count, one.done_reason) in ((6, "length"), (one.eval_count, "stop"))
    assert len(one.logprobs) == one.eval_count
    assert all(len(each.top_logprobs) == 3 for each in one.logprobs)
    count = [{"role": "user", "content": "Count from 1 to 9, separated by commas."}]
    stopped = real.chat("default", count, options={"temperature": 0, "num_predict": 50, "stop": [",", "3"]})
    assert stopped.done_reason == "stop"
    assert not set(",3") & set(stopped.message.content)


def test_real_generate(real) -> None:
    whole = real.generate("default", "What is the capital of France?", system="Be brief.", options=GREEDY)
    assert "Paris" in whole.response
    pieces = list(real.generate("default", "What is the capital of France?", system="Be brief.", options=GREEDY,
                                stream=True))  # fmt: skip
    assert "".join(piece.response for piece in pieces) == whole.response
    template = ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
                "<|im_start|>assistant\n")  # fmt: skip
    by_hand = real.generate("default", template, raw=True, options=GREEDY)
    assert (by_hand.response, by_hand.prompt_eval_count) == (whole.response, whole.prompt_eval_count)
    plain = real.generate("default", "The capital of France is", raw=True, options=GREEDY)
    assert "Paris" in plain.response
    with pytest.raises(ollama.ResponseError, match="suffix"):
        real.generate("default", "def f(", suffix="return 1")


def test_real_tools(real) -> None:
    def get_weather(city: str, days: int | str = 1) -> str:
        """
        Weather of a city

        Args:
          city: its name
          days: how many
        """
        return f"{city}: sunny"

    # A small model calls a tool when it sees that it just did.
    shown: list[Any] = []
    for city in ("Rome", "Aden"):
        shown += [
            {"role": "user", "content": f"Weather in {city}?"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": city}}}]},
            {"role": "tool", "tool_name": "get_weather", "content": f"{city}: sunny"},
            {"role": "assistant", "content": f"It is sunny in {city}."},
        ]
    question = [*shown, {"role": "user", "content": "Weather in Paris?"}]
    options = {"temperature": 0, "num_predict": 100}
    for tool in (get_weather, WEATHER):
        answer = real.chat("default", question, tools=[tool], options=options)
        (call,) = answer.message.tool_calls
        assert (call.function.name, call.function.arguments["city"]) == ("get_weather", "Paris")
        streamed = list(real.chat("default", question, tools=[tool], options=options, stream=True))
        assert [c for piece in streamed for c in piece.message.tool_calls or []] == [call]
        follow = [*question, answer.message, {"role": "tool", "tool_name": "get_weather", "content": "Paris: rainy"}]
        assert "rainy" in real.chat("default", follow, tools=[tool], options=options).message.content


def test_real_format(real) -> None:
    from pydantic import BaseModel

    class City(BaseModel, extra="forbid"):  # or a small model adds keys until it is cut
        name: str
        coastal: bool

    question = [{"role": "user", "content": "Describe the city of Aden as JSON."}]
    options = {"temperature": 0, "num_predict": 100}
    City.model_validate_json(real.chat("default", question, format=City.model_json_schema(), options=options)
                             .message.content)  # fmt: skip
    City.model_validate_json(
        real.generate("default", question[0]["content"], format=City.model_json_schema(), options=options).response
    )
    free = real.chat("default", question, format="json", options={"temperature": 0, "num_predict": 200})
    assert free.message.content.startswith("{")


def test_real_embeddings(real) -> None:
    answer = real.embed("default", ["hello", "مرحبا"])
    assert len(answer.embeddings) == 2
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-4) for vector in answer.embeddings)
    assert answer.prompt_eval_count > 2
    assert list(real.embeddings("default", "hello").embedding) == list(answer.embeddings[0])
    (short,) = real.embed("default", "hello", dimensions=8).embeddings
    assert len(short) == 8
    assert math.isclose(math.hypot(*short), 1, rel_tol=1e-6)


def test_real_models(real) -> None:
    real.chat("default")
    (listed,) = real.list().models
    assert listed.model == "default"
    assert listed.size > 50_000_000
    assert listed.details.quantization_level == "Q4_1"
    assert listed.details.parameter_size == "134.52M"
    (running,) = real.ps().models
    assert running.model == "default"
    assert running.context_length >= 2048
    shown = real.show("default")
    assert shown.modelinfo["llama.block_count"] == 30
    assert shown.details.family == "llama"
    assert "im_start" in shown.template
    assert "completion" in shown.capabilities
    for change in (lambda: real.pull("x"), lambda: real.delete("default"), lambda: real.copy("default", "y"),
                   lambda: list(real.create("y", from_="default", stream=True))):  # fmt: skip
        with pytest.raises(ollama.ResponseError, match="registered by the operator"):
            change()


def test_real_errors(real) -> None:
    with pytest.raises(ollama.ResponseError, match="not served here") as missing:
        real.chat("llama3", ASK)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="think: not supported"):
        list(real.chat("default", ASK, think=True, stream=True))


def test_real_async(base_url: str) -> None:
    async def go() -> None:
        client = ollama.AsyncClient(host=base_url)
        one, two = await asyncio.gather(*(client.chat("default", ASK, options=GREEDY) for _ in range(2)))
        assert one.message.content == two.message.content
        stream = await client.chat("default", ASK, options=GREEDY, stream=True)
        assert "".join([piece.message.content async for piece in stream]) == one.message.content
        assert len((await client.list()).models) == 1
        await client._client.aclose()

    asyncio.run(go())
