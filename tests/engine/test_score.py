"""Scores, likelihoods and embeddings against the torch model's, and beside answers under way."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from byte_tokenizer import ByteTokenizer

from qafila.config import ModelConfig
from qafila.engine.engine import Engine
from qafila.engine.native_runner import NativeRunner
from qafila.engine.request import Request
from qafila.engine.runner import Runner
from qafila.engine.score import embed, likelihood, score
from qafila.engine.torch_runner import TorchRunner
from qafila.errors import ContextLengthError, QafilaError, UsageError
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.sampling import SamplingParams

CONFIG = ModelConfig(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=128, vocab_size=300, context_length=256
)
TENSORS = random_tensors(CONFIG, 0, scale=1.5)
TEXT = [int(i) for i in np.random.default_rng(1).integers(0, 300, 90)]


@pytest.fixture(scope="module")
def model() -> LlamaModel:
    return load_model(CONFIG, TENSORS, dtype=torch.float32)


@pytest.fixture(params=["native", "torch"])
def engine(request: pytest.FixtureRequest, model: LlamaModel) -> Iterator[Engine]:
    runner: Runner
    if request.param == "native":
        runner = NativeRunner(CONFIG, TENSORS, threads=1, num_blocks=16, max_tokens=40, max_rows=16)
    else:
        runner = TorchRunner(model, num_blocks=16, max_tokens=40, max_rows=16)
    with Engine(runner) as engine:
        yield engine
        engine.pool.check()
        assert engine.pool.used == 0


def reference(model: LlamaModel, ids: list[int]) -> np.ndarray:
    """Log-probability of each token after the first."""
    with torch.inference_mode():
        logits_TV = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    return logits_TV[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()


def same(engine: Engine, actual: list[float], expected: list[float]) -> None:
    """The same bits; the torch runner's depend a little on what shares a step."""
    if isinstance(engine.runner, NativeRunner):
        assert actual == expected
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_scores_are_the_models(engine: Engine, model: LlamaModel) -> None:
    # The native cache holds f16: small on the whole, more where a logit hangs on one key.
    error = np.array(score(engine, TEXT)) - reference(model, TEXT)
    assert np.sqrt((error**2).mean()) < 3e-3
    assert np.abs(error).max() < 2e-2
    assert len(score(engine, TEXT[:2])) == 1


def test_scores_have_the_bits_of_generation(engine: Engine) -> None:
    tokens = list(engine.submit(Request(TEXT[:30], SamplingParams(), max_tokens=20, seed=1)))
    ids = [*TEXT[:30], *(token.id for token in tokens)]
    scores = score(engine, ids)
    same(engine, scores[29:], [token.logprob for token in tokens])


@pytest.mark.parametrize("length", [1, 16, 37])
def test_likelihood_is_exact_and_normalised(engine: Engine, model: LlamaModel, length: int) -> None:
    prompt = TEXT[:length]
    tails = [[5], [5, 6], [7, 8, 9] * 7, [299]]
    answers = likelihood(engine, prompt, tails)
    expected = [reference(model, prompt + tail)[length - 1 :].sum() for tail in tails]
    np.testing.assert_allclose([answer.logprob for answer in answers], expected, atol=2e-2)
    weights = np.exp(np.array([answer.logprob for answer in answers]))
    np.testing.assert_allclose([answer.probability for answer in answers], weights / weights.sum(), rtol=1e-9)
    assert [list(answer.ids) for answer in answers] == tails
    for tail, answer in zip(tails, answers, strict=True):
        same(engine, [math.fsum(score(engine, prompt + tail)[length - 1 :])], [answer.logprob])
    # Again from the cache: the same bits.
    assert likelihood(engine, prompt, tails) == answers


def test_all_tokens_together_are_certain(engine: Engine) -> None:
    everything = likelihood(engine, TEXT[:20], [[i] for i in range(300)])
    assert math.fsum(math.exp(answer.logprob) for answer in everything) == pytest.approx(1, abs=1e-5)


def test_text_continues_the_prompt(engine: Engine) -> None:
    tokenizer = ByteTokenizer(dummy_space=True)
    answers = likelihood(engine, TEXT[:5], ["yes", "no"], tokenizer=tokenizer)
    assert answers == likelihood(engine, TEXT[:5], [list(b"yes"), list(b"no")])


def test_the_prompt_is_read_once(engine: Engine) -> None:
    likelihood(engine, TEXT[:70], [[1], [2]])
    request = Request(TEXT[:70], SamplingParams(), max_tokens=2, seed=1)
    handle = engine.submit(request)
    list(handle)
    assert handle.usage.cached == 64


def test_embeddings_are_the_models(engine: Engine, model: LlamaModel) -> None:
    with torch.inference_mode():
        ids = torch.tensor([TEXT])
        states: list[torch.Tensor] = []
        hook = model.model.norm.register_forward_hook(lambda *args: states.append(args[2]))
        model(ids)
        hook.remove()
    hidden_TD = states[0][0].double().numpy()
    for pooling, expected in (("mean", hidden_TD.mean(0)), ("last", hidden_TD[-1])):
        actual = embed(engine, TEXT, pooling=pooling)  # type: ignore[arg-type]
        assert actual.dtype == np.float32
        assert np.linalg.norm(actual) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(actual, expected / np.linalg.norm(expected), atol=2e-3)


def test_answers_under_way_are_not_disturbed(engine: Engine) -> None:
    asked = [Request(TEXT[n : n + 20], SamplingParams(), max_tokens=40, seed=n) for n in range(3)]
    alone = [[token.id for token in engine.submit(one)] for one in asked]
    handles = [engine.submit(one) for one in asked]
    together: list[list[int]] = [[], [], []]
    for turn in range(40):
        for out, handle in zip(together, handles, strict=True):
            out.append(next(handle).id)
        if turn % 5 == 0:
            # More room than is free: the answers go on until there is enough.
            score(engine, TEXT * 2)
            likelihood(engine, TEXT[turn:], [[1], [2]])
            embed(engine, TEXT)
    assert together == alone


def test_what_makes_no_sense_is_refused(engine: Engine) -> None:
    cases = [
        (lambda: score(engine, [1]), "at least 2"),
        (lambda: score(engine, [1, 300]), "300"),
        (lambda: likelihood(engine, [], [[1]]), "at least 1"),
        (lambda: likelihood(engine, [1], []), "at least one continuation"),
        (lambda: likelihood(engine, [1], [[1], []]), "continuation 1 is empty"),
        (lambda: likelihood(engine, [1], [[1], [2], [1]]), "continuations 0 and 2"),
        (lambda: likelihood(engine, [1], ["a"]), "tokenizer"),
        (lambda: embed(engine, []), "at least 1"),
        (lambda: embed(engine, [1], pooling="max"), "pooling"),  # type: ignore[arg-type]
        (lambda: score(engine, [1, 2], adapter="x"), "adapter"),
    ]
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()
    with pytest.raises(ContextLengthError, match="context"):
        score(engine, [1] * 257)
    with pytest.raises(ContextLengthError, match="context"):
        likelihood(engine, [1] * 200, [[1] * 57])


def test_damaged_weights_are_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.full((1, 300), np.nan, np.float32)
    monkeypatch.setattr(engine.runner, "logits", lambda step: nothing)
    monkeypatch.setattr(engine.runner, "hidden", lambda step: nothing[:, :64])
    for call in (lambda: score(engine, [1, 2]), lambda: embed(engine, [1, 2]), lambda: likelihood(engine, [1], [[2]])):
        with pytest.raises(QafilaError, match="damaged"):
            call()
