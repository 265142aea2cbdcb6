"""A runner without a model: its logits are a hash of the tokens that it finds in the blocks it is given.

A wrong block table, a block that was given away too early or a copy that was forgotten changes the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from qafila.config import ModelConfig
from qafila.engine.runner import BLOCK_TOKENS, Float32, Step
from qafila.errors import UsageError

_PRIME = np.uint64(0x9E3779B97F4A7C15)


def hashed_logits(token_ids: np.ndarray, vocabulary: int) -> Float32:
    """Logits after these tokens (their adapter mixed in), ``[V]``."""
    with np.errstate(over="ignore"):
        powers = np.full(len(token_ids), _PRIME, np.uint64).cumprod()
        history = ((token_ids.astype(np.uint64) + np.uint64(7)) * powers).sum(dtype=np.uint64)
        bits = (history + np.arange(vocabulary, dtype=np.uint64)) * _PRIME
        bits ^= bits >> np.uint64(29)
        bits *= np.uint64(0xBF58476D1CE4E5B9)
        bits ^= bits >> np.uint64(32)
    return ((bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24) * 8).astype(np.float32)


class FakeRunner:
    def __init__(
        self,
        num_blocks: int = 64,
        *,
        vocab_size: int = 50,
        context_length: int = 512,
        max_tokens: int = 64,
        max_rows: int = 32,
    ) -> None:
        self.config = ModelConfig(
            dim=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, ffn_dim=8, vocab_size=vocab_size,
            context_length=context_length,
        )  # fmt: skip
        self.num_blocks, self.max_tokens, self.max_rows = num_blocks, max_tokens, max_rows
        self.fingerprint = f"fake {vocab_size}"
        self.slots = np.full((num_blocks, BLOCK_TOKENS, 2), -1, np.int64)
        self.steps: list[tuple[int, ...]] = []
        self.computed = 0
        self.before: Callable[[Step], None] = lambda step: None
        self.adapters: dict[int, int] = {}
        self.closed = False

    def logits(self, step: Step) -> Float32:
        self.before(step)
        lengths = np.diff(step.starts)
        assert len(step.token_ids) == len(step.positions) == step.starts[-1] <= self.max_tokens
        assert len(step.wanted) <= self.max_rows
        assert (lengths > 0).all()
        assert (np.diff(step.wanted) > 0).all()
        assert (step.token_ids >= 0).all()
        assert all(
            array.dtype == np.int32 and array.flags.c_contiguous
            for array in (step.token_ids, step.positions, step.starts, step.blocks, step.adapters, step.wanted)
        )
        self.steps.append(tuple(int(n) for n in lengths))
        self.computed += len(step.token_ids)
        written: set[tuple[int, int]] = set()
        for s, (start, end) in enumerate(zip(step.starts, step.starts[1:], strict=False)):
            positions = step.positions[start:end]
            assert (np.diff(positions) == 1).all()
            blocks, slots = step.blocks[s][positions // BLOCK_TOKENS], positions % BLOCK_TOKENS
            assert (blocks >= 0).all()
            places = set(zip(blocks.tolist(), slots.tolist(), strict=True))
            assert not places & written, "two sequences write to the same slot"
            written |= places
            mixed = step.token_ids[start:end].astype(np.int64) + 1000 * self.adapters.get(int(step.adapters[s]), 0)
            self.slots[blocks, slots] = np.stack([mixed, positions], axis=-1)
        out = np.empty((len(step.wanted), self.config.vocab_size), np.float32)
        for row, token in enumerate(step.wanted):
            s = int(np.searchsorted(step.starts, token, side="right")) - 1
            seen = np.arange(step.positions[token] + 1)
            stored = self.slots[step.blocks[s][seen // BLOCK_TOKENS], seen % BLOCK_TOKENS]
            assert (stored[:, 1] == seen).all(), "a block holds other positions than it should"
            out[row] = hashed_logits(stored[:, 0], self.config.vocab_size)
        return out

    def hidden(self, step: Step) -> Float32:
        return self.logits(step)[:, : self.config.dim]

    def copy_block(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]

    def load_adapter(self, path: Path) -> int:
        if not path.name.isdigit():
            raise UsageError(f"{path}: not an adapter")
        number = min(set(range(1, len(self.adapters) + 2)) - set(self.adapters))
        self.adapters[number] = int(path.name)
        return number

    def unload_adapter(self, adapter: int) -> None:
        del self.adapters[adapter]

    def close(self) -> None:
        self.closed = True
