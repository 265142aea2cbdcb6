"""What a long download tells while it goes on: a callback, and a bar for it on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """Called now and then with what is being fetched, the bytes that are there and the bytes there will be."""

    def __call__(self, label: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes of ``label`` are there."""


def silent(label: str, done: int, total: int) -> None:
    """A progress that says nothing."""


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """One bar a label on standard error while it is a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as rich:
        tasks: dict[str, TaskID] = {}

        def show(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = rich.add_task(label, total=total)
            rich.update(tasks[label], completed=done, total=total)

        yield show
