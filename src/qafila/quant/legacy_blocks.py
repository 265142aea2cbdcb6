"""ggml's blocks of 32 weights (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL), with NumPy alone.

A block holds a float16 scale ``d``, for the ``_1`` types a float16 minimum ``m``, and one small integer q per weight:
the weight is ``d * q`` or ``d * q + m``. Nibbles are stored so that byte i has weight i in its low and weight i + 16
in its high half. Source of the layouts: the block structs of ggml's ``ggml-common.h``.

Every function here takes or gives blocks as rows: bytes ``[blocks, block bytes]``, weights ``[blocks, 32]``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qafila.quant.floats import Bytes, Floats, float16_from_float32

Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])

# IQ4_NL's sixteen levels, denser near zero. Source: ggml-common.h, kvalues_iq4nl.
IQ4_NL_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32)


def scale(field: npt.NDArray[np.float16]) -> Floats:
    """A block's float16 field ``[blocks]`` as a float32 column ``[blocks, 1]``."""
    return field.astype(np.float32)[:, np.newaxis]


def nibbles(packed: Bytes) -> Bytes:
    """``[blocks, 16]`` bytes to ``[blocks, 32]`` four-bit numbers, low halves first."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def fifth_bits(packed: Bytes) -> Bytes:
    """``[blocks, 4]`` bytes, one bit a weight, to ``[blocks, 32]`` numbers that are 0 or 16."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)


def dequantise_q4_0(data: Bytes) -> Floats:
    """q is stored plus 8."""
    block = data.view(Q4_0)[:, 0]
    return scale(block["d"]) * (nibbles(block["qs"]).astype(np.float32) - 8)


def dequantise_q4_1(data: Bytes) -> Floats:
    """q from 0 to 15 above the minimum."""
    block = data.view(Q4_1)[:, 0]
    return scale(block["d"]) * nibbles(block["qs"]).astype(np.float32) + scale(block["m"])


def dequantise_q5_0(data: Bytes) -> Floats:
    """q is stored plus 16, its fifth bit apart."""
    block = data.view(Q5_0)[:, 0]
    q = nibbles(block["qs"]) | fifth_bits(block["qh"])
    return scale(block["d"]) * (q.astype(np.float32) - 16)


def dequantise_q5_1(data: Bytes) -> Floats:
    """q from 0 to 31 above the minimum, its fifth bit apart."""
    block = data.view(Q5_1)[:, 0]
    q = nibbles(block["qs"]) | fifth_bits(block["qh"])
    return scale(block["d"]) * q.astype(np.float32) + scale(block["m"])


def dequantise_q8_0(data: Bytes) -> Floats:
    """q is a signed byte."""
    block = data.view(Q8_0)[:, 0]
    return scale(block["d"]) * block["qs"].astype(np.float32)


def dequantise_iq4_nl(data: Bytes) -> Floats:
    """q is a number into the table of levels; the layout is Q4_0's."""
    block = data.view(Q4_0)[:, 0]
    return scale(block["d"]) * IQ4_NL_LEVELS[nibbles(block["qs"])]


def inverse(d: Floats) -> Floats:
    """``1 / d``, and 0 where d is so small that there is none: such a block is zero in float16 anyway."""
    with np.errstate(divide="ignore", over="ignore"):
        reciprocal = np.float32(1) / d
    return np.where(np.isfinite(reciprocal), reciprocal, np.float32(0))


def pick(values: Floats, index: npt.NDArray[np.intp]) -> Floats:
    """``values[i, index[i]]`` as a column ``[blocks, 1]``."""
    return np.take_along_axis(values, index[:, np.newaxis], axis=-1)


def packed_nibbles(q: Bytes) -> Bytes:
    """The inverse of :func:`nibbles`."""
    return q[:, :16] | (q[:, 16:] << np.uint8(4))


def quantise_q8_0(values: Floats) -> Bytes:
    """The largest magnitude becomes 127; halves round away from zero (ggml ``quantize_row_q8_0_ref``)."""
    d = np.abs(values).max(axis=-1, keepdims=True) / np.float32(127)
    scaled = values * inverse(d)
    magnitude = np.abs(scaled)
    whole = np.trunc(magnitude)
    whole += np.trunc(2 * (magnitude - whole))
    block = np.empty((len(values), 1), dtype=Q8_0)
    block["d"] = float16_from_float32(d).view(np.float16)
    block["qs"][:, 0] = np.copysign(whole, scaled).astype(np.int8)
    return block.view(np.uint8)


def quantise_q4_0(values: Floats) -> Bytes:
    """The value of largest magnitude, the first of them, becomes q = -8 (ggml ``quantize_row_q4_0_ref``)."""
    d = pick(values, np.abs(values).argmax(axis=-1)) / np.float32(-8)
    q = np.minimum(np.trunc(values * inverse(d) + np.float32(8.5)), 15).astype(np.uint8)
    block = np.empty((len(values), 1), dtype=Q4_0)
    block["d"] = float16_from_float32(d).view(np.float16)
    block["qs"][:, 0] = packed_nibbles(q)
    return block.view(np.uint8)


def quantise_q4_1(values: Floats) -> Bytes:
    """The range from least to greatest in 15 equal steps (ggml ``quantize_row_q4_1_ref``).

    ``argmin`` and not ``min``, so that among zeros of either sign the first decides the sign that is stored.
    """
    least = pick(values, values.argmin(axis=-1))
    d = (pick(values, values.argmax(axis=-1)) - least) / np.float32(15)
    q = np.minimum(np.trunc((values - least) * inverse(d) + np.float32(0.5)), 15).astype(np.uint8)
    block = np.empty((len(values), 1), dtype=Q4_1)
    block["d"] = float16_from_float32(d).view(np.float16)
    block["m"] = float16_from_float32(least).view(np.float16)
    block["qs"][:, 0] = packed_nibbles(q)
    return block.view(np.uint8)
