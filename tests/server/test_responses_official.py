"""``/v1/responses`` with OpenAI's own package against the default model."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel


class City(BaseModel):
    name: str
    continent: Literal["Africa", "Asia", "Europe"]


WEATHER = {
    "type": "function", "name": "weather", "description": "The weather of a city.", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Cairo", "Rome"]}},
                   "required": ["city"], "additionalProperties": False},
}  # fmt: skip
QUESTION = "What is the capital of Japan?"


@pytest.fixture
def official(base_url):
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_create_and_retrieve(official):
    told = official.responses.create(model="default", input=QUESTION, temperature=0, max_output_tokens=40)
    Response.model_validate(told.to_dict())
    assert "Tokyo" in told.output_text
    assert told.usage.total_tokens == told.usage.input_tokens + told.usage.output_tokens
    assert official.responses.retrieve(told.id).to_dict() == told.to_dict()
    counted = official.responses.input_tokens.count(model="default", input=QUESTION)
    assert counted.input_tokens == told.usage.input_tokens
    (item,) = official.responses.input_items.list(told.id)
    assert item.content[0].text == QUESTION
    with pytest.raises(openai.BadRequestError):
        official.responses.cancel(told.id)
    official.responses.delete(told.id)
    with pytest.raises(openai.NotFoundError):
        official.responses.retrieve(told.id)


def test_a_conversation_reads_only_what_is_new(official):
    first = official.responses.create(model="default", input="My name is Layla.", temperature=0, max_output_tokens=30)
    second = official.responses.create(
        model="default", input="What is my name?", previous_response_id=first.id, temperature=0, max_output_tokens=30
    )
    before = first.usage.total_tokens
    assert second.usage.input_tokens > before
    # Whole blocks of the cache: all but the last tokens of the first turn, answer included, are not read again.
    assert before - 64 <= second.usage.input_tokens_details.cached_tokens < second.usage.input_tokens
    assert [item.content[0].text for item in official.responses.input_items.list(second.id)] == ["What is my name?"]


def test_streaming(official):
    whole = official.responses.create(model="default", input=QUESTION, temperature=0, max_output_tokens=20)
    with official.responses.create(
        model="default", input=QUESTION, temperature=0, max_output_tokens=20, stream=True
    ) as events:
        told = list(events)
    deltas = [event.delta for event in told if event.type == "response.output_text.delta"]
    assert len(deltas) > 3
    assert "".join(deltas) == whole.output_text
    assert [event.sequence_number for event in told] == list(range(len(told)))
    assert told[-1].type == f"response.{whole.status}"
    with official.responses.stream(model="default", input=QUESTION, temperature=0, max_output_tokens=20) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response() if whole.status == "completed" else None
    if final is not None:
        assert final.output_text == whole.output_text


def test_structured_outputs(official):
    told = official.responses.parse(
        model="default", input="Tell me of Cairo.", text_format=City, temperature=0, max_output_tokens=60
    )
    assert isinstance(told.output_parsed, City)
    with official.responses.stream(
        model="default", input="Tell me of Rome.", text_format=City, temperature=0, max_output_tokens=60
    ) as stream:
        kinds = {event.type for event in stream}
        assert isinstance(stream.get_final_response().output_parsed, City)
    assert "response.output_text.delta" in kinds


def test_calls_and_their_results(official):
    first = official.responses.create(
        model="default", input="How is the weather in Rome?", tools=[WEATHER], tool_choice="required", temperature=0,
        max_output_tokens=60, parallel_tool_calls=False,
    )  # fmt: skip
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments)["city"] in ("Cairo", "Rome")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 31 degrees."}
    second = official.responses.create(
        model="default", input=[result], previous_response_id=first.id, tools=[WEATHER], tool_choice="none",
        temperature=0, max_output_tokens=40,
    )  # fmt: skip
    assert second.output_text
    # The same without the server's memory: the items are sent back as they came.
    items = [{"role": "user", "content": "How is the weather in Rome?"}, *[i.to_dict() for i in first.output], result]
    third = official.responses.create(
        model="default", input=items, tools=[WEATHER], tool_choice="none", temperature=0, max_output_tokens=40,
        store=False,
    )  # fmt: skip
    assert third.output_text


def test_a_call_in_a_stream(official):
    with official.responses.stream(
        model="default", input="How is the weather in Cairo?", tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False, temperature=0,
        max_output_tokens=60,
    ) as stream:  # fmt: skip
        arguments = "".join(e.delta for e in stream if e.type == "response.function_call_arguments.delta")
        call = next(item for item in stream.get_final_response().output if item.type == "function_call")
    assert arguments == call.arguments
    assert set(json.loads(arguments)) == {"city"}


def test_log_probabilities(official):
    told = official.responses.create(
        model="default", input=QUESTION, temperature=0, max_output_tokens=5, include=["message.output_text.logprobs"],
        top_logprobs=3,
    )  # fmt: skip
    tokens = told.output[0].content[0].logprobs
    assert b"".join(bytes(token.bytes) for token in tokens).decode().startswith(told.output_text)
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs)


def test_a_conversation_too_long_is_refused_or_truncated(official):
    items = [
        {"role": role, "content": "sand and dust " * 700}
        for _ in range(3)
        for role in ("user", "assistant")
    ] + [{"role": "user", "content": QUESTION}]  # fmt: skip
    with pytest.raises(openai.BadRequestError) as caught:
        official.responses.create(model="default", input=items, max_output_tokens=5)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input"
    short = [items[0] | {"content": "dust"}, items[1] | {"content": "sand " * 9000}, items[-1]]
    told = official.responses.create(
        model="default", input=short, max_output_tokens=20, temperature=0, truncation="auto"
    )
    assert "Tokyo" in told.output_text


def test_async_and_raw(base_url):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
            raw = await client.responses.with_raw_response.create(
                model="default", input=QUESTION, temperature=0, max_output_tokens=12
            )
            stream = await client.responses.create(
                model="default", input=QUESTION, temperature=0, max_output_tokens=12, stream=True
            )
            text = "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])
            with pytest.raises(openai.NotFoundError) as caught:
                await client.responses.create(model="nothing", input="a")
            return raw, text, caught.value

    raw, text, error = asyncio.run(ask())
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().output_text == text
    assert error.param == "model"
