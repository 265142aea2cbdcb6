"""A hundred random requests, as benchmarks/engine_stress.py sends a thousand."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fake_runner import FakeRunner, hashed_logits

from qafila.engine.engine import Engine
from qafila.engine.request import Request
from qafila.engine.runner import Step
from qafila.engine.sampler import Sampled, Sampler, SampleRow
from qafila.sampling import Occurrences


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "engine_stress.py"
    spec = importlib.util.spec_from_file_location("engine_stress", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_stress"] = module
    spec.loader.exec_module(module)
    return module


def alone(asked: Request) -> list[tuple[int, float]]:
    """The answer computed from the tokens themselves."""
    assert asked.seed is not None
    assert asked.max_tokens is not None
    ids, sampler, occurrences = list(asked.prompt_ids), Sampler(), Occurrences(asked.prompt_ids)
    out = []
    for _ in range(asked.max_tokens):
        row = SampleRow(asked.params, asked.seed, len(ids), asked.sample_index, occurrences)
        sampled = sampler(hashed_logits(np.array(ids, np.int64), 50)[None], [row])[0]
        assert isinstance(sampled, Sampled)
        ids.append(sampled.id)
        occurrences.add(sampled.id)
        out.append((sampled.id, sampled.logprob))
        if sampled.id in asked.stop_ids:
            break
    return out


class Repeats:
    """Guesses that what followed the last token before follows it again."""

    def propose(self, ids: list[int], most: int) -> list[int]:
        at = len(ids) - 2
        while at >= 0 and ids[at] != ids[-1]:
            at -= 1
        return ids[at + 1 : at + 1 + most] if at >= 0 else []

    def feedback(self, accepted: int, proposed: int) -> None:
        assert 0 <= accepted <= proposed


@pytest.mark.parametrize(
    ("blocks", "failures", "guess"), [(12, False, False), (24, True, False), (24, False, True), (200, True, True)]
)
def test_no_leak_no_changed_answer_no_deadlock(script: ModuleType, blocks: int, failures: bool, guess: bool) -> None:
    rng = random.Random(blocks)
    runner = FakeRunner(blocks, max_tokens=48, max_rows=12)

    def before(step: Step) -> None:
        if failures and rng.random() < 0.01:
            raise RuntimeError("at random")

    runner.before = before
    with Engine(runner, proposer=(lambda asked: Repeats()) if guess else None) as engine:
        requests = list(script.random_requests(rng, 100, 50, min(170, 12 * blocks)))
        outcome = script.stress(engine, requests, alone, rng)
        assert outcome.answers > 100
        assert outcome.cancelled > 0
        assert (outcome.failed > 0) == failures
        assert engine.stats().prefix_hit_tokens > 0
        assert engine.stats().preemptions > 0
