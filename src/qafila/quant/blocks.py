"""Weights of every type to and from float32, with NumPy alone: readable first, and the oracle of ``native/``.

The fast road is :func:`qafila.quant.dequantise` and :func:`qafila.quant.quantise`; they give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from qafila.errors import ConfigError
from qafila.quant import floats, k_blocks, legacy_blocks
from qafila.quant.dtypes import DType
from qafila.quant.floats import Bytes, Floats
from qafila.quant.q4_k_search import quantise_q4_k

# Q4_K ends at 15 * 63 * 65504 = 6e7; far beyond that its search would overflow float32.
_Q4_K_LIMIT = np.float32(1e9)

READERS: Mapping[DType, Callable[[Bytes], Floats]] = MappingProxyType(
    {
        DType.F32: lambda data: data.view("<f4"),
        DType.F16: lambda data: floats.float32_from_float16(data.view("<u2")),
        DType.BF16: lambda data: floats.float32_from_bfloat16(data.view("<u2")),
        DType.F64: lambda data: floats.float32_from_float64(data.view("<f8")),
        DType.Q4_0: legacy_blocks.dequantise_q4_0,
        DType.Q4_1: legacy_blocks.dequantise_q4_1,
        DType.Q5_0: legacy_blocks.dequantise_q5_0,
        DType.Q5_1: legacy_blocks.dequantise_q5_1,
        DType.Q8_0: legacy_blocks.dequantise_q8_0,
        DType.IQ4_NL: legacy_blocks.dequantise_iq4_nl,
        DType.Q2_K: k_blocks.dequantise_q2_k,
        DType.Q3_K: k_blocks.dequantise_q3_k,
        DType.Q4_K: k_blocks.dequantise_q4_k,
        DType.Q5_K: k_blocks.dequantise_q5_k,
        DType.Q6_K: k_blocks.dequantise_q6_k,
    }
)

WRITERS: Mapping[DType, Callable[[Floats], Bytes]] = MappingProxyType(
    {
        DType.F32: lambda values: values.astype("<f4").view(np.uint8),
        DType.F16: lambda values: floats.float16_from_float32(values).astype("<u2", copy=False).view(np.uint8),
        DType.BF16: lambda values: floats.bfloat16_from_float32(values).astype("<u2", copy=False).view(np.uint8),
        DType.Q8_0: legacy_blocks.quantise_q8_0,
        DType.Q4_0: legacy_blocks.quantise_q4_0,
        DType.Q4_1: legacy_blocks.quantise_q4_1,
        DType.Q4_K: quantise_q4_k,
    }
)


def checked_bytes(dtype: DType, data: Bytes) -> tuple[int, ...]:
    """The shape that :func:`dequantise` gives for ``data``; refuses what it cannot read."""
    if dtype not in READERS:
        names = ", ".join(known.name for known in READERS)
        raise ConfigError(f"{dtype.name} is not a type of weights; what can be read: {names}")
    if data.dtype != np.uint8 or data.ndim == 0:
        raise ConfigError(f"{dtype.name} blocks come as an array of bytes, not {data.dtype} of shape {data.shape}")
    if data.shape[-1] % dtype.block_bytes:
        raise ConfigError(f"rows of {data.shape[-1]} bytes are no whole {dtype.name} blocks of {dtype.block_bytes}")
    return (*data.shape[:-1], data.shape[-1] // dtype.block_bytes * dtype.block_size)


def checked_values(dtype: DType, values: Floats) -> tuple[int, ...]:
    """The shape that :func:`quantise` gives for ``values``; refuses what it cannot write."""
    if dtype not in WRITERS:
        names = ", ".join(known.name for known in WRITERS)
        raise ConfigError(f"{dtype.name} cannot be written; what can: {names}")
    if values.dtype != np.float32 or values.ndim == 0:
        raise ConfigError(f"{dtype.name} is made from float32 rows, not {values.dtype} of shape {values.shape}")
    if values.shape[-1] % dtype.block_size:
        raise ConfigError(f"rows of {values.shape[-1]} do not divide into {dtype.name} blocks of {dtype.block_size}")
    return (*values.shape[:-1], values.shape[-1] // dtype.block_size * dtype.block_bytes)


def out_of_range(dtype: DType) -> ConfigError:
    """The error for weights that a block type cannot hold."""
    return ConfigError(
        f"{dtype.name} cannot hold NaN, infinity or weights so large that float16 scales overflow; write F32 or BF16"
    )


def dequantise(dtype: DType, data: Bytes) -> Floats:
    """Weights as float32.

    Args:
        dtype: any floating or block type.
        data: ``[..., row bytes]`` little-endian, the row a whole number of blocks.

    Returns:
        ``[..., row elements]``. A block whose scale is infinite or NaN gives infinities and NaN.

    Raises:
        ConfigError: not a type of weights, or rows that are not whole blocks.
    """
    shape = checked_bytes(dtype, data)
    rows = np.ascontiguousarray(data).reshape(-1, dtype.block_bytes)
    with np.errstate(invalid="ignore"):
        values = READERS[dtype](rows)
    if dtype.quantised:
        # Which of two NaN operands survives is up to the processor; blocks give one NaN only.
        values[np.isnan(values)] = np.nan
    return values.astype(np.float32, copy=dtype is DType.F32).reshape(shape)


def quantise(dtype: DType, values: Floats) -> Bytes:
    """Weights in a type that can be written: F32, F16, BF16, Q8_0, Q4_0, Q4_1 or Q4_K.

    Plain types round to nearest even, keep NaN, and give infinity where a value is too large.

    Args:
        dtype: the type to write.
        values: ``[..., n]`` float32, n a whole number of blocks.

    Returns:
        ``[..., row bytes]``, little-endian.

    Raises:
        ConfigError: a type that cannot be written, rows that are not whole blocks, or, for block types, values that
            are not finite or need scales beyond float16.
    """
    shape = checked_values(dtype, values)
    rows = np.ascontiguousarray(values).reshape(-1, dtype.block_size)
    if not dtype.quantised:
        return WRITERS[dtype](rows).reshape(shape)
    limit = _Q4_K_LIMIT if dtype is DType.Q4_K else np.float32(np.inf)
    if not (np.abs(rows) < limit).all():
        raise out_of_range(dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        blocks = WRITERS[dtype](rows)
    scale_count = 1 if dtype in (DType.Q8_0, DType.Q4_0) else 2
    if not np.isfinite(blocks[:, : 2 * scale_count].view("<f2")).all():
        raise out_of_range(dtype)
    return blocks.reshape(shape)
