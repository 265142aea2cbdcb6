"""The `Llama` facade on the default model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qafila import Llama
from qafila.chat import placement
from qafila.config import GenerationConfig, ModelConfig
from qafila.errors import ChatError, ContextLengthError, ModelNotFoundError, QafilaError, UsageError
from qafila.machine import Machine
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.text.formats import chat_format
from qafila.text.messages import Message
from qafila.text.sentencepiece_bpe import SentencePieceBPE
from qafila.text.sentencepiece_model import CONTROL, Piece, parse_model
from qafila.weights.load import Checkpoint

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


def test_a_stop_string_is_neither_in_the_text_nor_in_the_message(llama):
    answer = llama.chat(QUESTION, temperature=0, max_tokens=24, stop=" Tokyo")
    assert answer.text == answer.message.text == "The capital of Japan is"
    assert answer.message.ids == answer.ids


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
    with pytest.raises(UsageError, match="stop must be"):
        llama.chat(QUESTION, stop=5)
    with pytest.raises(UsageError, match="stop_strings"):
        llama.chat(QUESTION, stop=["a", 5])
    with pytest.raises(ChatError, match="role"):
        llama.chat([{"role": "boss", "content": "hi"}])
    with pytest.raises(ChatError, match=r"messages\[1\]\.role"):
        llama.chat([*QUESTION, {"role": "boss", "content": "hi"}])
    with pytest.raises(ChatError, match=r"tools\[0\]"):
        llama.chat(QUESTION, tools=[{"type": "function"}])
    with pytest.raises(ContextLengthError, match="8192"):
        llama.complete([5] * 9000)
    with pytest.raises(ContextLengthError, match="8192"):
        llama.logits([5] * 9000)
    for ids in ([49152], [-1], [2**70], [1.5]):
        with pytest.raises(UsageError, match="0 to 49151"):
            llama.logits(ids)
    with pytest.raises(ChatError, match="infilling"):
        llama.infill("def f(", "return x")
    with pytest.raises(ModelNotFoundError, match="nothing-here"):
        Llama.load("nothing-here")
    for device in ("warp", "meta", "mkldnn", "privateuseone", ""):
        with pytest.raises(UsageError, match="device"):
            Llama.load("default", device=device)
    with pytest.raises(UsageError, match="dtype"):
        Llama.load("default", dtype="int3")


def test_two_streams_at_once_do_not_disturb_each_other(llama):
    other = [{"role": "user", "content": "Count from one to ten."}]
    options = {"temperature": 0, "max_tokens": 12}
    alone = [llama.chat(messages, **options).text for messages in (QUESTION, other)]
    streams = [llama.chat(messages, stream=True, **options) for messages in (QUESTION, other)]
    iterators = [iter(stream) for stream in streams]
    while any(iterators):
        for at, iterator in enumerate(iterators):
            if iterator is not None and next(iterator, None) is None:
                iterators[at] = None
    assert [stream.result.text for stream in streams] == alone


def test_a_stream_nobody_read_and_a_refused_call_keep_the_cache(llama):
    llama.chat(QUESTION, temperature=0, max_tokens=4)
    kept = llama._cached_ids
    assert len(kept) > 20
    unread = llama.chat(QUESTION, stream=True, temperature=0, max_tokens=4)
    with pytest.raises(ContextLengthError):
        llama.complete([5] * 9000)
    assert llama._cached_ids is kept
    assert unread.stop().finish_reason == "cancelled"
    assert llama._cached_ids is kept


def test_a_turn_that_goes_on_reads_only_its_new_tokens(llama, monkeypatch):
    first = llama.chat(QUESTION, temperature=0, max_tokens=24)
    read = []
    forward = llama.model.forward
    monkeypatch.setattr(llama.model, "forward", lambda ids, *a, **k: read.append(ids.shape[1]) or forward(ids, *a, **k))
    talk = [Message.from_dict(QUESTION[0]), first.message, Message("user", "And of Egypt?")]
    second = llama.chat(talk, temperature=0, max_tokens=2)
    # The last token of an answer is chosen but not yet read.
    assert read[0] == len(second.prompt_ids) - len(first.prompt_ids) - len(first.ids) + 1


def test_a_model_larger_than_the_memory_is_refused(llama, monkeypatch):
    monkeypatch.setattr(placement, "this_machine", lambda: Machine(10**8, 10**8, "physical memory"))
    with pytest.raises(QafilaError, match=r"0\.5 GB as float32 and there are 0\.1 GB"):
        placement.load_model_on(llama.checkpoint, "cpu", None)


INFILL = [f"▁<{name}>" for name in ("PRE", "MID", "SUF", "EOT")]


@pytest.fixture(scope="module")
def code_llama(shared_data):
    """A tiny random model under Llama 2's vocabulary and Code Llama's 16 infilling pieces."""
    model = parse_model((shared_data / "models" / "llama2_tokenizer.model").read_bytes())
    pieces = [*model.pieces, *(Piece(name, 0.0, CONTROL) for name in INFILL)]
    pieces += [Piece(f"▁<reserved{i}>", 0.0, CONTROL) for i in range(12)]
    tokenizer = SentencePieceBPE.from_model(replace(model, pieces=tuple(pieces)))
    config = ModelConfig(
        dim=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, ffn_dim=32, vocab_size=32016, context_length=128
    )
    checkpoint = Checkpoint(
        path=Path("tiny"),
        format="hf",
        config=config,
        generation=GenerationConfig(bos_id=1, stop_ids=(2,)),
        tensors={},
        load_tokenizer=lambda: tokenizer,
    )
    return Llama(checkpoint, load_model(config, random_tensors(config, 0)))


def choosing(llama, ids):
    """Make the model choose these ids, one after the other."""
    wanted = iter(ids)

    def forward(ids_BT, *args, cache, **options):
        cache.advance(torch.arange(cache.length, cache.length + ids_BT.shape[1]))
        logits = torch.zeros(1, 1, llama.config.vocab_size)
        logits[..., next(wanted)] = 1
        return logits

    return forward


@pytest.mark.parametrize("spm", [False, True])
def test_infill(code_llama, spm, monkeypatch):
    prefix, suffix = "def add(a, b):\n    return", "\n\nprint(add(1, 2))"
    bos, pre, mid, suf, eot = 1, 32000, 32001, 32002, 32003
    encode, go_on = code_llama.tokenizer.encode, code_llama.tokenizer.encode_continuation
    answer = [*encode("a + b"), eot]
    monkeypatch.setattr(code_llama.model, "forward", choosing(code_llama, answer))
    done = code_llama.infill(prefix, suffix, spm=spm, temperature=0)
    if spm:
        assert list(done.prompt_ids) == [bos, pre, suf, *go_on(suffix), mid, *encode(prefix)]
    else:
        assert list(done.prompt_ids) == [bos, pre, *encode(prefix), suf, *go_on(suffix), mid]
    assert list(done.ids) == answer
    assert done.finish_reason == "stop"
    # Between the two texts the space counts: Meta's decode_infilling keeps it.
    assert done.text == " a + b"


def test_infill_with_a_model_that_computes(code_llama):
    done = code_llama.infill("def f(", "return x", temperature=0, max_tokens=5)
    assert 1 <= len(done.ids) <= 5
    assert done.ids == code_llama.infill("def f(", "return x", temperature=0, max_tokens=5).ids


def test_a_completion_goes_on_where_the_prompt_ends(code_llama, monkeypatch):
    tokens = code_llama.tokenizer.encode("Paris is")
    monkeypatch.setattr(code_llama.model, "forward", choosing(code_llama, [*tokens, 2] * 3))
    assert code_llama.complete("The capital:", temperature=0).text == " Paris is"
    assert code_llama.complete("", temperature=0).text == "Paris is"
    # A chat's answer begins a text of its own.
    chat = Llama(code_llama.checkpoint, code_llama.model, chat_format("llama-2", code_llama.tokenizer))
    assert chat.chat(QUESTION, temperature=0).text == "Paris is"
