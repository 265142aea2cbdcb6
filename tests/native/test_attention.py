"""Attention over KV blocks, every instruction set this processor runs, against float64 and against itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from qafila.native import _native

BLOCK = 16
SPLIT = 256
HEAD_DIMS = [2, 16, 40, 64, 80, 96, 128, 200]
Float32 = npt.NDArray[np.float32]


pytestmark = pytest.mark.parametrize("isa", _native.instruction_sets())


@dataclass
class Result:
    maximum: Float32  # [splits, rows]
    sum: Float32  # [splits, rows]
    values: Float32  # [splits, rows, head_dim]
    out: Float32  # [rows, head_dim]


class Cache:
    """One head's keys and values, in shuffled blocks of a pool full of NaN."""

    def __init__(self, isa: str, keys: Float32, values: Float32, int8: bool = False, spare: int = 3, seed: int = 0):
        self.isa, self.int8, self.tokens = isa, int8, len(keys)
        blocks = -(-len(keys) // BLOCK) + spare
        # NaN as half and as float32, -1 as int8.
        self.pool = np.full((blocks, _native.kv_bytes(keys.shape[1], int8)), 0xFF, np.uint8)
        self.table = np.random.default_rng(seed).permutation(blocks).astype(np.int32)
        _native.kv_store(isa, keys, values, 0, int8, self.table, self.pool)

    def attend(self, queries: Float32, first: object, last: object, end: int | None = None) -> Result:
        rows, head_dim = queries.shape
        end = self.tokens if end is None else end
        splits = -(-end // SPLIT)
        result = Result(
            np.full((splits, rows), 7, np.float32),
            np.full((splits, rows), 7, np.float32),
            np.full((splits, rows, head_dim), 7, np.float32),
            np.full((rows, head_dim), 7, np.float32),
        )
        bounds = [np.ascontiguousarray(np.broadcast_to(np.asarray(b, np.int32), rows)) for b in (first, last)]
        _native.attend(
            self.isa,
            np.ascontiguousarray(queries),
            bounds[0],
            bounds[1],
            self.pool,
            self.table,
            end,
            self.int8,
            result.maximum,
            result.sum,
            result.values,
            result.out,
        )
        return result


def draw(tokens: int, rows: int, head_dim: int, seed: int = 0) -> tuple[Float32, Float32, Float32]:
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((tokens, head_dim)).astype(np.float32)
    values = rng.standard_normal((tokens, head_dim)).astype(np.float32)
    queries = (2 * rng.standard_normal((rows, head_dim)) / np.sqrt(head_dim)).astype(np.float32)
    return keys, values, queries


def oracle(
    keys: npt.NDArray[np.floating], values: npt.NDArray[np.floating], query: Float32, first: int, last: int
) -> npt.NDArray[np.float64]:
    scores = keys[first : last + 1].astype(np.float64) @ query.astype(np.float64)
    weights = np.exp(scores - scores.max())
    return (weights / weights.sum()) @ values[first : last + 1].astype(np.float64)


def assert_same_bits(left: Result, right: Result, rows: object = slice(None)) -> None:
    for name in ("maximum", "sum", "values"):
        a, b = getattr(left, name), getattr(right, name)[:, rows]
        shared = min(len(a), len(b))
        np.testing.assert_array_equal(a[:shared].view(np.uint32), b[:shared].view(np.uint32), err_msg=name)
    np.testing.assert_array_equal(left.out.view(np.uint32), right.out[rows].view(np.uint32))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (15, 2), (16, 3), (17, 4), (256, 5), (257, 6), (700, 7)])
def test_equals_float64(isa: str, head_dim: int, tokens: int, rows: int) -> None:
    keys, values, queries = draw(tokens, rows, head_dim)
    result = Cache(isa, keys, values).attend(queries, 0, tokens - 1)
    halves = keys.astype(np.float16), values.astype(np.float16)
    for row in range(rows):
        expected = oracle(*halves, queries[row], 0, tokens - 1)
        np.testing.assert_allclose(result.out[row], expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("int8", [False, True])
def test_partial_results_are_what_the_contract_says(isa: str, int8: bool) -> None:
    keys, values, queries = draw(300, 2, 64)
    result = Cache(isa, keys, values, int8).attend(queries, [0, 260], [200, 299])
    tolerance = 0.05 if int8 else 2e-3
    scores = keys[:201] @ queries[0]
    np.testing.assert_allclose(result.maximum[0, 0], scores.max(), atol=tolerance)
    np.testing.assert_allclose(result.sum[0, 0], np.exp(scores - scores.max()).sum(), rtol=tolerance)
    weighted = np.exp(scores - scores.max()) @ values[:201]
    np.testing.assert_allclose(result.values[0, 0], weighted, atol=tolerance * np.abs(weighted).max())
    for split, row in ((1, 0), (0, 1)):
        assert result.maximum[split, row] == -np.inf
        assert result.sum[split, row] == 0
        assert not result.values[split, row].any()


@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("rows", [1, 3, 6, 7, 13])
def test_ranges_that_begin_late(isa: str, head_dim: int, rows: int) -> None:
    keys, values, queries = draw(900, rows, head_dim, seed=1)
    rng = np.random.default_rng(rows)
    first = rng.integers(0, 900, rows)
    last = np.minimum(first + rng.integers(0, 600, rows), 899)
    result = Cache(isa, keys, values).attend(queries, first, last)
    halves = keys.astype(np.float16), values.astype(np.float16)
    for row in range(rows):
        expected = oracle(*halves, queries[row], int(first[row]), int(last[row]))
        np.testing.assert_allclose(result.out[row], expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("head_dim", [40, 64, 96, 128])
def test_a_row_is_the_same_alone_and_in_company(isa: str, head_dim: int, int8: bool) -> None:
    tokens, heads = 530, 3
    keys, values, queries = draw(tokens, 60 * heads, head_dim, seed=2)
    # A prompt's last 60 tokens, heads beside one another; one row sees little, one a chunk, one nothing at all.
    last = np.repeat(np.arange(tokens - 60, tokens), heads)
    first = np.zeros_like(last)
    first[5], last[9], first[20], last[31] = 300, 3, last[20], -1
    cache = Cache(isa, keys, values, int8)
    together = cache.attend(queries, first, last)
    assert not together.out[31].any()
    assert np.isfinite(together.out).all()
    for row in range(len(queries)):
        # As a decoding step sees it: later positions hold no keys yet.
        end = max(int(last[row]) + 1, 1)
        alone = cache.attend(queries[row : row + 1], first[row], last[row], end)
        assert_same_bits(alone, together, slice(row, row + 1))
    for count in (2, 3, 4, 5, 6, 8, 11):
        assert_same_bits(
            cache.attend(queries[7 : 7 + count], first[7 : 7 + count], last[7 : 7 + count]),
            together,
            slice(7, 7 + count),
        )


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_a_row_does_not_see_cannot_touch_it(isa: str, int8: bool, poison: float) -> None:
    keys, values, queries = draw(96, 5, 64, seed=3)
    first, last = np.array([0, 20, 33, 40, 40]), np.array([60, 50, 48, 41, 40])
    cache = Cache(isa, keys, values, int8)
    clean = cache.attend(queries, first, last)
    for row in range(5):
        bad_keys, bad_values = keys.copy(), values.copy()
        hidden = np.r_[0 : first[row], last[row] + 1 : 96]
        bad_keys[hidden], bad_values[hidden] = poison, poison
        bad = Cache(isa, bad_keys, bad_values, int8).attend(queries, first, last)
        alone = Result(
            *(getattr(clean, n)[:, row : row + 1] for n in ("maximum", "sum", "values")), clean.out[row:][:1]
        )
        assert_same_bits(alone, bad, slice(row, row + 1))


def test_nan_that_is_seen_shows(isa: str) -> None:
    keys, values, queries = draw(300, 1, 64, seed=4)
    keys[280, 3] = np.nan
    assert np.isnan(Cache(isa, keys, values).attend(queries, 0, 299).out).all()


def test_scores_of_any_size(isa: str) -> None:
    keys, values, queries = draw(300, 2, 64, seed=5)
    queries *= np.array([[300.0], [-300.0]], np.float32)
    result = Cache(isa, keys, values).attend(queries, 0, 299)
    halves = keys.astype(np.float16), values.astype(np.float16)
    for row in range(2):
        np.testing.assert_allclose(result.out[row], oracle(*halves, queries[row], 0, 299), atol=2e-3)


@pytest.mark.parametrize("head_dim", [2, 40, 64, 80])
def test_stored_halves_are_rounded_to_even_and_saturate(isa: str, head_dim: int) -> None:
    rng = np.random.default_rng(6)
    key = (rng.standard_normal(head_dim) * 10.0 ** rng.integers(-9, 6, head_dim)).astype(np.float32)
    value = (rng.standard_normal(head_dim) * 10.0 ** rng.integers(-9, 6, head_dim)).astype(np.float32)
    key[:2], value[:2] = (1e30, np.nan), (-np.inf, 2049.0)
    pool = np.zeros((1, _native.kv_bytes(head_dim, False)), np.uint8)
    for slot in range(BLOCK):
        _native.kv_store(isa, key[None], value[None], slot, False, np.zeros(1, np.int32), pool)
        halves = pool.view(np.float16)
        stored = halves[0, : BLOCK * head_dim].reshape(head_dim, BLOCK)[:, slot]
        np.testing.assert_array_equal(stored, np.clip(key, -65504, 65504).astype(np.float16))
        stored = halves[0, BLOCK * head_dim :].reshape(BLOCK, head_dim)[slot]
        np.testing.assert_array_equal(stored, np.clip(value, -65504, 65504).astype(np.float16))


@pytest.mark.parametrize("head_dim", [2, 40, 64, 80])
def test_stored_int8_is_to_nearest(isa: str, head_dim: int) -> None:
    keys, values, _ = draw(20, 1, head_dim, seed=7)
    keys[3], values[4] = 0, 0
    cache = Cache(isa, keys, values, int8=True)
    for position in range(20):
        block = cache.pool[cache.table[position // BLOCK]]
        slot, quants, scales = position % BLOCK, block.view(np.int8), block[2 * BLOCK * head_dim :].view(np.float32)
        for side, x in ((0, keys[position]), (1, values[position])):
            part = quants[side * BLOCK * head_dim :][: BLOCK * head_dim]
            stored = part.reshape(head_dim, BLOCK)[:, slot] if side == 0 else part.reshape(BLOCK, head_dim)[slot]
            scale = np.abs(x).max() / np.float32(127)
            assert scales[side * BLOCK + slot] == scale
            expected = np.rint(x / scale) if scale > 0 else np.zeros(head_dim)
            np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize("head_dim", [40, 64, 128])
def test_int8_is_attention_over_the_rounded_cache(isa: str, head_dim: int) -> None:
    keys, values, queries = draw(400, 4, head_dim, seed=8)
    result = Cache(isa, keys, values, int8=True).attend(queries, 0, 399)

    def rounded(x: Float32) -> Float32:
        scale = np.abs(x).max(1, keepdims=True) / np.float32(127)
        return np.rint(x / scale) * scale

    for row in range(4):
        expected = oracle(rounded(keys), rounded(values), queries[row], 0, 399)
        np.testing.assert_allclose(result.out[row], expected, atol=5e-6, rtol=1e-5)
        # And not far from attention over what was not rounded.
        np.testing.assert_allclose(result.out[row], oracle(keys, values, queries[row], 0, 399), atol=0.05)


def test_sizes_are_checked(isa: str) -> None:
    keys, values, queries = draw(20, 1, 64)
    cache = Cache(isa, keys, values)
    with pytest.raises(ValueError, match="end is outside the table"):
        cache.attend(queries, 0, 0, end=cache.table.size * BLOCK + 1)
    cache.table[0] = 99
    with pytest.raises(ValueError, match="not in the pool"):
        cache.attend(queries, 0, 0)
