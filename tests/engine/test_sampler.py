"""The native sampler chooses what `qafila.sampling` says, token for token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.engine.sampler import Sampled, Sampler, SampleRow, choose_slowly
from qafila.errors import QafilaError
from qafila.native._native import Sampler as NativeSampler
from qafila.sampling import GREEDY, Occurrences, SamplingParams


def available() -> list[str]:
    names = []
    for name in ("portable", "avx2", "avx512"):
        try:
            NativeSampler(1, name)
        except ValueError:
            continue
        names.append(name)
    return names


ISAS = available()


def logits(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "ties":
        values = rng.integers(-3, 3, size)
    elif kind == "flat":
        values = np.zeros(size)
    elif kind == "peaked":
        values = rng.standard_normal(size) * 20
    elif kind == "huge":
        values = rng.standard_normal(size) * 10.0 ** rng.integers(-30, 35)
    elif kind == "holes":
        values = np.where(rng.random(size) < 0.7, -np.inf, rng.standard_normal(size))
        values[rng.integers(size)] = 1
    else:
        values = rng.standard_normal(size) * 3
    return values.astype(np.float32)


def mask_of(allowed: np.ndarray) -> np.ndarray:
    padded = np.zeros(-(-len(allowed) // 32) * 32, bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.uint32)


def agree(actual: Sampled | QafilaError, expected: Sampled | QafilaError, logits_V: np.ndarray) -> None:
    if isinstance(expected, QafilaError):
        assert isinstance(actual, QafilaError)
        assert str(actual) == str(expected)
        return
    assert isinstance(actual, Sampled)
    assert actual.id == expected.id
    scale = 1e-6 * max(1.0, float(np.abs(logits_V[np.isfinite(logits_V)]).max()))
    assert actual.logprob == pytest.approx(expected.logprob, abs=scale)
    assert [id for id, _ in actual.top] == [id for id, _ in expected.top]
    np.testing.assert_allclose([p for _, p in actual.top], [p for _, p in expected.top], atol=scale)


NICE = st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0])


@st.composite
def parameters(draw: st.DrawFn, size: int) -> SamplingParams:
    return SamplingParams(
        temperature=draw(st.one_of(st.just(0.0), st.just(1.0), st.floats(0.01, 10), st.sampled_from([1e-300, 1e300]))),
        top_k=draw(st.one_of(st.just(0), st.integers(0, 10), st.integers(0, size + 5))),
        top_p=draw(st.one_of(NICE, st.floats(1e-9, 1))),
        min_p=draw(st.one_of(st.just(0.0), NICE, st.floats(0, 1))),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.7])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 1.5, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.4, -0.3])),
        logit_bias=draw(
            st.one_of(st.just({}), st.dictionaries(st.integers(0, size + 3), st.floats(-100, 100), max_size=5))
        ),
    )


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_tokens_equal_the_oracles(isa: str, data: st.DataObject) -> None:
    size = data.draw(st.one_of(st.integers(1, 70), st.integers(200, 3000)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kinds = st.sampled_from(["ties", "flat", "peaked", "huge", "holes", "plain", "plain"])
    rows, values = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        values.append(logits(data.draw(kinds), size, rng))
        seen = rng.integers(0, size + 2, data.draw(st.integers(0, 20))).tolist()
        share = data.draw(st.sampled_from([None, None, 0.0, 0.02, 0.9]))
        rows.append(
            SampleRow(
                data.draw(parameters(size)),
                seed=data.draw(st.integers(0, 2**64 - 1)),
                position=data.draw(st.integers(0, 100_000)),
                sample=data.draw(st.integers(0, 3)),
                occurrences=Occurrences(seen[::2], seen[1::2]),
                mask=None if share is None else mask_of(rng.random(size) < share),
                top_logprobs=data.draw(st.sampled_from([0, 0, 1, 20])),
            )
        )
    together = np.stack(values)
    before = together.copy()
    chosen = Sampler(2, isa)(together, rows)
    np.testing.assert_array_equal(together, before)
    for logits_V, row, actual in zip(values, rows, chosen, strict=True):
        agree(actual, choose_slowly(logits_V, row), logits_V)


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(),
        SamplingParams(temperature=0.6, top_p=0.9),
        SamplingParams(temperature=1.5, top_p=0.99),
        SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02),
        SamplingParams(min_p=0.001),
        SamplingParams(top_k=9000),
        SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.5, logit_bias={5: 3}),
    ],
)
def test_a_large_vocabulary(params: SamplingParams) -> None:
    """Every instruction set gives the oracle's tokens, and the same bits of log-probability."""
    rng = np.random.default_rng(5)
    logits_RV = (rng.standard_normal((12, 128_256)) * np.linspace(0.2, 5, 12)[:, None]).astype(np.float32)
    so_far = Occurrences(rng.integers(0, 128_256, 500).tolist(), rng.integers(0, 128_256, 500).tolist())
    rows = [SampleRow(params, seed=3, position=i, occurrences=so_far, top_logprobs=5) for i in range(12)]
    expected = [choose_slowly(logits_V, row) for logits_V, row in zip(logits_RV, rows, strict=True)]
    chosen = {isa: Sampler(isa=isa)(logits_RV, rows) for isa in ISAS}
    for logits_V, a, b in zip(logits_RV, chosen["portable"], expected, strict=True):
        agree(a, b, logits_V)
    assert all(answers == chosen["portable"] for answers in chosen.values())


def test_a_damaged_row_disturbs_no_other() -> None:
    logits_RV = np.zeros((5, 100), np.float32)
    logits_RV[1, 7] = np.nan
    logits_RV[2, 99] = np.inf
    logits_RV[3] = -np.inf
    for params in (GREEDY, SamplingParams(), SamplingParams(top_p=0.5, logit_bias={3: 1.0})):
        answers = Sampler()(logits_RV, [SampleRow(params, seed=1, position=i) for i in range(5)])
        assert [isinstance(answer, QafilaError) for answer in answers] == [False, True, True, True, False]
        assert "weights may be damaged" in str(answers[1])


def test_a_mask_that_leaves_nothing_is_told() -> None:
    logits_RV = np.zeros((1, 40), np.float32)
    row = SampleRow(SamplingParams(), seed=1, position=0, mask=np.zeros(2, np.uint32))
    assert "grammar" in str(Sampler()(logits_RV, [row])[0])


def test_rows_and_logits_must_fit() -> None:
    row = SampleRow(GREEDY, seed=1, position=0)
    with pytest.raises(ValueError, match="row"):
        Sampler()(np.zeros((2, 10), np.float32), [row])
    row.mask = np.zeros(1, np.uint32)
    with pytest.raises(ValueError, match="mask"):
        Sampler()(np.zeros((1, 33), np.float32), [row])
