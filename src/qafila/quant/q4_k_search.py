"""Quantising to Q4_K, with NumPy alone: the oracle of ``native/q4_k_search.cpp``.

For each sub-block of 32 weights a few step sizes around the plain one are tried. Each gives integers q, for which the
scale and minimum of least weighted squared error follow in closed form; that line in turn gives better integers, and
so on for a few rounds. The best of all is kept. Once the six-bit scales and minima are rounded, their neighbours are
tried too, with the integers rounded again for each. The idea and the error weights (root mean square plus magnitude:
large weights matter more) are those of llama.cpp's ``make_qkx2_quants``, whose error this undercuts by about 1%.

Sums are folded in halves (element i plus element i + n/2), so that the vectorised twin adds in the same order.
"""

from __future__ import annotations

import numpy as np

from qafila.quant.floats import Bytes, Floats, float16_from_float32, float32_from_float16
from qafila.quant.k_blocks import Q4_K, packed_six_bit_pairs

ONE_HALF = np.float32(0.5)
# Step sizes tried: range / (GRID_START + GRID_STEP * k); integers beyond 15 are clipped.
GRID_START, GRID_STEP, GRID_COUNT = np.float32(13.0), np.float32(0.4), 8
ROUNDS = 3
# A sub-block narrower than this is constant: float16 scales end at 6e-8.
NARROWEST = np.float32(2.0**-40)


def folded_sum(terms: Floats) -> Floats:
    """Sum over the last dimension, a power of two, which becomes 1."""
    while (half := terms.shape[-1] // 2) > 0:
        terms = terms[..., :half] + terms[..., half:]
    return terms


def rounded(values: Floats, largest: int) -> Floats:
    """Nearest integer (halves up) from 0 to ``largest``."""
    return np.trunc(np.minimum(np.maximum(values, np.float32(0)), np.float32(largest)) + ONE_HALF)


def squared_error(weights: Floats, residual: Floats) -> Floats:
    """Weighted sum of squares ``[..., 1]``."""
    return folded_sum(weights * (residual * residual))


def best_fit(x: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Scale and minimum ``[n, 1]``, neither negative, whose ``scale * q - minimum`` comes nearest to ``x [n, 32]``."""
    least = np.minimum(x.min(axis=-1, keepdims=True), np.float32(0))
    width = x.max(axis=-1, keepdims=True) - least
    constant = width < NARROWEST
    width = np.where(constant, np.float32(1), width)
    sum_w = folded_sum(weights)
    weighted_x = weights * x
    sum_x = folded_sum(weighted_x)

    scale: Floats = np.divide(width, np.float32(15))
    minimum = np.float32(0) - least
    error = squared_error(weights, (scale * integers(x, scale, minimum) - minimum) - x)
    for k in range(GRID_COUNT):
        slope: Floats = np.divide(width, GRID_START + GRID_STEP * np.float32(k))
        offset: Floats = np.float32(0) - least
        usable = ~constant
        for _ in range(ROUNDS):
            q = integers(x, slope, offset)
            weighted_q = weights * q
            sum_q = folded_sum(weighted_q)
            sum_qq = folded_sum(weighted_q * q)
            sum_qx = folded_sum(weighted_x * q)
            determinant = sum_w * sum_qq - sum_q * sum_q
            usable = usable & (determinant > 0) & (sum_qq > 0)
            divisor: Floats = np.where(usable, determinant, np.float32(1))
            squares: Floats = np.where(usable, sum_qq, np.float32(1))
            slope = np.divide(sum_w * sum_qx - sum_x * sum_q, divisor)
            offset = np.divide(sum_q * sum_qx - sum_qq * sum_x, divisor)
            # The format subtracts its minimum; where the fit would add, the line goes through zero.
            negative = offset < 0
            slope = np.where(negative, sum_qx / squares, slope)
            offset = np.where(negative, np.float32(0), offset)
            usable = usable & (slope > 0)
            tried = squared_error(weights, (slope * q - offset) - x)
            better = usable & (tried < error)
            scale = np.where(better, slope, scale)
            minimum = np.where(better, offset, minimum)
            error = np.where(better, tried, error)
    return np.where(constant, np.float32(0), scale), np.where(constant, np.float32(0) - least, minimum)


def common_factor(values: Floats) -> tuple[Floats, Floats]:
    """A float16 factor ``[blocks, 1, 1]`` and six-bit integers for eight numbers ``[blocks, 8, 1]``."""
    largest = values.max(axis=1, keepdims=True) + np.float32(0)  # -0 becomes 0
    factor = float32_from_float16(float16_from_float32(largest / np.float32(63)))
    divisor: Floats = np.where(factor > 0, factor, np.float32(1))
    return factor, np.where(factor > 0, rounded(values / divisor, 63), np.float32(0))


def integers(x: Floats, step: Floats, minimum: Floats) -> Floats:
    """The q nearest to ``x`` for given steps and minima (all 0 where the step is 0)."""
    divisor: Floats = np.where(step > 0, step, np.float32(1))
    return np.where(step > 0, rounded((x + minimum) / divisor, 15), np.float32(0))


def quantise_q4_k(values: Floats) -> Bytes:
    """``[blocks, 256]`` weights, finite and below 1e9 in magnitude, to ``[blocks, 144]`` bytes.

    Scales beyond float16 come out as infinity, which the caller refuses.
    """
    x = values.reshape(-1, 8, 32)
    weights = np.sqrt(folded_sum(x * x) / np.float32(32)) + np.abs(x)
    scales, minima = (part.reshape(-1, 8, 1) for part in best_fit(x.reshape(-1, 32), weights.reshape(-1, 32)))
    with np.errstate(invalid="ignore", over="ignore"):
        d, sc = common_factor(scales)
        dmin, m = common_factor(minima)
        q, sc, m = _refined(x, weights, d, sc, dmin, m)

    block = np.empty((len(values), 1), dtype=Q4_K)
    block["d"] = d[:, :, 0]
    block["dmin"] = dmin[:, :, 0]
    block["scales"][:, 0] = packed_six_bit_pairs(sc[:, :, 0].astype(np.uint8), m[:, :, 0].astype(np.uint8))
    pairs: Bytes = q.astype(np.uint8).reshape(-1, 4, 2, 32)
    block["qs"][:, 0] = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)
    return block.view(np.uint8)


def _refined(
    x: Floats, weights: Floats, d: Floats, sc: Floats, dmin: Floats, m: Floats
) -> tuple[Floats, Floats, Floats]:
    """The best of the rounded scales and minima and their neighbours, with its integers."""
    q = integers(x, d * sc, dmin * m)
    error = squared_error(weights, (d * sc * q - dmin * m) - x)
    best = q, sc, m
    for step in (-1, 0, 1):
        for shift in (-1, 0, 1):
            near_sc = np.minimum(np.maximum(sc + np.float32(step), np.float32(0)), np.float32(63))
            near_m = np.minimum(np.maximum(m + np.float32(shift), np.float32(0)), np.float32(63))
            q = integers(x, d * near_sc, dmin * near_m)
            tried = squared_error(weights, (d * near_sc * q - dmin * near_m) - x)
            better = tried < error
            best = (
                np.where(better, q, best[0]),
                np.where(better, near_sc, best[1]),
                np.where(better, near_m, best[2]),
            )
            error = np.where(better, tried, error)
    return best
