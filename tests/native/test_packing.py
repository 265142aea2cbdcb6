"""Packed panels give every row back bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from qafila.native import _native
from qafila.quant import DType, codec

#: In the order of the native `WeightType`.
TYPES = [
    DType.F32, DType.F16, DType.BF16, DType.Q8_0, DType.Q4_0, DType.Q4_1, DType.Q4_K, DType.Q5_K, DType.Q6_K,
]  # fmt: skip
COLUMNS = {DType.F32: 7, DType.F16: 33, DType.BF16: 7}


def raw_rows(dtype: DType, rows: int, columns: int) -> np.ndarray:
    """Every bit pattern is a valid block; scales may be infinite or NaN."""
    rng = np.random.default_rng(rows * 1000 + columns)
    return rng.integers(0, 256, (rows, dtype.nbytes((columns,))), dtype=np.uint8)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
def test_unpacked_rows_equal_dequantised_ones(dtype: DType, rows: int) -> None:
    columns = COLUMNS.get(dtype, 512)
    data = raw_rows(dtype, rows, columns)
    panels = _native.pack(TYPES.index(dtype), data.reshape(-1), rows, columns)
    expected = codec.dequantise(dtype, data)
    for row in range(rows):
        found = _native.unpack_row(TYPES.index(dtype), panels, columns, row)
        np.testing.assert_array_equal(found.view(np.uint32), expected[row].view(np.uint32))


@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.name)
def test_the_last_panel_is_filled_up_with_zeros(dtype: DType) -> None:
    columns = COLUMNS.get(dtype, 256)
    data = raw_rows(dtype, 3, columns)
    panels = _native.pack(TYPES.index(dtype), data.reshape(-1), 3, columns)
    for row in range(3, 16):
        assert not _native.unpack_row(TYPES.index(dtype), panels, columns, row).any()


def test_panels_are_what_the_header_describes() -> None:
    """Q4_0, byte by byte from the text; Q8_0's offset; BF16's pairs."""
    data = raw_rows(DType.Q4_0, 16, 64)
    panels = _native.pack(TYPES.index(DType.Q4_0), data.reshape(-1), 16, 64)
    weights = data.reshape(16, 2, 18)
    for block in range(2):
        here = panels[block * 288 : (block + 1) * 288]
        np.testing.assert_array_equal(here[:32].reshape(16, 2), weights[:, block, :2])
        q = here[32:].reshape(4, 16, 4)
        for g in range(4):
            np.testing.assert_array_equal(q[g], weights[:, block, 2 + 4 * g : 6 + 4 * g])
    data = raw_rows(DType.Q8_0, 16, 32)
    panels = _native.pack(TYPES.index(DType.Q8_0), data.reshape(-1), 16, 32)
    np.testing.assert_array_equal(panels[32:36].view(np.int8), (data[0, 2:6] ^ 128).view(np.int8))
    data = raw_rows(DType.BF16, 2, 3)
    panels = _native.pack(TYPES.index(DType.BF16), data.reshape(-1), 2, 3).view(np.uint16).reshape(2, 16, 2)
    np.testing.assert_array_equal(panels[0, 1], data[1].view(np.uint16)[:2])
    np.testing.assert_array_equal(panels[1, 1], [data[1].view(np.uint16)[2], 0])


def test_sizes_that_do_not_fit_are_refused() -> None:
    q4_0 = TYPES.index(DType.Q4_0)
    with pytest.raises(ValueError, match="no weight type has the number 9"):
        _native.pack(9, np.zeros(18, np.uint8), 1, 32)
    with pytest.raises(ValueError, match="33 columns are not whole blocks of 32"):
        _native.pack(q4_0, np.zeros(18, np.uint8), 1, 33)
    for size, rows in ((17, 1), (36, 1), (18, 2), (18, 0), (0, 1)):
        with pytest.raises(ValueError, match="bytes are not"):
            _native.pack(q4_0, np.zeros(size, np.uint8), rows, 32)
    panels = _native.pack(q4_0, np.zeros(18, np.uint8), 1, 32)
    with pytest.raises(ValueError, match="there is no row 16"):
        _native.unpack_row(q4_0, panels, 32, 16)
    with pytest.raises(ValueError, match="not whole panels"):
        _native.unpack_row(q4_0, panels[1:].copy(), 32, 0)
