"""Claims: decode attention costs no more than reading its KV cache, prefill attention runs near a BLAS.

Decode: one token over a context, all layers and heads of a model's shape, so that the cache is far larger than the
processor's; GB/s of keys and values beside a plain read loop over as many bytes, in turns. Prefill: a prompt over
itself, causal; GFLOP/s of the positions seen (4 x head_dim per query and position) of one thread beside NumPy's float32
matrix product of 1024 x 1024 matrices, in turns: a good BLAS is near what the processor can do. Medians of the rounds.

    OPENBLAS_NUM_THREADS=1 python benchmarks/attention.py [--isa NAME] [--threads T] [--rounds R] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from qafila.native import _native

BLOCK = 16
SPLIT = 256
# layers, KV heads, query heads, head_dim
SHAPES = {"135M": (30, 3, 9, 64), "1B": (16, 8, 32, 64), "8B": (32, 8, 32, 128)}


def median_seconds(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender, all called once a round after a first round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


class Heads:
    """Keys and values of KV heads, blocks of all heads mixed as a paged cache has them."""

    def __init__(self, isa: str, heads: int, tokens: int, rows: int, head_dim: int, int8: bool):
        rng = np.random.default_rng(0)
        self.isa, self.int8, self.tokens, self.heads = isa, int8, tokens, heads
        blocks = -(-tokens // BLOCK)
        self.pool = np.zeros((heads * blocks, _native.kv_bytes(head_dim, int8)), np.uint8)
        order = rng.permutation(blocks)
        self.tables = [(order * heads + head).astype(np.int32) for head in range(heads)]
        kv = rng.standard_normal((tokens, head_dim)).astype(np.float32)
        for table in self.tables:
            _native.kv_store(isa, kv, kv, 0, int8, table, self.pool)
        self.queries = (rng.standard_normal((rows, head_dim)) / np.sqrt(head_dim)).astype(np.float32)

    def attend(self, members: range, first: np.ndarray, last: np.ndarray) -> None:
        """The queries over the given heads, one after the other."""
        rows, head_dim = self.queries.shape
        splits = -(-self.tokens // SPLIT)
        partial = np.empty((2, splits, rows), np.float32)
        values, out = np.empty((splits, rows, head_dim), np.float32), np.empty((rows, head_dim), np.float32)
        for head in members:
            _native.attend(
                self.isa, self.queries, first, last, self.pool, self.tables[head], self.tokens, self.int8,
                partial[0], partial[1], values, out,
            )  # fmt: skip


def decode(isa: str, shape: str, tokens: int, threads: int, rounds: int, int8: bool) -> dict[str, object]:
    """One token of a shape over a context."""
    layers, kv_heads, query_heads, head_dim = SHAPES[shape]
    # As many layers as make a cache larger than any processor's.
    layers = min(layers, -(-(128 << 20) // (kv_heads * tokens * head_dim * 4)))
    heads = Heads(isa, layers * kv_heads, tokens, query_heads // kv_heads, head_dim, int8)
    rows = len(heads.queries)
    first, last = np.zeros(rows, np.int32), np.full(rows, tokens - 1, np.int32)
    with ThreadPoolExecutor(threads) as pool:

        def run() -> None:
            for future in [
                pool.submit(heads.attend, range(member, heads.heads, threads), first, last) for member in range(threads)
            ]:
                future.result()

        size = heads.pool.nbytes
        bandwidths: list[float] = []
        contenders = {
            "attention": run,
            "read": lambda: bandwidths.append(_native.read_bandwidth(size, threads, 5) / 1e9),
        }
        seconds = median_seconds(contenders, rounds)
    speed, bandwidth = size / seconds["attention"] / 1e9, statistics.median(bandwidths)
    return {
        "measure": "decode", "shape": shape, "tokens": tokens, "int8": int8, "bytes": size,
        "milliseconds": 1e3 * seconds["attention"], "gb_per_second": speed, "read_gb_per_second": bandwidth,
        "cost_of_reading": bandwidth / speed,
    }  # fmt: skip


def prefill(isa: str, shape: str, tokens: int, rounds: int, int8: bool) -> dict[str, object]:
    """A prompt over itself, one KV head after the other on one thread."""
    _, kv_heads, query_heads, head_dim = SHAPES[shape]
    group = query_heads // kv_heads
    heads = Heads(isa, kv_heads, tokens, tokens * group, head_dim, int8)
    first, last = np.zeros(tokens * group, np.int32), np.repeat(np.arange(tokens, dtype=np.int32), group)
    square = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    contenders = {"attention": lambda: heads.attend(range(kv_heads), first, last), "product": lambda: square @ square}
    times = median_seconds(contenders, rounds)
    seconds, peak = times["attention"], 2 * 1024**3 / times["product"] / 1e9
    flops = 4 * head_dim * query_heads * tokens * (tokens + 1) / 2
    return {
        "measure": "prefill", "shape": shape, "tokens": tokens, "int8": int8, "milliseconds": 1e3 * seconds,
        "gflops": flops / seconds / 1e9, "blas_gflops": peak, "of_blas": flops / seconds / 1e9 / peak,
    }  # fmt: skip


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--isa", default="avx512")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for decode; prefill runs on one")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be positive")
    results = []
    for shape in SHAPES:
        for int8 in (False, True):
            results.append(decode(options.isa, shape, 4096, options.threads, options.rounds, int8))
            results.append(prefill(options.isa, shape, 512, options.rounds, int8))
    if options.json:
        print(json.dumps({"isa": options.isa, "threads": options.threads, "results": results}))
        return
    for row in results:
        kv = "int8" if row["int8"] else "f16"
        head = f"{row['measure']:8} {row['shape']:5} {row['tokens']:5} tokens {kv:5} {row['milliseconds']:8.2f} ms"
        if row["measure"] == "decode":
            figures = f"{row['gb_per_second']:8.1f} GB/s, reading {row['read_gb_per_second']:6.1f}"
            print(f"{head} {figures}: x {row['cost_of_reading']:.2f}")
        else:
            print(f"{head} {row['gflops']:8.1f} GFLOP/s, BLAS {row['blas_gflops']:6.1f}: {row['of_blas']:.0%}")


if __name__ == "__main__":
    main()
