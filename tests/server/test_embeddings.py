"""``/v1/embeddings``: over a scripted client, and OpenAI's package against the default model."""

from __future__ import annotations

import asyncio
import base64
import math
import struct

import openai
import pytest
from openai.types import CreateEmbeddingResponse

from qafila.chat.client import Embedded
from qafila.errors import ContextLengthError


def post(http, **body):
    async def ask():
        async with http:
            return await http.post("/v1/embeddings", json={"model": "scripted", **body})

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("abc", ["abc"]),
        (["abc", "de"], ["abc", "de"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_kinds_of_inputs(scripted, monkeypatch, given, asked):
    http, client = scripted()
    seen = []

    async def embed(texts, pooling="mean"):
        seen.extend(texts)
        return Embedded(tuple((0.6, 0.8) for _ in texts), sum(map(len, texts)))

    monkeypatch.setattr(client, "embed", embed)
    told = post(http, input=given).json()
    assert seen == asked
    assert [one["index"] for one in told["data"]] == list(range(len(asked)))
    assert all(one["embedding"] == [0.6, 0.8] for one in told["data"])
    assert told["usage"] == {"prompt_tokens": sum(map(len, asked)), "total_tokens": sum(map(len, asked))}
    CreateEmbeddingResponse.model_validate(told)


def test_base64_is_little_endian_single_precision(scripted):
    http, _ = scripted()
    (one,) = post(http, input="a", encoding_format="base64").json()["data"]
    assert base64.b64decode(one["embedding"]) == struct.pack("<2f", 0.6, 0.8)


def test_2048_inputs_and_not_one_more(scripted):
    http, _ = scripted()
    assert len(post(http, input=["a"] * 2048).json()["data"]) == 2048
    http, _ = scripted()
    error = post(http, input=["a"] * 2049).json()["error"]
    assert error["param"] == "input"
    assert "2048" in error["message"]


def test_the_models_own_width_may_be_asked_for(scripted):
    http, _ = scripted()
    assert post(http, input="a", dimensions=2, user="me").status_code == 200
    http, _ = scripted()
    error = post(http, input=["a", "b"], dimensions=3).json()["error"]
    assert error["param"] == "dimensions"
    assert "have 2" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": 7}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "nonsense": 1}, "nonsense"),
        ({"input": "a", "model": "other"}, "model"),
    ],
)
def test_what_is_wrong_is_named(scripted, body, param):
    http, _ = scripted()
    response = post(http, **body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"].startswith(param)


def test_a_text_that_does_not_fit_names_the_input(scripted, monkeypatch):
    http, client = scripted()

    async def embed(texts, pooling="mean"):
        raise ContextLengthError("too long")

    monkeypatch.setattr(client, "embed", embed)
    assert post(http, input="a").json()["error"]["param"] == "input"


# OpenAI's own package against the default model.

TEXTS = ["A camel crosses the desert.", "A dromedary walks through the sand.", "The stock market fell by two percent."]


@pytest.fixture
def official(base_url):
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_official_client(official):
    told = official.embeddings.create(model="default", input=TEXTS)  # asks for base64
    vectors = [one.embedding for one in told.data]
    plain = official.embeddings.create(model="default", input=TEXTS, encoding_format="float")
    for vector, one in zip(vectors, plain.data, strict=True):
        assert len(vector) == 576
        assert vector == pytest.approx(one.embedding, abs=1e-7)
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)
    near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    assert near > far
    assert told.usage.prompt_tokens == told.usage.total_tokens > 15


def test_official_client_ids_async_and_errors(base_url):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
            told = await client.embeddings.create(model="default", input=[[1, 2, 3], [4]], dimensions=576)
            with pytest.raises(openai.BadRequestError) as wide:
                await client.embeddings.create(model="default", input="a", dimensions=512)
            with pytest.raises(openai.BadRequestError) as foreign:
                await client.embeddings.create(model="default", input=[10**8])
            return told, wide.value, foreign.value

    told, wide, foreign = asyncio.run(ask())
    assert told.usage.prompt_tokens == 4
    assert wide.param == "dimensions"
    assert "100000000" in foreign.message
