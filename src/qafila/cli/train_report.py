"""Training as a terminal or a log shows it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from qafila.cli.terminal import printable
from qafila.train.report import Silent


class Lines(Silent):
    """Lines for a log: the first steps, then about one every ten seconds."""

    def __init__(self) -> None:
        self._steps = 0
        self._told = 0.0

    def note(self, text: str) -> None:
        """A line."""
        print(printable(text), file=sys.stderr, flush=True)

    def start(self, steps: int, done: int) -> None:
        """A line."""
        self._steps = steps
        self.note(f"training: {steps - done} of {steps} steps to go")

    def step(self, line: Mapping[str, Any]) -> None:
        """A line, if the last one is long ago."""
        now = time.monotonic()
        if line["step"] == self._steps or now - self._told >= 10:
            self._told = now
            self.note(f"step {line['step']}/{self._steps}  {figures(line)}")

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """A line, and the samples."""
        self.note(f"step {line['step']}  validation {validation_figures(line)}")
        for sample in line.get("samples", ()):
            self.note(f"  > {sample['prompt']}\n  {sample['answer']}")


class Live(Lines):
    """A bar on a terminal with the newest figures, and a line for each evaluation."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(),
        )
        self._console = Console(stderr=True)
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task: Any = None
        self._packs: dict[str, Any] = {}

    def note(self, text: str) -> None:
        """A line above the bar; what models wrote is shown as text, whatever it looks like."""
        self._console.print(printable(text), markup=False, highlight=False)

    def warn(self, text: str) -> None:
        """A line above the bar."""
        self.note(f"warning: {text}")

    def packing(self, name: str, share: float) -> None:
        """A bar of its own."""
        self._bar.start()
        if name not in self._packs:
            self._packs[name] = self._bar.add_task(f"packing {name}", total=100, figures="")
        self._bar.update(self._packs[name], completed=round(100 * share))
        if share >= 1:
            self._bar.remove_task(self._packs.pop(name))

    def start(self, steps: int, done: int) -> None:
        """The bar begins."""
        self._steps = steps
        self._bar.start()
        self._task = self._bar.add_task("training", total=steps, completed=done, figures="")

    def step(self, line: Mapping[str, Any]) -> None:
        """The bar moves."""
        self._bar.update(self._task, completed=line["step"], figures=figures(line))

    def finish(self) -> None:
        """The bar goes."""
        self._bar.stop()


def figures(line: Mapping[str, Any]) -> str:
    """Loss, learning rate, throughput, utilisation and memory of a step in a few words."""
    parts = [f"loss {line['loss']:.3f}", f"lr {line['lr']:.1e}", f"{line['tokens_per_second']:,.0f} tok/s"]
    if "mfu" in line:
        parts.append(f"{100 * line['mfu']:.1f}% MFU")
    parts.append(f"{line['memory'] / 1e9:.1f} GB")
    return "  ".join(parts)


def validation_figures(line: Mapping[str, Any]) -> str:
    """What an evaluation found, in a few words."""
    found = line["validation"]
    parts = [f"loss {found['loss']:.4f}"]
    if "perplexity" in found:
        parts.append(f"perplexity {found['perplexity']:.2f}")
    if "bits_per_byte" in found:
        parts.append(f"{found['bits_per_byte']:.3f} bits per byte")
    if "accuracy" in found:
        parts.append(f"accuracy {100 * found['accuracy']:.1f}%")
    for key, value in found.items():
        if key.startswith("accuracy at "):
            parts.append(f"{key.removeprefix('accuracy at ')}: {100 * value:.1f}%")
    if "ends_met" in found:
        parts.append(f"would stop at {100 * found['ends_met']:.0f}% of the ends")
    return "  ".join(parts)
