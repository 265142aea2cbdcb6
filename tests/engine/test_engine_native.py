"""The engine over the native runner: bit for bit what the runner gives for one answer alone, one token at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig
from qafila.engine.engine import Engine
from qafila.engine.native_runner import NativeRunner
from qafila.engine.request import Request
from qafila.engine.runner import Runner, Step
from qafila.engine.sampler import Sampled, Sampler, SampleRow
from qafila.model.random_weights import random_tensors
from qafila.sampling import GREEDY, Occurrences, SamplingParams

DENSE = ModelConfig(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=128, vocab_size=100, context_length=256
)
FOURTH = DENSE.with_changes(
    rope_interleaved=True,
    moe=MixtureOfExperts(n_experts=4, top_k=1, ffn_dim=64, layer_step=2),
    no_rope_layers=(1,),
    attention_chunk=24,
    qk_norm=True,
    temperature=AttentionTemperature(floor_scale=16),
)
SAMPLED = SamplingParams(temperature=0.9, top_k=40, repetition_penalty=1.1)


def native(config: ModelConfig, blocks: int) -> NativeRunner:
    return NativeRunner(
        config, random_tensors(config, 0, scale=1.5), threads=1, num_blocks=blocks, max_tokens=40, max_rows=16
    )


@pytest.fixture(scope="module", params=[DENSE, FOURTH], ids=["dense", "llama4"])
def alone(request: pytest.FixtureRequest) -> Iterator[NativeRunner]:
    runner = native(request.param, 16)
    yield runner
    runner.close()


def plain(runner: Runner, asked: Request, answer: int = 0) -> list[tuple[int, float]]:
    """One answer by the runner itself, without an engine; every token in a step of its own."""
    assert asked.seed is not None
    ids, occurrences, out = list(asked.prompt_ids), Occurrences(asked.prompt_ids), []
    table = np.arange(runner.num_blocks - 1, -1, -1, dtype=np.int32)[None]
    one, sampler = np.zeros(1, np.int32), Sampler()
    while len(out) < (asked.max_tokens or 0):
        for position in range(len(ids) - 1 if out else 0, len(ids)):
            place = np.array([position], np.int32)
            token = np.array([ids[position]], np.int32)
            logits = runner.logits(Step(token, place, np.array([0, 1], np.int32), table, one, one))
        row = SampleRow(asked.params, asked.seed, len(ids), asked.sample_index + answer, occurrences)
        sampled = sampler(logits, [row])[0]
        assert isinstance(sampled, Sampled)
        ids.append(sampled.id)
        occurrences.add(sampled.id)
        out.append((sampled.id, sampled.logprob))
    return out


class LastAgain:
    """Guesses what came after the last occurrence of the last token."""

    def propose(self, ids: list[int], most: int) -> list[int]:
        at = max((i for i in range(len(ids) - 1) if ids[i] == ids[-1]), default=len(ids))
        return ids[at + 1 : at + 1 + most]

    def feedback(self, accepted: int, proposed: int) -> None:
        assert accepted <= proposed


@pytest.mark.parametrize(("blocks", "guess"), [(64, False), (14, True)])
def test_every_bit_is_that_of_the_answer_alone(alone: NativeRunner, blocks: int, guess: bool) -> None:
    runner = native(alone.config, blocks)
    with Engine(runner, proposer=(lambda asked: LastAgain()) if guess else None) as engine:
        first = [
            Request(
                [*range(length), length % 7],
                params=GREEDY if length % 2 else SAMPLED,
                seed=length,
                max_tokens=30,
                n=1 + length % 3,
                priority=length % 2,
            )
            for length in (0, 15, 16, 17, 40, 41, 59)
        ]
        second = [replace(one, prompt_ids=[*one.prompt_ids, 1, 2]) for one in first]
        for asked in (first, second):
            handles = [engine.submit(one) for one in asked]
            for one, handle in zip(asked, handles, strict=True):
                tokens = list(handle)
                for answer in range(one.n):
                    mine = [(token.id, token.logprob) for token in tokens if token.answer == answer]
                    assert mine == plain(alone, one, answer)
            engine.pool.check()
        stats = engine.stats()
        assert stats.blocks_used == 0
        assert stats.prefix_hit_tokens > 0
        assert blocks > 14 or stats.preemptions > 0


@pytest.mark.parametrize("steps", range(0, 12, 2))
def test_cancelling_leaks_nothing(alone: NativeRunner, steps: int) -> None:
    with Engine(native(alone.config, 14)) as engine:
        doomed = engine.submit(Request(list(range(90)), seed=1, n=2, max_tokens=60))
        kept = engine.submit(Request(list(range(50)), seed=2, max_tokens=10))
        for _ in range(steps):
            engine.step()
        doomed.cancel()
        assert [(token.id, token.logprob) for token in kept] == plain(alone, kept.request)
        assert engine.stats().blocks_used == 0
        engine.pool.check()
