"""Plain floating-point types to and from float32, with NumPy alone: the oracle of ``native/floats.h``.

NaN stays NaN with its sign and upper payload bits, made quiet; everything else follows IEEE 754 round to nearest even,
so that a value too large becomes infinity and a value too small becomes zero. What NumPy itself does with the payload
of a NaN depends on how it was built, hence the explicit bits here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint16]


def float32_from_float16(halves: Words) -> Floats:
    """Half-precision bit patterns (any shape) to float32; exact."""
    values = halves.view(np.float16).astype(np.float32)
    wide = halves.astype(np.uint32)
    sign = (wide & 0x8000) << 16
    nan = sign | 0x7FC00000 | ((wide & 0x3FF) << 13)
    is_nan = (wide & 0x7FFF) > 0x7C00
    return np.where(is_nan, nan, values.view(np.uint32)).view(np.float32)


def float16_from_float32(values: Floats) -> Words:
    """float32 (any shape) to half-precision bit patterns, rounded to nearest even."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        halves = values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    nan = ((bits >> 16) & 0x8000) | 0x7E00 | ((bits >> 13) & 0x3FF)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, nan.astype(np.uint16), halves)


def float32_from_bfloat16(words: Words) -> Floats:
    """bfloat16 bit patterns (any shape) to float32; exact, every bit kept."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def bfloat16_from_float32(values: Floats) -> Words:
    """float32 (any shape) to bfloat16 bit patterns, rounded to nearest even.

    Adding 0x7FFF plus the lowest bit that stays carries into the kept half exactly when rounding goes up.
    """
    bits = values.view(np.uint32)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def float32_from_float64(values: npt.NDArray[np.float64]) -> Floats:
    """float64 (any shape) to float32, rounded to nearest even."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return values.astype(np.float32)
