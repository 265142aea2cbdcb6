"""ggml's super-blocks of 256 weights (Q2_K to Q6_K), with NumPy alone.

A super-block has one or two float16 scales; its sub-blocks (sixteen of 16 weights, or eight of 32) have small integer
scales that multiply them. A weight is ``(d * scale) * q``, less ``dmin * minimum`` where the type has minima. Products
are taken in this order, in float32. Source of the layouts: the block structs of ggml's ``ggml-common.h``.

Every function here takes bytes ``[blocks, block bytes]`` and gives weights ``[blocks, 256]``.
"""

from __future__ import annotations

import numpy as np

from qafila.quant.floats import Bytes, Floats
from qafila.quant.legacy_blocks import scale

Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])


def fields(packed: Bytes, width: int, run: int) -> Bytes:
    """Split bytes into numbers of ``width`` bits, run by run: ``[blocks, n]`` to ``[blocks, n * 8 / width]``.

    Of every ``run`` bytes come first the lowest fields of all, then the next higher ones, and so on.
    """
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    blocks, count = packed.shape
    runs = packed.reshape(blocks, count // run, 1, run)
    numbers: Bytes = (runs >> shifts[:, np.newaxis]) & np.uint8((1 << width) - 1)
    return numbers.reshape(blocks, count * len(shifts))


def spread(per_sub_block: Floats) -> Floats:
    """One number a sub-block ``[blocks, n]`` to one a weight ``[blocks, 256]``."""
    return np.repeat(per_sub_block, 256 // per_sub_block.shape[-1], axis=-1)


def six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The eight scales and eight minima of Q4_K and Q5_K: ``[blocks, 12]`` to two of ``[blocks, 8]``.

    Bytes 0-3 have scales 0-3 in their low six bits, bytes 4-7 minima 0-3; the top two bits of each belong to the
    scale or minimum four further on, whose low four bits are in bytes 8-11 (scales low, minima high).
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    return scales, minima


def packed_six_bit_pairs(scales: Bytes, minima: Bytes) -> Bytes:
    """The inverse of :func:`six_bit_pairs`."""
    return np.concatenate(
        [
            scales[:, :4] | ((scales[:, 4:] >> 4) << 6),
            minima[:, :4] | ((minima[:, 4:] >> 4) << 6),
            (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4),
        ],
        axis=-1,
    )


def dequantise_q2_k(data: Bytes) -> Floats:
    """Sixteen sub-blocks; scale in the low and minimum in the high half of a byte, q from 0 to 3."""
    block = data.view(Q2_K)[:, 0]
    steps = scale(block["d"]) * (block["scales"] & 15).astype(np.float32)
    minima = scale(block["dmin"]) * (block["scales"] >> 4).astype(np.float32)
    q = fields(block["qs"], 2, 32)
    return spread(steps) * q.astype(np.float32) - spread(minima)


def dequantise_q3_k(data: Bytes) -> Floats:
    """Sixteen sub-blocks; six-bit scales stored plus 32; q from -4 to 3, its high bit in ``hmask``.

    The low four bits of scale i are in byte i mod 8 (low half for i < 8), the high two in byte 8 + i mod 4.
    """
    block = data.view(Q3_K)[:, 0]
    low = fields(block["scales"][:, :8], 4, 8)
    high = fields(block["scales"][:, 8:], 2, 4)
    steps = scale(block["d"]) * ((low | (high << 4)).astype(np.float32) - 32)
    q = fields(block["qs"], 2, 32) | (fields(block["hmask"], 1, 32) << 2)
    return spread(steps) * (q.astype(np.float32) - 4)


def dequantise_q4_k(data: Bytes) -> Floats:
    """Eight sub-blocks; six-bit scales and minima, q from 0 to 15."""
    block = data.view(Q4_K)[:, 0]
    scales, minima = six_bit_pairs(block["scales"])
    q = fields(block["qs"], 4, 32)
    steps = spread(scale(block["d"]) * scales.astype(np.float32))
    return steps * q.astype(np.float32) - spread(scale(block["dmin"]) * minima.astype(np.float32))


def dequantise_q5_k(data: Bytes) -> Floats:
    """As Q4_K with a fifth bit: bit i of ``qh[l]`` belongs to weight l of sub-block i."""
    block = data.view(Q5_K)[:, 0]
    scales, minima = six_bit_pairs(block["scales"])
    q = fields(block["qs"], 4, 32) | (fields(block["qh"], 1, 32) << 4)
    steps = spread(scale(block["d"]) * scales.astype(np.float32))
    return steps * q.astype(np.float32) - spread(scale(block["dmin"]) * minima.astype(np.float32))


def dequantise_q6_k(data: Bytes) -> Floats:
    """Sixteen sub-blocks with signed byte scales; q is stored plus 32: four bits in ``ql``, two in ``qh``."""
    block = data.view(Q6_K)[:, 0]
    steps = scale(block["d"]) * block["scales"].astype(np.float32)
    q = fields(block["ql"], 4, 64) | (fields(block["qh"], 2, 32) << 4)
    return spread(steps) * (q.astype(np.float32) - 32)
