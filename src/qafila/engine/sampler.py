"""From a step's logits to its tokens: what `qafila.sampling` says, for all rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qafila.errors import QafilaError
from qafila.sampling import Mask, Occurrences, SamplingParams, sample, uniform


@dataclass(slots=True)
class SampleRow:
    """How the token after one row of logits is chosen.

    Attributes:
        params: penalties and filters.
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


class Sampled(NamedTuple):
    """A chosen token.

    ``logprob`` and those of ``top`` are natural, under the model's own distribution: before bias, penalties, masks and
    filters. ``top`` holds the likeliest tokens, likeliest first, the lowest id first of equals.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses a token for each row of logits."""

    def __call__(self, logits_RV: npt.NDArray[np.float32], rows: Sequence[SampleRow]) -> list[Sampled | QafilaError]:
        """One token a row, or the error of a row whose logits are not numbers or whose mask leaves nothing.

        Args:
            logits_RV: ``[R, V]``, not changed.
            rows: R of them.
        """
        return [_slow(logits_V, row) for logits_V, row in zip(logits_RV, rows, strict=True)]


def _slow(logits_V: npt.NDArray[np.float32], row: SampleRow) -> Sampled | QafilaError:
    number = 0.0 if row.params.greedy else uniform(row.seed, row.position, row.sample)
    try:
        chosen = sample(logits_V, row.params, row.occurrences, number, row.mask)
    except QafilaError as error:
        return error
    own = logits_V.astype(np.float64)
    own -= own.max()
    own -= np.log(np.exp(own).sum())
    likeliest = np.argsort(-own, kind="stable")[: row.top_logprobs]
    return Sampled(chosen.id, chosen.logprob, tuple((int(i), float(own[i])) for i in likeliest))
