"""llama.cpp's side of `engine_speed.py`, through llama-cpp-python's low-level calls.

As in llama-bench, tokens are random and nothing is sampled: what is timed is `llama_decode` up to its logits.
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import llama_cpp
import numpy as np


@dataclass(frozen=True)
class Settings:
    """What is tried to find llama.cpp's best: threads, flash attention, tokens of one graph, streams in one buffer."""

    threads: int
    flash: bool = True
    ubatch: int = 512
    unified: bool = False


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Takes llama.cpp's log."""


class Contender:
    """One model file; a context for each settings and size, one at a time."""

    def __init__(self, path: Path, mapped: bool = True) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        if not mapped:
            params.load_mode = 0
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if model is None:
            raise SystemExit(f"error: llama.cpp does not open {path}")
        self.model = model
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.tokens = np.random.default_rng(0).integers(100, self.vocab_size - 1000, 1 << 14).tolist()
        cores = len(os.sched_getaffinity(0))
        self.best: dict[str, Settings] = {}
        self.default = Settings(threads=cores)
        self.context: llama_cpp.llama_context_p | None = None
        self.made: tuple[Settings, int, int] | None = None
        self.filled = 0
        self.batch = llama_cpp.llama_batch_init(8192, 0, 1)

    def close(self) -> None:
        """Free everything."""
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        self.context = self.made = None
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_model_free(self.model)

    def _open(self, settings: Settings, tokens: int, streams: int = 1) -> None:
        """A context of at least so many tokens for each of the streams."""
        wanted = (settings, tokens, streams)
        if self.made == wanted:
            return
        if self.context is not None:
            llama_cpp.llama_free(self.context)
            self.context = self.made = None
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = -(-tokens // 256) * 256 * streams
        params.n_batch = max(2048, settings.ubatch)
        params.n_ubatch = settings.ubatch
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = settings.threads
        params.flash_attn_type = int(settings.flash)
        params.kv_unified = settings.unified
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if self.context is None:
            raise SystemExit(f"error: llama.cpp makes no context of {tokens} tokens")
        self.made, self.filled = wanted, 0

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        self.filled = 0

    def _decode(self, entries: list[tuple[int, int, int]], wanted: str = "last") -> None:
        """One call for entries of (token, position, stream); logits of all, or of the last."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, stream) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, stream
            batch.logits[i] = wanted == "all" or i + 1 == len(entries)
        if llama_cpp.llama_decode(self.context, batch):
            raise SystemExit("error: llama_decode failed")
        llama_cpp.llama_synchronize(self.context)

    def _prompt(self, ids: list[int], start: int = 0, stream: int = 0) -> None:
        limit = self.made[0].ubatch if self.made else 512
        limit = max(2048, limit)
        for first in range(0, len(ids), limit):
            part = ids[first : first + limit]
            self._decode([(token, start + first + i, stream) for i, token in enumerate(part)])

    # What is measured; every call can be repeated.

    def prefill(self, tokens: int, settings: Settings | None = None) -> float:
        """Tokens a second of a prompt."""
        settings = settings or self.default
        self._open(settings, tokens)
        self._clear()
        start = time.perf_counter()
        self._prompt(self.tokens[:tokens])
        return tokens / (time.perf_counter() - start)

    def decode(self, tokens: int, depth: int, settings: Settings | None = None) -> float:
        """Tokens a second of one stream behind ``depth`` tokens."""
        settings = settings or self.default
        self._open(settings, depth + tokens + 8)
        if self.filled != depth + 1:
            self._clear()
            self._prompt(self.tokens[: depth + 1])
            self.filled = depth + 1
        start = time.perf_counter()
        for i in range(tokens):
            self._decode([(self.tokens[depth + 1 + i], depth + 1 + i, 0)])
        seconds = time.perf_counter() - start
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), 0, depth + 1, -1)
        return tokens / seconds

    def streams(self, streams: int, tokens: int, settings: Settings) -> float:
        """Tokens a second of all streams together, each behind 16 tokens of its own."""
        self._open(settings, tokens + 24, streams)
        self._clear()
        for stream in range(streams):
            self._prompt(self.tokens[16 * stream : 16 * stream + 16], stream=stream)
        start = time.perf_counter()
        for i in range(tokens):
            self._decode([(self.tokens[64 * s + i], 16 + i, s) for s in range(streams)], "all")
        return streams * tokens / (time.perf_counter() - start)

    def turns(self, first: int, second: int) -> tuple[float, float]:
        """Seconds to the first token of a chat's first and second turn; the second keeps the first's cache."""
        if "prefill" not in self.best:
            self.tune("prefill")
        self._open(self.best["prefill"], first + second + 64)
        self._clear()
        start = time.perf_counter()
        self._prompt(self.tokens[:first])
        middle = time.perf_counter()
        self._decode([(self.tokens[first], first, 0)])
        again = time.perf_counter()
        self._prompt(self.tokens[first + 1 : first + 1 + second], start=first + 1)
        return middle - start, time.perf_counter() - again

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits after each of the tokens, ``[T, V]``."""
        self._open(self.default, len(ids))
        self._clear()
        self._decode([(token, i, 0) for i, token in enumerate(ids)], "all")
        rows = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(rows, (len(ids), self.vocab_size)).astype(np.float32)

    # Finding the best settings, once for each kind of work.

    def tune(self, kind: str) -> dict[str, object]:
        """The best settings for ``prefill``, ``decode``, ``depth`` or ``streams``: kept, and given back to be shown."""
        cores = self.default.threads
        tries = [Settings(threads, flash) for threads in range(cores, 0, -1) for flash in (True, False)]
        if kind == "prefill":
            tries += [Settings(cores, flash, ubatch) for ubatch in (64, 128, 256) for flash in (True, False)]
        if kind == "streams":
            tries += [replace(settings, unified=True) for settings in tries]
        if kind == "depth":
            # Filling the cache takes longer than decoding: one thread count less is not tried twice.
            tries = [Settings(cores, True), Settings(cores, False)]
        rates = [max(self._sample(kind, settings) for _ in range(2)) for settings in tries]
        best = tries[int(np.argmax(rates))]
        self.best[kind] = best
        return asdict(best)

    def _sample(self, kind: str, settings: Settings) -> float:
        if kind == "prefill":
            return self.prefill(256, settings)
        if kind == "streams":
            return self.streams(8, 12, settings)
        return self.decode(12, 4096 if kind == "depth" else 0, settings)

    def measure(self, kind: str, size: int, depth: int = 0) -> float:
        """A measurement with the best settings, which are found first where they are not known."""
        if kind not in self.best:
            self.tune(kind)
        settings = self.best[kind]
        if kind == "prefill":
            return self.prefill(size, settings)
        if kind == "streams":
            return self.streams(8, size, settings)
        return self.decode(size, depth, settings)
