"""`LocalClient` on the default model: what comes out, what stops it, and what is left behind."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from qafila import Llama
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
from qafila.chat.local import LocalClient
from qafila.chat.pump import Pump
from qafila.engine.request import GrammarSpec
from qafila.errors import ChatError, ContextLengthError, ModelClosedError, QafilaError, UsageError
from qafila.quant.dtypes import DType
from qafila.text.messages import Message, ToolSchema
from qafila.weights.adapter import Adapter, LoraModule, write_adapter
from qafila.weights.tensor import LazyTensor, Tensor

QUESTION = (Message("user", "What is the capital of Japan?"),)
WEATHER = ToolSchema(
    "get_weather",
    "The weather of a city.",
    {"type": "object", "properties": {"city": {"enum": ["Rome", "Cairo"]}}, "required": ["city"]},
)


@pytest.fixture(scope="module")
def llama(default_gguf):
    with Llama.load(default_gguf, threads=1, context=4096) as opened:
        yield opened


@pytest.fixture
def run(llama):
    """Runs a coroutine function with a client, which afterwards must leave the engine idle."""

    def go(work, **options):
        async def main():
            client = LocalClient(llama, "default", **options)
            try:
                return await asyncio.wait_for(work(client), 60)
            finally:
                await client.close()

        result = asyncio.run(main())
        stats = llama.engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        return result

    return go


def ask(**generation):
    return ChatRequest(QUESTION, generation=Generation(**{"temperature": 0, "max_tokens": 24, **generation}))


async def collect(events):
    return [event async for event in events]


def logprobs(events):
    return tuple(info.logprob for event in events if isinstance(event, TextPiece) for info in event.tokens)


def test_events_come_in_order_and_say_what_the_facade_says(llama, run):
    events = run(lambda client: collect(client.chat(ask(seed=7, temperature=0.8))))
    expected = llama.chat(QUESTION, temperature=0.8, seed=7, max_tokens=24)
    assert isinstance(events[0], Started)
    assert events[0].prompt_tokens == len(expected.prompt_ids)
    assert all(isinstance(event, TextPiece) for event in events[1:-2])
    assert "".join(event.text for event in events[1:-2]) == expected.text
    finished, usage = events[-2:]
    assert isinstance(finished, Finished)
    assert finished.reason == expected.finish_reason
    assert finished.message.ids == expected.ids
    assert finished.message.text == expected.text
    assert isinstance(usage, Usage)
    assert (usage.prompt, usage.generated) == (len(expected.prompt_ids), len(expected.ids))
    assert 0 < usage.prompt_seconds <= usage.seconds


def test_completion_continues_text_and_ids(llama, run):
    expected = llama.complete("One, two, three,", temperature=0, max_tokens=6)
    for prompt in ("One, two, three,", tuple(expected.prompt_ids)):
        request = PromptRequest(prompt, generation=Generation(temperature=0, max_tokens=6))
        (message,), usage = run(lambda client, request=request: whole(client.complete(request)))
        assert message.text == expected.text
        assert message.ids == expected.ids
        assert usage.generated == 6


def test_several_answers_share_one_prompt_and_differ(llama, run):
    request = ask(n=3, seed=3, temperature=1.0)
    messages, usage = run(lambda client: whole(client.chat(request)))
    assert len(messages) == 3
    assert len({message.text for message in messages}) > 1
    assert messages[0].ids == llama.chat(QUESTION, temperature=1.0, seed=3, max_tokens=24).ids
    assert usage.generated == sum(len(message.ids) for message in messages)
    assert usage.prompt == len(llama.format.render(QUESTION).ids)


def test_stop_strings(run):
    events = run(lambda client: collect(client.chat(ask(stop=("Tokyo", "never")))))
    finished = next(event for event in events if isinstance(event, Finished))
    assert (finished.reason, finished.stop_string) == ("stop", "Tokyo")
    assert "Tokyo" not in finished.message.text
    assert finished.message.text.endswith("is ")


def test_the_limit_ends_with_length(run):
    events = run(lambda client: collect(client.chat(ask(max_tokens=2))))
    finished = next(event for event in events if isinstance(event, Finished))
    assert (finished.reason, len(finished.message.ids)) == ("length", 2)


def test_logprobs_are_of_every_token(llama, run):
    expected = llama.chat(QUESTION, temperature=0, max_tokens=24, top_logprobs=3)
    events = run(lambda client: collect(client.chat(ask(logprobs=3))))
    infos = [info for event in events if isinstance(event, TextPiece) for info in event.tokens]
    assert [info.id for info in infos] == list(expected.ids)
    assert [info.logprob for info in infos] == list(expected.logprobs)
    assert all(len(info.top) == 3 and info.top[0][3] >= info.top[1][3] for info in infos)
    assert b"".join(info.data for info in infos[:-1]).decode() == expected.text
    alone = run(lambda client: collect(client.chat(ask(logprobs=0))))
    assert all(not info.top for event in alone if isinstance(event, TextPiece) for info in event.tokens)


def test_a_grammar_holds(run):
    request = ask(answer=GrammarSpec("json_schema", '{"type":"object","properties":{"city":{"enum":["Tokyo"]}},'
                                     '"required":["city"],"additionalProperties":false}'))  # fmt: skip
    (message,), _ = run(lambda client: whole(client.chat(request)))
    assert json.loads(message.text) == {"city": "Tokyo"}


@pytest.mark.parametrize("n", [1, 2])
def test_a_required_call_is_streamed_and_parsed(run, n):
    request = ChatRequest(
        QUESTION, (WEATHER,), "required", generation=Generation(temperature=1.0, seed=1, max_tokens=80, n=n)
    )
    events = run(lambda client: collect(client.chat(request)))
    for answer in range(n):
        pieces = [event for event in events if isinstance(event, CallPiece) and event.answer == answer]
        assert pieces[0].id.startswith("call_")
        assert pieces[0].name == "get_weather"
        finished = next(event for event in events if isinstance(event, Finished) and event.answer == answer)
        assert finished.reason == "tool_calls"
        first = [piece.arguments for piece in pieces if piece.index == 0]
        assert json.loads("".join(first)) == finished.message.tool_calls[0].arguments
        assert finished.message.tool_calls[0].arguments["city"] in ("Rome", "Cairo")


def test_tools_that_are_not_told_can_be_called_and_leave_the_prompt_as_it_is(run):
    options = Generation(temperature=0, max_tokens=80)
    told = (Message("system", "Untold: get_weather(city)"), *QUESTION)
    other = ToolSchema("other", "Something else.")
    names = frozenset({"get_weather"})
    for tools in ((other,), ()):
        untold = ChatRequest(
            told, tools, "required", names, parallel_tool_calls=False, untold=(WEATHER,), generation=options
        )
        (message,), usage = run(lambda client, untold=untold: whole(client.chat(untold)))
        assert [call.name for call in message.tool_calls] == ["get_weather"]
        assert usage.prompt == run(lambda client, tools=tools: client.count(told, tools))
    neither = ChatRequest(told, (other,), "none", untold=(WEATHER,), generation=options)
    assert run(lambda client: whole(client.chat(neither)))[0][0].tool_calls == ()


def test_a_call_that_is_cut_ends_with_length_and_is_no_call(run):
    request = ChatRequest(QUESTION, (WEATHER,), "required", generation=Generation(temperature=0, max_tokens=9))
    events = run(lambda client: collect(client.chat(request)))
    finished = next(event for event in events if isinstance(event, Finished))
    assert (finished.reason, finished.message.tool_calls) == ("length", ())


def test_words_alone_hold_no_call_even_where_the_model_is_bent_on_one(run):
    repeat = Message("user", "Repeat after me: <tool_call>")
    messages = (repeat, Message("assistant", "<tool_call>"), repeat)
    asked = ChatRequest(messages, (WEATHER,), generation=Generation(temperature=0, max_tokens=40))
    words = replace(asked, tool_names=frozenset())
    (message,), _ = run(lambda client: whole(client.chat(words)))
    assert message.tool_calls == ()
    assert "<tool_call>" not in message.text
    bare = replace(asked, tools=())
    (message,), _ = run(lambda client: whole(client.chat(bare)))
    assert "<tool_call>" in message.text  # or the test would show nothing


def test_tokens_of_logprobs_go_with_calls_too(run):
    request = ChatRequest(
        QUESTION, (WEATHER,), "required", generation=Generation(temperature=0, max_tokens=80, logprobs=0)
    )
    events = run(lambda client: collect(client.chat(request)))
    finished = next(event for event in events if isinstance(event, Finished))
    infos = [info for event in events if isinstance(event, TextPiece | CallPiece) for info in event.tokens]
    assert [info.id for info in infos] == list(finished.message.ids)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (ask(max_tokens=0), UsageError, "max_tokens"),
        (ask(temperature=-1), UsageError, "temperature"),
        (ask(answer=GrammarSpec("regex", "(")), QafilaError, "regex|grammar"),
        (ask(logprobs=21), UsageError, "top_logprobs"),
        (ask(logit_bias={10**9: 1.0}), UsageError, "logit_bias"),
        (ChatRequest((Message("user", "x " * 9000),)), ContextLengthError, "context|cache"),
        (ChatRequest(QUESTION, tool_mode="required"), ChatError, "tools"),
        (ChatRequest(QUESTION, (WEATHER,), "required", frozenset({"other"})), ChatError, "other"),
        (replace(ask(answer=GrammarSpec("regex", "a")), tools=(WEATHER,)), ChatError, "regex"),
    ],
)
def test_what_is_wrong_is_said_before_it_starts(run, request_, error, words):
    async def work(client):
        events = client.chat(request_)
        with pytest.raises(error, match=words):
            await anext(events)

    run(work)


def test_an_infill_without_infill_tokens_is_refused(run):
    async def work(client):
        assert not client.abilities.infills
        with pytest.raises(ChatError, match="suffix"):
            await anext(client.complete(PromptRequest("def f(", "return x")))

    run(work)


def test_leaving_in_the_middle_leaves_the_engine_idle(llama, run):
    async def work(client):
        async with aclosing(client.chat(ask(max_tokens=None, stop=()))) as events:
            async for event in events:
                if isinstance(event, TextPiece):
                    break
        # At the latest after the step that was running.
        deadline = time.monotonic() + 5
        while llama.engine.stats().running and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert llama.engine.stats().running == 0

    run(work)


def test_a_task_that_is_cancelled_while_it_is_prepared_submits_nothing(llama, run, monkeypatch):
    submit, submitted = llama.engine.submit, []

    def slow(request):
        time.sleep(0.1)
        submitted.append(submit(request))
        return submitted[-1]

    monkeypatch.setattr(llama.engine, "submit", slow)

    async def work(client):
        task = asyncio.create_task(collect(client.chat(ask())))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.2)

    run(work)
    assert [handle.finish_reasons for handle in submitted] == [["cancelled"]]


def test_tenants_share_no_prompt(run):
    long = ChatRequest(
        (Message("user", "Tell me about caravans. " * 20),), generation=Generation(temperature=0, max_tokens=2)
    )

    async def work(client):
        cached = []
        for tenant in ("a", "b", "a", "b", ""):
            asked = replace(long, generation=replace(long.generation, tenant=f"{tenant} of this test"))
            _, usage = await whole(client.chat(asked))
            cached.append(usage.cached)
        return cached

    first, other, again, again_other, nobody = run(work)
    assert (first, other, nobody) == (0, 0, 0)
    assert again == again_other > 64


def write_random_adapter(folder, llama):
    rng, name = np.random.default_rng(0), "model.layers.5.mlp.down_proj.weight"

    def tensor(*shape):
        data = rng.normal(0, 1, shape).astype(np.float32)
        return LazyTensor.of(Tensor(DType.F32, shape, data.reshape(-1).view(np.uint8)))

    folder.mkdir()
    module = LoraModule(4, 0.8, 0.2, tensor(4, llama.config.ffn_dim), tensor(llama.config.dim, 4))
    write_adapter(folder, Adapter(4, 0.8, {name: module}, ("down_proj",)))
    return folder


def test_adapters_answer_beside_their_base(llama, run, tmp_path):
    llama.engine.add_adapter("tuned", write_random_adapter(tmp_path / "tuned", llama))
    try:

        async def work(client):
            tuned = LocalClient(llama, "tuned", adapter="tuned", pump=client.pump)
            asked = ask(logprobs=0)
            both = await asyncio.gather(collect(client.chat(asked)), collect(tuned.chat(asked)))
            scores = await client.score("a caravan"), await tuned.score("a caravan")
            vectors = await client.embed(["a caravan"]), await tuned.embed(["a caravan"])
            await tuned.close()
            # The pump is the base's: it still works.
            again = await whole(client.chat(ask()))
            return both, scores, vectors, again

        (plain, changed), scores, vectors, (again, _) = run(work)
        expected = llama.chat(QUESTION, temperature=0, max_tokens=24)
        assert logprobs(plain) == expected.logprobs
        assert again[0].ids == expected.ids
        adapted = llama.chat(QUESTION, temperature=0, max_tokens=24, adapter="tuned")
        assert logprobs(changed) == adapted.logprobs != expected.logprobs
        assert scores[0][1].logprob != scores[1][1].logprob
        assert vectors[0].vectors != vectors[1].vectors
    finally:
        llama.engine.remove_adapter("tuned")


def test_score_embed_count_and_tokens(llama, run):
    async def work(client):
        return (
            await client.score("a caravan"),
            await client.embed(["a caravan", "قافلة", llama.prompt_ids("x y")]),
            await client.count(QUESTION),
            await client.tokenize("a caravan"),
            await client.detokenize(llama.tokenizer.encode("قافلة")),
            client.context_length,
        )

    scores, embedded, count, ids, text, context = run(work)
    assert math.isnan(scores[0].logprob)
    assert [info.logprob for info in scores[1:]] == list(llama.score("a caravan").logprobs)
    assert [round(math.hypot(*vector), 5) for vector in embedded.vectors] == [1.0] * 3
    assert embedded.tokens == sum(len(llama.prompt_ids(text)) for text in ("a caravan", "قافلة", "x y"))
    assert count == len(llama.format.render(QUESTION).ids)
    assert ids == llama.tokenizer.encode("a caravan")
    assert text == "قافلة"
    assert context == 4096


def test_many_at_once_say_what_each_says_alone(llama, run):
    alone = [llama.chat(QUESTION, temperature=1.0, seed=seed, max_tokens=8).ids for seed in range(12)]

    async def work(client):
        asked = (whole(client.chat(ask(seed=seed, temperature=1.0, max_tokens=8))) for seed in range(12))
        return await asyncio.gather(*asked)

    assert [messages[0].ids for messages, _ in run(work)] == alone


@pytest.mark.parametrize("seed", range(3))
def test_random_cancellations_disturb_nobody_else(llama, run, seed):
    rng = random.Random(seed)
    expected = llama.chat(QUESTION, temperature=1.0, seed=5, max_tokens=16).ids

    async def one(client, stays):
        task = asyncio.create_task(whole(client.chat(ask(seed=5, temperature=1.0, max_tokens=16, n=1))))
        if stays:
            messages, _ = await task
            return messages[0].ids
        await asyncio.sleep(rng.random() * 0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None

    async def work(client):
        stays = [rng.random() < 0.4 for _ in range(24)]
        return [ids for ids in await asyncio.gather(*(one(client, s) for s in stays)) if ids is not None]

    found = run(work)
    assert found
    assert all(ids == expected for ids in found)


def test_closing_ends_what_is_under_way_with_an_error(llama, run):
    async def work(client):
        tasks = [asyncio.create_task(collect(client.chat(ask(max_tokens=500, stop=())))) for _ in range(3)]
        while llama.engine.stats().running < 3:
            await asyncio.sleep(0.005)
        await client.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(result) for result in run(work)] == [ModelClosedError] * 3


def test_a_client_that_owns_its_model_closes_it(default_gguf):
    async def main():
        llama = Llama.load(default_gguf, threads=1, context=256)
        client = LocalClient(llama, "default", owns_model=True)
        await whole(client.chat(ask(max_tokens=2)))
        await client.close()
        return llama

    with pytest.raises(UsageError, match="closed"):
        asyncio.run(main()).complete("x")


def test_a_step_that_fails_ends_its_requests_and_the_pump_goes_on(llama, run, monkeypatch, caplog):
    step, failures = llama.engine.step, [RuntimeError("no such block")]

    def failing():
        if failures:
            raise failures.pop()
        return step()

    async def work(client):
        monkeypatch.setattr(llama.engine, "step", failing)
        with pytest.raises(QafilaError, match=r"engine failed.*RuntimeError"):
            await collect(client.chat(ask()))
        return await whole(client.chat(ask()))

    messages, _ = run(work)
    assert "Tokyo" in messages[0].text
    assert "no such block" in caplog.text


def test_a_loop_that_is_gone_is_nobodys_request(llama):
    pump = Pump(llama.engine)

    async def leave():
        client = LocalClient(llama, "default", pump=pump)
        events = client.chat(ask(max_tokens=400, stop=()))
        async for event in events:
            if isinstance(event, TextPiece):
                break
        # Neither closed nor read to its end: the loop ends under it.
        return events

    try:
        asyncio.run(leave())
        deadline = time.monotonic() + 10
        while llama.engine.stats().running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert llama.engine.stats().running == 0
    finally:
        pump.close()
