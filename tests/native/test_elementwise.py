"""What runs between products, in every instruction set, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from qafila.native import _native

every_table = pytest.mark.parametrize("isa", _native.instruction_sets())
every_size = pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 64, 576, 4096 + 7])


def vector(n: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Normal numbers."""
    return (np.random.default_rng([seed, n]).standard_normal(n) * scale).astype(np.float32)


@every_table
@every_size
def test_rms_norm(isa: str, n: int) -> None:
    x, weight = vector(n, scale=7), vector(n, seed=1)
    exact = x / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5)
    np.testing.assert_allclose(_native.rms_norm(isa, x, None, 1e-5), exact, rtol=1e-6)
    np.testing.assert_allclose(_native.rms_norm(isa, x, weight, 1e-5), exact * weight, rtol=1e-6)
    assert not _native.rms_norm(isa, np.zeros(n, np.float32), weight, 1e-5).any()


@every_table
@pytest.mark.parametrize("pairs", [1, 3, 8, 20, 32, 64])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(isa: str, pairs: int, interleaved: bool) -> None:
    x, angles = vector(2 * pairs), vector(pairs, seed=1, scale=3).astype(np.float64)
    pair = x.reshape(pairs, 2) if interleaved else x.reshape(2, pairs).T
    turned = (pair[:, 0] + 1j * pair[:, 1]) * np.exp(1j * angles)
    exact = np.stack([turned.real, turned.imag], 1 if interleaved else 0).reshape(-1)
    found = _native.rope(isa, x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), interleaved)
    np.testing.assert_allclose(found, exact, atol=1e-6)


@every_table
@every_size
def test_silu_mul(isa: str, n: int) -> None:
    gate, up = vector(n, scale=20), vector(n, seed=1)
    with np.errstate(over="ignore"):
        exact = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64))) * up
    np.testing.assert_allclose(_native.silu_mul(isa, gate, up), exact, rtol=2e-6, atol=1e-34)


@every_table
def test_silu_of_every_size(isa: str) -> None:
    gate = np.concatenate([np.linspace(-110, 110, 40_001), [-1e30, 1e30, -0.0, 0.0, np.inf]]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64)))
    np.testing.assert_allclose(_native.silu_mul(isa, gate, np.ones_like(gate)), exact, rtol=1e-6, atol=2e-36)
    assert np.isnan(_native.silu_mul(isa, np.full(20, np.nan, np.float32), np.ones(20, np.float32))).all()


@every_table
@every_size
def test_scale_and_add(isa: str, n: int) -> None:
    x, y = vector(n), vector(n, seed=1)
    np.testing.assert_array_equal(_native.scale_add(isa, x, 0.3, y), y + np.float32(0.3) * x)


@every_table
@pytest.mark.parametrize("n", [1, 7, 16, 33, 1000, 128_256])
def test_log_sum_exp(isa: str, n: int) -> None:
    x = vector(n, scale=8)
    maximum, log_sum = _native.log_sum_exp(isa, x)
    assert maximum == x.max()
    assert log_sum == pytest.approx(np.log(np.exp(x.astype(np.float64) - x.max()).sum()), abs=2e-7)


@every_table
def test_log_sum_exp_of_masked_and_damaged_logits(isa: str) -> None:
    x = vector(1001)
    x[::3] = -np.inf
    maximum, log_sum = _native.log_sum_exp(isa, x)
    assert maximum == x.max()
    assert log_sum == pytest.approx(np.log(np.exp(x.astype(np.float64) - x.max()).sum()), abs=2e-7)
    for at in (0, 500, 1000):
        y = x.copy()
        y[at] = np.nan
        assert np.isnan(_native.log_sum_exp(isa, y)[0])


@every_table
def test_log_sum_exp_is_the_same_at_any_alignment(isa: str) -> None:
    x = vector(5003, scale=4)
    found = {_native.log_sum_exp(isa, np.concatenate([np.zeros(k, np.float32), x])[k:]) for k in range(17)}
    assert len(found) == 1


def test_sizes_that_differ_are_refused() -> None:
    x = vector(8)
    for call in (
        lambda: _native.rms_norm("portable", x, x[:7], 0.0),
        lambda: _native.rope("portable", x, x[:3], x[:4], False),
        lambda: _native.rope("portable", x[:7], x[:3], x[:3], True),
        lambda: _native.silu_mul("portable", x, x[:7]),
        lambda: _native.scale_add("portable", x, 1.0, x[:7]),
    ):
        with pytest.raises(ValueError, match=r"differ in size|one angle for each pair"):
            call()
