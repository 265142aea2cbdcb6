"""The odds of each tool, by the default model's own log-probabilities."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qafila import Llama
from qafila.chat.client import ChatRequest, Generation, Usage, whole
from qafila.chat.local import LocalClient
from qafila.chat.tool_odds import openings, tool_odds
from qafila.engine.runner import BLOCK_TOKENS
from qafila.engine.score import score
from qafila.errors import ChatError, ContextLengthError
from qafila.text.chat_format import ChatFormat
from qafila.text.formats import chat_format
from qafila.text.messages import Message, ToolCall, ToolSchema
from qafila.text.tokenizer import load_tokenizer


def schema(name: str, description: str, parameter: str) -> ToolSchema:
    properties = {parameter: {"type": "string"}}
    return ToolSchema(name, description, {"type": "object", "properties": properties, "required": [parameter]})


TOOLS = (
    schema("get_weather", "The weather of a city.", "city"),
    schema("get_weather_warning", "Warnings of storms.", "city"),
    schema("calculate", "Compute a number.", "expression"),
    schema("ابحث", "ابحث في الملفات.", "نص"),
)
ASKED = (Message("system", "Use the tools."), Message("user", "What is the weather in Rome?"))
REQUEST = ChatRequest(ASKED, TOOLS, generation=Generation(temperature=0, max_tokens=64, logprobs=0))


@pytest.fixture(scope="module")
def llama(default_gguf: object) -> Iterator[Llama]:
    with Llama.load(str(default_gguf), threads=1, context=2048) as opened:
        yield opened


def exact(llama: Llama, prompt: Sequence[int], tail: Sequence[int]) -> float:
    """The log-probability of a continuation, from the scores of the whole text."""
    return math.fsum(score(llama.engine, [*prompt, *tail])[len(prompt) - 1 :])


def ways(chat: ChatFormat, tools: Sequence[ToolSchema]) -> list[list[tuple[int, ...]]]:
    """The tokens that any call begins with, and a call of each tool."""
    assert chat.call_style is not None
    marker, begun = openings(chat.call_style, tools, chat.call_token)
    return [one.tokens(chat.tokenizer) for one in (marker, *begun)]


def starts(ids: Sequence[int], some: Sequence[tuple[int, ...]]) -> list[bool]:
    return [tuple(ids[: len(way)]) == way for way in some]


@pytest.mark.parametrize("tool", TOOLS, ids=[tool.name for tool in TOOLS])
def test_openings_are_the_tokens_that_calls_begin_with(llama: Llama, tool: ToolSchema) -> None:
    parameter = next(iter(tool.parameters["properties"]))
    prompt = llama.format.render(ASKED, tools=TOOLS).ids
    for value in ("Rome", '"', " ", "روما", "{}"):
        call = Message("assistant", "", tool_calls=(ToolCall("0", tool.name, {parameter: value}),))
        written = llama.format.render((*ASKED, call, Message("tool", "x", tool_call_id="0")), tools=TOOLS).ids
        assert written[: len(prompt)] == prompt
        for some in ways(llama.format, [tool]):
            assert starts(written[len(prompt) :], some) == [True]


def test_odds_are_the_models_probabilities(llama: Llama) -> None:
    found = tool_odds(llama, REQUEST)
    prompt = llama.format.render(ASKED, tools=TOOLS).ids
    marker, *begun = [exact(llama, prompt, way) for (way,) in ways(llama.format, TOOLS)]
    total = math.fsum(map(math.exp, begun))
    assert [name for name, _ in found.tools] == [tool.name for tool in TOOLS]
    assert found.call == pytest.approx(math.exp(marker), rel=1e-4)
    for (_, share), logprob in zip(found.tools, begun, strict=True):
        assert share == pytest.approx(math.exp(logprob) / total, rel=1e-3)
    assert math.fsum(share for _, share in found.tools) == pytest.approx(1, abs=1e-12)
    assert 0 <= found.call <= 1


def test_tools_that_are_not_told_have_odds_under_the_same_prompt(llama: Llama) -> None:
    told = tool_odds(llama, replace(REQUEST, tools=TOOLS[:2]))
    more = tool_odds(llama, replace(REQUEST, tools=TOOLS[:2], untold=TOOLS[2:]))
    assert [name for name, _ in more.tools] == [tool.name for tool in TOOLS]
    assert more.call == told.call
    first, second = dict(told.tools), dict(more.tools)
    a, b = (tool.name for tool in TOOLS[:2])
    assert second[a] / second[b] == pytest.approx(first[a] / first[b])
    assert sum(second.values()) == pytest.approx(1)


def test_only_the_tools_that_may_be_called_share_the_odds(llama: Llama) -> None:
    every = dict(tool_odds(llama, REQUEST).tools)
    names = frozenset({"calculate", "ابحث"})
    some = tool_odds(llama, replace(REQUEST, tool_names=names))
    assert {name for name, _ in some.tools} == names
    total = math.fsum(every[name] for name in names)
    for name, share in some.tools:
        assert share == pytest.approx(every[name] / total, rel=1e-6)
    (only,) = tool_odds(llama, replace(REQUEST, tool_names=frozenset({"calculate"}))).tools
    assert only == ("calculate", 1.0)


def test_what_has_no_odds_is_a_clear_error(llama: Llama) -> None:
    for request in (replace(REQUEST, tools=()), replace(REQUEST, tool_names=frozenset())):
        with pytest.raises(ChatError, match="there are none to choose from"):
            tool_odds(llama, request)
    long = replace(REQUEST, messages=(Message("user", "word " * 4000),))
    with pytest.raises(ContextLengthError):
        tool_odds(llama, long)


def test_the_prompt_is_read_once_for_odds_and_answers(llama: Llama) -> None:
    """Odds and the answer after them share the prompt's blocks, and so does the next step of a run."""

    async def main() -> list[Usage]:
        client = LocalClient(llama, "default")
        used: list[Usage] = []
        try:
            messages = (*ASKED[:1], Message("user", "What is the weather in Cairo?"))
            for _ in range(2):
                request = replace(
                    REQUEST, messages=messages, tool_mode="required", tool_names=frozenset(["get_weather"])
                )
                await client.tool_odds(request)
                (answer,), usage = await whole(client.chat(request))
                used.append(usage)
                assert answer.tool_calls
                (call, *_) = answer.tool_calls
                messages = (*messages, answer, Message("tool", "sunny", name=call.name, tool_call_id=call.id))
        finally:
            await client.close()
        return used

    first, second = asyncio.run(main())
    assert first.prompt - first.cached <= BLOCK_TOKENS
    assert second.prompt - second.cached <= BLOCK_TOKENS
    assert second.prompt > first.prompt + first.generated
    stats = llama.engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)


def test_a_call_that_is_written_begins_as_its_odds_say(llama: Llama) -> None:
    """What the grammar lets a model write of a tool begins with the tokens that its odds are of."""

    async def main(name: str) -> Message:
        client = LocalClient(llama, "default")
        try:
            request = replace(REQUEST, tool_mode="required", tool_names=frozenset([name]), parallel_tool_calls=False)
            (message,), _ = await whole(client.chat(request))
            return message
        finally:
            await client.close()

    for tool in (TOOLS[0], TOOLS[2]):
        message = asyncio.run(main(tool.name))
        assert [call.name for call in message.tool_calls] == [tool.name]
        assert message.ids is not None
        for some in ways(llama.format, [tool]):
            assert starts(message.ids, some) == [True]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama-3.1", {}), ("llama-3.1", {"ipython": True}), ("llama-3.1", {"tool_format": "function"}),
        ("llama-3.2", {}),
    ],
)  # fmt: skip
def test_openings_in_llamas_own_formats(llama3_tokenizer: Path, name: str, options: dict[str, Any]) -> None:
    """There a token can reach from the opening into what follows: the odds are the sum over all ways to go on."""
    chat = chat_format(name, load_tokenizer(llama3_tokenizer), **options)
    tools = (*TOOLS[:3], replace(TOOLS[0], name="now", parameters={"type": "object", "properties": {}}))
    prompt = chat.render(ASKED, tools=tools).ids
    marker, *begun = ways(chat, tools)
    for number, tool in enumerate(tools):
        for value in ("Rome", "", '"'):
            arguments = dict.fromkeys(tool.parameters["properties"], value)
            call = Message("assistant", "", tool_calls=(ToolCall("0", tool.name, arguments),))
            written = chat.render((*ASKED, call), tools=tools, add_generation_prompt=False).ids
            assert written[: len(prompt)] == prompt
            rest = written[len(prompt) :]
            assert sum(starts(rest, marker)) == 1
            # And of this tool alone: get_weather is no get_weather_warning.
            assert [any(starts(rest, some)) for some in begun] == [i == number for i in range(len(tools))]
