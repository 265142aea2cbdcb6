"""The native module itself: sizes are checked before memory is touched, and threads change no bit."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from qafila.native import _native
from qafila.quant import DType, blocks

GUARD = 64


def guarded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy with canaries on both sides: the whole, and the view to write to."""
    whole = np.full(values.size + 2 * GUARD, 77, dtype=values.dtype)
    return whole, whole[GUARD:-GUARD]


@pytest.mark.parametrize("dtype", blocks.READERS, ids=lambda d: d.name)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_no_bit_and_write_nothing_outside(dtype: DType, threads: int) -> None:
    rng = np.random.default_rng(threads)
    count = (1 << 20) // dtype.block_size + 3
    data = rng.integers(0, 256, count * dtype.block_bytes, dtype=np.uint8)
    alone = np.empty(count * dtype.block_size, dtype=np.float32)
    _native.dequantise(dtype.ggml_type, data, alone, 1)
    whole, out = guarded(alone)
    _native.dequantise(dtype.ggml_type, data, out, threads)
    np.testing.assert_array_equal(out.view(np.uint32), alone.view(np.uint32))
    assert (whole[:GUARD] == 77).all()
    assert (whole[-GUARD:] == 77).all()


@pytest.mark.parametrize("dtype", blocks.WRITERS, ids=lambda d: d.name)
@pytest.mark.parametrize("threads", [2, 5])
def test_writing_with_threads_changes_no_bit(dtype: DType, threads: int) -> None:
    count = ((1 << 16) if dtype is DType.Q4_K else (1 << 20)) // dtype.block_size + 3
    values = np.random.default_rng(threads).standard_normal(count * dtype.block_size).astype(np.float32)
    alone = np.empty(count * dtype.block_bytes, dtype=np.uint8)
    _native.quantise(dtype.ggml_type, values, alone, 1)
    whole, out = guarded(alone)
    _native.quantise(dtype.ggml_type, values, out, threads)
    np.testing.assert_array_equal(out, alone)
    assert (whole[:GUARD] == 77).all()
    assert (whole[-GUARD:] == 77).all()


@pytest.mark.parametrize("dtype", [DType.Q8_0, DType.Q4_K], ids=lambda d: d.name)
@pytest.mark.parametrize("where", [0, 123_456, -1])
def test_one_bad_value_in_any_thread_is_seen(dtype: DType, where: int) -> None:
    values = np.ones(1 << 19, dtype=np.float32)
    values[where] = np.nan
    out = np.empty(dtype.nbytes(values.shape), dtype=np.uint8)
    with pytest.raises(ValueError, match=f"not finite, or too large for {dtype.name}"):
        _native.quantise(dtype.ggml_type, values, out, 4)


@pytest.mark.parametrize(
    ("data_bytes", "elements"), [(18, 33), (18, 31), (18, 0), (17, 32), (19, 32), (0, 32), (36, 32), (18, 64)]
)
def test_sizes_that_do_not_fit_are_refused_untouched(data_bytes: int, elements: int) -> None:
    data, out = np.zeros(data_bytes, dtype=np.uint8), np.full(elements, 5, dtype=np.float32)
    with pytest.raises(ValueError, match="not the same number of whole blocks"):
        _native.dequantise(DType.Q4_0.ggml_type, data, out)
    assert (out == 5).all()
    blocks_out = np.full(data_bytes, 5, dtype=np.uint8)
    with pytest.raises(ValueError, match="not the same number of whole blocks"):
        _native.quantise(DType.Q4_0.ggml_type, np.zeros(elements, dtype=np.float32), blocks_out)
    assert (blocks_out == 5).all()


def test_unknown_types_and_overlap_are_refused() -> None:
    data, out = np.zeros(18, dtype=np.uint8), np.zeros(32, dtype=np.float32)
    for number in (-1, 4, 5, 9, 24, 26, 1000):
        with pytest.raises(ValueError, match=f"no weight type has the number {number}"):
            _native.dequantise(number, data, out)
    with pytest.raises(ValueError, match="Q5_K cannot be written"):
        _native.quantise(DType.Q5_K.ggml_type, np.zeros(256, dtype=np.float32), np.zeros(176, dtype=np.uint8))
    shared = np.zeros(200, dtype=np.uint8)
    with pytest.raises(ValueError, match="overlap"):
        _native.dequantise(DType.Q4_0.ggml_type, shared[100:118], shared[0:128].view(np.float32))


def test_arrays_of_another_kind_are_refused() -> None:
    number = DType.Q4_0.ggml_type
    data, out = np.zeros(36, dtype=np.uint8), np.zeros(32, dtype=np.float32)
    frozen = np.zeros(32, dtype=np.float32)
    frozen.flags.writeable = False
    for wrong_data, wrong_out in (
        (data.astype(np.int8)[:18], out),
        (data[::2], out),
        (data[:18].reshape(2, 9), out),
        (data[:18], out.astype(np.float64)),
        (data[:18], frozen),
        (data[:18], np.zeros(64, dtype=np.float32)[::2]),
        (None, out),
    ):
        with pytest.raises(TypeError):
            _native.dequantise(number, wrong_data, wrong_out)


def test_empty_runs_are_fine() -> None:
    for dtype in blocks.READERS:
        _native.dequantise(dtype.ggml_type, np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.float32), 3)


def test_the_interpreter_runs_on_meanwhile() -> None:
    """Two Python threads convert at once and both get their own result."""
    inputs = [np.random.default_rng(seed).integers(0, 200, 18 << 14, dtype=np.uint8) for seed in (0, 1)]
    outputs = [np.empty(32 << 14, dtype=np.float32) for _ in inputs]
    workers = [
        threading.Thread(target=_native.dequantise, args=(DType.Q4_0.ggml_type, data, out, 2))
        for data, out in zip(inputs, outputs, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for data, out in zip(inputs, outputs, strict=True):
        expected = blocks.dequantise(DType.Q4_0, data)
        np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))
