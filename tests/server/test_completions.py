"""``/v1/completions``: over a scripted client, and OpenAI's package against the default model."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from openai.types import Completion

from qafila.chat.client import TokenInfo
from qafila.errors import ContextLengthError, QafilaError


def post(http, **body):
    async def ask():
        async with http:
            return await http.post("/v1/completions", json={"model": "scripted", **body})

    return asyncio.run(ask())


def events_of(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def test_one_prompt(scripted):
    http, client = scripted()
    response = post(http, prompt="Once", stop=["."], seed=3, max_tokens=9, temperature=0.5)
    assert response.status_code == 200
    told = response.json()
    assert told["choices"] == [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}]
    assert told["usage"]["prompt_tokens"] == 5
    Completion.model_validate(told)
    (asked,) = client.asked
    assert asked.prompt == "Once"
    assert asked.suffix is None
    generation = asked.generation
    assert (generation.max_tokens, generation.stop, generation.seed, generation.temperature) == (9, (".",), 3, 0.5)


def test_sixteen_tokens_unless_said_otherwise(scripted):
    http, client = scripted()
    post(http, prompt="Once")
    assert client.asked[0].generation.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        (None, [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [(1, 2, 3)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_kinds_of_prompts(scripted, prompt, asked):
    http, client = scripted()
    assert post(http, prompt=prompt).status_code == 200
    assert [one.prompt for one in client.asked] == asked


def test_several_prompts_share_one_response(scripted):
    http, client = scripted()
    told = post(http, prompt=["a", "b", "c"], n=2, echo=True).json()
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2, 3, 4, 5]
    assert [choice["text"] for choice in told["choices"]] == [*["aHello"] * 2, *["bHello"] * 2, *["cHello"] * 2]
    assert told["usage"]["prompt_tokens"] == 15
    assert told["usage"]["completion_tokens"] == 12
    assert client.running == client.cancelled == 0


def test_several_prompts_run_at_once(scripted):
    http, _ = scripted(["x"] * 10, delay=0.02)

    async def timed():
        async with http:
            loop = asyncio.get_running_loop()
            start = loop.time()
            response = await http.post("/v1/completions", json={"model": "scripted", "prompt": ["a"] * 10})
            return response, loop.time() - start

    response, seconds = asyncio.run(timed())
    assert response.status_code == 200
    assert seconds < 1.0  # one after the other they would take 2


def test_a_stream(scripted):
    http, _ = scripted()
    *chunks, done = events_of(post(http, prompt="Once", stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    # Not validated: their types do not know the null that OpenAI sends before the end.
    told = [Completion.model_construct(**json.loads(chunk)) for chunk in chunks]
    assert [choice.text for chunk in told for choice in chunk.choices] == ["Hel", "lo", ""]
    assert [chunk.usage is not None for chunk in told] == [False, False, False, True]
    assert [choice.finish_reason for chunk in told for choice in chunk.choices] == [None, None, "stop"]
    assert len({chunk.id for chunk in told}) == 1


def test_a_stream_of_several_prompts(scripted):
    http, client = scripted(delay=0.001)
    *chunks, done = events_of(post(http, prompt=["a", "b"], n=2, echo=True, stream=True))
    assert done == "[DONE]"
    texts, reasons = [""] * 4, [None] * 4
    for chunk in map(json.loads, chunks):
        assert "usage" not in chunk
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == ["aHello", "aHello", "bHello", "bHello"]
    assert reasons == ["stop"] * 4
    assert client.cancelled == 0


def test_log_probabilities_in_the_legacy_form(scripted):
    http, client = scripted()
    (choice,) = post(http, prompt="one two", logprobs=2, echo=True).json()["choices"]
    assert client.asked[0].generation.logprobs == 2
    assert choice["logprobs"]["tokens"][-2:] == ["Hel", "lo"]
    assert choice["logprobs"]["token_logprobs"][-2:] == [-0.5, -0.5]
    assert choice["logprobs"]["top_logprobs"][-2:] == [{"Hel": -0.5}, {"lo": -0.5}]


def test_a_first_token_has_no_probability_and_offsets_count_characters(scripted, monkeypatch):
    http, client = scripted([])

    async def score(prompt, top=0):
        first, second = "é".encode()[:1], "é".encode()[1:]
        return [
            TokenInfo(0, "<s>", b"<s>", float("nan")),
            TokenInfo(1, "\ufffd", first, -1.0),
            TokenInfo(2, "\ufffd", second, -2.0),
            TokenInfo(3, "x", b"x", -3.0, ((4, "y", b"y", -0.1),)),
        ]

    async def tokenize(text, *, special=False, bos=False):
        return [1, 2, 3]

    monkeypatch.setattr(client, "score", score)
    monkeypatch.setattr(client, "tokenize", tokenize)
    (choice,) = post(http, prompt="éx", logprobs=1, echo=True, max_tokens=0).json()["choices"]
    assert choice["text"] == "éx"
    assert choice["logprobs"] == {
        "tokens": ["bytes:\\xc3", "bytes:\\xa9", "x"],
        "token_logprobs": [-1.0, -2.0, -3.0],
        "top_logprobs": [{"bytes:\\xc3": -1.0}, {"bytes:\\xa9": -2.0}, {"x": -3.0, "y": -0.1}],
        "text_offset": [0, 0, 1],
    }
    by_ids = post(scripted_like(http), prompt=[0, 1, 2, 3], logprobs=1, echo=True, max_tokens=0).json()["choices"][0]
    assert by_ids["logprobs"]["tokens"][0] == "<s>"
    assert by_ids["logprobs"]["token_logprobs"][0] is None
    assert by_ids["logprobs"]["top_logprobs"][0] is None


def scripted_like(http):
    """A fresh client of the same application."""
    import httpx

    return httpx.AsyncClient(transport=http._transport, base_url=http.base_url)


def test_no_tokens_and_an_echo(scripted):
    http, client = scripted()
    told = post(http, prompt="Once", echo=True, max_tokens=0).json()
    assert told["choices"] == [{"index": 0, "text": "Once", "logprobs": None, "finish_reason": "length"}]
    assert told["usage"] == {**told["usage"], "prompt_tokens": 5, "completion_tokens": 0}
    assert client.running == 0
    *chunks, _ = events_of(post(scripted_like(http), prompt="Once", echo=True, max_tokens=0, stream=True))
    assert [json.loads(chunk)["choices"][0]["text"] for chunk in chunks] == ["Once"]


def test_infill(scripted):
    http, client = scripted()
    post(http, prompt="def f(", suffix=" return 1")
    assert client.asked[0].suffix == " return 1"
    post(scripted_like(http), prompt="a", suffix="")
    assert client.asked[1].suffix is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1 << 40]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": "7"}, "max_tokens"),
        ({"prompt": "a", "echo": True, "suffix": "b"}, "echo"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "stop": [""]}, "stop"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a", "nonsense": 1}, "nonsense"),
        ({"prompt": "a", "model": "other"}, "model"),
    ],
)
def test_what_is_wrong_is_named(scripted, body, param):
    http, client = scripted()
    response = post(http, **body)
    assert response.status_code == (404 if param == "model" else 400)
    error = response.json()["error"]
    assert (error["param"] or "").startswith(param), error
    assert param.partition("[")[0] in error["message"]
    assert client.asked == []


def test_harmless_and_null_options_are_accepted(scripted):
    http, _ = scripted()
    absent = dict.fromkeys(("n", "best_of", "stream", "stop", "suffix", "logprobs", "echo", "seed", "max_tokens"))
    assert post(http, prompt="a", user="me", **absent).status_code == 200


def test_a_prompt_that_does_not_fit_names_the_prompt(scripted):
    http, _ = scripted(refusal=ContextLengthError("the prompt has 9 tokens, and 8 fit"))
    error = post(http, prompt="a").json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_one_refused_prompt_calls_off_the_others(scripted):
    http, client = scripted()
    events = client._events

    async def refuse_the_second(request):
        if request.prompt == "b":
            raise QafilaError("prompt: no")
        async for event in events(request):
            yield event

    client._events = refuse_the_second
    response = post(http, prompt=["a", "b", "c"])
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "prompt: no"
    assert client.running == 0


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_an_error_in_mid_stream_is_an_event(scripted, prompt):
    http, client = scripted(error=QafilaError("the engine broke"))
    *_, last = events_of(post(http, prompt=prompt, stream=True))
    assert json.loads(last)["error"]["message"] == "the engine broke"
    assert client.running == 0


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_an_error_of_a_whole_answer(scripted, prompt):
    http, client = scripted(error=RuntimeError("secret"))
    response = post(http, prompt=prompt)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert client.running == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_nothing_runs_on_when_the_client_goes_away(scripted_server, prompt, stream):
    url, client = scripted_server(["x"] * 1000, delay=0.01)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=0.3) as official:
        if stream:
            with official.completions.create(model="scripted", prompt=prompt, stream=True) as chunks:
                next(iter(chunks))
        else:
            with pytest.raises(openai.APITimeoutError):
                official.completions.create(model="scripted", prompt=prompt)
    asyncio.run(settled(client))
    assert client.cancelled == (1 if prompt == "a" else 2)


async def settled(client):
    for _ in range(200):
        if client.running == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("still running")


# OpenAI's own package against the default model.


@pytest.fixture
def official(base_url):
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


PROMPT = "The capital of France is"


def test_official_client(official):
    told = official.completions.create(model="default", prompt=PROMPT, max_tokens=8, temperature=0)
    assert "Paris" in told.choices[0].text
    assert told.choices[0].finish_reason == "length"
    assert told.usage.completion_tokens == 8
    streamed = official.completions.create(model="default", prompt=PROMPT, max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == told.choices[0].text


def test_official_client_several_prompts_and_seeds(official):
    ask = {"model": "default", "prompt": [PROMPT, "Two plus two is"], "n": 2, "max_tokens": 6, "temperature": 1.0}
    first = official.completions.create(**ask, seed=11)
    again = official.completions.create(**ask, seed=11)
    assert [c.text for c in first.choices] == [c.text for c in again.choices]
    assert len({c.text for c in first.choices}) == 4
    raw = official.completions.with_raw_response.create(**ask, seed=11)
    assert raw.headers["content-type"] == "application/json"
    assert [c.text for c in raw.parse().choices] == [c.text for c in first.choices]


def test_official_client_echo_and_logprobs(official):
    told = official.completions.create(
        model="default", prompt=PROMPT, max_tokens=4, temperature=0, echo=True, logprobs=0
    ).choices[0]
    assert told.text.startswith(PROMPT)
    probabilities = told.logprobs
    assert "".join(probabilities.tokens) == told.text
    for token, offset in zip(probabilities.tokens, probabilities.text_offset, strict=True):
        assert told.text[offset:].startswith(token)
    assert all(value is None or value <= 0 for value in probabilities.token_logprobs)
    without = official.completions.create(
        model="default", prompt=PROMPT, max_tokens=4, temperature=0, logprobs=3
    ).choices[0]
    assert told.text == PROMPT + without.text
    # Two of its tokens, read as a prompt: the same likeliest ones beside them.
    text = PROMPT + "".join(without.logprobs.tokens[:2])
    scored = official.completions.create(model="default", prompt=text, max_tokens=0, echo=True, logprobs=3).choices[0]
    assert scored.logprobs.tokens[-2:] == without.logprobs.tokens[:2]
    for read, made in zip(scored.logprobs.top_logprobs[-2:], without.logprobs.top_logprobs, strict=False):
        assert read == pytest.approx(made)
    assert without.logprobs.token_logprobs == pytest.approx(probabilities.token_logprobs[-4:])
    for token, own, top in zip(
        without.logprobs.tokens, without.logprobs.token_logprobs, without.logprobs.top_logprobs, strict=True
    ):
        assert top[token] == own == max(top.values())


def test_official_client_token_ids_score_as_their_text(official, base_url):
    import httpx

    ids = httpx.post(f"{base_url}/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    ask = {"model": "default", "max_tokens": 0, "echo": True, "logprobs": 0}
    by_ids = official.completions.create(prompt=ids, **ask).choices[0]
    by_text = official.completions.create(prompt=PROMPT, **ask).choices[0]
    assert by_ids.text == by_text.text
    assert by_ids.logprobs.token_logprobs == by_text.logprobs.token_logprobs


def test_official_client_async(base_url):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.completions.create(
                model="default", prompt=PROMPT, max_tokens=6, temperature=0, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            chunks = [chunk async for chunk in stream]
            with pytest.raises(openai.BadRequestError, match="infill"):
                await client.completions.create(model="default", prompt="a", suffix="b")
            with pytest.raises(openai.BadRequestError) as caught:
                await client.completions.create(model="default", prompt=[10**8])
            return chunks, caught.value

    chunks, error = asyncio.run(ask())
    assert "Paris" in "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert chunks[-1].usage.completion_tokens == 6
    assert "100000000" in error.message
