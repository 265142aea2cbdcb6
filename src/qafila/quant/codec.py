"""Weights of every type to and from float32, by the native kernels; :mod:`qafila.quant.blocks` gives the same bits."""

from __future__ import annotations

import numpy as np

from qafila.native import _native
from qafila.quant.blocks import checked_bytes, checked_values, out_of_range
from qafila.quant.dtypes import DType
from qafila.quant.floats import Bytes, Floats


def dequantise(dtype: DType, data: Bytes, *, threads: int = 0) -> Floats:
    """Weights as float32.

    Args:
        dtype: any floating or block type.
        data: ``[..., row bytes]`` little-endian, the row a whole number of blocks.
        threads: at most so many; 0 for one a processor. The result does not depend on it.

    Returns:
        ``[..., row elements]``, a new array. A block whose scale is infinite or NaN gives infinities and NaN.

    Raises:
        ConfigError: not a type of weights, or rows that are not whole blocks.
    """
    values = np.empty(checked_bytes(dtype, data), dtype=np.float32)
    _native.dequantise(dtype.ggml_type, np.ascontiguousarray(data).reshape(-1), values.reshape(-1), threads)
    return values


def quantise(dtype: DType, values: Floats, *, threads: int = 0) -> Bytes:
    """Weights in a type that can be written: F32, F16, BF16, Q8_0, Q4_0, Q4_1 or Q4_K.

    Plain types round to nearest even, keep NaN, and give infinity where a value is too large.

    Args:
        dtype: the type to write.
        values: ``[..., n]`` float32, n a whole number of blocks.
        threads: at most so many; 0 for one a processor. The result does not depend on it.

    Returns:
        ``[..., row bytes]``, little-endian, a new array.

    Raises:
        ConfigError: a type that cannot be written, rows that are not whole blocks, or, for block types, values that
            are not finite or need scales beyond float16.
    """
    data = np.empty(checked_values(dtype, values), dtype=np.uint8)
    try:
        _native.quantise(dtype.ggml_type, np.ascontiguousarray(values).reshape(-1), data.reshape(-1), threads)
    except ValueError:
        # Sizes and type have been checked above, so it is the values.
        raise out_of_range(dtype) from None
    return data
