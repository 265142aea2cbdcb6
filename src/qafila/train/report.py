"""What a run tells while it goes on: to a terminal, to a log, or to nobody."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol


class Reporter(Protocol):
    """Told of everything as it happens."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def warn(self, text: str) -> None:
        """Something that went wrong, though the run goes on."""

    def packing(self, name: str, share: float) -> None:
        """A raw source is being packed; ``share`` (0 to 1) is done."""

    def start(self, steps: int, done: int) -> None:
        """Training begins; ``done`` of ``steps`` are there already."""

    def step(self, line: Mapping[str, Any]) -> None:
        """A step, as metrics.jsonl has it."""

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """An evaluation, as metrics.jsonl has it."""

    def finish(self) -> None:
        """Training ended, well or not."""


class Silent:
    """Tells nobody; warnings go to standard error."""

    def note(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """A line on standard error."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def packing(self, name: str, share: float) -> None:
        """Nothing."""

    def start(self, steps: int, done: int) -> None:
        """Nothing."""

    def step(self, line: Mapping[str, Any]) -> None:
        """Nothing."""

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""
