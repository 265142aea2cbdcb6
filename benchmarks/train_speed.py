"""Fine-tuning speed beside ``transformers`` and ``peft``, on the same rows: ``python benchmarks/train_speed.py``.

    python benchmarks/train_speed.py --kind lora|full [--steps 6] [--sides ours-float32,sdpa-float32] [--json]

Both sides open one folder (a model exported to Hugging Face's files), read the same packed rows (chats of ``--data``,
4 x 512 tokens by default), begin with the same adapter and move it with the same AdamW, clipping included. Ours is a
run of ``qafila train`` without what is written to disk; theirs gets the positions of each document, from which
transformers makes its mask of packed rows, so that both compute the same loss. A side is ``ours`` or one of the peer's
attention settings, and the precision: for ours a recipe's ``train.precision``, for theirs the type of the weights.

Every side is a process of its own, with its own peak of memory (Linux), and all but the one whose turn it is are
stopped. The first step of each is not timed; then they take turns, step by step; times are medians. Threads are pinned
and spin while they wait, on both sides, so that other work of the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from qafila.adapt.apply import adapter_of, apply_adapter
from qafila.data.batch import Batch
from qafila.data.encode import EncoderSettings
from qafila.data.loader import Loader, Source
from qafila.data.pack import RawSource, pack_sources
from qafila.data.shards import Pack
from qafila.model.load import load_model
from qafila.quant.dtypes import DType
from qafila.text.formats import detect_format
from qafila.train.loop import OneProcess, Trainer
from qafila.train.objectives import make_objective
from qafila.train.optim import make_optimizer
from qafila.train.recipe import Recipe, check_recipe
from qafila.train.subject import find_subject, start_device
from qafila.weights.adapter import write_adapter
from qafila.weights.export import export
from qafila.weights.hub import resolve
from qafila.weights.load import open_checkpoint

LR: Final = {"lora": 2e-4, "full": 2e-5}
SPINNING: Final = {"OMP_WAIT_POLICY": "active"}
Step = Callable[[], float]


def main() -> None:
    """Prepare the inputs, let the sides take turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["lora", "full"], default="lora")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each side")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sides", default="ours-float32,sdpa-float32,eager-float32", help="SETTING-PRECISION,...")
    parser.add_argument("--model", default="default")
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--data", type=Path, default=shared / "data" / "alpaca_4500.jsonl.gz")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        serve(options)
        return
    with tempfile.TemporaryDirectory() as name:
        options.folder = Path(name)
        prepare(options)
        found = measure(options)
    print(json.dumps(found) if options.json else table(found))


def prepare(options: argparse.Namespace) -> None:
    """Write model, rows and the adapter that everyone begins with."""
    checkpoint = open_checkpoint(resolve(options.model))
    export(checkpoint, options.folder / "model", "hf", dtype=DType.BF16)
    chat = detect_format(checkpoint.chat_template, checkpoint.tokenizer)
    settings = EncoderSettings("sft", options.sequence)
    pack_sources([RawSource(options.data)], options.folder / "rows", settings, checkpoint.tokenizer, chat)
    if options.kind == "lora":
        model = load_model(checkpoint.config, open_checkpoint(options.folder / "model").tensors)
        adapter = recipe_of(options, "float32").adapter
        assert adapter is not None
        apply_adapter(model, adapter, seed=0)
        write_adapter(options.folder / "adapter", adapter_of(model, adapter), str(options.folder / "model"))


def recipe_of(options: argparse.Namespace, precision: str) -> Recipe:
    """What our side trains, and the settings that the peer takes from it."""
    raw: dict[str, Any] = {
        "name": "speed",
        "objective": "sft",
        "model": {"base": str(options.folder / "model")},
        "data": {"train": [{"path": str(options.folder / "rows")}], "sequence": options.sequence},
        "optimizer": {"lr": LR[options.kind]},
        "train": {"batch": options.rows, "micro_batch": options.rows, "precision": precision},
    }
    if options.kind == "lora":
        raw["adapter"] = {"rank": options.rank, "alpha": 2 * options.rank}
    return check_recipe(raw, "the benchmark")


def batches(options: argparse.Namespace) -> Loader:
    """The rows, in the same order for everyone."""
    source = Source(Pack.open(options.folder / "rows"), 1.0, "rows")
    return Loader([source], rows=options.rows, micro_rows=options.rows, seed=0)


def our_side(options: argparse.Namespace, precision: str) -> Step:
    """A step of ``qafila train``."""
    recipe = recipe_of(options, precision)
    device = start_device(recipe)
    subject = find_subject(recipe, Path())
    model = subject.build(device)
    objective = make_objective(subject, model)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    trainer = Trainer(
        loader=batches(options),
        optimizer=make_optimizer(trained, recipe.optimizer, recipe.train.precision),
        schedule=lambda step: 1.0,
        executor=OneProcess(model, objective),
        lr=recipe.optimizer.lr,
        clip=recipe.optimizer.clip,
    )
    return lambda: trainer.train_step().loss


def their_side(options: argparse.Namespace, setting: str, precision: str) -> Step:
    """The same step as people write it with transformers and peft."""
    import peft
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    dtype = getattr(torch, precision)
    path = str(options.folder / "model")
    model: Any = transformers.LlamaForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=setting)
    if options.kind == "lora":
        model = peft.PeftModel.from_pretrained(model, str(options.folder / "adapter"), is_trainable=True)
    model.train()
    section = recipe_of(options, "float32").optimizer
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, section.lr, section.betas, section.eps, section.weight_decay, fused=True)
    rows = iter(all_batches(batches(options)))

    def step() -> float:
        ids, labels, positions = (torch.from_numpy(part) for part in as_rows(next(rows), options.sequence))
        loss = model(input_ids=ids, labels=labels, position_ids=positions, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, section.clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def all_batches(loader: Loader) -> Iterator[Batch]:
    """Batch after batch."""
    while True:
        yield from loader.next_step()


def as_rows(batch: Batch, sequence: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, labels (at each token its own id, where it is to be learned) and positions, ``[rows, T]`` each."""
    labels = np.full_like(batch.targets, -100)
    labels[1:] = batch.targets[:-1]
    positions = np.concatenate([np.arange(length) for length in batch.lengths])
    ids, labels, positions = (part.reshape(-1, sequence) for part in (batch.ids, labels, positions))
    return ids, labels, positions


def serve(options: argparse.Namespace) -> None:
    """Make one side; a line on stdin is a step, the end of stdin the end."""
    setting, _, precision = options.one.rpartition("-")
    step = our_side(options, precision) if setting == "ours" else their_side(options, setting, precision)
    print(json.dumps({}), flush=True)
    for number, _ in enumerate(sys.stdin):
        if number == 1:
            pin()
        began, used = time.perf_counter(), time.process_time()
        loss = step()
        seconds, worked = time.perf_counter() - began, time.process_time() - used
        status = Path("/proc/self/status").read_text()
        peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
        print(json.dumps({"loss": loss, "seconds": seconds, "cpu": worked, "peak": peak}), flush=True)


def pin() -> None:
    """A core for each thread, once they are there: two that spin on one core wait for each other's time slice."""
    cores = sorted(os.sched_getaffinity(0))
    for number, task in enumerate(sorted(int(path.name) for path in Path("/proc/self/task").iterdir())):
        os.sched_setaffinity(task, {cores[min(number, len(cores) - 1)]})


class Side:
    """A process that computes a step when asked, and stands still otherwise."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        given = ["kind", "rows", "sequence", "rank", "model", "folder"]
        arguments = [f"--{key}={getattr(options, key)}" for key in given]
        command = [sys.executable, __file__, f"--one={name}", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, env=os.environ | SPINNING, **pipes)
        self.steps: list[dict[str, float]] = []
        self._answer()

    def step(self) -> None:
        """Take a turn."""
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.steps.append(self._answer())

    def close(self) -> None:
        """Let it end."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._process.send_signal(signal.SIGSTOP)
                answer: dict[str, float] = json.loads(line)
                return answer
        sys.exit("a side has failed")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What each side did."""
    sides: dict[str, Side] = {}
    try:
        for name in options.sides.split(","):
            sides[name] = Side(name, options)
        for _ in range(1 + options.steps):
            for side in sides.values():
                side.step()
    finally:
        for side in sides.values():
            side.close()
    tokens = options.rows * options.sequence
    found: dict[str, Any] = {"kind": options.kind, "rows": options.rows, "sequence": options.sequence, "sides": {}}
    reference = next(iter(sides.values()))
    for name, side in sides.items():
        seconds = statistics.median(step["seconds"] for step in side.steps[1:] or side.steps)
        losses = [step["loss"] for step in side.steps]
        apart = max(abs(a["loss"] / b - 1) for a, b in zip(reference.steps, losses, strict=True))
        found["sides"][name] = {
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
            "cpu_seconds": statistics.median(step["cpu"] for step in side.steps[1:] or side.steps),
            "peak": side.steps[-1]["peak"],
            "losses": losses,
            "apart": apart,
        }
    return found


def table(found: Mapping[str, Any]) -> str:
    """Markdown; every side beside the first."""
    lines = [
        f"{found['kind']}, {found['rows']} x {found['sequence']} tokens",
        "",
        "| side | tokens/s | first / this | s a step | CPU s | peak MB | loss, first | last | largest difference |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = next(iter(found["sides"].values()))
    for name, side in found["sides"].items():
        ratio = first["tokens_per_second"] / side["tokens_per_second"]
        lines.append(
            f"| {name} | {side['tokens_per_second']:.1f} | {ratio:.2f} | {side['seconds']:.2f} "
            f"| {side['cpu_seconds']:.2f} | {side['peak'] / 1e6:.0f} "
            f"| {side['losses'][0]:.4f} | {side['losses'][-1]:.4f} | {side['apart']:.3%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
