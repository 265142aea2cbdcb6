"""How fast an engine is: reading prompts, generating, and the wait for the first token, as llama-bench measures them.

Prompts are random tokens, a new one each time, so that nothing is found in the prefix cache but the ``depth`` that is
put there; tokens are chosen greedily, nothing is guessed ahead and nothing ends an answer early.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qafila.engine.engine import Engine
from qafila.engine.handle import Handle
from qafila.engine.request import Request
from qafila.engine.runner import BLOCK_TOKENS
from qafila.errors import UsageError
from qafila.sampling import GREEDY


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured: ``prompt`` tokens read, then ``generate`` tokens by each of ``streams`` answers at once.

    ``depth`` tokens of context stand before the prompt and before what is generated; reading them is not measured.
    ``repeat`` measurements are made, after one that does not count.
    """

    prompt: int = 512
    generate: int = 128
    streams: int = 1
    depth: int = 0
    repeat: int = 3

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("generate", 2), ("streams", 1), ("depth", 0), ("repeat", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 30:
                raise UsageError(f"{name} must be a whole number, {least} or more, not {value!r:.40}")

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache must hold for it."""
        reading = self.depth + self.prompt + 1
        generating = self.streams * (self.depth + 1 + self.generate + BLOCK_TOKENS)
        return -(-max(reading, generating) // BLOCK_TOKENS) * BLOCK_TOKENS + 2 * BLOCK_TOKENS

    def check_context(self, context_length: int) -> None:
        """Raise UsageError where the model's context is too short for it."""
        needed = self.depth + max(self.prompt, self.generate) + 1
        if needed > context_length:
            raise UsageError(
                f"--depth and --prompt (or --generate) need {needed} tokens of context, and the model has "
                f"{context_length}; ask for less"
            )


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the repetitions; ``_all`` are the single ones."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    first_token_seconds: float
    prefill_all: tuple[float, ...]
    decode_all: tuple[float, ...]


def measure(
    engine: Engine,
    work: Workload,
    progress: Callable[[int, int], None] | None = None,
    *,
    adapter: str | None = None,
) -> Measured:
    """Run a workload; nobody else may use the engine meanwhile.

    Args:
        engine: its KV cache holds ``work.kv_tokens`` tokens at least.
        work: what to measure.
        progress: called with the repetitions that are done and those there will be.
        adapter: name of an adapter of the engine's, to compute with.

    Raises:
        QafilaError: the workload does not fit the context or the cache.
    """
    work.check_context(engine.runner.config.context_length)
    rng = np.random.default_rng(0)
    waits, prefills, decodes = [], [], []
    for number in range(work.repeat + 1):
        wait, read = _prefill(engine, work, rng, adapter)
        decode = _decode(engine, work, rng, adapter)
        if number:
            waits.append(wait)
            prefills.append(read / wait)
            decodes.append(decode)
        if progress is not None:
            progress(number, work.repeat)
    return Measured(
        statistics.median(prefills),
        statistics.median(decodes),
        statistics.median(waits),
        tuple(prefills),
        tuple(decodes),
    )


def _random_ids(engine: Engine, rng: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(rng.integers(0, engine.runner.config.vocab_size, count).tolist())


def _request(ids: tuple[int, ...], tokens: int, adapter: str | None) -> Request:
    return Request(prompt_ids=ids, params=GREEDY, max_tokens=tokens, seed=0, speculate=False, adapter=adapter)


def _prefill(engine: Engine, work: Workload, rng: np.random.Generator, adapter: str | None = None) -> tuple[float, int]:
    """Seconds until the first token, and the tokens that were read for it."""
    before = _random_ids(engine, rng, work.depth)
    if before:
        _last(engine.submit(_request(before, 1, adapter)))
    started = time.perf_counter()
    handle = engine.submit(_request((*before, *_random_ids(engine, rng, work.prompt)), 1, adapter))
    _last(handle)
    seconds = time.perf_counter() - started
    return seconds, handle.usage.prompt - handle.usage.cached


def _decode(engine: Engine, work: Workload, rng: np.random.Generator, adapter: str | None) -> float:
    """Tokens a second of all answers together, while all of them are under way."""
    prompts = [_random_ids(engine, rng, max(1, work.depth)) for _ in range(work.streams)]
    if work.depth:  # read them one by one, so that all answers begin at about the same step
        for ids in prompts:
            _last(engine.submit(_request(ids, 1, adapter)))
    handles = [engine.submit(_request(ids, work.generate, adapter)) for ids in prompts]
    while any(handle.usage.generated == 0 for handle in handles):
        engine.step()
    begun = sum(handle.usage.generated for handle in handles)
    started = time.perf_counter()
    while not any(handle.finished for handle in handles):
        engine.step()
    seconds = time.perf_counter() - started
    made = sum(handle.usage.generated for handle in handles) - begun
    for handle in handles:
        _last(handle)
    return made / seconds if seconds else 0.0


def _last(handle: Handle) -> None:
    """Take all tokens; what failed is raised."""
    for _ in handle:
        pass
