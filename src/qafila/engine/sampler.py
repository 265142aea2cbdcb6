"""From a step's logits to its tokens: what `qafila.sampling` says, for all rows at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qafila.errors import QafilaError
from qafila.native._native import Sampler as NativeSampler
from qafila.native._native import SampleSettings
from qafila.sampling import NOT_NUMBERS, NOTHING_ALLOWED, Int32, Mask, Occurrences, SamplingParams, sample, uniform

NativeRow = tuple[SampleSettings, int, int, int, Int32 | None, Int32 | None, Mask | None, int]


@dataclass(slots=True)
class SampleRow:
    """How the token after one row of logits is chosen.

    Attributes:
        params: penalties and filters; not to be changed once a token was chosen (all else may be).
        seed: of the request.
        position: place of the token in its sequence, counted from the prompt's first.
        sample: number of the answer, where a request asks for several.
        occurrences: the tokens before ``position``; looked at where the parameters count tokens, kept by nobody.
        mask: the tokens that a grammar allows, ``[ceil(V / 32)]``; None for all.
        top_logprobs: how many of the likeliest tokens to name.
    """

    params: SamplingParams
    seed: int
    position: int
    sample: int = 0
    occurrences: Occurrences = field(default_factory=Occurrences)
    mask: Mask | None = None
    top_logprobs: int = 0
    _settings: SampleSettings | None = field(default=None, init=False, repr=False)


class Sampled(NamedTuple):
    """A chosen token.

    ``logprob`` and those of ``top`` are natural, under the model's own distribution: before bias, penalties, masks and
    filters. ``top`` holds the likeliest tokens, likeliest first, the lowest id first of equals.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses a token for each row of logits, natively; `choose_slowly` says which. One call at a time.

    Args:
        threads: at most so many; 0 for one a processor. Tokens do not depend on it.
        isa: ``portable``, ``avx2`` or ``avx512``; empty for the best. Tokens do not depend on it either.
    """

    def __init__(self, threads: int = 0, isa: str = "") -> None:
        self._native = NativeSampler(threads, isa)

    def __call__(self, logits_RV: npt.NDArray[np.float32], rows: Sequence[SampleRow]) -> list[Sampled | QafilaError]:
        """One token a row, or the error of a row whose logits are not numbers or whose mask leaves nothing.

        Args:
            logits_RV: ``[R, V]``, contiguous, not changed.
            rows: R of them.
        """
        chosen = self._native.choose(logits_RV, [_plain(row) for row in rows])
        return [_told(item) if isinstance(item, int) else Sampled(*item) for item in chosen]


def log_probabilities(logits_RV: npt.NDArray[np.float32], ids: Int32) -> list[float]:
    """Natural log-probability of one id for each row of logits, the same bits that `Sampler` gives a chosen token.

    Raises:
        QafilaError: the logits are not numbers.
    """
    values = NativeSampler().logprobs(logits_RV, ids)
    if any(math.isnan(value) for value in values):
        raise QafilaError(NOT_NUMBERS)
    return values


def _plain(row: SampleRow) -> NativeRow:
    settings = row._settings
    if settings is None:
        settings = row._settings = _settings(row.params)
    counted = row.params.counts_tokens
    ids, outputs = (row.occurrences.ids, row.occurrences.outputs) if counted else (None, None)
    return settings, row.seed, row.position, row.sample, ids, outputs, row.mask, row.top_logprobs


def _settings(params: SamplingParams) -> SampleSettings:
    return SampleSettings(
        params.temperature,
        params.top_k,
        params.top_p,
        math.log(params.min_p) if params.min_p > 0 else -math.inf,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
        np.array([id for id, _ in params.bias], np.int32),
        np.array([bias for _, bias in params.bias], np.float64),
    )


def _told(problem: int) -> QafilaError:
    return QafilaError(NOT_NUMBERS if problem == 1 else NOTHING_ALLOWED)


def choose_slowly(logits_V: npt.NDArray[np.float32], row: SampleRow) -> Sampled | QafilaError:
    """What `Sampler` gives for one row, from `qafila.sampling`: the oracle."""
    number = 0.0 if row.params.greedy else uniform(row.seed, row.position, row.sample)
    try:
        chosen = sample(logits_V, row.params, row.occurrences, number, row.mask)
    except QafilaError as error:
        return error
    own = logits_V.astype(np.float64) - logits_V.max()
    own -= np.log(np.exp(own).sum())
    likeliest = np.argsort(-logits_V, kind="stable")[: row.top_logprobs]
    return Sampled(chosen.id, chosen.logprob, tuple((int(i), float(own[i])) for i in likeliest))
