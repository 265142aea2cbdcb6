"""Every instruction set's products, against float64 and against themselves in other company."""

from __future__ import annotations

import numpy as np
import pytest

from qafila.native import _native
from qafila.quant import DType, codec

#: In the order of the native `WeightType`.
TYPES = [
    DType.F32, DType.F16, DType.BF16, DType.Q8_0, DType.Q4_0, DType.Q4_1, DType.Q4_K, DType.Q5_K, DType.Q6_K,
]  # fmt: skip
SETS = _native.instruction_sets()
#: Where the halves of random blocks lie; other bytes may be anything.
SCALES = {DType.Q5_K: (0, 2), DType.Q6_K: (208,)}

every_table = pytest.mark.parametrize("isa", SETS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.name)


def matrix(dtype: DType, rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random weights: panels, and float32 ``[rows, columns]``."""
    rng = np.random.default_rng([seed, rows, columns])
    if dtype in SCALES:
        units = rng.integers(0, 256, (rows, columns // dtype.block_size, dtype.block_bytes), dtype=np.uint8)
        for at in SCALES[dtype]:
            halves = (rng.standard_normal(units.shape[:2]) / 64).astype(np.float16)
            units[..., at : at + 2] = halves[..., None].view(np.uint8)
        data = units.reshape(rows, -1)
    else:
        data = codec.quantise(dtype, rng.standard_normal((rows, columns)).astype(np.float32))
    return _native.pack(TYPES.index(dtype), data.reshape(-1), rows, columns), codec.dequantise(dtype, data)


def tokens(count: int, columns: int, seed: int = 1) -> np.ndarray:
    """Activations of very different sizes, with outliers and a block of zeros."""
    rng = np.random.default_rng([seed, count, columns])
    x = rng.standard_normal((count, columns)) * np.exp(3 * rng.standard_normal((count, 1)))
    x[rng.random(x.shape) < 0.01] *= 30
    x[count // 2, :32] = 0
    return x.astype(np.float32)


def seen(dtype: DType, x: np.ndarray) -> np.ndarray:
    """Activations as a weight type meets them, float64."""
    if dtype is DType.BF16:
        return codec.dequantise(dtype, codec.quantise(dtype, x)).astype(np.float64)
    if not dtype.quantised:
        return x.astype(np.float64)
    groups = x.reshape(len(x), -1, 32)
    step = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    quants = np.rint(groups / np.where(step == 0, np.float32(1), step))
    return (quants.astype(np.float64) * step).reshape(x.shape)


def product(isa: str, dtype: DType, panels: np.ndarray, rows: int, x: np.ndarray, **ranges: int) -> np.ndarray:
    """What the table gives."""
    return _native.product(isa, TYPES.index(dtype), panels, rows, x, **ranges)


@every_table
@every_type
@pytest.mark.parametrize("rows", [1, 16, 40])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 17, 33])
def test_products_equal_float64(isa: str, dtype: DType, rows: int, count: int) -> None:
    columns = 512 if dtype.quantised else 203
    panels, weights = matrix(dtype, rows, columns)
    x = tokens(count, columns)
    found = product(isa, dtype, panels, rows, x)
    exact = seen(dtype, x) @ weights.T.astype(np.float64)
    size = np.abs(seen(dtype, x)) @ np.abs(weights.T).astype(np.float64)
    assert (np.abs(found - exact) <= 3e-6 * size).all(), np.max(np.abs(found - exact) / size)


@every_table
@every_type
def test_a_token_is_the_same_in_any_company(isa: str, dtype: DType) -> None:
    """Alone, in batches of any size, in any range of tokens and panels: the same bits."""
    rows, columns = 70, 768 if dtype.quantised else 333
    panels, _ = matrix(dtype, rows, columns)
    x = tokens(37, columns)
    together = product(isa, dtype, panels, rows, x)
    for count in (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 15, 16, 17, 31, 32, 36):
        part = product(isa, dtype, panels, rows, x[:count])
        np.testing.assert_array_equal(part.view(np.uint32), together[:count].view(np.uint32))
    for begin, end in ((0, 1), (36, 37), (5, 22), (1, 37), (3, 19), (7, 7)):
        part = product(isa, dtype, panels, rows, x, token_begin=begin, token_end=end)
        np.testing.assert_array_equal(part[begin:end].view(np.uint32), together[begin:end].view(np.uint32))
        assert not part[:begin].any()
        assert not part[end:].any()
    for begin, end in ((0, 1), (1, 3), (4, 5), (2, 2)):
        part = product(isa, dtype, panels, rows, x, panel_begin=begin, panel_end=end)
        here = slice(16 * begin, min(16 * end, rows))
        np.testing.assert_array_equal(part[:, here].view(np.uint32), together[:, here].view(np.uint32))
        assert not part[:, : 16 * begin].any()
        assert not part[:, 16 * end :].any()


@every_table
@every_type
def test_extreme_weights_and_activations_are_exact(isa: str, dtype: DType) -> None:
    """All quants at their limits, where a 16-bit intermediate would saturate: d is 1, so sums are whole numbers."""
    columns, rows = 256, 32
    one = np.ones(1, np.float16).view(np.uint8)
    for fill in (0x00, 0xFF, 0x80, 0x7F):
        if dtype.quantised:
            units = np.full((rows, columns // dtype.block_size, dtype.block_bytes), fill, dtype=np.uint8)
            for at in {DType.Q6_K: (208,), DType.Q4_0: (0,), DType.Q8_0: (0,)}.get(dtype, (0, 2)):
                units[..., at : at + 2] = one
            data = units.reshape(rows, -1)
        else:
            data = codec.quantise(dtype, np.full((rows, columns), float(fill), np.float32))
        weights = codec.dequantise(dtype, data).astype(np.float64)
        panels = _native.pack(TYPES.index(dtype), data.reshape(-1), rows, columns)
        for pattern in ([127], [-127], [127, -127], [127, 127, -127, -127], [127, -127, -127, 127]):
            x = np.resize(np.array(pattern, np.float32), (3, columns))
            found = product(isa, dtype, panels, rows, x)
            np.testing.assert_allclose(found, x @ weights.T, rtol=2e-6, atol=2e-6 * np.abs(weights).sum(1).max() * 127)


@every_table
@every_type
def test_activations_that_are_no_numbers_reach_the_result(isa: str, dtype: DType) -> None:
    panels, weights = matrix(dtype, 16, 256)
    assert (weights != 0).any(1).all()
    for bad in (np.nan, np.inf, -np.inf):
        x = tokens(3, 256)
        x[1, 100] = bad
        found = product(isa, dtype, panels, 16, x)
        assert np.isfinite(found[[0, 2]]).all()
        assert not np.isfinite(found[1]).any()


@every_table
def test_quantised_activations_are_the_same_in_every_table(isa: str) -> None:
    x = np.concatenate([tokens(9, 256), np.float32(0.5) * np.arange(-128, 128, dtype=np.float32)[None]])
    x[3, :32] = 1e-44  # the step would be subnormal: zeros
    x[4, 40] = 3e38
    x[5, 5], x[6, 250] = np.nan, np.inf
    found = _native.quantise_activations(isa, x)
    portable = _native.quantise_activations("portable", x)
    for name, values in portable.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    groups = x.reshape(len(x), 8, 32).transpose(1, 0, 2)
    good = np.isfinite(groups).all(-1)
    step = np.where(good, np.abs(groups).max(-1) / np.float32(127), np.float32(0))
    step[step < np.finfo(np.float32).tiny] = 0
    safe = np.where(step == 0, np.inf, step).astype(np.float32)[..., None]
    quants = np.where(good[..., None], np.rint(np.where(good[..., None], groups, 0) / safe), 0).astype(np.int32)
    np.testing.assert_array_equal(found["quants"], quants)
    np.testing.assert_array_equal(found["scales"][good], step[good])
    assert not np.isfinite(found["scales"][~good]).any()
    np.testing.assert_array_equal(found["sums"], quants.sum(-1))
    np.testing.assert_array_equal(found["half_sums"], quants.reshape(8, len(x), 2, 16).sum(-1))
    np.testing.assert_array_equal(found["scaled_sums"][good], step[good] * quants.sum(-1)[good].astype(np.float32))
    words = codec.quantise(DType.BF16, x).view(np.uint16)
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(found["rounded"][numbers], words[numbers])
    assert ((found["rounded"][~numbers] & 0x7FFF) > 0x7F80).all()


def test_what_does_not_fit_is_refused() -> None:
    panels, _ = matrix(DType.Q4_0, 40, 64)
    x = tokens(2, 64)
    number = TYPES.index(DType.Q4_0)
    with pytest.raises(ValueError, match="no instruction set sse9 runs here"):
        _native.product("sse9", number, panels, 40, x)
    with pytest.raises(ValueError, match="48 columns are not whole blocks"):
        _native.product("portable", number, panels, 40, tokens(2, 48))
    for rows in (32, 49):
        with pytest.raises(ValueError, match="do not fill these panels"):
            _native.product("portable", number, panels, rows, x)
    for ranges in ({"token_end": 3}, {"token_begin": 2, "token_end": 1}, {"panel_end": 4}, {"panel_begin": 4}):
        with pytest.raises(ValueError, match="no such range"):
            _native.product("portable", number, panels, 40, x, **ranges)
    with pytest.raises(ValueError, match="not whole panels"):
        _native.product("portable", number, panels[1:].copy(), 40, x)
