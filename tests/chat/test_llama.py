"""The `Llama` facade on the default model."""

from __future__ import annotations

import numpy as np
import pytest

from qafila import Llama
from qafila.errors import ChatError, ContextLengthError, ModelNotFoundError, UsageError
from qafila.text.messages import Message

QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]


@pytest.fixture(scope="module")
def llama(default_gguf):
    return Llama.load(default_gguf)


def test_it_answers(llama):
    answer = llama.chat(QUESTION, temperature=0, max_tokens=24)
    assert "Tokyo" in answer.text
    assert answer.finish_reason == "stop"
    assert answer.ids[-1] in llama.checkpoint.generation.stop_ids
    assert len(answer.ids) == len(answer.logprobs)
    assert all(value <= 0 for value in answer.logprobs)
    assert answer.message is not None
    assert answer.message.ids == answer.ids


def test_a_stream_gives_the_same_text_in_pieces(llama):
    stream = llama.chat(QUESTION, stream=True, temperature=0, max_tokens=24)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.result.text == llama.chat(QUESTION, temperature=0, max_tokens=24).text


def test_a_stopped_stream_keeps_what_was_said(llama):
    stream = llama.chat(QUESTION, stream=True, temperature=0)
    first = next(iter(stream))
    result = stream.stop()
    assert result.text == first
    assert result.finish_reason == "cancelled"


def test_the_next_turn_begins_with_the_ids_of_this_one(llama):
    messages = [Message.from_dict(QUESTION[0])]
    first = llama.chat(messages, temperature=0, max_tokens=24)
    second = llama.chat([*messages, first.message, Message("user", "And of Egypt?")], temperature=0, max_tokens=8)
    assert second.prompt_ids[: len(first.prompt_ids) + len(first.ids)] == first.prompt_ids + first.ids
    fresh = Llama(llama.checkpoint, llama.model)
    assert fresh.complete(second.prompt_ids, temperature=0, max_tokens=8).ids == second.ids


def test_seeds(llama):
    one = llama.chat(QUESTION, seed=5, max_tokens=12, temperature=1.5)
    assert llama.chat(QUESTION, seed=5, max_tokens=12, temperature=1.5).ids == one.ids
    again = llama.chat(QUESTION, seed=one.seed, max_tokens=12, temperature=1.5)
    assert again.ids == one.ids
    others = {llama.chat(QUESTION, seed=seed, max_tokens=12, temperature=1.5).ids for seed in range(4)}
    assert len(others) > 1


def test_completion_and_stop_strings(llama):
    text = llama.complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=12).text
    assert "6" in text
    cut = llama.complete("1, 2, 3, 4, 5,", temperature=0, max_tokens=40, stop=" 8")
    assert cut.finish_reason == "stop"
    assert "7" in cut.text
    assert "8" not in cut.text


def test_logits(llama):
    logits = llama.logits("The capital of France is")
    assert logits.dtype == np.float32
    assert logits.shape == (len(llama.tokenizer.encode("The capital of France is")), 49152)
    assert llama.tokenizer.decode([int(logits[-1].argmax())]).strip() == "Paris"


def test_what_is_refused(llama):
    with pytest.raises(UsageError, match="temprature"):
        llama.chat(QUESTION, temprature=1)
    with pytest.raises(UsageError, match="top_p"):
        llama.chat(QUESTION, top_p=2.0)
    with pytest.raises(ChatError, match="role"):
        llama.chat([{"role": "boss", "content": "hi"}])
    with pytest.raises(ContextLengthError, match="8192"):
        llama.complete([5] * 9000)
    with pytest.raises(ContextLengthError, match="8192"):
        llama.logits([5] * 9000)
    with pytest.raises(ChatError, match="infilling"):
        llama.infill("def f(", "return x")
    with pytest.raises(ModelNotFoundError, match="nothing-here"):
        Llama.load("nothing-here")
    with pytest.raises(UsageError, match="device"):
        Llama.load("default", device="warp")
    with pytest.raises(UsageError, match="dtype"):
        Llama.load("default", dtype="int3")
