"""From logits to a token, without torch: the one sampler every backend shares.

The order of filters is transformers' (``generation/utils.py``, ``_get_logits_processor``): repetition penalty,
temperature, top-k, top-p, min-p, each on what the one before left. Random numbers come from a counter, so a token
depends on the seed, its position and the number of the sample alone, whatever else is being generated beside it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qafila.errors import QafilaError, UsageError

Logits = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]


def _check(name: str, value: object, in_range: Callable[[float], bool], wanted: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not number or not in_range(value):  # type: ignore[arg-type]
        raise UsageError(f"{name} must be a number {wanted}, not {value!r:.40}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token always (greedy).
        top_k: keep the ``k`` likeliest tokens (and all that tie with the last of them); 0 keeps all.
        top_p: keep the fewest tokens, likeliest first, whose probabilities reach ``top_p`` together; 1 keeps all.
        min_p: keep tokens with at least ``min_p`` of the likeliest one's probability; 0 keeps all.
        repetition_penalty: logits of tokens that occurred, prompt included, are divided by it where positive and
            multiplied where negative (CTRL, arXiv 1909.05858); 1 changes nothing.

    Raises:
        UsageError: a value out of its range; the message names the field.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, lambda v: v >= 0, "0 or more")
        _check("top_p", self.top_p, lambda v: 0 < v <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, lambda v: 0 <= v <= 1, "between 0 and 1")
        _check("repetition_penalty", self.repetition_penalty, lambda v: 1e-3 <= v <= 1e3, "between 0.001 and 1000")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise UsageError(f"top_k must be a whole number, 0 or more, not {self.top_k!r}")

    @property
    def greedy(self) -> bool:
        """Whether no random number is needed."""
        return self.temperature == 0


GREEDY = SamplingParams(temperature=0.0)


class SampledToken(NamedTuple):
    """A token and its natural log-probability under the model's own distribution, before any filter."""

    id: int
    logprob: float


def sample(logits_V: Logits, params: SamplingParams, counts: Mapping[int, int], uniform: float) -> SampledToken:
    """Choose the next token.

    The tokens that pass the filters stand in order of id on a line of length one, each as long as its probability;
    ``uniform`` points at one of them. Greedy ties go to the lowest id.

    Args:
        logits_V: the model's logits, ``[V]``.
        params: the filters.
        counts: how often each token occurred so far, prompt included; ids beyond V are ignored.
        uniform: a number in [0, 1), as from :func:`uniform`.

    Raises:
        QafilaError: the logits are not numbers.
    """
    scores = _checked(logits_V)
    if params.greedy:
        chosen = int(np.argmax(_penalised(scores, params, counts)))
    else:
        kept = filtered(logits_V, params, counts)
        candidates = np.flatnonzero(kept > -np.inf)
        cumulative = np.cumsum(_softmax(kept[candidates]))
        index = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
        chosen = int(candidates[min(int(index), len(candidates) - 1)])
    return SampledToken(chosen, float(_log_softmax_at(scores, chosen)))


def filtered(logits_V: Logits, params: SamplingParams, counts: Mapping[int, int]) -> Scores:
    """The scores that are sampled from, ``[V]``, minus infinity where a filter removed the token.

    Their softmax is the distribution. ``params`` must not be greedy.
    """
    assert not params.greedy
    scores = _penalised(_checked(logits_V), params, counts)
    # The maximum goes first, so that a tiny temperature cannot overflow; shifts change no probability.
    with np.errstate(over="ignore"):
        scores = (scores - scores.max()) / params.temperature
    if 0 < params.top_k < scores.size:
        threshold = np.partition(scores, -params.top_k)[-params.top_k]
        scores = np.where(scores < threshold, -np.inf, scores)
    if params.top_p < 1:
        scores = _top_p(scores, params.top_p)
    if params.min_p > 0:
        scores = np.where(scores < math.log(params.min_p), -np.inf, scores)
    return scores


def uniform(seed: int, position: int, sample: int = 0) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, each below 2**64.

    It is the first word of block ``position + 1`` of Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as
    easy as 1, 2, 3") under the key ``(seed, sample)``: its upper 53 bits divided by 2**53.

    Args:
        seed: the request's seed.
        position: place of the token being chosen in its sequence, counted from the prompt's first token.
        sample: number of the answer where a request asks for several.
    """
    key = np.array([seed, sample], dtype=np.uint64)
    word = np.random.Philox(key=key, counter=position).random_raw()
    return float(int(word) >> 11) * 2.0**-53


def check_seed(seed: int) -> None:
    """Raise :class:`UsageError` unless ``seed`` fits the generator's 64-bit key."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise UsageError(f"seed must be a whole number between 0 and 2**64 - 1, not {seed!r}")


def _checked(logits_V: Logits) -> Scores:
    scores = logits_V.astype(np.float64)
    # Minus infinity is how a grammar forbids a token; everything else must be a number.
    if not np.isfinite(scores.max()):
        raise QafilaError("the model gave no usable logits (not a number, or infinite): its weights may be damaged")
    return scores


def _penalised(scores: Scores, params: SamplingParams, counts: Mapping[int, int]) -> Scores:
    if params.repetition_penalty == 1 or not counts:
        return scores
    ids = np.fromiter((i for i in counts if i < scores.size), dtype=np.int64)
    seen = scores[ids]
    scores = scores.copy()
    scores[ids] = np.where(seen < 0, seen * params.repetition_penalty, seen / params.repetition_penalty)
    return scores


def _top_p(scores: Scores, top_p: float) -> Scores:
    probabilities = _softmax(scores)
    # Tokens less likely than this cannot hold more than 1 - top_p together, so only the others need sorting.
    likely = np.flatnonzero(probabilities >= min((1 - top_p) / scores.size, probabilities.max()))
    order = likely[np.argsort(-probabilities[likely], kind="stable")]
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[before < top_p]
    out = np.full_like(scores, -np.inf)
    out[kept] = scores[kept]
    return out


def _softmax(scores: Scores) -> Scores:
    exponents = np.exp(scores - scores.max())
    probabilities: Scores = exponents / exponents.sum()
    return probabilities


def _log_softmax_at(scores: Scores, index: int) -> float:
    top = scores.max()
    return float(scores[index] - top - math.log(float(np.exp(scores - top).sum())))
