"""Claim: the native block kernels are much faster than NumPy's and give the same bits.

GB/s of float32 written (reading weights) or read (writing them), native beside NumPy beside the gguf package, in turns
so that a machine that drifts treats all alike; the median of the rounds.

    python benchmarks/quant_blocks.py [--elements N] [--rounds R] [--threads T] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import gguf
import numpy as np
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize

from qafila.quant import DType, blocks, dequantise, quantise

COLUMNS = 4096


def rates(contenders: dict[str, Callable[[], object]], float_bytes: int, rounds: int) -> dict[str, float]:
    """Median GB/s of each contender, all called once a round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: float_bytes / statistics.median(times) / 1e9 for name, times in seconds.items()}


def measure(elements: int, rounds: int, threads: int) -> list[dict[str, object]]:
    """One row for each type and direction."""
    rng = np.random.default_rng(0)
    rows = max(1, elements // COLUMNS)
    values = (0.02 * rng.standard_normal((rows, COLUMNS))).astype(np.float32)
    results: list[dict[str, object]] = []
    for dtype in blocks.READERS:
        if dtype in blocks.WRITERS:
            data = quantise(dtype, values)
        elif dtype is DType.F64:
            data = values.astype(np.float64).view(np.uint8)
        else:
            data = rng.integers(0, 256, (rows, dtype.nbytes((COLUMNS,))), dtype=np.uint8)
        number = gguf.GGMLQuantizationType(dtype.ggml_type)
        contenders: dict[str, Callable[[], object]] = {
            "native": lambda dtype=dtype, data=data: dequantise(dtype, data, threads=threads),
            "numpy": lambda dtype=dtype, data=data: blocks.dequantise(dtype, data),
        }
        if dtype not in (DType.F64, DType.F32):
            contenders["gguf"] = lambda number=number, data=data: gguf_dequantize(data, number)
        results.append({"type": dtype.name, "direction": "read", **rates(contenders, values.nbytes, rounds)})
    for dtype in blocks.WRITERS:
        part = values[: max(1, rows // 64)] if dtype is DType.Q4_K else values
        number = gguf.GGMLQuantizationType(dtype.ggml_type)
        contenders = {
            "native": lambda dtype=dtype, part=part: quantise(dtype, part, threads=threads),
            "numpy": lambda dtype=dtype, part=part: blocks.quantise(dtype, part),
        }
        if dtype not in (DType.Q4_K, DType.F32):
            contenders["gguf"] = lambda number=number, part=part: gguf_quantize(part, number)
        results.append({"type": dtype.name, "direction": "write", **rates(contenders, part.nbytes, rounds)})
    return results


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 24, help="weights per type (default 16 M)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="for the native kernels; 0 is one a processor")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.elements < 1 or options.rounds < 1 or options.threads < 0:
        parser.error("--elements and --rounds must be positive, --threads not negative")
    with np.errstate(all="ignore"):
        results = measure(options.elements, options.rounds, options.threads)
    if options.json:
        settings = {"elements": options.elements, "rounds": options.rounds, "threads": options.threads}
        print(json.dumps({**settings, "processors": os.cpu_count(), "unit": "GB/s of float32", "results": results}))
        return
    print(f"{'type':8} {'':6} {'native':>8} {'numpy':>8} {'gguf':>8}   GB/s of float32")
    for row in results:
        figures = " ".join(f"{row[name]:8.2f}" if name in row else f"{'-':>8}" for name in ("native", "numpy", "gguf"))
        print(f"{row['type']:8} {row['direction']:6} {figures}")


if __name__ == "__main__":
    main()
