"""`RemoteClient` against servers that a test wrote down, answer by answer, and all that goes wrong between machines."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest

from qafila.chat.client import (
    CallPiece,
    ChatRequest,
    Finished,
    Generation,
    PromptRequest,
    Started,
    TextPiece,
    Usage,
    whole,
)
from qafila.chat.dialects import DIALECTS
from qafila.chat.remote import RemoteClient
from qafila.chat.upstream import Address, Connection, offered, read_key
from qafila.engine.request import GrammarSpec
from qafila.errors import ChatError, ContextLengthError, UpstreamError, UsageError
from qafila.text.messages import Message, ToolSchema

QUESTION = (Message("user", "Hello?"),)
TOOL = ToolSchema("weather", "", {"type": "object", "properties": {"city": {"type": "string"}}})


class Server:
    """Answers each connection's requests with the next of its scripts: bytes to send, a pause, or None to hang up."""

    def __init__(self, *scripts) -> None:
        self.scripts = list(scripts)
        self.requests: list[tuple[str, dict[str, str], dict]] = []
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((first.rsplit(" ", 1)[0], headers, json.loads(body) if body else {}))
                for part in self.scripts.pop(0):
                    if part is None:
                        return
                    if isinstance(part, float):
                        await asyncio.wait({asyncio.ensure_future(reader.read(1))}, timeout=part)
                        if reader.at_eof():
                            self.gone.set()
                            return
                    else:
                        writer.write(part)
                        await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def answer(status: int, body: object, **headers: str) -> list[bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return [f"HTTP/1.1 {status} X\r\n{head}\r\n".encode(), data]


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def delta(text: str | None = None, reason: str | None = None, index: int = 0, **more) -> bytes:
    content = {} if text is None else {"content": text}
    return event({"choices": [{"index": index, "delta": {**content, **more}, "finish_reason": reason}]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2,
                                        "prompt_tokens_details": {"cached_tokens": 4}}})  # fmt: skip
DONE = b"data: [DONE]\n\n"
HELLO = [HEAD, delta("", role="assistant"), delta("Hel"), delta("lo"), delta(reason="stop"), USAGE, DONE, None]


def run(work, *scripts, dialect="other", key=None, timeout=5.0):
    """The result of ``work(client, server)``, with a client of a server that follows the scripts."""

    async def main():
        server = Server(*scripts)
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        connection = Connection(Address.parse(f"http://127.0.0.1:{port}"), key=key, where="model 'm'", timeout=timeout)
        client = RemoteClient(connection, "theirs", "m", dialect=DIALECTS[dialect])
        try:
            return await asyncio.wait_for(work(client, server), 20)
        finally:
            await client.close()
            listener.close()

    return asyncio.run(main())


async def collect(events):
    return [each async for each in events]


def ask(**generation) -> ChatRequest:
    return ChatRequest(QUESTION, generation=Generation(**generation))


def asked(request, dialect="other", **options):
    """The body that a request becomes."""

    async def work(client, server):
        call = client.chat if isinstance(request, ChatRequest) else client.complete
        await collect(call(request))
        return server.requests[0]

    script = HELLO if request.generation.n == 1 else [HEAD, *(delta("x", "stop", i) for i in range(9)), DONE, None]
    return run(work, script, dialect=dialect, **options)


def test_events_of_a_chat():
    events = run(lambda client, server: collect(client.chat(ask())), HELLO)
    assert isinstance(events[0], Started)
    assert events[1:3] == [TextPiece(0, "Hel"), TextPiece(0, "lo")]
    assert events[3] == Finished(0, "stop", Message("assistant", "Hello"), None)
    assert isinstance(events[4], Usage)
    assert (events[4].prompt, events[4].cached, events[4].generated) == (9, 4, 2)


def test_what_is_sent():
    message = Message("assistant", "Hi", ids=(1, 2))
    request = ChatRequest(
        (*QUESTION, message),
        generation=Generation(max_tokens=7, stop=("a",), seed=3, temperature=0.5, top_k=4, logit_bias={5: 1.0},
                              logprobs=2, tenant="key 7"),
    )  # fmt: skip
    line, headers, body = asked(request, key="secret-key")
    assert line == "POST /v1/chat/completions"
    assert headers["authorization"] == "Bearer secret-key"
    assert body == {
        "model": "theirs", "messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi"}],
        "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 7, "stop": ["a"], "seed": 3,
        "temperature": 0.5, "top_k": 4, "logit_bias": {"5": 1.0}, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip


def test_each_kind_of_server_is_asked_in_its_own_words():
    assert asked(ask(max_tokens=3), "openai")[2]["max_completion_tokens"] == 3
    assert asked(ask(repetition_penalty=1.1), "llama.cpp")[2]["repeat_penalty"] == 1.1
    regex = GrammarSpec("regex", "a+")
    assert asked(ask(answer=regex), "vllm")[2]["structured_outputs"] == {"regex": "a+"}
    assert asked(ask(answer=regex), "sglang")[2]["regex"] == "a+"
    assert asked(ask(answer=GrammarSpec("lark", "start: A")), "qafila")[2]["grammar"] == "start: A"
    salts = {asked(ask(tenant=tenant), "vllm")[2]["cache_salt"] for tenant in ("a", "b")}
    assert len(salts) == 2
    assert not {"a", "b"} & salts
    schema = asked(ask(answer=GrammarSpec("json_schema", '{"type":"object"}')))[2]["response_format"]
    assert schema["json_schema"]["schema"] == {"type": "object"}
    assert asked(PromptRequest("x", "y", Generation(n=9)))[2]["suffix"] == "y"


@pytest.mark.parametrize(
    ("request_", "dialect", "error", "words"),
    [
        (ask(answer=GrammarSpec("regex", "a")), "other", UsageError, "regex: .*takes none"),
        (ask(answer=GrammarSpec("lark", "a")), "vllm", UsageError, "grammar: .*takes none"),
        (ask(top_k=3), "openai", UsageError, "top_k: .*no such option"),
        (
            PromptRequest("x", generation=Generation(answer=GrammarSpec("json_object"))),
            "other",
            UsageError,
            "chats only",
        ),
        (ChatRequest(QUESTION, tool_mode="required"), "other", ChatError, "no tools"),
        (ChatRequest(QUESTION, (TOOL,), tool_names=frozenset({"x"})), "other", ChatError, "no tool 'x'"),
    ],
)
def test_what_a_server_does_not_take_is_refused_before_it_is_asked(request_, dialect, error, words):
    async def work(client, server):
        with pytest.raises(error, match=words):
            await collect(client.chat(request_) if isinstance(request_, ChatRequest) else client.complete(request_))
        return server.requests

    assert run(work, dialect=dialect) == []


def test_tools():
    other = ToolSchema("other")
    request = ChatRequest(QUESTION, (TOOL, other), "required", frozenset({"weather"}), parallel_tool_calls=False)
    body = asked(request)[2]
    assert [tool["function"]["name"] for tool in body["tools"]] == ["weather"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert body["parallel_tool_calls"] is False
    assert "tools" not in asked(ChatRequest(QUESTION, (TOOL,), "none"))[2]
    # Another server knows no tools but those that it is told of, and that their arguments are an object.
    bare = ToolSchema("bare", "", {"properties": {}})
    body = asked(ChatRequest(QUESTION, (TOOL,), untold=(bare,)))[2]
    assert [tool["function"]["name"] for tool in body["tools"]] == ["weather", "bare"]
    assert [tool["function"]["parameters"]["type"] for tool in body["tools"]] == ["object"] * 2
    assert body["tool_choice"] == "auto"

    def call(index, arguments, **first):
        return delta(tool_calls=[{"index": index, **first, "function": {"arguments": arguments, **first.pop("f", {})}}])

    script = [
        HEAD,
        call(0, "", id="c1", f={"name": "weather"}),
        call(0, '{"ci'),
        call(0, 'ty": "Rome"}'),
        call(1, "{}", id="c2", f={"name": "other"}),
        delta(reason="tool_calls"),
        DONE,
        None,
    ]
    events = run(lambda client, server: collect(client.chat(ChatRequest(QUESTION, (TOOL, other)))), script)
    pieces = [each for each in events if isinstance(each, CallPiece)]
    assert [(p.index, p.id, p.name, p.arguments) for p in pieces] == [
        (0, "c1", "weather", ""), (0, None, None, '{"ci'), (0, None, None, 'ty": "Rome"}'), (1, "c2", "other", "{}"),
    ]  # fmt: skip
    finished = next(each for each in events if isinstance(each, Finished))
    assert finished.reason == "tool_calls"
    assert [(c.id, c.name, c.arguments) for c in finished.message.tool_calls] == [
        ("c1", "weather", {"city": "Rome"}), ("c2", "other", {}),
    ]  # fmt: skip


def test_logprobs_of_chats_and_of_texts():
    top = [{"token": "a", "logprob": -0.1, "bytes": [97]}, {"token": "b", "logprob": -2, "bytes": None}]
    chat = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": top}]}
    chunk = event({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": chat, "finish_reason": "length"}]})
    events = run(lambda client, server: collect(client.chat(ask(logprobs=2))), [HEAD, chunk, DONE, None])
    (info,) = events[1].tokens
    assert (info.id, info.text, info.data, info.logprob) == (None, "a", b"a", -0.1)
    assert info.top == ((None, "a", b"a", -0.1), (None, "b", None, -2.0))
    assert events[2].reason == "length"
    text = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1}], "text_offset": [0]}
    chunk = event({"choices": [{"index": 0, "text": "a", "logprobs": text, "finish_reason": "stop"}]})
    request = PromptRequest("x", generation=Generation(logprobs=1))
    events = run(lambda client, server: collect(client.complete(request)), [HEAD, chunk, DONE, None])
    assert events[1].tokens[0].top == ((None, "b", None, -1.0),)


def test_events_may_be_cut_anywhere_and_hold_any_character():
    text = "line\u2028separator\x85 قافلة \r\n"
    stream = b": comment\r\n\r\n" + (delta(text) + delta(reason="stop") + DONE).replace(b"\n\n", b"\r\n\r\n")
    for size in (1, 3, 50):
        pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
        (message,), _ = run(lambda client, server: whole(client.chat(ask())), [HEAD, *pieces, None])
        assert message.text == text


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        (
            answer(400, {"error": {"message": "bad\nthing", "param": "stop", "code": "x"}}),
            400,
            "answered 400: bad thing",
        ),
        (answer(401, {"error": {"message": "wrong key sk-secret"}}), 401, "does not accept this server's key"),
        (answer(429, {"error": "slow down"}, Retry_After="7"), 429, "slow down"),
        (answer(500, b"<html>"), 500, "answered 500$"),
        (answer(404, {"message": "no such model"}), 404, "no such model"),
        (answer(302, b"", Location="http://example.invalid/"), 302, "answered 302"),
        (answer(200, {"choices": []}), 502, "instead of events"),
        ([HEAD, delta("Hel"), None], 502, "before the answer was complete"),
        ([HEAD, delta("Hel"), DONE, None], 502, "before the answer was complete"),
        ([HEAD, delta("Hel"), event({"error": {"message": "out of memory"}}), None], 502, "failed: out of memory"),
        ([HEAD, delta("Hel"), delta(reason="abort"), DONE, None], 502, "gave the answer up"),
        ([HEAD, b"data: {nonsense\n\n", None], 502, "no JSON object"),
        ([HEAD, event({"choices": [{"index": 5, "delta": {}}]}), None], 502, "not understood"),
        ([HEAD, event({"choices": [{"index": 0, "delta": {"content": 5}}]}), None], 502, "not understood"),
        ([HEAD, event({"choices": "x"}), None], 502, "not understood"),
        ([HEAD, b"data: " + b"x" * (17 << 20), None], 502, "more than"),
        ([HEAD, *[delta("x" * (1 << 20))] * 17, None], 502, "wrote more than"),
        (
            [HEAD, *[delta(tool_calls=[{"function": {"name": "f" * (1 << 20)}, "id": "i"}])] * 17],
            502,
            "wrote more than",
        ),
        ([b"nonsense\r\n\r\n", None], 0, "broke the connection"),
    ],
)
def test_what_goes_wrong_there_is_one_clear_line(script, status, words):
    async def work(client, server):
        with pytest.raises(UpstreamError, match=words) as caught:
            await collect(client.chat(ask()))
        return caught.value

    error = run(work, script, script)
    assert error.status == status
    assert str(error).startswith("model 'm': ")
    assert "\n" not in str(error)
    assert "sk-secret" not in str(error)
    if status == 429:
        assert error.retry_after == "7"
    if status == 400:
        assert (error.param, error.code) == ("stop", "x")


def test_a_prompt_too_long_there_is_what_it_is_here():
    async def work(client, server):
        with pytest.raises(ContextLengthError):
            await collect(client.chat(ask()))

    run(work, answer(400, {"error": {"message": "too long", "code": "context_length_exceeded"}}))


def test_a_server_that_says_nothing():
    async def work(client, server):
        for _ in range(2):  # before its answer, and in the middle
            with pytest.raises(UpstreamError, match="in time") as caught:
                await collect(client.chat(ask()))
            assert caught.value.status == 408
        return len(server.requests)

    # What timed out is not asked again: it may be working on it.
    assert run(work, [2.0, None], [HEAD, delta("Hel"), 2.0, None], timeout=0.2) == 2


def test_a_server_that_is_not_there_is_tried_again():
    async def work(client, server):
        nowhere = Connection(Address.parse("http://127.0.0.1:9"), where="model 'm'")
        with pytest.raises(UpstreamError, match="cannot be reached") as caught:
            await collect(RemoteClient(nowhere, "x").chat(ask()))
        assert caught.value.status == 0
        # A connection that broke before the first byte: once more.
        (message,), _ = await whole(client.chat(ask()))
        assert message.text == "Hello"
        return len(server.requests)

    assert run(work, [None], HELLO) == 2


def test_leaving_closes_the_request_there():
    async def work(client, server):
        async with aclosing(client.chat(ask())) as events:
            async for each in events:
                if isinstance(each, TextPiece):
                    break
        await asyncio.wait_for(server.gone.wait(), 5)

    run(work, [HEAD, delta("Hel"), 10.0, None])


def test_a_task_that_is_cancelled_closes_the_request_there():
    async def work(client, server):
        task = asyncio.create_task(collect(client.chat(ask())))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait_for(server.gone.wait(), 5)

    run(work, [10.0, None])


def test_embeddings_and_tokens():
    vectors = {
        "data": [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3, 4]}],
        "usage": {"prompt_tokens": 5},
    }

    async def work(client, server):
        embedded = await client.embed(["a", "b"])
        assert embedded.vectors == ((0.6, 0.8), (0.0, 1.0))
        assert embedded.tokens == 5
        assert await client.tokenize("x", bos=True) == [1, 2]
        assert await client.count(QUESTION) == 3
        assert await client.detokenize([1]) == "x"
        with pytest.raises(UpstreamError, match="something else than tokens"):
            await client.tokenize("x")
        with pytest.raises(UsageError, match="echo"):
            await client.score("x")
        with pytest.raises(UsageError, match="pooling"):
            await client.embed(["a"], "last")
        return [line for line, _, _ in server.requests]

    scripts = [vectors, {"tokens": [1, 2]}, {"tokens": [1, 2, 3]}, {"prompt": "x"}, {"tokens": "x"}]
    lines = run(work, *(answer(200, body) for body in scripts), dialect="vllm")
    assert lines == ["POST /v1/embeddings", *["POST /tokenize"] * 2, "POST /detokenize", "POST /tokenize"]


def test_servers_that_do_not_tell_tokens_say_so():
    async def work(client, server):
        for call in (client.tokenize("x"), client.count(QUESTION), client.detokenize([1])):
            with pytest.raises(UsageError, match="does not tell"):
                await call
        assert not client.abilities.tokenizes

    run(work)


def test_the_list_of_models_says_what_kind_of_server_it_is():
    listed = {
        "data": [{"id": "a", "owned_by": "vllm", "max_model_len": 4096}, {"id": "b", "owned_by": "me"}, {"id": 3}]
    }

    async def work(client, server):
        found = await offered(client._connection, "upstream")
        assert [(each.name, each.dialect.name, each.context_length) for each in found] == [
            ("a", "vllm", 4096), ("b", "other", None),
        ]  # fmt: skip
        with pytest.raises(UpstreamError, match="empty"):
            await offered(client._connection, "upstream")

    run(work, answer(200, listed), answer(200, {"data": []}))


@pytest.mark.parametrize("url", ["", "host:80", "ftp://x", "http://", "http://x?y=1", "http://x:port", "http://a:b@x"])
def test_what_is_no_address(url):
    with pytest.raises(UsageError, match="upstream"):
        Address.parse(url)


def test_addresses():
    assert Address.parse("http://x:1/") == Address("http://x:1/v1", "http://x:1")
    assert Address.parse("https://x/v1/") == Address("https://x/v1", "https://x")
    assert Address.parse("https://x/api/openai") == Address("https://x/api/openai", "https://x/api/openai")


def test_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", " k1\n")
    file = tmp_path / "key"
    file.write_text("k2\n", encoding="utf-8")
    assert (read_key("A_KEY"), read_key(None, file), read_key()) == ("k1", "k2", None)
    file.write_text("two secrets\nhere", encoding="utf-8")
    for arguments, words in (
        (("NO_KEY",), "not set"),
        ((None, tmp_path / "x"), "cannot be read"),
        ((None, file), "no API key"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            read_key(*arguments)
        assert "secrets" not in str(caught.value)
