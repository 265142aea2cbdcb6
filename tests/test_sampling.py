from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qafila.errors import QafilaError, UsageError
from qafila.sampling import GREEDY, Occurrences, SamplingParams, check_seed, filtered, sample, uniform


def logits(size: int, seed: int = 0) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def transformers_probabilities(logits_V: np.ndarray, params: SamplingParams, seen: list[int]) -> np.ndarray:
    chain = LogitsProcessorList()
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    # In float64, so that a token on a filter's edge falls on the same side here and there.
    scores = chain(torch.tensor([seen]), torch.from_numpy(logits_V).double()[None])
    return scores[0].softmax(-1).numpy()


def probabilities(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores - scores.max())
    return exponents / exponents.sum()


@settings(deadline=None, max_examples=150)
@given(
    size=st.integers(1, 300),
    seed=st.integers(0, 1000),
    params=st.builds(
        SamplingParams,
        temperature=st.floats(0.05, 5.0),
        top_k=st.integers(0, 320),
        top_p=st.floats(0.01, 1.0),
        min_p=st.floats(0.0, 1.0),
        repetition_penalty=st.floats(0.5, 2.0),
    ),
)
def test_distribution_equals_transformers(size: int, seed: int, params: SamplingParams) -> None:
    logits_V = logits(size, seed)
    seen = [int(i) for i in np.random.default_rng(seed + 1).integers(0, size, 12)]
    actual = probabilities(filtered(logits_V, params, Occurrences(seen)))
    expected = transformers_probabilities(logits_V, params, seen)
    np.testing.assert_array_equal(actual > 0, expected > 0)
    np.testing.assert_allclose(actual, expected, atol=1e-9)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.2),
        SamplingParams(temperature=0.5, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
    ],
)
def test_each_filter_removes_what_transformers_removes(params: SamplingParams) -> None:
    logits_V = logits(2000, 3)
    actual = probabilities(filtered(logits_V, params, Occurrences([1, 2, 3])))
    expected = transformers_probabilities(logits_V, params, [1, 2, 3])
    assert 0 < np.count_nonzero(actual) < 2000
    np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_sample_follows_the_distribution() -> None:
    """Evenly spaced numbers hit every token as often as its probability says."""
    logits_V = logits(20, 5)
    params = SamplingParams(temperature=1.5, top_p=0.95)
    expected = probabilities(filtered(logits_V, params, Occurrences()))
    n = 20_000
    hits = Counter(sample(logits_V, params, Occurrences(), (i + 0.5) / n).id for i in range(n))
    np.testing.assert_allclose([hits[i] / n for i in range(20)], expected, atol=2 / n)


def test_sample_reaches_both_ends() -> None:
    logits_V = np.zeros(10, dtype=np.float32)
    assert sample(logits_V, SamplingParams(), Occurrences(), 0.0).id == 0
    assert sample(logits_V, SamplingParams(), Occurrences(), 1 - 2.0**-53).id == 9
    forbidden = np.array([-np.inf, 1.0, -np.inf], dtype=np.float32)
    assert {sample(forbidden, SamplingParams(), Occurrences(), u).id for u in (0.0, 0.5, 1 - 2.0**-53)} == {1}


def test_an_impossible_token_is_never_chosen() -> None:
    """Its stretch of the line has no length, so not even a number on its place finds it."""
    assert sample(np.array([-1e4, 0, 0, -1e4], dtype=np.float32), SamplingParams(), Occurrences(), 0.0).id == 1
    assert sample(np.array([0, -1e4, 0, -1e4], dtype=np.float32), SamplingParams(), Occurrences(), 0.5).id == 2


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert sample(np.array([1, 4, 4, 0], dtype=np.float32), GREEDY, Occurrences(), 0.99).id == 1


def test_greedy_heeds_the_repetition_penalty() -> None:
    logits_V = np.array([2.0, 1.5, -1.0], dtype=np.float32)
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    assert sample(logits_V, params, Occurrences([0, 99, 99]), 0.0).id == 1
    below = np.array([-1.0, -1.5, -9.0], dtype=np.float32)
    assert sample(below, params, Occurrences([0]), 0.0).id == 1


def test_logprob_is_the_models_own() -> None:
    logits_V = logits(50, 9)
    expected = torch.from_numpy(logits_V).double().log_softmax(-1)
    for params in (GREEDY, SamplingParams(temperature=0.3, top_k=2, repetition_penalty=1.5)):
        token = sample(logits_V, params, Occurrences([3]), 0.5)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-12)


def test_tiny_temperature_is_greedy() -> None:
    logits_V = logits(100, 1)
    assert sample(logits_V, SamplingParams(temperature=1e-300), Occurrences(), 0.999).id == int(np.argmax(logits_V))


@pytest.mark.parametrize("top_p", [5e-324, 1e-17, 1e-15])
def test_a_tiny_top_p_leaves_the_likeliest(top_p: float) -> None:
    """Equal tokens are the hard case: none is likelier than 1/V."""
    for size in (1, 4, 7, 1000):
        kept = filtered(np.zeros(size, dtype=np.float32), SamplingParams(top_p=top_p), Occurrences())
        assert np.flatnonzero(kept > -np.inf).tolist() == [0]


def test_one_allowed_token_passes_every_filter() -> None:
    logits_V = np.full(50, -np.inf, dtype=np.float32)
    logits_V[33] = -5.0
    params = SamplingParams(temperature=0.1, top_k=3, top_p=0.1, min_p=1.0, repetition_penalty=5.0)
    for uniform_number in (0.0, 1 - 2.0**-53):
        assert sample(logits_V, params, Occurrences([33] * 4 + [1]), uniform_number) == (33, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams()])
def test_logits_that_are_not_numbers_are_refused(bad: float, params: SamplingParams) -> None:
    with pytest.raises(QafilaError, match="logits"):
        sample(np.array([0, bad, 1], dtype=np.float32), params, Occurrences(), 0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
    ],
)
def test_values_out_of_range_name_the_field(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{field} must be"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.0, True])
def test_seeds_out_of_range_are_refused(seed: object) -> None:
    with pytest.raises(UsageError, match="seed must be"):
        check_seed(seed)  # type: ignore[arg-type]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as its paper defines it."""
    mask = (1 << 64) - 1
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k0, second & mask, (first >> 64) ^ c[3] ^ k1, first & mask]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return c


def test_philox_known_answer() -> None:
    """The first test vector published with Random123."""
    assert philox([0] * 4, [0, 0])[0] == 0x16554D9ECA36314C


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**40), number=st.integers(0, 1000))
def test_uniform_is_philox_at_a_counter(seed: int, position: int, number: int) -> None:
    word = philox([position + 1, 0, 0, 0], [seed, number])[0]
    assert uniform(seed, position, number) == (word >> 11) / 2**53


def test_uniform_fills_the_interval() -> None:
    numbers = np.array([uniform(7, position) for position in range(2000)])
    assert 0 <= numbers.min() < 0.01
    assert 0.99 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02
    assert uniform(7, 3, 0) != uniform(7, 3, 1) != uniform(8, 3, 1)
