"""Guesses change no token, and are made only where they pay."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from fake_runner import FakeRunner, hashed_logits

from qafila.engine.engine import Engine
from qafila.engine.native_runner import NativeRunner
from qafila.engine.request import Request
from qafila.engine.scheduler import Proposer
from qafila.engine.speculative import LONGEST_PAUSE, DraftModel, PromptLookup, StepCosts
from qafila.sampling import GREEDY, SamplingParams
from qafila.weights.hub import resolve
from qafila.weights.load import open_checkpoint

PARAMS = [
    GREEDY,
    SamplingParams(temperature=1.2),
    SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.1, frequency_penalty=0.3),
]


def ticking(step: float = 1.0) -> Callable[[], float]:
    """A clock on which every look takes the same time, so that guesses cost nothing."""
    times = count()
    return lambda: step * next(times)


def answers(
    runner: FakeRunner, proposer: Callable[[Request], Proposer | None] | None, asked: list[Request]
) -> list[list[int]]:
    with Engine(runner, proposer=proposer) as engine:
        handles = [engine.submit(one) for one in asked]
        out = []
        for handle in handles:
            tokens = list(handle)
            out += [[token.id for token in tokens if token.answer == i] for i in range(handle.request.n)]
        engine.pool.check()
    # The last step's answers, with their guessers, go with the engine.
    del engine, handles
    gc.collect()
    return out


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("vocabulary", [2, 5])
def test_lookup_changes_no_token(params: SamplingParams, vocabulary: int) -> None:
    asked = [
        Request([i % vocabulary for i in range(n + 3)], params, max_tokens=150, seed=n, stop_ids=frozenset())
        for n in range(4)
    ]
    plain = FakeRunner(vocab_size=vocabulary)
    expected = answers(plain, None, asked)
    costs = StepCosts(prior=0.01)
    guessing = FakeRunner(vocab_size=vocabulary)
    assert answers(guessing, lambda _: PromptLookup(costs, ticking()), asked) == expected
    assert guessing.computed > plain.computed


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("blocks", [8, 64])
def test_a_draft_model_changes_no_token(params: SamplingParams, blocks: int) -> None:
    """One that is always right, one that never is; both also with too little memory for all answers."""
    asked = [Request([n + 1, 7, n], params, max_tokens=60, seed=n) for n in range(4)]
    asked.append(replace(asked[0], n=2, max_tokens=20))
    plain = FakeRunner(vocab_size=30)
    expected = answers(plain, None, asked)
    draft = DraftModel(FakeRunner(blocks, vocab_size=30), ticking())
    right = FakeRunner(vocab_size=30)
    assert answers(right, draft, asked) == expected
    if blocks == 64:
        assert len(right.steps) < len(plain.steps) / 2
    wrong = FakeRunner(blocks, vocab_size=30)
    wrong.adapters[0] = 5  # it reads other tokens than it is given
    assert answers(FakeRunner(vocab_size=30), DraftModel(wrong, ticking()), asked) == expected
    for made in (draft, DraftModel(wrong)):
        assert len(made._free) == blocks
        made.close()


def test_guessed_tokens_follow_the_distribution() -> None:
    """Chi-square of the second token over many seeds, given the first."""
    params = SamplingParams(temperature=1.5)
    prompt = [1, 2, 1, 2, 1, 2, 1]
    seen: dict[int, Counter[int]] = {}
    lookups = StepCosts(prior=0.001)
    with Engine(FakeRunner(vocab_size=4), proposer=lambda _: PromptLookup(lookups, ticking())) as engine:
        for seed in range(1500):
            first, second = [token.id for token in engine.submit(Request(prompt, params, max_tokens=2, seed=seed))]
            seen.setdefault(first, Counter())[second] += 1
    for first, counts in seen.items():
        scores = hashed_logits(np.array([*prompt, first]), 4).astype(np.float64) / params.temperature
        expected = np.exp(scores - scores.max())
        expected *= sum(counts.values()) / expected.sum()
        observed = np.array([counts[i] for i in range(4)])
        # 0.9999 of the chi-square distribution with three degrees of freedom lies below 21.1.
        assert ((observed - expected) ** 2 / expected).sum() < 21.1


def test_lookup_goes_on_as_it_did_before() -> None:
    lookup = PromptLookup(StepCosts(prior=0.01), ticking())
    assert list(lookup.propose([1, 2, 3, 4, 5, 9, 1, 2, 3], 4)) == [4, 5, 9, 1]
    lookup.feedback(4, 4)
    # A short period goes round.
    assert list(lookup.propose([1, 2, 3, 4, 5, 9, 1, 2, 3, 7, 8, 7, 8, 7, 8], 5)) == [7, 8, 7, 8, 7]
    assert list(PromptLookup().propose([1], 5)) == []


class FixedCosts(StepCosts):
    def measured(self, guesses: int, seconds: float) -> None:
        pass


def test_lookup_stops_where_it_does_not_pay_and_tries_again() -> None:
    lookup = PromptLookup(FixedCosts(prior=0.2))
    ids = [1, 2, 3] * 3
    guessing = []
    for _ in range(3000):
        guesses = lookup.propose(ids, 8)
        guessing.append(bool(guesses))
        if guesses:
            lookup.feedback(0, len(guesses))
        ids += [1, 2, 3]
    assert any(guessing[:3])
    assert 0 < sum(guessing[1000:]) < 2000 / LONGEST_PAUSE * 8
    for _ in range(2 * LONGEST_PAUSE):
        if guesses := lookup.propose(ids, 8):
            lookup.feedback(len(guesses), len(guesses))
        ids += [1, 2, 3]
    assert len(lookup.propose(ids, 8)) == 8


def test_costs_are_learned() -> None:
    costs = StepCosts()
    for _ in range(200):
        costs.measured(0, 0.010)
        costs.measured(4, 0.030)
    assert costs.per_guess == pytest.approx(0.5, rel=0.1)
    costs.measured(0, 100.0)
    costs.measured(4, 0.030)
    assert costs.per_guess > 0.3


@pytest.fixture(scope="module")
def default() -> Iterator[tuple[NativeRunner, Callable[[str], list[int]]]]:
    checkpoint = open_checkpoint(resolve("default"))
    tokenizer = checkpoint.load_tokenizer()
    runner = NativeRunner(checkpoint.config, checkpoint.tensors, kv_tokens=2048, max_tokens=128)
    yield runner, tokenizer.encode
    runner.close()


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=0.6, top_p=0.9)])
def test_real_text_is_the_same(
    default: tuple[NativeRunner, Callable[[str], list[int]]], params: SamplingParams
) -> None:
    runner, encode = default
    # So often that every instruction set's rounding has the model go on with it.
    text = "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n    return a - b\n\n" * 5
    request = Request(encode(text), params, max_tokens=40, seed=3)
    outcomes = []
    for proposer in (None, lambda _: PromptLookup(StepCosts(prior=0.01), ticking())):
        engine = Engine(runner, proposer=proposer)
        tokens = [(token.id, token.logprob) for token in engine.submit(request)]
        outcomes.append((tokens, engine.stats().steps))
    (plain, plain_steps), (guessed, guessed_steps) = outcomes
    assert guessed == plain
    assert guessed_steps < plain_steps
