"""How fast every weight type's product is: one token and a few beside a plain read loop, a prompt in GOP/s.

Every thread multiplies a matrix of its own. Up to 16 tokens meet weights far larger than the caches (``--megabytes``
together), in turns with a plain read loop over as many bytes; more tokens meet the shape as it is. GB/s of packed
weights and GOP/s (two for each weight and token) of all threads together, medians of the rounds; what a call costs
besides the product (it copies its weights) is measured and subtracted. Wall-clock time: on a machine that
others use the figures mean little, the ratios included.

    python benchmarks/products.py [--isa NAME ...] [--types Q4_0 ...] [--tokens 1 8 512] [--shapes 576x1536 ...]
                                  [--threads T] [--rounds R] [--megabytes M] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from qafila.native import _native

#: Numbers of the native `WeightType`, and bytes of one panel of 16 rows a column.
TYPES = {
    "F32": (0, 64), "F16": (1, 32), "BF16": (2, 32), "Q8_0": (3, 17), "Q4_0": (4, 9),
    "Q4_1": (5, 10), "Q4_K": (6, 9.25), "Q5_K": (7, 11.25), "Q6_K": (8, 13.125),
}  # fmt: skip
#: Columns x rows of the 135M and 1B shapes; those that do not fit a type's blocks are left out.
SHAPES = ["576x1536", "1536x576", "2048x2048", "2048x8192", "8192x2048"]
FEW = 16
REPEATS = 4


def measure(isa: str, name: str, columns: int, rows: int, tokens: int, args: argparse.Namespace) -> dict[str, object]:
    """One line of the table."""
    number, bytes_a_column = TYPES[name]
    threads: int = args.threads
    few = tokens <= FEW
    panel = int(bytes_a_column * columns)
    panels = max(1, int(args.megabytes * 1e6 / threads / panel)) if few else -(-rows // 16)
    repeats = REPEATS if few else max(1, int(2e10 / (32 * panels * columns * tokens)))
    # Bytes below 0x3C: whatever they stand for, nothing is huge, infinite or NaN.
    weights = np.random.default_rng(0).integers(0, 0x3C, panel * panels, dtype=np.uint8)
    x = np.random.default_rng(1).standard_normal((tokens, columns)).astype(np.float32)

    with ThreadPoolExecutor(threads) as pool:

        def seconds(times: int) -> float:
            start = time.perf_counter()
            jobs = [pool.submit(_native.product, isa, number, weights, 16 * panels, x, times) for _ in range(threads)]
            for job in jobs:
                job.result()
            return time.perf_counter() - start

        seconds(1)
        spent, ratios = [], []
        for _ in range(args.rounds):
            spent.append(max(seconds(1 + repeats) - seconds(1), 1e-9) / repeats)
            if few:
                read = _native.read_bandwidth(weights.size * threads, threads, REPEATS)
                ratios.append(weights.size * threads / spent[-1] / read)
    median = statistics.median(spent)
    result: dict[str, object] = {
        "isa": isa, "type": name, "columns": columns, "rows": 16 * panels, "tokens": tokens, "threads": threads,
        "gop_per_second": 32e-9 * panels * columns * tokens * threads / median,
        "gb_per_second": 1e-9 * weights.size * threads / median,
    }  # fmt: skip
    if few:
        result["ratio_to_read"] = statistics.median(ratios)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", nargs="+", default=_native.instruction_sets()[-1:], help="default: the best one")
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 2, 4, 8, 16, 512])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="columns x rows")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=256)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = []
    for isa in args.isa:
        for name in args.types:
            for shape in args.shapes:
                columns, rows = (int(n) for n in shape.split("x"))
                if columns % (256 if name.endswith("_K") else 32):
                    continue
                for tokens in args.tokens:
                    line = measure(isa, name, columns, rows, tokens, args)
                    results.append(line)
                    if not args.json:
                        ratio = f"  {line['ratio_to_read']:.2f} of a read loop" if "ratio_to_read" in line else ""
                        print(
                            f"{isa:9}{name:5}{columns:6} x {line['rows']:<7}{tokens:4} tokens"
                            f"{line['gb_per_second']:8.1f} GB/s{line['gop_per_second']:8.0f} GOP/s{ratio}",
                            flush=True,
                        )
    if args.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
