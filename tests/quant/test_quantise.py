"""Writing blocks: bit for bit what the gguf package writes, and clear errors for what a type cannot hold."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qafila import quant
from qafila.errors import ConfigError
from qafila.quant import DType, blocks

WRITABLE = tuple(blocks.WRITERS)
LEGACY = (DType.Q8_0, DType.Q4_0, DType.Q4_1)
BLOCK_TYPES = (*LEGACY, DType.Q4_K)
WRITERS = pytest.mark.parametrize("write", [blocks.quantise, quant.quantise], ids=["numpy", "native"])


def weights(seed: int, rows: int = 40, columns: int = 1024) -> np.ndarray:
    """Rows of very different size and shape, with ties, constants, zeros of both signs and lone outliers."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, columns)) * np.exp(rng.normal(0, 2.5, (rows, 1)))
    values[1] = 0.0
    values[2] = -0.0
    values[3] = 0.37
    values[4] = -0.37
    values[5] = np.abs(values[5])
    values[6] = -np.abs(values[6])
    values[7] = rng.integers(-4, 5, columns) + 0.5
    values[8] = rng.choice([-3.0, 3.0], columns)
    values[9, ::97] = 4000.0
    values[10] *= 1e-9
    values[11] *= 1e-30
    values[12, 1:] = 0.0
    return values.astype(np.float32)


@WRITERS
@pytest.mark.parametrize("dtype", [*LEGACY, DType.F32, DType.F16, DType.BF16], ids=lambda d: d.name)
def test_bytes_equal_those_of_gguf(write, dtype: DType) -> None:
    values = weights(seed=1)
    with np.errstate(all="ignore"):
        expected = gguf_quantize(values, gguf.GGMLQuantizationType(dtype.ggml_type)).view(np.uint8)
    np.testing.assert_array_equal(write(dtype, values), expected)


@pytest.mark.parametrize("dtype", BLOCK_TYPES, ids=lambda d: d.name)
def test_native_and_numpy_give_the_same_bits(dtype: DType) -> None:
    rng = np.random.default_rng(2)
    mixed_zeros = np.where(rng.random((8, 1024)) < 0.5, 0.0, -0.0)
    sparse = np.where(rng.random((8, 1024)) < 0.9, mixed_zeros, np.abs(rng.standard_normal((8, 1024))))
    wide = rng.standard_normal((8, 1024)) * np.exp(np.minimum(rng.normal(0, 4, (8, 1024)), 9))
    tiny = rng.integers(-50, 50, (8, 1024)) * 1e-44  # subnormal
    small = rng.standard_normal((16, 1024)) * 10.0 ** rng.integers(-30, -4, (16, 1))
    values = np.concatenate([weights(3), mixed_zeros, sparse, wide, tiny, small]).astype(np.float32)
    np.testing.assert_array_equal(quant.quantise(dtype, values), blocks.quantise(dtype, values))


@pytest.mark.parametrize("dtype", BLOCK_TYPES, ids=lambda d: d.name)
def test_the_error_is_within_half_a_step(dtype: DType) -> None:
    values = np.random.default_rng(4).uniform(-1, 1, (64, 1024)).astype(np.float32)
    error = np.abs(quant.dequantise(dtype, quant.quantise(dtype, values)) - values).max()
    steps = {DType.Q8_0: 127, DType.Q4_0: 8, DType.Q4_1: 7.5, DType.Q4_K: 7.5}
    # The scale's own rounding comes on top. Q4_0 has no +8, so its last value may be off by a whole step; Q4_K clips
    # the ends of a range where that makes the rest better.
    slack = {DType.Q8_0: 1.1, DType.Q4_0: 2.02, DType.Q4_1: 1.02, DType.Q4_K: 2.0}
    assert error <= slack[dtype] * 0.5 / steps[dtype]


@WRITERS
@pytest.mark.parametrize("dtype", BLOCK_TYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_values_that_a_block_cannot_hold_are_refused(write, dtype: DType, bad: float) -> None:
    values = np.ones((3, 512), dtype=np.float32)
    values[1, 300] = bad
    with pytest.raises(ConfigError, match=f"{dtype.name} cannot hold NaN, infinity or weights so large"):
        write(dtype, values)


@WRITERS
def test_the_largest_weights_of_each_type(write) -> None:
    limits = {DType.Q8_0: 65504.0 * 127, DType.Q4_0: 65504.0 * 8, DType.Q4_1: 65504.0 * 15, DType.Q4_K: 65504.0 * 945}
    for dtype, limit in limits.items():
        values = np.zeros(256, dtype=np.float32)
        values[5] = limit
        back = quant.dequantise(dtype, write(dtype, values))
        assert back[5] == pytest.approx(limit, rel=1e-3)
        values[5] = 1.01 * limit
        with pytest.raises(ConfigError):
            write(dtype, values)


@WRITERS
def test_what_cannot_be_written_is_named_with_what_can(write) -> None:
    for dtype in set(DType) - set(WRITABLE):
        with pytest.raises(ConfigError) as error:
            write(dtype, np.zeros(256, dtype=np.float32))
        assert str(error.value) == f"{dtype.name} cannot be written; what can: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K"
    with pytest.raises(ConfigError, match=r"rows of 33 do not divide into Q8_0 blocks of 32"):
        write(DType.Q8_0, np.zeros((2, 33), dtype=np.float32))
    with pytest.raises(ConfigError, match=r"float32 rows, not float64"):
        write(DType.Q8_0, np.zeros(32))
    with pytest.raises(ConfigError, match=r"of shape \(\)"):
        write(DType.F16, np.zeros((), dtype=np.float32))


@WRITERS
@pytest.mark.parametrize("dtype", WRITABLE, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_shape_is_rows_of_bytes(write, dtype: DType, shape: tuple[int, ...]) -> None:
    data = write(dtype, np.ones((*shape, 512), dtype=np.float32))
    assert data.dtype == np.uint8
    assert data.shape == (*shape, dtype.nbytes((512,)))
    np.testing.assert_allclose(quant.dequantise(dtype, data), 1.0, rtol=1e-3)


@WRITERS
def test_views_are_written_as_they_look(write) -> None:
    values = weights(5)
    np.testing.assert_array_equal(write(DType.Q8_0, values[::2, 32:96]), write(DType.Q8_0, values[::2, 32:96].copy()))
    np.testing.assert_array_equal(write(DType.BF16, values.T), write(DType.BF16, values.T.copy()))


@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from(BLOCK_TYPES),
    values=hnp.arrays(np.uint32, 256, elements=st.integers(0, 2**32 - 1), fill=st.nothing()),
    keep=st.integers(0, 31),
)
def test_any_bit_patterns_give_blocks_or_one_error(dtype: DType, values: np.ndarray, keep: int) -> None:
    # Fewer exponent bits make finite blocks likely.
    patterns = (values & ~np.uint32(0x7F800000 & (0x7F800000 << keep))).view(np.float32)
    try:
        ours = quant.quantise(dtype, patterns)
    except ConfigError:
        with pytest.raises(ConfigError):
            blocks.quantise(dtype, patterns)
        return
    np.testing.assert_array_equal(ours, blocks.quantise(dtype, patterns))
    assert np.isfinite(quant.dequantise(dtype, ours)).all()
