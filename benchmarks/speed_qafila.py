"""Our side of `engine_speed.py`: the public engine over the native runner, greedy, nothing guessed ahead.

What is timed is what a caller gets: tokens out of handles, sampling and all. Figures of the forward pass alone (logits
for perplexity) go through the runner.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from qafila.engine.engine import Engine
from qafila.engine.handle import Handle
from qafila.engine.native_runner import NativeRunner
from qafila.engine.request import Request
from qafila.engine.runner import BLOCK_TOKENS, Step
from qafila.sampling import GREEDY
from qafila.weights.load import open_checkpoint

#: Room for the longest measurement: 8 streams, or 4,096 tokens of context.
_KV_TOKENS = 6144


class Contender:
    """One model file behind one engine; the best settings are the defaults, so there is nothing to find."""

    def __init__(self, path: Path, kv_tokens: int = _KV_TOKENS) -> None:
        checkpoint = open_checkpoint(path)
        self.runner = NativeRunner.of(checkpoint, kv_tokens=kv_tokens)
        self.engine = Engine(self.runner)
        self.vocab_size = checkpoint.config.vocab_size
        self.random = np.random.default_rng(0)

    def close(self) -> None:
        """Free everything."""
        self.engine.close()

    def _ids(self, count: int) -> list[int]:
        """A prompt that no cache has seen."""
        return [int(i) for i in self.random.integers(100, self.vocab_size - 1000, count)]

    def _submit(self, ids: list[int], tokens: int) -> Handle:
        return self.engine.submit(Request(prompt_ids=ids, params=GREEDY, max_tokens=tokens, speculate=False))

    def tune(self, kind: str) -> dict[str, object]:
        """What it runs with."""
        return {"threads": self.runner.threads, "isa": self.runner.isa, "kv": self.runner.kv_type}

    def measure(self, kind: str, size: int, depth: int = 0) -> float:
        """Tokens a second of ``prefill``, ``decode``, ``depth`` or ``streams``."""
        if kind == "prefill":
            start = time.perf_counter()
            list(self._submit(self._ids(size), 1))
            return size / (time.perf_counter() - start)
        if kind == "streams":
            return self._streams(8, size)
        if depth and (self._deep is None or len(self._deep) != depth):
            self._deep = self._ids(depth)
        # The cache gives the prompt back: only its last block is read again.
        handle = self._submit(self._deep or [] if depth else self._ids(1), size + 1)
        next(handle)
        start = time.perf_counter()
        tokens = sum(1 for _ in handle)
        return tokens / (time.perf_counter() - start)

    _deep: list[int] | None = None

    def _streams(self, streams: int, tokens: int) -> float:
        handles = [self._submit(self._ids(16), tokens + 1) for _ in range(streams)]
        for handle in handles:
            next(handle)
        # All prompts are read; some streams may be a token or two ahead.
        begin = sum(handle.usage.generated for handle in handles)
        start = time.perf_counter()
        while not all(handle.finished for handle in handles):
            self.engine.step()
        seconds = time.perf_counter() - start
        return (sum(handle.usage.generated for handle in handles) - begin) / seconds

    def turns(self, first: int, second: int) -> tuple[float, float]:
        """Seconds to the first token of a chat's first and second turn; the second begins with the first's ids."""
        ids = self._ids(first)
        start = time.perf_counter()
        handle = self._submit(ids, 8)
        answer = [next(handle).id]
        middle = time.perf_counter()
        answer += [token.id for token in handle]
        again = time.perf_counter()
        next(follow := self._submit(ids + answer + self._ids(second - len(answer)), 2))
        seconds = time.perf_counter() - again
        follow.cancel()
        return middle - start, seconds

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits after each of the tokens, ``[T, V]``."""
        blocks = np.arange(-(-len(ids) // BLOCK_TOKENS), dtype=np.int32)[None]
        found = np.empty((len(ids), self.vocab_size), np.float32)
        step = min(self.runner.max_tokens, self.runner.max_rows)
        for begin in range(0, len(ids), step):
            part = np.array(ids[begin : begin + step], np.int32)
            count = len(part)
            found[begin : begin + count] = self.runner.logits(
                Step(
                    token_ids=part,
                    positions=np.arange(begin, begin + count, dtype=np.int32),
                    starts=np.array([0, count], np.int32),
                    blocks=blocks,
                    adapters=np.zeros(1, np.int32),
                    wanted=np.arange(count, dtype=np.int32),
                )
            )
        return found
