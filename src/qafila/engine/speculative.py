"""Guesses of how an answer goes on, checked by the model several at a time: the tokens are the same, they come sooner.

A guess is right when it is the token that the sampler chooses for its place, with its seed and filters. So guesses
change no token, sampled ones included, and a bad guess costs time alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from qafila.engine.request import Request
from qafila.engine.runner import BLOCK_TOKENS, Float32, Runner, Step
from qafila.engine.sampler import Sampled, Sampler, SampleRow
from qafila.sampling import Occurrences

#: Tokens that must have come before in the same order for what followed them to be a guess.
NGRAM = 3
#: Steps without guesses before they are tried again; doubled each time that they did not pay, up to the second.
FIRST_PAUSE, LONGEST_PAUSE = 16, 256


class StepCosts:
    """How much longer a step takes for each guess in it, from the time between the steps of one answer.

    One object serves all answers of an engine. Before anything is measured a guess counts as ``prior`` of a step.
    """

    def __init__(self, prior: float = 0.15) -> None:
        self._plain = 0.0
        self._slope = prior

    @property
    def per_guess(self) -> float:
        """Time of a guess, as a share of a step without any."""
        return self._slope

    def measured(self, guesses: int, seconds: float) -> None:
        """One step took ``seconds`` with so many guesses."""
        if guesses == 0:
            # A pause of the caller's is no step: what is far above the usual counts for little.
            usual = self._plain or seconds
            self._plain = 0.9 * usual + 0.1 * min(seconds, 2 * usual)
        elif self._plain > 0:
            slope = (seconds / self._plain - 1) / guesses
            self._slope = 0.9 * self._slope + 0.1 * min(max(slope, 0.005), 1.0)


class _Worth:
    """How many guesses pay for one answer, from the share that was right and what one costs."""

    def __init__(self, costs: StepCosts, clock: Callable[[], float]) -> None:
        self._costs = costs
        self._clock = clock
        self._last: tuple[float, int] | None = None
        self._guesses = 0
        # As if two of three had been right so far.
        self._right, self._made = 2.0, 3.0
        self._wait = 0
        self._pause = FIRST_PAUSE

    def step(self, length: int) -> None:
        """A step begins for an answer of so many tokens."""
        now = self._clock()
        if self._last is not None and self._last[1] < length:
            self._costs.measured(self._guesses, now - self._last[0])
        self._last, self._guesses = (now, length), 0

    def most(self, most: int) -> int:
        """How many to make now; 0 while they do not pay."""
        if self._wait > 0:
            self._wait -= 1
            if self._wait == 0:
                # Long enough ago: a few guesses tell whether the text is more predictable now.
                self._right, self._made = 1.0, 2.0
                return min(most, 2)
            return 0
        share = min(self._right / self._made, 0.98)
        best, count, expected = 1.0, 0, 1.0
        for k in range(1, most + 1):
            expected += share**k
            worth = expected / (1 + k * self._costs.per_guess)
            if worth > best:
                best, count = worth, k
        if count == 0:
            self._wait = self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return count

    def told(self, accepted: int, proposed: int) -> None:
        """How the last guesses went; those after the first wrong one say nothing."""
        self._guesses = proposed
        tried = min(accepted + 1, proposed)
        self._right = 0.9 * self._right + accepted
        self._made = 0.9 * self._made + tried
        if accepted == proposed:
            self._pause = FIRST_PAUSE


class PromptLookup:
    """Guesses that what came before in prompt or answer comes again, where its last tokens do (prompt lookup decoding).

    It turns itself off where its guesses do not pay, and tries again later. For one answer; its ``ids`` only grow.

    Args:
        costs: what guesses cost, shared by all answers of an engine.
        clock: seconds.
    """

    def __init__(self, costs: StepCosts | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._worth = _Worth(costs or StepCosts(), clock)
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = NGRAM

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Up to ``most`` tokens that may follow ``ids``."""
        self._worth.step(len(ids))
        after = self._after
        # The last tokens are looked up before their own place is known; nothing follows them there yet.
        for end in range(self._indexed, len(ids)):
            after[tuple(ids[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, len(ids))
        start = after.get(tuple(ids[-NGRAM:])) if len(ids) >= NGRAM else None
        if start is None:
            return ()
        count = self._worth.most(most)
        # A match that overlaps the end goes round: a text that repeats itself is guessed on.
        period = len(ids) - start
        return [ids[start + i % period] for i in range(count)]

    def feedback(self, accepted: int, proposed: int) -> None:
        """How many of the last guesses were right."""
        self._worth.told(accepted, proposed)


class DraftModel:
    """Guesses with a smaller model of the same vocabulary, which chooses with the request's own seed and filters.

    Args:
        runner: of the small model; closed with this object. Answers share its KV cache: each has blocks of its own
            while there are any, and gets no guesses without.
        clock: seconds.
    """

    def __init__(self, runner: Runner, clock: Callable[[], float] = time.perf_counter) -> None:
        self.runner = runner
        self._clock = clock
        self._free = list(range(runner.num_blocks))
        self._sampler = Sampler()
        self._costs = StepCosts(prior=0.3)

    def __call__(self, request: Request) -> DraftProposer:
        """Guesses for the answer to a request with a seed of its own."""
        return DraftProposer(self, request)

    def close(self) -> None:
        """Free the small model."""
        self.runner.close()


class DraftProposer:
    """One answer's guesses from a `DraftModel`."""

    def __init__(self, draft: DraftModel, request: Request) -> None:
        self._draft = draft
        self._worth = _Worth(draft._costs, draft._clock)
        self._row = SampleRow(request.params, request.seed or 0, 0, request.sample_index)
        self._prompt = len(request.prompt_ids)
        self._blocks: list[int] = []
        # Tokens whose keys and values are in the small model's cache.
        self._read: list[int] = []

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Up to ``most`` tokens that may follow ``ids``; none where the small model has no room for them."""
        self._worth.step(len(ids))
        runner = self._draft.runner
        most = min(most, runner.config.context_length - len(ids))
        count = self._worth.most(most) if most > 0 else 0
        if count == 0 or not self._make_room(len(ids) + count):
            return ()
        known = self._agreeing(ids)
        row = self._row
        occurrences = (
            Occurrences(ids[: self._prompt], ids[self._prompt :]) if row.params.counts_tokens else Occurrences()
        )
        new = list(ids[known:])
        guesses: list[int] = []
        while True:
            logits_V = self._compute(known, new)
            row.position, row.occurrences = len(ids) + len(guesses), occurrences
            [chosen] = self._draft._sampler(logits_V[None], [row])
            known += len(new)
            if not isinstance(chosen, Sampled):
                return guesses
            guesses.append(chosen.id)
            if len(guesses) == count:
                self._read = [*ids, *guesses[:-1]]
                return guesses
            if row.params.counts_tokens:
                occurrences.add(chosen.id)
            new = [chosen.id]

    def feedback(self, accepted: int, proposed: int) -> None:
        """How many of the last guesses were right."""
        self._worth.told(accepted, proposed)

    def close(self) -> None:
        """Give the blocks back; the answer is over."""
        self._draft._free += self._blocks
        self._blocks, self._read = [], []

    def __del__(self) -> None:
        self.close()

    def _agreeing(self, ids: Sequence[int]) -> int:
        """How many tokens of ``ids`` need not be read again: the last one always is."""
        most = min(len(self._read), len(ids) - 1)
        read, wanted = np.array(self._read[:most], np.int64), np.array(ids[:most], np.int64)
        different = np.flatnonzero(read != wanted)
        return int(different[0]) if len(different) else most

    def _make_room(self, tokens: int) -> bool:
        missing = -(-tokens // BLOCK_TOKENS) - len(self._blocks)
        if missing > len(self._draft._free):
            return False
        for _ in range(missing):
            self._blocks.append(self._draft._free.pop())
        return True

    def _compute(self, start: int, new: list[int]) -> Float32:
        """Logits ``[V]`` after the last of ``new``, which stand from ``start`` on."""
        runner = self._draft.runner
        blocks = np.array([self._blocks], np.int32)
        for first in range(0, len(new), runner.max_tokens):
            part = new[first : first + runner.max_tokens]
            last = first + len(part) == len(new)
            step = Step(
                np.array(part, np.int32),
                np.arange(start + first, start + first + len(part), dtype=np.int32),
                np.array([0, len(part)], np.int32),
                blocks,
                np.zeros(1, np.int32),
                np.array([len(part) - 1] if last else [], np.int32),
            )
            logits_RV = runner.logits(step)
        return np.array(logits_RV[0])
