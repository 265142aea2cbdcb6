"""What a model's odds are worth: from how it leans by itself to how often it is right.

A small model begins a call rarely and likes some tools' names whatever it is asked. Both show in its odds under a goal
that asks for nothing; they are taken off, and what is left is stretched until a probability of 0.8 is right eight times
out of ten (Zhao et al. 2021, "Calibrate Before Use", section 3; Guo et al. 2017, "On Calibration of Modern Neural
Networks", section 4.2; here with a share of the prior that is fitted, not fixed at one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from qafila.chat.client import ToolOdds
from qafila.errors import FormatError, StorageError, UsageError
from qafila.weights.cache import home
from qafila.weights.storage import staging

#: A goal that asks for nothing: what a model does with it is its habit.
NEUTRAL_GOAL = "..."
#: Probabilities are kept this far off 0 and 1.
TINY = 1e-12
_PRIORS: Final = tuple(float(prior) for prior in np.linspace(0, 1, 11))


class Calibration(BaseModel):
    """How odds become probabilities; without fitting they stay what they are.

    Attributes:
        call_slope, call_offset, call_prior: log-odds of a call are ``slope * (own - prior * neutral) + offset``.
        tool_slope, tool_prior: log-probabilities of tools are ``slope * (own - prior * neutral)``, normalised.
        fingerprint: of the weights that this was fitted for. examples: how many. source: what they were.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    call_slope: float = 1.0
    call_offset: float = 0.0
    call_prior: float = 0.0
    tool_slope: float = 1.0
    tool_prior: float = 0.0
    fingerprint: str = ""
    examples: int = 0
    source: str = ""

    def apply(self, own: ToolOdds, neutral: ToolOdds) -> ToolOdds:
        """Probabilities of a call, and of each tool where there is one, out of the model's own."""
        call = self.call_slope * (logit(own.call) - self.call_prior * logit(neutral.call)) + self.call_offset
        habit = dict(neutral.tools)
        scores = [
            self.tool_slope * (math.log(max(p, TINY)) - self.tool_prior * math.log(max(habit[name], TINY)))
            for name, p in own.tools
        ]
        highest = max(scores)
        weights = [math.exp(score - highest) for score in scores]
        total = math.fsum(weights)
        tools = tuple((name, weight / total) for (name, _), weight in zip(own.tools, weights, strict=True))
        return ToolOdds(sigmoid(call), tools)


@dataclass(frozen=True, slots=True)
class Example:
    """Odds of a model under a goal and under the neutral one, and what would have been right: a tool, or None."""

    own: ToolOdds
    neutral: ToolOdds
    right: str | None


@dataclass(frozen=True, slots=True)
class Quality:
    """How good probabilities are on examples.

    Attributes:
        call_error, tool_error: expected calibration error, in ten bins of equal width (Guo et al. 2017, section 2).
        call_auroc: chance that a goal for a call gets the higher probability of one than a goal for words.
        call_accuracy: share of goals where a call was made or not as it should. tool_accuracy: share of the right tool
            among goals for a call, whether one was made or not.
    """

    call_error: float
    call_auroc: float
    call_accuracy: float
    tool_error: float
    tool_accuracy: float


def fit(examples: Sequence[Example], *, fingerprint: str = "", source: str = "") -> Calibration:
    """The calibration under which these examples are likeliest.

    Raises:
        UsageError: no goal for a call, or none for words, among them.
    """
    calls = [one for one in examples if one.right is not None]
    if not calls or len(calls) == len(examples):
        raise UsageError("examples: some must have a right tool and some none, so that both can be told apart")
    own = np.array([logit(one.own.call) for one in examples])
    habit = np.array([logit(one.neutral.call) for one in examples])
    called = np.array([one.right is not None for one in examples], float)
    fits = [(*_logistic(own - prior * habit, called), prior) for prior in _PRIORS]
    _, slope, offset, prior = min(fits)
    tool_slope, tool_prior = _tools(calls)
    return Calibration(
        call_slope=slope,
        call_offset=offset,
        call_prior=prior,
        tool_slope=tool_slope,
        tool_prior=tool_prior,
        fingerprint=fingerprint,
        examples=len(examples),
        source=source,
    )


def _logistic(feature_E: npt.NDArray[np.float64], target_E: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Loss, slope and offset of a logistic regression with a little shrinkage, by Newton's method."""
    mean, scale = feature_E.mean(), feature_E.std() + TINY
    columns = np.stack([(feature_E - mean) / scale, np.ones(len(feature_E))], axis=1)
    weights = np.zeros(2)
    shrink = np.diag([1.0, 1e-6])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(columns @ weights, -50, 50)))
        gradient = columns.T @ (p - target_E) + shrink @ weights
        hessian = (columns * (p * (1 - p))[:, None]).T @ columns + shrink
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    p = np.clip(1 / (1 + np.exp(-(columns @ weights))), TINY, 1 - TINY)
    loss = -float(np.sum(target_E * np.log(p) + (1 - target_E) * np.log(1 - p)))
    slope = float(weights[0] / scale)
    return loss, slope, float(weights[1] - slope * mean)


def _tools(calls: Sequence[Example]) -> tuple[float, float]:
    """Slope and prior under which the right tools are likeliest: a search, coarse and then fine."""
    choices = [one for one in calls if len(one.own.tools) > 1]
    if not choices:
        return 1.0, 0.0

    def loss(slope: float, prior: float) -> float:
        calibration = Calibration(tool_slope=slope, tool_prior=prior)
        found = (dict(calibration.apply(one.own, one.neutral).tools)[one.right or ""] for one in choices)
        return -math.fsum(math.log(max(p, TINY)) for p in found)

    best = min((loss(s, p), s, p) for s in np.geomspace(0.05, 4, 14) for p in _PRIORS)
    for width in (0.3, 0.1):
        _, slope, prior = best
        around = [(float(slope * (1 + width * a)), float(prior + width * b)) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        best = min(best, *((loss(s, max(0.0, p)), s, max(0.0, p)) for s, p in around))
    return float(best[1]), float(best[2])


def quality(calibration: Calibration, examples: Sequence[Example], *, threshold: float = 0.5) -> Quality:
    """How good a calibration's probabilities are on examples that it was not fitted to."""
    applied = [(one, calibration.apply(one.own, one.neutral)) for one in examples]
    called = [(odds.call, one.right is not None) for one, odds in applied]
    chosen = []
    for one, odds in applied:
        if one.right is not None:
            name, probability = max(odds.tools, key=lambda item: item[1])
            chosen.append((probability, name == one.right))
    return Quality(
        call_error=_error(called),
        call_auroc=_auroc(called),
        call_accuracy=float(np.mean([(p >= threshold) == right for p, right in called])),
        tool_error=_error(chosen),
        tool_accuracy=float(np.mean([right for _, right in chosen])) if chosen else math.nan,
    )


def _error(predicted: Sequence[tuple[float, bool]]) -> float:
    if not predicted:
        return math.nan
    p, right = np.array([one[0] for one in predicted]), np.array([one[1] for one in predicted], float)
    bins = np.minimum((p * 10).astype(int), 9)
    gaps = [abs(p[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))


def _auroc(predicted: Sequence[tuple[float, bool]]) -> float:
    yes, no = [p for p, right in predicted if right], [p for p, right in predicted if not right]
    if not yes or not no:
        return math.nan
    wins = sum((a > b) + 0.5 * (a == b) for a in yes for b in no)
    return wins / (len(yes) * len(no))


def logit(p: float) -> float:
    """Log-odds of a probability, which is kept off 0 and 1."""
    p = min(max(p, TINY), 1 - TINY)
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    """The probability of log-odds."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def calibration_of(fingerprint: str | None) -> Calibration | None:
    """The calibration of these weights: one that was fitted here (in ``QAFILA_HOME``), or one that Qafila brings.

    Raises:
        FormatError: the file is there and damaged.
    """
    if fingerprint is None:
        return None
    weights = fingerprint.partition("-")[0]
    for folder in (home() / "calibrations", Path(__file__).parent / "calibrations"):
        path = folder / f"{weights}.json"
        if path.is_file():
            return read_calibration(path)
    return None


def keep_calibration(calibration: Calibration) -> Path:
    """Keep a calibration in ``QAFILA_HOME``, where `calibration_of` finds it; gives its path.

    Raises:
        UsageError: it is of no known weights. StorageError: it cannot be written.
    """
    if not calibration.fingerprint:
        raise UsageError("the weights are not known (a remote model, or an adapter): name a file with --to")
    path = home() / "calibrations" / f"{calibration.fingerprint.partition('-')[0]}.json"
    write_calibration(calibration, path)
    return path


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration as JSON, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    text = calibration.model_dump_json(indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent}: {error.strerror}") from None
    with staging(path.parent) as stage, stage.open(path.name) as write:
        write(text.encode())


def read_calibration(path: Path) -> Calibration:
    """A calibration out of its JSON file.

    Raises:
        FormatError: it is none. OSError: it cannot be read.
    """
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise FormatError(path, f"is no calibration ({error.errors()[0]['msg']})") from None
