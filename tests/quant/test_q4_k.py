"""How good Q4_K is: better than plain rounding of ranges, near a brute-force optimum, no worse than llama.cpp."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from qafila.quant import DType, blocks, dequantise, quantise
from qafila.quant.k_blocks import packed_six_bit_pairs, six_bit_pairs
from qafila.quant.q4_k_search import best_fit, folded_sum


def rmse(values: np.ndarray, approximation: np.ndarray) -> float:
    return float(np.sqrt(np.mean((values.astype(np.float64) - approximation) ** 2)))


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (64, 1024)
    return {
        "normal": (0.02 * rng.standard_normal(shape)).astype(np.float32),
        "laplace": rng.laplace(size=shape).astype(np.float32),
        "uniform": rng.uniform(-1, 1, shape).astype(np.float32),
        "positive": np.abs(rng.standard_normal(shape)).astype(np.float32),
        "heavy": (0.02 * rng.standard_t(3, shape)).astype(np.float32),
    }


def min_max(values: np.ndarray) -> np.ndarray:
    """Each sub-block's range in 15 equal steps, scales and minima not even rounded: what a plain Q4_K could reach."""
    x = values.reshape(-1, 32).astype(np.float64)
    least = np.minimum(x.min(-1, keepdims=True), 0)
    step = (x.max(-1, keepdims=True) - least) / 15
    return (np.rint((x - least) / step) * step + least).reshape(values.shape)


@pytest.mark.parametrize("kind", samples())
def test_better_than_the_plain_range(kind: str) -> None:
    values = samples()[kind]
    ours = rmse(values, dequantise(DType.Q4_K, quantise(DType.Q4_K, values)))
    assert ours < 0.95 * rmse(values, min_max(values))
    q4_1 = rmse(values, dequantise(DType.Q4_1, quantise(DType.Q4_1, values)))
    assert ours < q4_1


def test_near_the_best_scale_and_minimum() -> None:
    """Of a fine grid over all scales and minima (in float64), nothing is much better than the search's line."""
    x = np.random.default_rng(1).standard_normal((24, 32)).astype(np.float32)
    weights = (np.sqrt((x * x).mean(-1, keepdims=True)) + np.abs(x)).astype(np.float32)
    scale, minimum = (part.astype(np.float64) for part in best_fit(x, weights))

    def error(step: np.ndarray, shift: np.ndarray) -> np.ndarray:
        q = np.clip(np.rint((x + shift) / step), 0, 15)
        return (weights * (step * q - shift - x) ** 2).sum(-1)

    ours = error(scale, minimum)
    best = ours.copy()
    for step in np.linspace(0.75, 1.25, 101):
        for shift in np.linspace(0.75, 1.25, 101):
            best = np.minimum(best, error(step * scale, shift * minimum))
    # Sixteen levels and a line: the grid finds a few per cent, never a different league.
    assert np.sqrt(ours.sum() / best.sum()) < 1.05
    assert (np.sqrt(ours / best) < 1.25).all()


def test_constant_blocks_are_exact_to_float16() -> None:
    for constant in (0.0, 1.0, -1.0, 0.123, -7.5, 1e-3):
        values = np.full(256, constant, dtype=np.float32)
        # A six-bit scale of a float16 factor: 2^-11 relative, or half a subnormal step of 2^-24 times 63 * 15.
        tolerance = max(2.0**-10 * abs(constant), 63 * 15 * 2.0**-25)
        np.testing.assert_allclose(dequantise(DType.Q4_K, quantise(DType.Q4_K, values)), values, rtol=0, atol=tolerance)


def test_what_is_on_the_grid_comes_back() -> None:
    """Blocks that Q4_K holds exactly: quantising what was read leaves nearly every weight where it was."""
    rng = np.random.default_rng(2)
    values = dequantise(DType.Q4_K, quantise(DType.Q4_K, rng.standard_normal((16, 1024)).astype(np.float32)))
    again = dequantise(DType.Q4_K, quantise(DType.Q4_K, values))
    assert rmse(values, again) < 0.25 * rmse(rng.standard_normal(1000), np.zeros(1000)) / 15


def test_six_bit_numbers_pack_and_unpack() -> None:
    rng = np.random.default_rng(3)
    scales, minima = rng.integers(0, 64, (2, 100, 8), dtype=np.uint8)
    packed = packed_six_bit_pairs(scales, minima)
    assert packed.shape == (100, 12)
    for ours, expected in zip(six_bit_pairs(packed), (scales, minima), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_folded_sum_is_a_sum() -> None:
    terms = np.random.default_rng(4).standard_normal((5, 32)).astype(np.float32)
    np.testing.assert_allclose(folded_sum(terms)[:, 0], terms.sum(-1, dtype=np.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.interop
@pytest.mark.parametrize("kind", samples())
def test_no_worse_than_llama_cpp(kind: str) -> None:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("llama-cpp-python is not installed (pip install 'qafila[peers]')")
    libraries = sorted((Path(spec.origin).parent / "lib").glob("libggml-base*"))
    if not libraries:
        pytest.skip("llama-cpp-python has no libggml-base")
    ggml = ctypes.CDLL(str(libraries[0]))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    values = samples()[kind]
    theirs = np.empty((values.shape[0], DType.Q4_K.nbytes(values.shape[1:])), dtype=np.uint8)
    written = ggml.ggml_quantize_chunk(
        DType.Q4_K.ggml_type, values.ctypes.data, theirs.ctypes.data, 0, *values.shape, None
    )
    assert written == theirs.nbytes
    reference = rmse(values, blocks.dequantise(DType.Q4_K, theirs))
    assert rmse(values, dequantise(DType.Q4_K, quantise(DType.Q4_K, values))) <= reference
