"""float16 and bfloat16, exhaustively, against NumPy's own casts, torch and arithmetic that rounds by definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qafila import quant
from qafila.quant import DType, blocks

ALL_WORDS = np.arange(1 << 16, dtype=np.uint16)
READERS = pytest.mark.parametrize("read", [blocks.dequantise, quant.dequantise], ids=["numpy", "native"])
WRITERS = pytest.mark.parametrize("write", [blocks.quantise, quant.quantise], ids=["numpy", "native"])


def near_every_half() -> np.ndarray:
    """float32 at, just below and just above every half and every midpoint between two halves, and random patterns."""
    halves = ALL_WORDS[:0x7C00].view(np.float16).astype(np.float64)
    points = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2, [65519.99, 65520.0, 65536.0, 1e38]])
    exact = points.astype(np.float32)
    around = [exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(np.inf))]
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([*around, patterns, np.array([np.inf, np.nan], dtype=np.float32)])
    return np.concatenate([values, -values])


def canonical(words: np.ndarray, infinity: int) -> np.ndarray:
    """Any NaN as one pattern."""
    return np.where((words & 0x7FFF) > infinity, np.uint16(0x7FFF), words)


@READERS
def test_every_float16_is_exact(read) -> None:
    values = read(DType.F16, ALL_WORDS.view(np.uint8))
    np.testing.assert_array_equal(values, ALL_WORDS.view(np.float16).astype(np.float32))
    zero = values[[0x0000, 0x8000]]
    np.testing.assert_array_equal(np.signbit(zero), [False, True])


@WRITERS
def test_float16_rounds_as_numpy_does(write) -> None:
    values = near_every_half()
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    words = write(DType.F16, values).view(np.uint16)
    np.testing.assert_array_equal(canonical(words, 0x7C00), canonical(expected, 0x7C00))


@READERS
def test_every_bfloat16_is_exact(read) -> None:
    values = read(DType.BF16, ALL_WORDS.view(np.uint8))
    np.testing.assert_array_equal(values.view(np.uint32), ALL_WORDS.astype(np.uint32) << 16)


@WRITERS
def test_bfloat16_rounds_as_torch_does(write) -> None:
    values = near_every_half()
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    words = write(DType.BF16, values).view(np.uint16)
    np.testing.assert_array_equal(canonical(words, 0x7F80), canonical(expected, 0x7F80))


@WRITERS
@pytest.mark.parametrize(("dtype", "infinity"), [(DType.F16, 0x7C00), (DType.BF16, 0x7F80)])
def test_nan_stays_nan_with_its_sign(write, dtype: DType, infinity: int) -> None:
    # Payloads whose upper bits are zero would become infinity if they were only cut off.
    patterns = np.array([0x7F800001, 0xFF800001, 0x7FC00000, 0xFFFFFFFF, 0x7F801FFF], dtype=np.uint32)
    words = write(dtype, patterns.view(np.float32)).view(np.uint16)
    assert ((words & 0x7FFF) > infinity).all()
    np.testing.assert_array_equal(words >> 15, patterns >> 31)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32], ids=lambda d: d.name)
def test_native_and_numpy_give_the_same_bits(dtype: DType) -> None:
    values = near_every_half()
    np.testing.assert_array_equal(quant.quantise(dtype, values), blocks.quantise(dtype, values))
    words = np.arange(1 << 16, dtype=np.uint32).astype("<u4" if dtype is DType.F32 else "<u2").view(np.uint8)
    ours, theirs = quant.dequantise(dtype, words), blocks.dequantise(dtype, words)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=lambda d: d.name)
def test_writing_what_was_read_changes_nothing(dtype: DType) -> None:
    infinity = 0x7C00 if dtype is DType.F16 else 0x7F80
    magnitudes = ALL_WORDS & 0x7FFF
    words = ALL_WORDS[magnitudes <= infinity]
    again = quant.quantise(dtype, quant.dequantise(dtype, words.view(np.uint8)))
    np.testing.assert_array_equal(again.view(np.uint16), words)
