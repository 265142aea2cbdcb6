"""The gateway: our API, in front of another server of ours over a scripted client, and of the default model."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager

import httpx
import pytest
from scripted_client import ScriptedClient

from qafila.errors import ContextLengthError, UpstreamError, UsageError
from qafila.server.app import create_app
from qafila.server.model_list import entries_from, upstream_of
from qafila.server.models import Entry, Models
from qafila.server.service import Service
from qafila.server.upstreams import Upstream

ASK = {"messages": [{"role": "user", "content": "What is the capital of Japan?"}], "temperature": 0, "max_tokens": 20}


@pytest.fixture
def behind(serving):
    """Serves a scripted client as ``scripted``, and a gateway with that in front; a client of the gateway."""

    @contextmanager
    def make(*args, **kwargs):
        client = ScriptedClient(*args, **kwargs)

        async def load():
            return client

        back = create_app(Service(Models({"scripted": Entry("scripted", "scripted", load)})))
        with serving(back) as url:
            front = create_app(Service(Models(entries_from([], upstreams=[upstream_of(url, ["far=scripted"])]))))
            with serving(front) as gate, httpx.Client(base_url=gate, trust_env=False, timeout=20) as http:
                yield http, client

    return make


def test_a_chat_goes_through_whole_and_streamed(behind):
    with behind(("Hel", "lo", " قافلة")) as (http, client):
        whole = http.post("/v1/chat/completions", json={"model": "far", **ASK}).json()
        assert whole["choices"][0]["message"]["content"] == "Hello قافلة"
        assert whole["model"] == "far"
        assert whole["usage"]["prompt_tokens"] == 5
        assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
        streamed = http.post("/v1/chat/completions", json={"model": "far", "stream": True, **ASK}).text
        assert streamed.endswith("data: [DONE]\n\n")
        chunks = [json.loads(line[6:]) for line in streamed.split("\n\n")[:-2]]
        pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
        assert "".join(pieces) == "Hello قافلة"
        (asked, _) = client.asked
        assert asked.messages[0].text == "What is the capital of Japan?"
        assert (asked.generation.temperature, asked.generation.max_tokens) == (0, 20)
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["far"]


def test_tool_calls_go_through(behind):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    with behind((), calls=[("weather", '{"city": "Rome"}')]) as (http, client):
        body = {"model": "far", "tools": [tool], "tool_choice": "required", **ASK}
        choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert (call["id"], call["function"]) == ("call_0", {"name": "weather", "arguments": '{"city": "Rome"}'})
        assert client.asked[0].tool_mode == "required"


def test_the_other_apis_stand_in_front_too(behind):
    with behind() as (http, _):
        body = {"model": "far", "max_tokens": 5, "messages": ASK["messages"]}
        assert http.post("/v1/messages", json=body).json()["content"][0]["text"] == "Hello"
        assert (
            http.post("/v1/completions", json={"model": "far", "prompt": "x"}).json()["choices"][0]["text"] == "Hello"
        )
        vector = http.post("/v1/embeddings", json={"model": "far", "input": ["a"]}).json()["data"][0]["embedding"]
        assert vector == pytest.approx([0.6, 0.8])
        assert http.post("/tokenize", json={"model": "far", "prompt": "ab"}).status_code == 200


@pytest.mark.parametrize(
    ("refusal", "status", "words"),
    [
        (UsageError("stop: too many"), 400, "stop: too many"),
        (ContextLengthError("the prompt has 9 tokens too many"), 400, "9 tokens too many"),
        (UpstreamError("it is busy", status=429, retry_after="7"), 429, "busy"),
        (UpstreamError("it is full", status=503), 503, "full"),
        (UpstreamError("wrong key", status=401), 502, "502"),
        (RuntimeError("secret"), 502, "answered 500"),
    ],
)
def test_what_the_other_server_refuses_keeps_its_meaning(behind, refusal, status, words):
    with behind(refusal=refusal) as (http, _):
        answered = http.post("/v1/chat/completions", json={"model": "far", **ASK})
        assert answered.status_code == status
        error = answered.json()["error"]
        assert words in error["message"]
        assert error["message"].startswith("model 'far': ")
        assert "secret" not in answered.text
        assert "127.0.0.1" not in answered.text
        if status == 429:
            assert answered.headers["retry-after"] == "7"
        if isinstance(refusal, ContextLengthError):
            assert error["code"] == "context_length_exceeded"


def test_what_fails_in_the_middle_is_an_error_event(behind):
    with behind(error=RuntimeError("secret")) as (http, _):
        streamed = http.post("/v1/chat/completions", json={"model": "far", "stream": True, **ASK}).text
        assert '"content":"Hel"' in streamed
        assert '"error"' in streamed
        assert "secret" not in streamed
        assert http.post("/v1/chat/completions", json={"model": "far", **ASK}).status_code == 502


def test_who_goes_away_in_front_is_gone_behind(behind):
    with behind(["x"] * 200, delay=0.05) as (http, client):
        with http.stream("POST", "/v1/chat/completions", json={"model": "far", "stream": True, **ASK}) as response:
            next(response.iter_bytes())
        deadline = time.monotonic() + 10
        while not client.cancelled and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (client.cancelled, client.running) == (1, 0)


def test_a_server_that_is_gone_is_502(serving):
    upstream = Upstream("http://127.0.0.1:9", {"far": "far"}, kind="vllm")
    with serving(create_app(Service(Models(entries_from([], upstreams=[upstream]))))) as url:
        answered = httpx.post(f"{url}/v1/chat/completions", json={"model": "far", **ASK}, trust_env=False, timeout=20)
    assert answered.status_code == 502
    assert "cannot be reached" in answered.json()["error"]["message"]


def test_what_is_asked_of_an_upstream_at_the_start(serving, monkeypatch):
    with pytest.raises(UpstreamError, match=r"upstream http://127.0.0.1:9: its server cannot be reached"):
        entries_from([], upstreams=[upstream_of("http://127.0.0.1:9")])
    client = ScriptedClient()

    async def load():
        return client

    with serving(create_app(Service(Models({"a": Entry("a", "a", load)})))) as url:
        with pytest.raises(UsageError, match=r"has no model 'b'; it has a"):
            entries_from([], upstreams=[upstream_of(url, ["b"])])
        with pytest.raises(UsageError, match="NO_SUCH_KEY: not set"):
            entries_from([], upstreams=[upstream_of(url, key_env="NO_SUCH_KEY")])
        with pytest.raises(UsageError, match="two models"):
            entries_from(["a=default"], upstreams=[upstream_of(url)])
        monkeypatch.setenv("SOME_KEY", "k")
        assert list(entries_from(["default"], upstreams=[upstream_of(url, key_env="SOME_KEY")])) == ["default", "a"]


def test_the_default_model_through_a_gateway_says_what_it_says_itself(base_url, serving):
    front = create_app(Service(Models(entries_from([], upstreams=[upstream_of(base_url)]))))
    with serving(front) as gate, httpx.Client(trust_env=False, timeout=60) as http:
        body = {"model": "default", "logprobs": True, "top_logprobs": 2, "seed": 1, **ASK}
        direct, through = (http.post(f"{url}/v1/chat/completions", json=body).json() for url in (base_url, gate))
        assert through["choices"] == direct["choices"]
        assert "Tokyo" in through["choices"][0]["message"]["content"]
        body = {"model": "default", "messages": ASK["messages"], "regex": "[0-9]{3}"}
        assert http.post(f"{gate}/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"].isdigit()
        ids = [http.post(f"{url}/tokenize", json={"prompt": "a caravan"}).json()["tokens"] for url in (base_url, gate)]
        assert ids[0] == ids[1]
