"""``/v1/chat/completions``: over a scripted client, and OpenAI's package against the default model."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from qafila.errors import ChatError, ContextLengthError, QafilaError

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def post(http, **body):
    async def ask():
        async with http:
            return await http.post("/v1/chat/completions", json={"model": "scripted", "messages": HELLO, **body})

    return asyncio.run(ask())


def chunks_of(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [ChatCompletionChunk.model_validate_json(line) for line in lines]


def test_a_whole_answer(scripted):
    http, _ = scripted()
    response = post(http)
    told = ChatCompletion.model_validate_json(response.text)
    assert told.choices[0].message.content == "Hello"
    assert told.choices[0].finish_reason == "stop"
    assert (told.usage.prompt_tokens, told.usage.completion_tokens, told.usage.total_tokens) == (5, 2, 7)
    assert told.usage.prompt_tokens_details.cached_tokens == 3
    assert told.id.startswith("chatcmpl-")
    assert response.headers["content-type"] == "application/json"


def test_every_option_reaches_the_model(scripted):
    http, client = scripted()
    options = {
        "max_completion_tokens": 7, "stop": ["a", "b"], "seed": -1, "temperature": 0.3, "top_p": 0.4, "top_k": 5,
        "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5,
        "logit_bias": {"5": 1.5}, "n": 3, "logprobs": True, "top_logprobs": 4,
    }  # fmt: skip
    assert post(http, **options).status_code == 200
    made = client.asked[0].generation
    assert (made.max_tokens, made.stop, made.seed) == (7, ("a", "b"), (1 << 64) - 1)
    assert (made.temperature, made.top_p, made.top_k, made.min_p) == (0.3, 0.4, 5, 0.1)
    assert (made.repetition_penalty, made.presence_penalty, made.frequency_penalty) == (1.1, 0.5, -0.5)
    assert (made.logit_bias, made.n, made.logprobs) == ({5: 1.5}, 3, 4)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json_object"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}}, "json_schema"),
    ],
)  # fmt: skip
def test_response_formats(scripted, form, kind):
    http, client = scripted()
    assert post(http, response_format=form).status_code == 200
    answer = client.asked[0].generation.answer
    assert (answer and answer.kind) == kind


@pytest.mark.parametrize(
    ("choice", "mode", "names"),
    [
        (None, "auto", None),
        ("auto", "auto", None),
        ("none", "none", None),
        ("required", "required", None),
        ({"type": "function", "function": {"name": "weather"}}, "required", {"weather"}),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
            {"type": "function", "function": {"name": "weather"}}]}}, "auto", {"weather"}),
    ],
)  # fmt: skip
def test_choices_of_tools(scripted, choice, mode, names):
    http, client = scripted()
    assert post(http, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False).status_code == 200
    (asked,) = client.asked
    assert (asked.tool_mode, asked.tool_names, asked.parallel_tool_calls) == (mode, names, False)


def test_calls(scripted):
    http, _ = scripted([], calls=[("weather", '{"city": "Rome"}'), ("time", "{}")])
    (choice,) = ChatCompletion.model_validate_json(post(http, tools=[WEATHER]).text).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert calls == [("call_0", "weather", '{"city": "Rome"}'), ("call_1", "time", "{}")]


def test_what_clients_send_back_of_an_answer(scripted):
    http, client = scripted()
    answer = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None,
              "function_call": None, "tool_calls": [{"id": "c", "type": "function",
                                                     "function": {"name": "weather", "arguments": "{}"}}]}  # fmt: skip
    result = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "sunny"}]}
    messages = [{"role": "developer", "content": "Be kind."}, *HELLO, answer, result]
    assert post(http, messages=messages, tools=[WEATHER]).status_code == 200
    assert [message.role for message in client.asked[0].messages] == ["system", "user", "assistant", "tool"]


def test_a_stream(scripted):
    http, client = scripted()
    told = chunks_of(post(http, stream=True, n=2, stream_options={"include_usage": True, "include_obfuscation": False}))
    assert {chunk.id for chunk in told} == {told[0].id}
    texts, reasons, roles = ["", ""], [None, None], [None, None]
    for chunk in told[:-1]:
        assert chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = reasons[choice.index] or choice.finish_reason
        roles[choice.index] = roles[choice.index] or choice.delta.role
    assert (texts, reasons, roles) == (["Hello"] * 2, ["stop"] * 2, ["assistant"] * 2)
    assert told[-1].choices == []
    assert told[-1].usage.completion_tokens == 4
    assert client.cancelled == 0


def test_a_stream_of_calls(scripted):
    http, _ = scripted([], calls=[("weather", '{"city": "Rome"}'), ("time", "{}")])
    arguments, names = {}, {}
    for chunk in chunks_of(post(http, tools=[WEATHER], stream=True)):
        for call in chunk.choices[0].delta.tool_calls or ():
            names.setdefault(call.index, call.function.name)
            arguments[call.index] = arguments.get(call.index, "") + call.function.arguments
    assert names == {0: "weather", 1: "time"}
    assert arguments == {0: '{"city": "Rome"}', 1: "{}"}


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(scripted, stream):
    http, _ = scripted()
    response = post(http, logprobs=True, stream=stream)
    made = chunks_of(response) if stream else [ChatCompletion.model_validate_json(response.text)]
    tokens = [token for one in made for choice in one.choices if choice.logprobs for token in choice.logprobs.content]
    assert [(token.token, token.logprob, token.bytes) for token in tokens] == [
        ("Hel", -0.5, [72, 101, 108]), ("lo", -0.5, [108, 111])
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['"quotes" and \\ backslash\n', "سلام 🐪", "\u2028", "</script>", "\0"])
def test_text_survives_the_frames_of_a_stream(scripted, text):
    http, _ = scripted([text, text])
    told = chunks_of(post(http, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == text * 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "nobody", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [*HELLO, {"role": "user", "content": 7}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "x"}]}, "messages[0].tool_call_id"),
        ({"model": 7}, "model"),
        ({"model": None}, "model"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": "2"}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"nonsense": True}}, "stream_options.nonsense"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"seed": 1 << 64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"logit_bias": []}, "logit_bias"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
        ({"regex": "a", "grammar": "start: \"a\""}, "grammar"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 7}}]}, "tools[0].function.parameters"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": [{"name": "a"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"nonsense": 1}, "nonsense"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(scripted, body, param):
    http, client = scripted()
    response = post(http, **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}:")
    assert error["type"] == "invalid_request_error"
    assert client.asked == []


def test_an_unknown_model_is_not_found(scripted):
    http, _ = scripted()
    response = post(http, model="/etc/passwd")
    assert response.status_code == 404
    assert response.json()["error"] == {**response.json()["error"], "param": "model", "code": "model_not_found"}


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[1]", b'"a"', b"\xff", b'{"model": "scripted", "messages": [{"role": ', b"null"]
)
def test_a_body_that_is_no_object(scripted, body):
    http, _ = scripted()

    async def ask():
        async with http:
            return await http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})

    response = asyncio.run(ask())
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_harmless_options_are_accepted(scripted):
    http, _ = scripted()
    harmless = {
        "user": "me", "metadata": {"a": "b"}, "store": True, "safety_identifier": "x", "prompt_cache_key": "k",
        "prompt_cache_retention": "24h", "service_tier": "auto", "prediction": {"type": "content", "content": "x"},
        "verbosity": "low", "reasoning_effort": "low", "modalities": ["text"], "functions": [], "function_call": "none",
    }  # fmt: skip
    assert post(http, **harmless).status_code == 200


def test_every_option_of_the_official_client_is_in_one_of_the_lists():
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase

    from qafila.server.openai_bodies import ChatBody

    options = set(CompletionCreateParamsBase.__annotations__)
    lists = [set(ChatBody.model_fields), set(ChatBody.harmless), set(ChatBody.refused)]
    assert options - set.union(*lists) == set()
    assert sum(map(len, lists)) == len(set.union(*lists)), "an option is in two lists"


def test_every_option_of_the_other_endpoints_is_in_one_of_the_lists():
    from openai.types.completion_create_params import CompletionCreateParamsBase
    from openai.types.embedding_create_params import EmbeddingCreateParams
    from openai.types.responses.input_token_count_params import InputTokenCountParams
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    from qafila.server.openai_completions import CompletionBody
    from qafila.server.openai_embeddings import EmbeddingBody
    from qafila.server.responses_bodies import ResponseBody, TokenCountBody

    for params, body in (
        (CompletionCreateParamsBase, CompletionBody),
        (EmbeddingCreateParams, EmbeddingBody),
        (ResponseCreateParamsBase, ResponseBody),
        (InputTokenCountParams, TokenCountBody),
    ):
        known = set(body.model_fields) | set(body.harmless) | set(body.refused)
        assert set(params.__annotations__) - known == set(), body


def test_null_is_as_good_as_absent(scripted):
    from qafila.server.openai_bodies import ChatBody

    http, client = scripted()
    names = set(ChatBody.model_fields) | set(ChatBody.refused) | set(ChatBody.harmless)
    assert post(http, **dict.fromkeys(names - {"model", "messages"})).status_code == 200
    assert client.asked[0].generation.n == 1


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (ContextLengthError("too long"), 400, "context_length_exceeded"),
        (ChatError("messages[0]: no"), 400, None),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_before_it_starts_has_a_status(scripted, refusal, status, code, stream):
    http, _ = scripted(refusal=refusal)
    response = post(http, stream=stream)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["param"] == (
        {400: "messages"}.get(status) if code else response.json()["error"]["param"]
    )
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("error", "text"), [(QafilaError("it broke"), "it broke"), (RuntimeError("secret"), "its log")]
)
def test_an_error_in_mid_stream_is_an_event(scripted, error, text):
    http, client = scripted(error=error)
    response = post(http, stream=True)
    assert response.status_code == 200
    *_, last = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert text in json.loads(last)["error"]["message"]
    assert "secret" not in response.text
    assert client.running == 0


def test_the_official_client_raises_an_error_in_mid_stream(scripted_server):
    url, client = scripted_server(error=QafilaError("it broke"))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as official:
        stream = official.chat.completions.create(model="scripted", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="it broke"):
            list(stream)
    assert client.running == 0


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_runs_on_when_the_client_goes_away(scripted_server, stream):
    url, client = scripted_server(["x"] * 1000, delay=0.01)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=0.3) as official:
        if stream:
            with official.chat.completions.create(model="scripted", messages=HELLO, stream=True) as chunks:
                next(iter(chunks))
        else:
            with pytest.raises(openai.APITimeoutError):
                official.chat.completions.create(model="scripted", messages=HELLO)
    for _ in range(200):
        if client.running:
            asyncio.run(asyncio.sleep(0.01))
    assert (client.running, client.cancelled) == (0, 1)


# OpenAI's own package against the default model.


class City(BaseModel):
    name: str
    continent: Literal["Africa", "Asia", "Europe"]


@pytest.fixture
def official(base_url):
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, text="What is the capital of Japan?", **options):
    given = {
        "model": "default",
        "messages": [{"role": "user", "content": text}],
        "max_completion_tokens": 30,
        **options,
    }
    return client.chat.completions.create(**given)


def test_official_client_whole_and_streamed(official):
    told = ask(official, temperature=0)
    ChatCompletion.model_validate(told.to_dict())
    assert "Tokyo" in told.choices[0].message.content
    chunks = list(ask(official, temperature=0, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == told.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == told.usage.completion_tokens
    raw = official.chat.completions.with_raw_response.create(
        model="default", messages=HELLO, max_completion_tokens=2, temperature=0
    )
    assert raw.parse().choices[0].finish_reason == "length"


def test_official_client_n_and_seed(official):
    told = ask(official, "Tell me a story.", n=3, seed=5, temperature=1.2, max_completion_tokens=12)
    texts = [choice.message.content for choice in told.choices]
    assert len(set(texts)) == 3
    again = ask(official, "Tell me a story.", n=3, seed=5, temperature=1.2, max_completion_tokens=12)
    assert [choice.message.content for choice in again.choices] == texts
    other = ask(official, "Tell me a story.", n=3, seed=6, temperature=1.2, max_completion_tokens=12)
    assert [choice.message.content for choice in other.choices] != texts


def test_official_client_stop(official):
    whole = ask(official, temperature=0).choices[0].message.content
    stop = "Tokyo"
    cut = ask(official, temperature=0, stop=[stop]).choices[0]
    assert cut.message.content == whole.partition(stop)[0]
    assert cut.finish_reason == "stop"


def test_official_client_logprobs_and_logit_bias(official, base_url):
    told = ask(official, temperature=0, logprobs=True, top_logprobs=4, max_completion_tokens=6).choices[0]
    tokens = told.logprobs.content
    assert "".join(token.token for token in tokens).startswith(told.message.content)
    for token in tokens:
        assert len(token.top_logprobs) == 4
        assert token.token == token.top_logprobs[0].token
    first = httpx.post(f"{base_url}/tokenize", json={"content": tokens[0].token}).json()["tokens"]
    banned = ask(official, temperature=0, logit_bias={str(first[0]): -100}, max_completion_tokens=6).choices[0]
    assert not banned.message.content.startswith(tokens[0].token)


def test_official_client_structured_outputs(official):
    told = official.chat.completions.parse(
        model="default", messages=[{"role": "user", "content": "Tell me of Cairo."}], response_format=City,
        temperature=0, max_completion_tokens=60,
    )  # fmt: skip
    assert isinstance(told.choices[0].message.parsed, City)
    anything = ask(official, "A JSON object of a city.", response_format={"type": "json_object"}, temperature=0,
                   max_completion_tokens=80).choices[0]  # fmt: skip
    if anything.finish_reason == "stop":
        assert isinstance(json.loads(anything.message.content), dict)
    with official.chat.completions.stream(
        model="default", messages=[{"role": "user", "content": "Tell me of Rome."}], response_format=City,
        temperature=0, max_completion_tokens=60,
    ) as stream:  # fmt: skip
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, City)


def test_official_client_tools(official):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Rome", "Cairo"]}}, "required": ["city"],
        "additionalProperties": False}}}  # fmt: skip
    told = ask(official, "How is the weather in Rome?", tools=[tool], tool_choice="required", seed=1,
               max_completion_tokens=60, parallel_tool_calls=False).choices[0]  # fmt: skip
    assert told.finish_reason == "tool_calls"
    (call,) = told.message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Cairo")
    messages = [
        {"role": "user", "content": "How is the weather in Rome?"},
        told.message.to_dict(),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    after = ask(official, messages=messages, tools=[tool], tool_choice="none", temperature=0).choices[0]
    assert after.message.content


def test_official_client_errors(official):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(official, "sand " * 9000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="image"):
        ask(official, messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}])  # fmt: skip
    with pytest.raises(openai.BadRequestError):
        ask(
            official,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
        )
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        ask(official, logit_bias={"100000000": 1})


def test_official_client_async_at_once(base_url):
    async def go():
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(
                *(ask(client, f"Say the number {i}.", temperature=0, max_completion_tokens=8) for i in range(6))
            )

    told = asyncio.run(go())
    assert len({one.id for one in told}) == 6
    assert all(one.choices[0].message.content for one in told)
