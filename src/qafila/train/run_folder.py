"""The folder of a run: resolved recipe, metrics, checkpoints, plots, and in the end the model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from qafila.errors import FormatError, UsageError
from qafila.train.recipe import Recipe

RECIPE: Final = "recipe.json"
METRICS: Final = "metrics.jsonl"
# What may differ when a run goes on: how it is computed and watched, not what it learns.
_FREE: Final = frozenset({"description", "evaluate", "checkpoint", "parallel", "tensorboard", "cost_per_hour"})
_FREE_SOURCE: Final = frozenset({"license"})
_FREE_TRAIN: Final = frozenset({"threads", "compile", "checkpoint_activations", "longest_first", "micro_batch"})


@dataclass(frozen=True)
class RunFolder:
    """``runs/NAME`` and what lies in it."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.path / "checkpoints"

    @property
    def packs(self) -> Path:
        """Where raw sources are packed into."""
        return self.path / "packs"

    @property
    def plots(self) -> Path:
        """Where plots are drawn."""
        return self.path / "plots"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps, evaluations, samples."""
        return self.path / METRICS

    @staticmethod
    def start(path: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> RunFolder:
        """Make the folder of a new run, or open that of one to go on with.

        Raises:
            UsageError: a run is there and it was not said what to do with it; nothing is there to resume; or the recipe
                of the run there would learn something else.
        """
        folder = RunFolder(path)
        known = path / RECIPE
        if resume:
            if not known.is_file():
                raise UsageError(f"{path}: holds no run to resume; leave --resume out to start one")
            folder._check_same(recipe)
        elif path.exists() and any(path.iterdir()):
            if not known.is_file():
                raise UsageError(f"{path}: holds other things than a run; choose another name or --to")
            if not overwrite:
                raise UsageError(
                    f"{path}: a run of this name is there; --resume goes on with it, --force starts it again"
                )
            # Packs are kept: they are named by what they hold, and cost the time to make them.
            for entry in path.iterdir():
                if entry.name == "packs":
                    continue
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        path.mkdir(parents=True, exist_ok=True)
        write_whole(known, json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
        return folder

    def _check_same(self, recipe: Recipe) -> None:
        now = _learned(recipe)
        try:
            raw = json.loads((self.path / RECIPE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise FormatError(self.path / RECIPE, f"is damaged ({error})") from None
        if isinstance(raw, dict) and raw.get("objective") != "dpo":
            raw.pop("dpo", None)  # written out with all defaults, but a recipe of another objective may not say it
        try:
            # Keys that came later have their defaults in an older recipe.
            before = _learned(Recipe.model_validate(raw))
        except ValidationError:
            raise FormatError(
                self.path / RECIPE, "is damaged, or of another version; start the run again with --force"
            ) from None
        for key in now:
            if key in _FREE or before[key] == now[key]:
                continue
            fields = [key]
            if key == "train":
                fields = [f"train.{k}" for k in now[key] if k not in _FREE_TRAIN and before[key].get(k) != now[key][k]]
            if fields:
                raise UsageError(
                    f"{self.path}: {fields[0]} differs from the run that is there; resume with what it was, or start "
                    "another run with name=..."
                )

    def lines(self) -> Iterator[dict[str, Any]]:
        """The metrics written so far; a line cut short by a crash is left out."""
        if not self.metrics.is_file():
            return
        with self.metrics.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    yield value

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps after ``step``, which are about to be taken again."""
        kept = [line for line in self.lines() if int(line.get("step", 0)) <= step]
        write_whole(self.metrics, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


class MetricsLog:
    """Appends to ``metrics.jsonl``, a line at a time, and to TensorBoard's files where asked."""

    def __init__(self, folder: RunFolder, *, tensorboard: bool) -> None:
        self._file = folder.metrics.open("a", encoding="utf-8", buffering=1)
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError:
                raise UsageError("tensorboard: is not installed; pip install 'qafila[tensorboard]'") from None
            self._board = SummaryWriter(str(folder.path / "tensorboard"))

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one line; its numbers go to TensorBoard too, under ``step``."""
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self._board is not None:
            for key, value in _numbers(line):
                self._board.add_scalar(key, value, int(line.get("step", 0)))

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _learned(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, without what is said of a source and not learned from it."""
    plain = recipe.model_dump(mode="json")
    for sources in (plain["data"]["train"], plain["data"]["validation"]):
        for source in sources:
            for key in _FREE_SOURCE:
                source.pop(key)
    return plain


def _numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            yield prefix + key, float(value)


def write_whole(path: Path, text: str) -> None:
    """Write a small file beside its place and move it there."""
    part = path.with_name(f".{path.name}.partial")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
