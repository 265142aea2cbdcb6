"""Matrices large enough for the ways of reading that small ones never take: several streams, chunks of tokens."""

from __future__ import annotations

import numpy as np
import pytest

from qafila.native import _native
from qafila.quant import DType

#: Numbers of the native `WeightType`, and bytes of one panel of 16 rows a column.
TYPES = {
    DType.F32: (0, 64), DType.F16: (1, 32), DType.BF16: (2, 32), DType.Q8_0: (3, 17), DType.Q4_0: (4, 9),
    DType.Q4_1: (5, 10), DType.Q4_K: (6, 9.25), DType.Q5_K: (7, 11.25), DType.Q6_K: (8, 13.125),
}  # fmt: skip
COLUMNS = 2048
ROWS = 16 * 23  # not a multiple of four panels

every_table = pytest.mark.parametrize("isa", _native.instruction_sets())
every_type = pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.name)


def random_panels(dtype: DType) -> np.ndarray:
    """Bytes below 0x3C everywhere: whatever they stand for, no scale or plain value is large, infinite or NaN."""
    size = int(TYPES[dtype][1] * COLUMNS) * ROWS // 16
    return np.random.default_rng(0).integers(0, 0x3C, size, dtype=np.uint8)


@every_table
@every_type
def test_few_tokens_get_what_many_get(isa: str, dtype: DType) -> None:
    """One to eight tokens, and 300 (more than stay in a cache at once), in any range of panels: the same bits."""
    panels = random_panels(dtype)
    assert panels.size > 4 * 40 * 1024
    few = 40 if isa == "portable" else 300  # which is slow, and has one way only
    x = np.random.default_rng(1).standard_normal((few, COLUMNS)).astype(np.float32)
    together = _native.product(isa, TYPES[dtype][0], panels, ROWS, x)
    assert np.isfinite(together).all()
    assert together.any(axis=0).all()
    for count in range(1, 9):
        part = _native.product(isa, TYPES[dtype][0], panels, ROWS, x[:count])
        np.testing.assert_array_equal(part.view(np.uint32), together[:count].view(np.uint32))
    for begin, end in ((0, 20), (1, 23), (2, 21), (5, 6)):
        part = _native.product(isa, TYPES[dtype][0], panels, ROWS, x[:1], panel_begin=begin, panel_end=end)
        here = slice(16 * begin, 16 * end)
        np.testing.assert_array_equal(part[:, here].view(np.uint32), together[:1, here].view(np.uint32))
        assert not part[:, : 16 * begin].any()
        assert not part[:, 16 * end :].any()
