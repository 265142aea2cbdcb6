"""Writing a checkpoint with a bar on the terminal, for every command that does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qafila.weights.load import Checkpoint, CheckpointFormat


def write(checkpoint: Checkpoint, destination: Path, to: CheckpointFormat, *, quiet: bool, **options: Any) -> Path:
    """`qafila.weights.export.export` with a bar that moves with each tensor, where there is a terminal to see it.

    Args:
        checkpoint, destination, to: as `export` takes them, and ``options`` too.
        quiet: show no bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from qafila.weights.export import export

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True) as bar:
        task = bar.add_task("writing", total=len(checkpoint.tensors))
        return export(checkpoint, destination, to, progress=lambda name, nbytes: bar.advance(task), **options)
