"""From logits to a token, without torch: the sampler that says what every faster one must choose.

In this order, each on what the one before left: logit bias, repetition penalty, presence and frequency penalty, mask,
then transformers' order of filters (``generation/utils.py``, ``_get_logits_processor``): temperature, top-k, top-p,
min-p. Random numbers come from a counter, so a token depends on the seed, its position and the number of the sample
alone, whatever else is being generated beside it. Probabilities are added up as whole numbers (`weights`), so that no
order of addition changes a token.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qafila.errors import QafilaError, UsageError

Logits = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
#: Allowed tokens: bit ``i % 32`` of word ``i // 32`` for token ``i``; ``[ceil(V / 32)]``.
Mask = npt.NDArray[np.uint32]
NOT_NUMBERS = "the model gave no usable logits (not a number, or infinite): its weights may be damaged"
NOTHING_ALLOWED = "the grammar allows no token that the model has"
Bias = tuple[tuple[int, float], ...]


def _check(name: str, value: object, in_range: Callable[[float], bool], wanted: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not number or not in_range(value):  # type: ignore[arg-type]
        raise UsageError(f"{name} must be a number {wanted}, not {value!r:.40}")


def _frozen_bias(bias: object) -> Bias:
    if not isinstance(bias, Mapping | tuple):
        raise UsageError(f"logit_bias must map token ids to numbers, not {bias!r:.40}")
    pairs = dict(bias)
    for id, value in pairs.items():
        if isinstance(id, bool) or not isinstance(id, int) or id < 0:
            raise UsageError(f"logit_bias must map token ids to numbers; {id!r:.40} is no token id")
        _check(f"logit_bias of token {id}", value, lambda v: -100 <= v <= 100, "between -100 and 100")
    return tuple(sorted(pairs.items()))


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
        presence_penalty: taken from the logits of tokens that were generated, -2 to 2; the prompt does not count.
        frequency_penalty: taken from them once for each time they were generated, -2 to 2.
        logit_bias: token ids and what is added to their logits, -100 to 100; kept as a sorted tuple of pairs.

    Raises:
        UsageError: a value out of its range; the message names the field.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Bias = ()

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, lambda v: v >= 0, "0 or more")
        _check("top_p", self.top_p, lambda v: 0 < v <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, lambda v: 0 <= v <= 1, "between 0 and 1")
        _check("repetition_penalty", self.repetition_penalty, lambda v: 1e-3 <= v <= 1e3, "between 0.001 and 1000")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise UsageError(f"top_k must be a whole number, 0 or more, not {self.top_k!r}")
        _check("presence_penalty", self.presence_penalty, lambda v: -2 <= v <= 2, "between -2 and 2")
        _check("frequency_penalty", self.frequency_penalty, lambda v: -2 <= v <= 2, "between -2 and 2")
        object.__setattr__(self, "logit_bias", _frozen_bias(self.logit_bias))

    @property
    def bias(self) -> Bias:
        """``logit_bias`` as it is kept: pairs of id and bias, sorted by id."""
        return self.logit_bias  # type: ignore[return-value]

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens so far matter."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def check_vocabulary(self, size: int) -> None:
        """Raise :class:`UsageError` where ``logit_bias`` names a token that a vocabulary of ``size`` does not have."""
        if self.bias and self.bias[-1][0] >= size:
            raise UsageError(f"logit_bias has token {self.bias[-1][0]}, but the model's tokens go from 0 to {size - 1}")

    @property
    def greedy(self) -> bool:
        """Whether no random number is needed."""
        return self.temperature == 0


GREEDY = SamplingParams(temperature=0.0)


class Occurrences:
    """Which tokens a sequence has so far, and how often each was generated."""

    __slots__ = ("_ids", "_outputs", "_places")

    def __init__(self, prompt: Iterable[int] = (), output: Iterable[int] = ()) -> None:
        self._places = {id: place for place, id in enumerate(dict.fromkeys(prompt))}
        room = 2 * len(self._places) + 64
        self._ids = np.zeros(room, dtype=np.int32)
        self._outputs = np.zeros(room, dtype=np.int32)
        self._ids[: len(self._places)] = list(self._places)
        for id in output:
            self.add(id)

    @property
    def ids(self) -> Int32:
        """The distinct tokens, in order of their first occurrence, ``[N]``."""
        return self._ids[: len(self._places)]

    @property
    def outputs(self) -> Int32:
        """How often each of `ids` was generated, ``[N]``; 0 for those of the prompt alone."""
        return self._outputs[: len(self._places)]

    def add(self, id: int) -> None:
        """One more token was generated."""
        place = self._places.setdefault(id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._outputs = np.concatenate([self._outputs, np.zeros_like(self._outputs)])
        self._ids[place] = id
        self._outputs[place] += 1

    def followed_by(self, ids: Iterable[int]) -> Occurrences:
        """A copy with more generated tokens."""
        copy = Occurrences()
        copy._places, copy._ids, copy._outputs = self._places.copy(), self._ids.copy(), self._outputs.copy()
        for id in ids:
            copy.add(id)
        return copy


class SampledToken(NamedTuple):
    """A token and its natural log-probability under the model's own distribution, before any filter."""

    id: int
    logprob: float


def sample(
    logits_V: Logits, params: SamplingParams, occurrences: Occurrences, uniform: float, mask: Mask | None = None
) -> SampledToken:
    """Choose the next token.

    The tokens that pass the filters stand in order of id on a line, each as long as its weight (`weights`); ``uniform``
    points at one of them. Greedy ties go to the lowest id.

    Args:
        logits_V: the model's logits, ``[V]``.
        params: the penalties and filters.
        occurrences: the tokens so far; ids beyond V are ignored.
        uniform: a number in [0, 1), as from :func:`uniform`.
        mask: the tokens that a grammar allows; None for all.

    Raises:
        QafilaError: the logits are not numbers, or the mask leaves none.
    """
    own = _checked(logits_V)
    if params.greedy:
        chosen = int(np.argmax(adjusted(logits_V, params, occurrences, mask)))
    else:
        kept = filtered(logits_V, params, occurrences, mask)
        candidates = np.flatnonzero(kept > -np.inf)
        ends = np.cumsum(weights(kept[candidates], kept.size))
        index = np.searchsorted(ends.astype(np.float64), uniform * float(ends[-1]), side="right")
        chosen = int(candidates[min(int(index), len(candidates) - 1)])
    return SampledToken(chosen, float(_log_softmax_at(own, chosen)))


def adjusted(logits_V: Logits, params: SamplingParams, occurrences: Occurrences, mask: Mask | None = None) -> Scores:
    """Logits ``[V]`` with bias and penalties, minus infinity where the mask forbids a token.

    Raises:
        QafilaError: the logits are not numbers, or the mask leaves none.
    """
    scores = _checked(logits_V)
    for id, bias in params.bias:
        if id < scores.size:
            scores[id] += bias
    if params.counts_tokens:
        inside = occurrences.ids < scores.size
        ids, outputs = occurrences.ids[inside], occurrences.outputs[inside]
        seen = scores[ids]
        seen = np.where(seen < 0, seen * params.repetition_penalty, seen / params.repetition_penalty)
        scores[ids] = seen - (params.frequency_penalty * outputs + params.presence_penalty * (outputs > 0))
    if mask is not None:
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little", count=scores.size).astype(bool)
        scores[~allowed] = -np.inf
        if scores.max() == -np.inf:
            raise QafilaError(NOTHING_ALLOWED)
    return scores


def filtered(logits_V: Logits, params: SamplingParams, occurrences: Occurrences, mask: Mask | None = None) -> Scores:
    """The scores that are sampled from, ``[V]``, minus infinity where a filter removed the token.

    Their softmax is the distribution; the highest is 0. ``params`` must not be greedy.
    """
    assert not params.greedy
    scores = adjusted(logits_V, params, occurrences, mask)
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


def weights(scores: Scores, vocabulary: int) -> npt.NDArray[np.int64]:
    """Probabilities as whole numbers: ``exp(score) * 2**k`` rounded, for scores up to 0.

    ``k`` is as large as it can be for a sum over the vocabulary to stay below ``2**63`` (46 for 128k tokens), so that
    sums are exact. A token less than ``2**-k`` as likely as the likeliest weighs nothing.
    """
    scaled: npt.NDArray[np.int64] = np.rint(np.exp(scores) * 2.0 ** weight_bits(vocabulary)).astype(np.int64)
    return scaled


def weight_bits(vocabulary: int) -> int:
    """``k`` of :func:`weights`."""
    return min(50, 63 - (vocabulary - 1).bit_length())


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
        raise QafilaError(NOT_NUMBERS)
    return scores


def _top_p(scores: Scores, top_p: float) -> Scores:
    mass = weights(scores, scores.size)
    limit = top_p * float(mass.sum())
    # Tokens lighter than this cannot hold more than the rest together, so only the others need sorting.
    likely = np.flatnonzero(mass >= min((1 - top_p) * float(mass.sum()) / scores.size, float(mass.max())))
    order = likely[np.argsort(-scores[likely], kind="stable")]
    before = np.cumsum(mass[order]) - mass[order]
    kept = order[before.astype(np.float64) < limit]
    out = np.full_like(scores, -np.inf)
    out[kept] = scores[kept]
    return out


def _log_softmax_at(scores: Scores, index: int) -> float:
    top = scores.max()
    return float(scores[index] - top - math.log(float(np.exp(scores - top).sum())))
