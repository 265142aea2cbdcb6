"""Time of the sampler a step: ``python benchmarks/sampler.py [--json]``.

Logits are random with a model's spread; medians of many calls, the variants taking turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from qafila.engine.sampler import Sampler, SampleRow
from qafila.sampling import GREEDY, Occurrences, SamplingParams

VARIANTS = {
    "greedy": GREEDY,
    "temperature 0.6, top-p 0.9": SamplingParams(temperature=0.6, top_p=0.9),
    "temperature 1": SamplingParams(),
    "temperature 0.8, top-k 40, top-p 0.95, min-p 0.05": SamplingParams(0.8, top_k=40, top_p=0.95, min_p=0.05),
    "temperature 0.6, top-p 0.9, repetition penalty 1.1": SamplingParams(0.6, top_p=0.9, repetition_penalty=1.1),
}
SHAPES = {"1 row, V = 49,152": (1, 49_152), "8 rows, V = 128,256": (8, 128_256)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    sampler = Sampler(arguments.threads)
    results: dict[str, dict[str, float]] = {}
    for shape, (rows, size) in SHAPES.items():
        logits_RV = (3 * rng.standard_normal((rows, size))).astype(np.float32)
        # A handful of likely tokens, as a trained model has.
        logits_RV[:, :30] += np.linspace(16, 6, 30, dtype=np.float32)
        so_far = Occurrences(rng.integers(0, size, 1000).tolist())
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for repetition in range(arguments.repetitions):
            for name, params in VARIANTS.items():
                wanted = [SampleRow(params, seed=r, position=repetition, occurrences=so_far) for r in range(rows)]
                sampler(logits_RV, wanted)
                start = time.perf_counter()
                sampler(logits_RV, wanted)
                seconds[name].append(time.perf_counter() - start)
        results[shape] = {name: 1e6 * statistics.median(times) for name, times in seconds.items()}
    if arguments.json:
        print(json.dumps({"unit": "microseconds", "results": results}, indent=2))
        return
    for shape, times in results.items():
        for name, microseconds in times.items():
            print(f"{shape:20} {name:52} {microseconds:9.1f} µs")


if __name__ == "__main__":
    main()
