"""Claim: on the same file and machine the CPU engine is ahead of llama.cpp (through llama-cpp-python, natively built).

Both run in processes of their own and are measured in turns, so that a machine that drifts treats both alike; medians
and their ratio. llama.cpp runs with the best thread count, graph size and flash attention found for each model and kind
of work just before; as in llama-bench its tokens are random and nothing is sampled, while ours go through the whole
engine. Large models have random blocks; their decode speed is held against the memory bandwidth of the same run.

    python benchmarks/engine_speed.py [--only NAME,...] [--quick] [--rounds N] [--dir KEPT] [--json]

Perplexity reads public-domain books from ../shared/data (or --text FILE).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from speed_models import model_file
from speed_quality import BOOKS, compare, windows

from qafila.native._native import read_bandwidth
from qafila.parameters import EMBEDDING
from qafila.weights.load import open_checkpoint

WORKER = Path(__file__).with_name("speed_worker.py")


@dataclass(frozen=True)
class Measure:
    """One row: what is done with which model, and what is aimed at.

    ``goal`` is a ratio to llama.cpp (at least; for ``memory`` at most); ``bandwidth`` a share of the read bandwidth;
    ``turns`` is held to our own first turn.
    """

    name: str
    model: str
    kind: str
    size: int = 64
    depth: int = 0
    goal: float | None = None
    bandwidth: float | None = None


MEASURES = (
    Measure("decode", "default", "decode", goal=2.5),
    Measure("prefill 512", "default", "prefill", 512, goal=6),
    Measure("decode, 8 streams", "default", "streams", 48, goal=4),
    Measure("decode at 4,096", "default", "depth", 32, 4096, goal=1.8),
    Measure("second turn of 2,000 tokens", "default", "turns", 2000, goal=0.05),
    Measure("perplexity", "default", "quality", 20_000, goal=1.003),
    Measure("decode", "135M Q4_0", "decode", goal=1.8),
    Measure("prefill 512", "135M Q4_0", "prefill", 512, goal=2),
    Measure("decode, 8 streams", "135M Q4_0", "streams", 48, goal=2.5),
    Measure("perplexity", "135M Q4_0", "quality", 20_000, goal=1.003),
    Measure("decode", "135M Q8_0", "decode"),
    Measure("prefill 512", "135M Q8_0", "prefill", 512),
    Measure("decode", "135M BF16", "decode"),
    Measure("prefill 512", "135M BF16", "prefill", 512),
    Measure("decode", "1B Q4_0", "decode", 24, bandwidth=0.85),
    Measure("prefill 512", "1B Q4_0", "prefill", 512, goal=2),
    Measure("peak memory", "1B Q4_0", "memory", 512, goal=1.15),
    Measure("decode", "1B Q4_K", "decode", 24),
    Measure("prefill 512", "1B Q4_K", "prefill", 512),
    Measure("decode", "8B Q4_0", "decode", 12, bandwidth=0.85),
    Measure("decode", "8B Q4_K", "decode", 12),
)


class Worker:
    """A contender's process; calling it asks one thing and waits for the answer."""

    def __init__(self, side: str, model: Path, *options: str) -> None:
        command = [sys.executable, str(WORKER), side, str(model), *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {' '.join(map(str, self.process.args))} ended with {self.process.wait()}")
        return json.loads(line)

    def __call__(self, **request: Any) -> Any:
        """Ask one thing; its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()["value"]

    def close(self) -> None:
        """End the process and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


@contextmanager
def opened(side: str, model: Path, *options: str) -> Iterator[Worker]:
    """A worker for the length of a block."""
    worker = Worker(side, model, *options)
    try:
        yield worker
    finally:
        worker.close()


def bandwidth(cores: int) -> float:
    """Bytes a second read from memory by the best number of threads."""
    return max(read_bandwidth(1 << 28, threads) for threads in range(1, cores + 1))


def read_per_token(path: Path) -> int:
    """Bytes of weights that decoding one token reads: all but an embedding that is not the head as well."""
    checkpoint = open_checkpoint(path)
    skipped = 0 if checkpoint.config.tie_embeddings else checkpoint.tensors[EMBEDDING].nbytes
    return checkpoint.weights_bytes - skipped


def speeds(measure: Measure, path: Path, ours: Worker, theirs: Worker, rounds: int) -> dict[str, Any]:
    """Tokens a second of both, in turns."""
    request = {"call": "measure", "kind": measure.kind, "size": measure.size, "depth": measure.depth}
    settings = theirs(call="tune", kind=measure.kind)
    ours(**request)  # warm, as tuning has made the other
    cores = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {"ours": [], "llama.cpp": [], "bandwidth": []}
    for _ in range(rounds):
        rates["ours"].append(ours(**request))
        rates["llama.cpp"].append(theirs(**request))
        if measure.kind == "decode":
            rates["bandwidth"].append(bandwidth(cores))
    mine, other = statistics.median(rates["ours"]), statistics.median(rates["llama.cpp"])
    row = {
        "ours": mine,
        "llama.cpp": other,
        "ratio": mine / other,
        "unit": "tokens/s",
        "settings": settings,
        "all": rates,
    }
    if rates["bandwidth"]:
        row["read_bandwidth"] = statistics.median(rates["bandwidth"])
        row["bandwidth_share"] = mine * read_per_token(path) / row["read_bandwidth"]
    if measure.goal is not None:
        row["met"] = row["ratio"] >= measure.goal
    elif measure.bandwidth is not None:
        row["met"] = row["bandwidth_share"] >= measure.bandwidth
    return row


def turns(measure: Measure, ours: Worker, theirs: Worker, rounds: int) -> dict[str, Any]:
    """Time to the first token of a second turn (32 new tokens) as a share of the first's."""
    shares: dict[str, list[float]] = {"ours": [], "llama.cpp": []}
    seconds: dict[str, list[list[float]]] = {"ours": [], "llama.cpp": []}
    for _ in range(rounds):
        for name, worker in (("ours", ours), ("llama.cpp", theirs)):
            first, second = worker(call="turns", first=measure.size, second=32)
            shares[name].append(second / first)
            seconds[name].append([first, second])
    mine, other = statistics.median(shares["ours"]), statistics.median(shares["llama.cpp"])
    met = measure.goal is None or mine <= measure.goal
    return {
        "ours": mine,
        "llama.cpp": other,
        "ratio": mine / other,
        "unit": "of the first turn",
        "met": met,
        "all": seconds,
    }


def memory(measure: Measure, path: Path) -> dict[str, Any]:
    """Most resident bytes of a process that loads, reads a prompt and generates; llama.cpp's smaller way of loading."""
    peaks = {}
    for name, side, options in (
        ("ours", "qafila", ()),
        ("mapped", "llama_cpp", ()),
        ("unmapped", "llama_cpp", ("unmapped",)),
    ):
        with opened(side, path, *options) as worker:
            for kind, size in (("prefill", measure.size), ("decode", 24)):
                # With default settings: finding the best ones must not cost memory.
                call = "measure" if side == "qafila" else kind
                request: dict[str, Any] = {"kind": kind, "size": size} if side == "qafila" else {"tokens": size}
                worker(call=call, **request, **({"depth": 0} if kind == "decode" else {}))
            peaks[name] = worker(call="peak")
    best = min(peaks["mapped"], peaks["unmapped"])
    ratio = peaks["ours"] / best
    met = measure.goal is None or ratio <= measure.goal
    return {
        "ours": peaks["ours"] / 1e6,
        "llama.cpp": best / 1e6,
        "ratio": ratio,
        "unit": "MB",
        "met": met,
        "all": peaks,
    }


def quality(measure: Measure, path: Path, ours: Worker, theirs: Worker, text: Path) -> dict[str, Any]:
    """Perplexity on the same windows, and KL to the float32 reference."""
    if not text.is_file():
        return {"skipped": f"no text at {text}"}
    with opened("reference", path) as reference:
        sides = {"reference": reference, "ours": ours, "llama.cpp": theirs}
        found = compare(sides, windows(path, text, measure.size, 1000))
    mine, other = found["ours"], found["llama.cpp"]
    ratio = mine["perplexity"] / other["perplexity"]
    bound = measure.goal or 1.003
    met = 1 / bound <= ratio <= bound and mine["kl"] <= other["kl"]
    return {
        "ours": mine["perplexity"],
        "llama.cpp": other["perplexity"],
        "ratio": ratio,
        "unit": f"perplexity; KL {mine['kl']:.5f} to {other['kl']:.5f}",
        "met": met,
        "all": found,
    }


def run(measures: list[Measure], folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows, one after the other; a model's files stay only while they are measured, unless the folder is kept."""
    for model, group in groupby(measures, key=lambda measure: measure.model):
        path = model_file(model, folder, options.tokenizer)
        wanted = list(group)
        with ExitStack() as stack:
            pair: list[Worker] = []
            # Memory is measured alone, in processes of its own.
            for measure in sorted(wanted, key=lambda measure: measure.kind != "memory"):
                if measure.kind == "memory":
                    row = memory(measure, path)
                else:
                    pair = pair or [stack.enter_context(opened(side, path)) for side in ("qafila", "llama_cpp")]
                    if measure.kind == "turns":
                        row = turns(measure, *pair, rounds=max(1, options.rounds // 2))
                    elif measure.kind == "quality":
                        row = quality(measure, path, *pair, text=options.text)
                    else:
                        row = speeds(measure, path, *pair, rounds=options.rounds)
                goal = measure.goal if measure.bandwidth is None else measure.bandwidth
                yield {"measure": measure.name, "model": model, "goal": goal, **row}
        if options.dir is None and path.is_relative_to(folder):
            path.unlink()


def line(row: dict[str, Any]) -> str:
    """One row of the Markdown table."""
    if "skipped" in row:
        return f"| {row['measure']} | {row['model']} | | | | | skipped: {row['skipped']} |"
    notes = [] if row["unit"] == "tokens/s" else [row["unit"]]
    if "bandwidth_share" in row:
        notes.append(f"{row['bandwidth_share']:.0%} of {row['read_bandwidth'] / 1e9:.0f} GB/s")
    notes.append({True: "met", False: "**missed**", None: ""}[row.get("met")])
    digits = 3 if row["ours"] < 100 and row["unit"] != "tokens/s" else 1
    figures = [row["measure"], row["model"], f"{row['ours']:,.{digits}f}", f"{row['llama.cpp']:,.{digits}f}"]
    figures.append(f"{row['ratio']:.4f}" if "perplexity" in row["measure"] else f"{row['ratio']:.2f}")
    figures.append("" if row["goal"] is None else f"{row['goal']:g}")
    return f"| {' | '.join(figures)} | {'; '.join(filter(None, notes))} |"


def main() -> None:
    """Print the table as it grows; with --json it goes to standard error, and the figures follow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="words, comma between: rows whose measure or model has one of them")
    parser.add_argument("--quick", action="store_true", help="three rounds, no 8B, 3,000 tokens of perplexity")
    parser.add_argument("--rounds", type=int, default=None, help="measurements of each row (default 7)")
    parser.add_argument("--dir", type=Path, help="where model files are kept (default: a folder that goes at the end)")
    parser.add_argument("--tokenizer", type=Path, help="Llama 3's tokenizer.model, for random models")
    parser.add_argument("--text", type=Path, default=BOOKS, help="what perplexity is measured on")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 7)
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    words = [word.strip().lower() for word in options.only.split(",") if word.strip()]
    measures = [m for m in MEASURES if not words or any(word in f"{m.name}, {m.model}".lower() for word in words)]
    if options.quick:
        measures = [m for m in measures if not m.model.startswith("8B")]
        measures = [Measure(m.name, m.model, m.kind, 3000, goal=m.goal) if m.kind == "quality" else m for m in measures]
    if not measures:
        parser.error(f"--only {options.only}: no such measure or model")
    folder = options.dir or Path(tempfile.mkdtemp(prefix="qafila-speed-"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    shown = sys.stderr if options.json else sys.stdout
    try:
        print("| measure | model | ours | llama.cpp | ratio | goal | |", file=shown)
        print("|---|---|---:|---:|---:|---:|---|", file=shown, flush=True)
        for row in run(measures, folder, options):
            rows.append(row)
            print(line(row), file=shown, flush=True)
    finally:
        if options.dir is None:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps({"processors": len(os.sched_getaffinity(0)), "rounds": options.rounds, "rows": rows}))


if __name__ == "__main__":
    main()
