"""What the engine asks of a forward pass: one step over the new tokens of several sequences, with a paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qafila.config import ModelConfig

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

#: Tokens in one block of the KV cache.
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Step:
    """The new tokens of some sequences (S of them, T tokens together), one sequence after the other.

    Attributes:
        token_ids: ``[T]``.
        positions: ``[T]`` absolute, consecutive within a sequence. A token's key and value are written to
            ``blocks[s][position // BLOCK_TOKENS]``, slot ``position % BLOCK_TOKENS``, before anything is attended to;
            it sees all positions of its sequence up to its own (less what the layer's plan hides).
        starts: ``[S + 1]``; sequence ``s`` owns tokens ``starts[s]`` to ``starts[s + 1] - 1``, at least one.
        blocks: ``[S, M]`` block tables, -1 where unused.
        adapters: ``[S]``; 0 for none, else what `Runner.load_adapter` returned.
        wanted: ``[R]`` rising indices of tokens whose logits (or hidden states) are asked for.
    """

    token_ids: Int32
    positions: Int32
    starts: Int32
    blocks: Int32
    adapters: Int32
    wanted: Int32


class Runner(Protocol):
    """A model's forward pass with its own KV cache of ``num_blocks`` blocks.

    A token's numbers depend on its own sequence alone: bit for bit the same whatever shares its step, however the
    prompt was cut into steps, and whatever was cached. Not for use by several threads at once.
    """

    config: ModelConfig
    num_blocks: int
    #: Most tokens of one step, and most wanted rows.
    max_tokens: int
    max_rows: int
    #: Names the weights and the arithmetic (model, instruction set, KV type): keys the prefix cache, goes into replays.
    fingerprint: str

    def logits(self, step: Step) -> Float32:
        """Logits after each wanted token: ``[R, V]``, the runner's own buffer, good until the next call."""

    def hidden(self, step: Step) -> Float32:
        """Normed last hidden states of the wanted tokens: ``[R, D]``, good until the next call."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block's keys and values of all layers."""

    def load_adapter(self, path: Path) -> int:
        """Read a PEFT LoRA adapter; a number above 0 that names it in steps.

        Raises:
            QafilaError: it is damaged, or made for another model.
        """

    def unload_adapter(self, adapter: int) -> None:
        """Forget an adapter that no running request uses."""

    def close(self) -> None:
        """Free weights, cache and threads."""
