"""The engine over the torch model against plain generation with the same model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig
from qafila.engine.engine import Engine
from qafila.engine.request import Request
from qafila.engine.runner import Step
from qafila.engine.torch_runner import TorchRunner
from qafila.errors import QafilaError, UsageError
from qafila.model.generate import generate
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.sampling import GREEDY, SamplingParams

DENSE = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, vocab_size=60, context_length=200
)
FOURTH = DENSE.with_changes(
    rope_interleaved=True,
    moe=MixtureOfExperts(n_experts=4, top_k=1, ffn_dim=48, layer_step=2),
    no_rope_layers=(1,),
    attention_chunk=24,
    qk_norm=True,
    temperature=AttentionTemperature(floor_scale=16),
)
SAMPLED = SamplingParams(temperature=0.9, top_k=40, repetition_penalty=1.1)


@pytest.fixture(scope="module", params=[DENSE, FOURTH], ids=["dense", "llama4"])
def model(request: pytest.FixtureRequest) -> LlamaModel:
    return load_model(request.param, random_tensors(request.param, 0, scale=1.5))


def plain(model: LlamaModel, asked: Request, answer: int = 0) -> list[tuple[int, float]]:
    tokens = generate(
        model,
        asked.prompt_ids,
        params=asked.params,
        max_tokens=asked.max_tokens,
        stop_ids=asked.stop_ids,
        seed=asked.seed,
        sample_index=asked.sample_index + answer,
    )
    return [(token.id, token.logprob) for token in tokens]


def check(engine: Engine, asked: list[Request], model: LlamaModel) -> None:
    handles = [engine.submit(one) for one in asked]
    for one, handle in zip(asked, handles, strict=True):
        tokens = list(handle)
        for answer in range(one.n):
            expected = plain(model, one, answer)
            mine = [token for token in tokens if token.answer == answer]
            assert [token.id for token in mine] == [id for id, _ in expected]
            np.testing.assert_allclose([token.logprob for token in mine], [lp for _, lp in expected], atol=2e-4)
    engine.pool.check()
    assert engine.stats().blocks_used == 0


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_alone(model: LlamaModel, params: SamplingParams) -> None:
    with Engine(TorchRunner(model, 16)) as engine:
        check(engine, [Request([5, 17, 3, 44], params=params, seed=1)], model)


@pytest.mark.parametrize(("blocks", "batched"), [(14, False), (64, False), (14, True), (64, True)])
def test_in_a_batch_with_shared_prefixes_forks_and_preemption(model: LlamaModel, blocks: int, batched: bool) -> None:
    with Engine(TorchRunner(model, blocks, max_tokens=40, batched=batched)) as engine:
        asked = [
            Request(
                [*range(length), length % 7],
                params=GREEDY if length % 2 else SAMPLED,
                seed=length,
                max_tokens=30,
                n=1 + length % 3,
            )
            for length in (0, 15, 16, 17, 40, 41, 59)
        ]
        check(engine, asked, model)
        assert (engine.stats().preemptions > 0) == (blocks == 14)
        assert engine.stats().prefix_hit_tokens > 0
        check(engine, [replace(one, prompt_ids=[*one.prompt_ids, 1, 2]) for one in asked], model)


def test_hidden_states_are_the_models(model: LlamaModel) -> None:
    runner = TorchRunner(model, 4)
    ids = np.arange(20, dtype=np.int32)
    step = Step(
        ids,
        ids,
        np.array([0, 20], np.int32),
        np.array([[3, 1, -1]], np.int32),
        np.zeros(1, np.int32),
        np.array([4, 19], np.int32),
    )
    with torch.inference_mode():
        expected = model.model(torch.arange(20)[None], None, None, None)[0, [4, 19]].numpy()
    np.testing.assert_allclose(runner.hidden(step), expected, atol=1e-5)


def test_adapters_and_sizes_are_refused(model: LlamaModel, tmp_path: object) -> None:
    with Engine(TorchRunner(model, 4)) as engine, pytest.raises(QafilaError, match="no adapters"):
        engine.add_adapter("a", "somewhere")
    with pytest.raises(UsageError, match="num_blocks"):
        TorchRunner(model, 0)


def test_fingerprints_tell_weights_apart(model: LlamaModel) -> None:
    other = load_model(model.config, random_tensors(model.config, 1))
    same = load_model(model.config, random_tensors(model.config, 0, scale=1.5))
    fingerprint = TorchRunner(model, 1).fingerprint
    assert TorchRunner(same, 1).fingerprint == fingerprint
    assert TorchRunner(other, 1).fingerprint != fingerprint
    assert TorchRunner(model, 1, kv_dtype=torch.float16).fingerprint != fingerprint


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_decoding_on_cuda_is_eager_decoding(dtype: torch.dtype) -> None:
    model = load_model(DENSE, random_tensors(DENSE, 0, scale=1.5)).to("cuda", dtype)
    runners = [TorchRunner(model, 32, batched=batched) for batched in (False, True)]
    rng = np.random.default_rng(0)
    tables = rng.permutation(32)[:24].reshape(3, 8).astype(np.int32)
    for position in range(100):
        step = Step(
            rng.integers(60, size=3, dtype=np.int32),
            np.full(3, position, np.int32),
            np.arange(4, dtype=np.int32),
            tables,
            np.zeros(3, np.int32),
            np.arange(3, dtype=np.int32),
        )
        one, other = (runner.logits(step) for runner in runners)
        np.testing.assert_allclose(one, other, atol=1e-3 if dtype == torch.float32 else 0.5)
