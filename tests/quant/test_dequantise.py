"""Block formats read as the gguf package reads them, bit for bit, by the NumPy oracle and by the native twin."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as gguf_dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila import quant
from qafila.errors import ConfigError
from qafila.quant import DType, blocks

READABLE = tuple(blocks.READERS)
BLOCK_TYPES = tuple(dtype for dtype in READABLE if dtype.quantised)
# Where the float16 scales of a block are, in bytes from its start.
SCALES = {
    DType.Q4_0: (0,), DType.Q4_1: (0, 2), DType.Q5_0: (0,), DType.Q5_1: (0, 2), DType.Q8_0: (0,), DType.IQ4_NL: (0,),
    DType.Q2_K: (80, 82), DType.Q3_K: (108,), DType.Q4_K: (0, 2), DType.Q5_K: (0, 2), DType.Q6_K: (208,),
}  # fmt: skip
# Zero, subnormals, one, the largest, and all of them negative.
FINITE_HALVES = (0x0000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x8000, 0x8001, 0x83FF, 0xBC00, 0xFBFF)
SPECIAL_HALVES = (0x7C00, 0xFC00, 0x7E00, 0xFE00, 0x7C01, 0xFFFF)


def random_rows(dtype: DType, rows: int, blocks_per_row: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, blocks_per_row * dtype.block_bytes), dtype=np.uint8)


def with_scales(dtype: DType, halves: tuple[int, ...], seed: int) -> np.ndarray:
    """Random blocks with every combination of the given scales; all-zero and all-ones integers come first."""
    places = SCALES[dtype]
    grid = np.stack(np.meshgrid(*[np.array(halves, "<u2")] * len(places), indexing="ij"), -1).reshape(-1, len(places))
    variants = []
    for filling in (0x00, 0xFF, None):
        data = random_rows(dtype, len(grid), 1, seed)
        if filling is not None:
            data[:] = filling
        for column, place in enumerate(places):
            data[:, place : place + 2] = grid[:, column : column + 1].copy().view(np.uint8)
        variants.append(data)
    return np.concatenate(variants)


def oracle(dtype: DType, data: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf_dequantize(data, gguf.GGMLQuantizationType(dtype.ggml_type))


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal bits, except that any NaN equals any other."""
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    np.testing.assert_array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))


@pytest.mark.parametrize("dtype", [d for d in READABLE if d is not DType.F64], ids=lambda d: d.name)
@pytest.mark.parametrize("read", [blocks.dequantise, quant.dequantise], ids=["numpy", "native"])
def test_random_bytes_read_as_gguf_reads_them(read, dtype: DType) -> None:
    data = random_rows(dtype, 37, 11, seed=dtype.ggml_type)
    assert_same(read(dtype, data), oracle(dtype, data))


@pytest.mark.parametrize("dtype", BLOCK_TYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("read", [blocks.dequantise, quant.dequantise], ids=["numpy", "native"])
def test_extreme_scales_read_as_gguf_reads_them(read, dtype: DType) -> None:
    data = with_scales(dtype, FINITE_HALVES + SPECIAL_HALVES, seed=1)
    assert_same(read(dtype, data), oracle(dtype, data))
    assert np.isfinite(read(dtype, with_scales(dtype, FINITE_HALVES, seed=2))).all()


@pytest.mark.parametrize("dtype", READABLE, ids=lambda d: d.name)
def test_native_and_numpy_give_the_same_bits(dtype: DType) -> None:
    data = random_rows(dtype, 64, 33, seed=7)
    if dtype.quantised:
        special = with_scales(dtype, FINITE_HALVES + SPECIAL_HALVES, seed=3)
        data = np.concatenate([data.reshape(-1, dtype.block_bytes), special])
    ours, theirs = quant.dequantise(dtype, data), blocks.dequantise(dtype, data)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("dtype", BLOCK_TYPES, ids=lambda d: d.name)
def test_nan_of_a_block_is_always_the_same_nan(dtype: DType) -> None:
    values = quant.dequantise(dtype, with_scales(dtype, SPECIAL_HALVES, seed=4))
    nan = values[np.isnan(values)]
    assert nan.size > 0
    assert set(nan.view(np.uint32).tolist()) == {0x7FC00000}


def test_float64_rounds_to_nearest_even() -> None:
    tie_to_even = 1 + 2.0**-24
    doubles = np.array([[0.1, -0.0, 1e300, -1e300, 1e-50, np.nan, np.inf, 1 / 3, tie_to_even]])
    expected = np.array([[0.1, -0.0, np.inf, -np.inf, 0, np.nan, np.inf, 1 / 3, 1]], dtype=np.float32)
    for read in (blocks.dequantise, quant.dequantise):
        np.testing.assert_array_equal(read(DType.F64, doubles.view(np.uint8)), expected)


@pytest.mark.parametrize("dtype", READABLE, ids=lambda d: d.name)
@pytest.mark.parametrize("read", [blocks.dequantise, quant.dequantise], ids=["numpy", "native"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 2), (0, 5), (2, 3, 4)])
def test_shape_is_rows_of_elements(read, dtype: DType, shape: tuple[int, ...]) -> None:
    data = np.zeros((*shape, 2 * dtype.block_bytes), dtype=np.uint8)
    values = read(dtype, data)
    assert values.shape == (*shape, 2 * dtype.block_size)
    assert values.dtype == np.float32
    empty_rows = np.zeros((*shape, 0), dtype=np.uint8)
    assert read(dtype, empty_rows).shape == (*shape, 0)


@pytest.mark.parametrize("read", [blocks.dequantise, quant.dequantise], ids=["numpy", "native"])
def test_views_and_read_only_memory_are_read(read) -> None:
    data = random_rows(DType.Q4_1, 8, 4, seed=5)
    expected = read(DType.Q4_1, data)
    np.testing.assert_array_equal(read(DType.Q4_1, data[::2]), expected[::2])
    frozen = np.frombuffer(b"x" + data.tobytes(), dtype=np.uint8)[1:]  # read-only and not aligned
    np.testing.assert_array_equal(read(DType.Q4_1, frozen), expected.reshape(-1))


@pytest.mark.parametrize("read", [blocks.dequantise, quant.dequantise], ids=["numpy", "native"])
def test_what_cannot_be_read_is_named(read) -> None:
    with pytest.raises(ConfigError, match=r"I32 is not a type of weights.*Q6_K"):
        read(DType.I32, np.zeros(4, dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"rows of 19 bytes are no whole Q4_0 blocks of 18"):
        read(DType.Q4_0, np.zeros(19, dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"not float32 of shape \(18,\)"):
        read(DType.Q4_0, np.zeros(18, dtype=np.float32))
    with pytest.raises(ConfigError, match=r"of shape \(\)"):
        read(DType.F32, np.zeros((), dtype=np.uint8))


@settings(max_examples=150, deadline=None)
@given(dtype=st.sampled_from(list(DType)), data=st.binary(max_size=700))
def test_any_bytes_give_values_or_one_error(dtype: DType, data: bytes) -> None:
    array = np.frombuffer(data, dtype=np.uint8)
    try:
        ours = quant.dequantise(dtype, array)
    except ConfigError:
        with pytest.raises(ConfigError):
            blocks.dequantise(dtype, array)
        return
    theirs = blocks.dequantise(dtype, array)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))
