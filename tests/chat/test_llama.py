"""The `Llama` facade on the default model."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qafila import Llama
from qafila.chat.placement import make_engine
from qafila.config import GenerationConfig, ModelConfig
from qafila.engine import torch_model
from qafila.engine.engine import Engine
from qafila.engine.torch_runner import TorchRunner
from qafila.errors import ChatError, ContextLengthError, ModelNotFoundError, QafilaError, UsageError
from qafila.machine import Machine
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.quant.dtypes import DType
from qafila.text.formats import chat_format
from qafila.text.messages import Message
from qafila.text.sentencepiece_bpe import SentencePieceBPE
from qafila.text.sentencepiece_model import CONTROL, Piece, parse_model
from qafila.weights.adapter import Adapter, LoraModule, write_adapter
from qafila.weights.load import Checkpoint
from qafila.weights.tensor import LazyTensor, Tensor

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
    assert second.cached_tokens > 0
    with Llama.load(llama.checkpoint.path) as fresh:
        again = fresh.complete(second.prompt_ids, temperature=0, max_tokens=8)
    assert (again.ids, again.logprobs, again.cached_tokens) == (second.ids, second.logprobs, 0)


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
        Llama.load("default", device="cpu", dtype="int3")


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


def test_threads_share_one_model_and_get_what_each_would_get_alone(llama):
    talks = [[{"role": "user", "content": f"Name {n} animals."}] for n in range(2, 6)]
    options = {"seed": 3, "temperature": 0.8, "max_tokens": 10}
    alone = [llama.chat(talk, **options) for talk in talks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda talk: llama.chat(talk, **options), talks))
    assert [(a.ids, a.logprobs) for a in together] == [(a.ids, a.logprobs) for a in alone]


def test_streams_that_are_lost_or_refused_leave_nothing_behind(llama):
    lost = llama.chat(QUESTION, stream=True, temperature=0)
    next(iter(lost))
    del lost
    unread = llama.chat(QUESTION, stream=True, temperature=0, max_tokens=4)
    with pytest.raises(ContextLengthError):
        llama.complete([5] * 9000)
    assert unread.stop().finish_reason == "cancelled"
    assert unread.result.ids == ()
    stats = llama.engine.stats()
    assert (stats.waiting, stats.running, stats.blocks_used) == (0, 0, 0)


def test_a_turn_that_goes_on_reads_only_its_new_tokens(llama):
    question = Message("user", "What is the capital of Peru?")
    first = llama.chat([question], temperature=0, max_tokens=24)
    second = llama.chat([question, first.message, Message("user", "And of Chile?")], temperature=0, max_tokens=2)
    # The last token of an answer is chosen but not yet read, and whole blocks are what is kept.
    known = len(first.prompt_ids) + len(first.ids) - 1
    assert second.cached_tokens == known // 16 * 16 > len(first.prompt_ids) // 16 * 16 - 1


def test_the_reference_says_the_same(llama):
    with Llama.load(llama.checkpoint.path, device="cpu") as reference:
        ours = llama.chat(QUESTION, temperature=0, max_tokens=16)
        assert ours.ids == reference.chat(QUESTION, temperature=0, max_tokens=16).ids
        logits = [model.logits([*ours.prompt_ids, *ours.ids]).astype(np.float64) for model in (llama, reference)]
    own, theirs = (x - x.max(1, keepdims=True) for x in logits)
    own, theirs = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (own, theirs))
    # Activations of 8 bits against float32.
    assert np.mean((np.exp(theirs) * (theirs - own)).sum(1)) < 0.02


def test_grammars(llama):
    schema = {"type": "object", "properties": {"city": {"enum": ["Tokyo", "Kyoto"]}}, "required": ["city"]}
    for asked in (schema, json.dumps(schema)):
        answer = json.loads(llama.chat(QUESTION, temperature=0, max_tokens=40, json_schema=asked).text)
        assert answer["city"] in ("Tokyo", "Kyoto")
    assert llama.chat(QUESTION, temperature=0, regex="Tokyo|Osaka").text == "Tokyo"
    assert llama.chat(QUESTION, temperature=0, grammar='start: "No" | "Tokyo"').text in ("No", "Tokyo")
    with pytest.raises(UsageError, match="regex and grammar do not go together"):
        llama.chat(QUESTION, regex="a", grammar="start: a")
    with pytest.raises(UsageError, match="JSON schema"):
        llama.chat(QUESTION, json_schema='{"type": "thing"}')
    for wrong in (5, ["a"], {"const": {1, 2}}):
        with pytest.raises(UsageError, match="json_schema"):
            llama.chat(QUESTION, json_schema=wrong)
    with pytest.raises(UsageError, match="regex must be a text"):
        llama.chat(QUESTION, regex=5)


def test_penalties_bias_and_top_logprobs(llama):
    plain = llama.chat(QUESTION, temperature=0, max_tokens=4, top_logprobs=3)
    assert [len(top) for top in plain.top_logprobs] == [3] * 4
    assert [top[0] for top in plain.top_logprobs] == list(zip(plain.ids, plain.logprobs, strict=True))
    banned = llama.chat(QUESTION, temperature=0, max_tokens=4, logit_bias={plain.ids[0]: -100})
    assert banned.ids[0] != plain.ids[0]
    repeated = llama.complete("la la la la", temperature=0, max_tokens=12)
    varied = llama.complete("la la la la", temperature=0, max_tokens=12, presence_penalty=2.0, frequency_penalty=2.0)
    assert len(set(varied.ids)) > len(set(repeated.ids))
    with pytest.raises(UsageError, match="presence_penalty"):
        llama.chat(QUESTION, presence_penalty=3.0)
    with pytest.raises(UsageError, match="logit_bias"):
        llama.chat(QUESTION, logit_bias={10**6: 1.0})
    with pytest.raises(UsageError, match="top_logprobs"):
        llama.chat(QUESTION, top_logprobs=50)
    with pytest.raises(UsageError, match="no adapter"):
        llama.chat(QUESTION, adapter="poet")


def test_score_is_what_generation_says(llama):
    made = llama.complete("The capital of Japan", temperature=0, max_tokens=6)
    scored = llama.score([*made.prompt_ids, *made.ids])
    assert scored.logprobs[-6:] == pytest.approx(made.logprobs, abs=1e-6)
    logits = llama.logits(scored.ids)[:-1].astype(np.float64)
    expected = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    assert scored.logprobs == pytest.approx([row[i] for row, i in zip(expected, scored.ids[1:], strict=True)], abs=1e-6)
    assert scored.perplexity == pytest.approx(np.exp(-np.mean(scored.logprobs)))
    with pytest.raises(UsageError, match="at least 2"):
        llama.score([5])
    with pytest.raises(UsageError, match="0 to 49151"):
        llama.score([3, 2**70])


def test_likelihoods_of_a_set_add_up(llama):
    places = llama.likelihood("The capital of Japan is", [" Tokyo", " London", " a large banana"])
    assert sum(place.probability for place in places) == pytest.approx(1)
    assert max(places, key=lambda place: place.probability) == places[0]
    ids = llama.tokenizer.encode("The capital of Japan is")
    whole = llama.score([*ids, *places[2].ids])
    assert sum(whole.logprobs[-len(places[2].ids) :]) == pytest.approx(places[2].logprob, abs=1e-9)
    for prompt, texts in (("", ["a"]), ("a", []), ("a", "b"), ("a", [""]), ("a", ["b", "b"])):
        with pytest.raises(UsageError):
            llama.likelihood(prompt, texts)


def test_embeddings(llama):
    cat, kitten, tax = (llama.embed(t) for t in ("The cat sleeps.", "A kitten is sleeping.", "Pay the income tax."))
    assert cat.shape == (576,)
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-5)
    assert cat @ kitten > cat @ tax
    assert llama.embed("The cat", pooling="last") @ llama.embed("The cat") < 1 - 1e-3
    with pytest.raises(UsageError, match="pooling"):
        llama.embed("a", pooling="max")


def test_a_small_cache_is_enough_for_what_fits_it(llama):
    with Llama.load(llama.checkpoint.path, context=100) as small:
        assert small.engine.stats().blocks == 7
        waiting = [small.chat(QUESTION, stream=True, temperature=0, max_tokens=20) for _ in range(4)]
        assert small.score([5] * 113).logprobs  # the last is not read; takes all of it
        assert {stream.result.text for stream in waiting} == {"The capital of Japan is Tokyo."}
        with pytest.raises(ContextLengthError, match="112"):
            small.score([5] * 114)
        assert small.engine.stats().blocks_used == 0


def test_adapters(llama, tmp_path):
    rng, (name, dim) = np.random.default_rng(0), ("model.layers.5.mlp.down_proj.weight", llama.config.dim)

    def tensor(*shape):
        data = rng.normal(0, 1, shape).astype(np.float32)
        return LazyTensor.of(Tensor(DType.F32, shape, data.reshape(-1).view(np.uint8)))

    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        module = LoraModule(4, 0.8, 0.2, tensor(4, llama.config.ffn_dim), tensor(dim, 4))
        write_adapter(tmp_path / folder, Adapter(4, 0.8, {name: module}, ("down_proj",)))
    plain = llama.complete("One two", temperature=0, max_tokens=2)
    with Llama.load(llama.checkpoint.path, adapter=tmp_path / "one") as changed:
        one = changed.complete("One two", temperature=0, max_tokens=2)
        assert one.logprobs != plain.logprobs
        assert changed.complete("One two", temperature=0, max_tokens=2, adapter="").logprobs == plain.logprobs
        assert changed.score("One two three") != llama.score("One two three")
    several = {folder: tmp_path / folder for folder in ("one", "two")}
    with Llama.load(llama.checkpoint.path, adapter=several) as changed:
        assert changed.complete("One two", temperature=0, max_tokens=2).logprobs == plain.logprobs
        assert changed.complete("One two", temperature=0, max_tokens=2, adapter="one").logprobs == one.logprobs
        assert changed.complete("One two", temperature=0, max_tokens=2, adapter="two").logprobs != one.logprobs
    with pytest.raises(QafilaError, match="adapter_config"):
        Llama.load(llama.checkpoint.path, adapter=tmp_path)


def test_a_draft_model_changes_no_token(llama):
    with Llama.load(llama.checkpoint.path, draft="default", context=256) as drafted:
        assert drafted.chat(QUESTION, temperature=0, max_tokens=12).ids == llama.chat(
            QUESTION, temperature=0, max_tokens=12
        ).ids  # fmt: skip


def test_a_draft_model_of_another_vocabulary_is_refused(llama, monkeypatch):
    other = replace(llama.checkpoint, config=llama.config.with_changes(vocab_size=1000))
    with pytest.raises(UsageError, match=r"draft: .* has 1000 tokens and the model 49152"):
        make_engine(llama.checkpoint, draft=other)


def test_options_that_do_not_go_together():
    for options, word in (
        ({"dtype": "float32"}, "dtype"),
        ({"device": "cpu", "threads": 2}, "threads"),
        ({"device": "cpu", "kv_type": "int8"}, "kv_type"),
        ({"context": 0}, "context"),
        ({"kv_type": "int3"}, "kv_type"),
        ({"isa": "mmx"}, "mmx"),
        ({"threads": 0}, "threads"),
    ):
        with pytest.raises(UsageError, match=word):
            Llama.load("default", **options)


def test_torch_that_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"pip install 'qafila\[gpu\]'"):
        Llama.load("default", device="cpu")


def test_a_closed_model_says_so(default_gguf):
    llama = Llama.load(default_gguf, context=64)
    llama.close()
    llama.close()
    with pytest.raises(UsageError, match="closed"):
        llama.chat(QUESTION)
    with pytest.raises(UsageError, match="closed"):
        llama.score("hi there")


def test_a_model_larger_than_the_memory_is_refused(llama, monkeypatch):
    monkeypatch.setattr(torch_model, "this_machine", lambda: Machine(10**8, 10**8, "physical memory"))
    with pytest.raises(QafilaError, match=r"0\.5 GB as float32 and there are 0\.1 GB"):
        torch_model.load_model_on(llama.checkpoint, "cpu", None)


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
    runner = TorchRunner(load_model(config, random_tensors(config, 0)), num_blocks=16)
    return Llama(checkpoint, Engine(runner))


def choosing(llama, ids):
    """Make the model choose these ids, one after the other."""
    wanted = iter(ids)

    def logits(step):
        rows = np.zeros((len(step.wanted), llama.config.vocab_size), dtype=np.float32)
        for row in rows:
            row[next(wanted)] = 1
        return rows

    return logits


@pytest.mark.parametrize("spm", [False, True])
def test_infill(code_llama, spm, monkeypatch):
    prefix, suffix = "def add(a, b):\n    return", "\n\nprint(add(1, 2))"
    bos, pre, mid, suf, eot = 1, 32000, 32001, 32002, 32003
    encode, go_on = code_llama.tokenizer.encode, code_llama.tokenizer.encode_continuation
    answer = [*encode("a + b"), eot]
    monkeypatch.setattr(code_llama.engine.runner, "logits", choosing(code_llama, answer))
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
    monkeypatch.setattr(code_llama.engine.runner, "logits", choosing(code_llama, [*tokens, 2] * 3))
    assert code_llama.complete("The capital:", temperature=0).text == " Paris is"
    assert code_llama.complete("", temperature=0).text == "Paris is"
    # A chat's answer begins a text of its own.
    chat = Llama(code_llama.checkpoint, code_llama.engine, chat_format("llama-2", code_llama.tokenizer))
    assert chat.chat(QUESTION, temperature=0).text == "Paris is"
