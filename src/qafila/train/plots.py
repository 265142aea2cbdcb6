"""Curves of a run as PNG files: loss, learning rate, gradient norm, throughput, utilisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def draw(lines: Iterable[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw the metrics into ``folder``; gives the files. Without any step nothing is drawn."""
    steps = list(lines)
    trained = [line for line in steps if "loss" in line]
    if not trained:
        return []
    # The figure classes themselves: pyplot would keep a window system's state for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    validated = [line for line in steps if "validation" in line]
    files = []
    for key, label in (
        ("loss", "loss"),
        ("lr", "learning rate"),
        ("grad_norm", "norm of the gradient"),
        ("tokens_per_second", "tokens / s"),
        ("mfu", "model FLOPs utilisation"),
    ):
        known = [line for line in trained if key in line]
        if not known:  # no peak is known of this processor
            continue
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot([line["step"] for line in known], [line[key] for line in known], linewidth=1, label="training")
        if key == "loss" and validated:
            axes.plot(
                [line["step"] for line in validated],
                [line["validation"]["loss"] for line in validated],
                marker="o",
                label="validation",
            )
            axes.legend()
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        file = folder / f"{key}.png"
        part = folder / f".{key}.partial.png"
        figure.savefig(part, dpi=120)
        part.replace(file)
        files.append(file)
    return files
