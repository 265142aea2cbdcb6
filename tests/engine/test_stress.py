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
from qafila.engine.grammar import GrammarCompiler
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


def alone(asked: Request, vocabulary: int, grammars: GrammarCompiler) -> list[tuple[int, float]]:
    """The answer computed from the tokens themselves."""
    assert asked.seed is not None
    assert asked.max_tokens is not None
    ids, sampler, occurrences = list(asked.prompt_ids), Sampler(), Occurrences(asked.prompt_ids)
    matcher = grammars(asked.grammar)() if asked.grammar is not None else None
    out = []
    for _ in range(asked.max_tokens):
        mask = matcher.mask() if matcher is not None else None
        row = SampleRow(asked.params, asked.seed, len(ids), asked.sample_index, occurrences, mask)
        sampled = sampler(hashed_logits(np.array(ids, np.int64), vocabulary)[None], [row])[0]
        assert isinstance(sampled, Sampled)
        ids.append(sampled.id)
        occurrences.add(sampled.id)
        out.append((sampled.id, sampled.logprob))
        if sampled.id in asked.stop_ids or (matcher is not None and matcher.accept(sampled.id)):
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
    # Guesses come true among few tokens alone; grammars need all bytes.
    vocabulary = 50 if guess else script.VOCABULARY
    runner = FakeRunner(blocks, max_tokens=48, max_rows=12, vocab_size=vocabulary)

    def before(step: Step) -> None:
        if failures and rng.random() < 0.01:
            raise RuntimeError("at random")

    runner.before = before
    proposer = (lambda asked: Repeats()) if guess else None
    compiler = GrammarCompiler(script.byte_tokenizer())
    with Engine(runner, proposer=proposer, tokenizer=script.byte_tokenizer()) as engine:
        requests = list(script.random_requests(rng, 100, vocabulary, min(170, 12 * blocks), grammars=not guess))
        outcome = script.stress(engine, requests, lambda asked: alone(asked, vocabulary, compiler), rng)
        assert outcome.answers > 100
        assert outcome.cancelled > 0
        assert (outcome.failed > 0) == failures
        assert engine.stats().prefix_hit_tokens > 0
        assert engine.stats().preemptions > 0
