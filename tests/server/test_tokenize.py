"""``/tokenize`` and ``/detokenize``: over a scripted client, and with the default model."""

from __future__ import annotations

import asyncio

import httpx
import pytest


def post(http, path, **body):
    async def ask():
        async with http:
            return await http.post(path, json=body)

    return asyncio.run(ask())


def test_the_fields_of_both_servers(scripted):
    http, _ = scripted()
    told = post(http, "/tokenize", model="scripted", prompt="ab").json()
    assert told == {"tokens": [1, 97, 98], "count": 3, "max_model_len": 2048, "token_strs": None}
    http, _ = scripted()
    assert post(http, "/tokenize", content="ab").json()["tokens"] == [97, 98]
    http, _ = scripted()
    assert post(http, "/detokenize", tokens=[97, 98]).json() == {"prompt": "ab", "content": "ab"}


@pytest.mark.parametrize(
    ("body", "bos"),
    [
        ({"prompt": "a"}, True),
        ({"prompt": "a", "add_special_tokens": False}, False),
        ({"content": "a"}, False),
        ({"content": "a", "add_special": True}, True),
    ],
)
def test_who_gets_a_bos(scripted, body, bos):
    http, _ = scripted()
    assert (post(http, "/tokenize", **body).json()["tokens"] == [1, 97]) is bos


def test_pieces(scripted):
    http, _ = scripted()
    told = post(http, "/tokenize", content="ab", with_pieces=True, return_token_strs=True).json()
    assert told["tokens"] == [{"id": 97, "piece": "a"}, {"id": 98, "piece": "b"}]
    assert told["token_strs"] == ["a", "b"]
    assert told["count"] == 2


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "content"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "messages"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "nobody", "content": "b"}]}, "messages[0].role"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"messages": [{"role": "user", "content": "b"}], "add_special": True}, "add_special"),
        ("/tokenize", {"prompt": "a", "nonsense": 1}, "nonsense"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(scripted, path, body, param):
    http, _ = scripted()
    response = post(http, path, **body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"].startswith(param)


def test_the_default_model(base_url):
    with httpx.Client(base_url=base_url) as http:
        text = "A caravan — قافلة 🐪<|im_end|>"
        told = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
        assert http.post("/detokenize", json={"tokens": told["tokens"]}).json()["prompt"] == text
        assert told["token_strs"][-1] == "<|im_end|>"
        plain = http.post("/tokenize", json={"prompt": text, "parse_special": False}).json()
        assert plain["count"] > told["count"]
        assert http.post("/detokenize", json={"tokens": [10**8]}).status_code == 400


def test_a_conversation_is_the_prompt_that_an_answer_reads(base_url):
    messages = [{"role": "user", "content": "Hello"}]
    with httpx.Client(base_url=base_url) as http:
        told = http.post("/tokenize", json={"model": "default", "messages": messages}).json()
        ask = {"model": "default", "messages": messages, "max_tokens": 1}
        usage = http.post("/v1/chat/completions", json=ask, timeout=60).json()["usage"]
        assert told["count"] == usage["prompt_tokens"]
        text = http.post("/detokenize", json={"tokens": told["tokens"]}).json()["content"]
        assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
        assert told["max_model_len"] == 8192
