"""One new token for each of several sequences at once, on the torch model: static shapes, so that CUDA can replay it.

The model's own layers run on a batch of sequences; what differs between them (rotary angles, what they may see, their
blocks) is broadcast over the batch. Sizes are rounded up to powers of two, and rows that stand for no sequence write to
a scratch block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qafila.config import ModelConfig
from qafila.engine.runner import BLOCK_TOKENS, Int32
from qafila.model.attention import Masked, StepTables
from qafila.model.cache import KVCache
from qafila.model.llama import LlamaModel


class _BatchCache(KVCache):
    """The pool as seen by B sequences with one new token each."""

    def __init__(self, pool: Tensor, layers: dict[int, int], positions_B: Tensor, tables_BM: Tensor) -> None:
        self._pool, self._layers, self._tables_BM = pool, layers, tables_BM
        self._blocks_B = tables_BM.gather(1, positions_B[:, None] // BLOCK_TOKENS)[:, 0]
        self._slots_B = positions_B % BLOCK_TOKENS

    def store(self, layer: int, k_BKTN: Tensor, v_BKTN: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token of every sequence; keys and values ``[B, K, M * 16, N]`` of all blocks come back."""
        pool = self._pool[self._layers[layer]]
        pool[self._blocks_B, 0, :, self._slots_B] = k_BKTN[:, :, 0].to(pool.dtype)
        pool[self._blocks_B, 1, :, self._slots_B] = v_BKTN[:, :, 0].to(pool.dtype)
        both = pool[self._tables_BM].permute(2, 0, 3, 1, 4, 5).flatten(3, 4)
        return both[0], both[1]


def _tables(config: ModelConfig, frequencies: Tensor, positions_B: Tensor, width: int) -> StepTables:
    """What `StepTables.build` makes for one sequence, for B of them, and on their device alone."""
    positions = positions_B[:, None, None, None]
    keys_S = torch.arange(width * BLOCK_TOKENS, device=positions.device)
    seen = keys_S <= positions
    visible = {"full": seen}
    if config.attention_chunk is not None:
        chunk = config.attention_chunk
        visible["chunked"] = seen & (keys_S // chunk == positions // chunk)
    scale = None
    if config.temperature is not None:
        rule = config.temperature
        steps = torch.floor((positions[..., 0].double() + 1) / rule.floor_scale)
        scale = (torch.log(steps + 1) * rule.attn_scale + 1).float()
    angles = positions.float() * frequencies
    return StepTables((angles.cos(), angles.sin()), Masked(visible), scale)  # type: ignore[arg-type]


@dataclass
class _Static:
    """Inputs and output of one shape, at fixed addresses; and what replays it, on CUDA."""

    ids_B: Tensor
    positions_B: Tensor
    tables_BM: Tensor
    hidden_BD: Tensor | None = None
    logits_BV: Tensor | None = None
    graph: torch.cuda.CUDAGraph | None = None


class BatchedDecode:
    """Decode steps over a paged pool.

    Args:
        model: the model.
        pool: ``[layers, blocks + 1, 2, K, 16, N]``; the last block is scratch.
        layers: a layer's place in the pool.
        context_blocks: most blocks of a sequence.
    """

    def __init__(self, model: LlamaModel, pool: Tensor, layers: dict[int, int], context_blocks: int) -> None:
        self._model, self._pool, self._layers = model, pool, layers
        self._scratch = pool.shape[1] - 1
        self._most = context_blocks
        self._frequencies = torch.from_numpy(model.config.inverse_frequencies).to(pool.device)
        self._shapes: dict[tuple[int, int], _Static] = {}
        # The loop over experts asks the device which of them are chosen: nothing that could be replayed.
        self._replays = pool.device.type == "cuda" and model.config.moe is None
        self._memory: tuple[int, int] | None = None

    def run(self, token_ids: Int32, positions: Int32, blocks: Int32) -> tuple[Tensor, Tensor]:
        """Hidden states ``[S, D]`` and logits ``[S, V]`` (float32) after one token of each of S sequences."""
        sequences = len(token_ids)
        used = int(positions.max()) // BLOCK_TOKENS + 1
        shape = (_power(sequences), min(_power(used), self._most))
        static = self._shapes.get(shape)
        if static is None:
            static = self._shapes[shape] = self._prepare(*shape)
        rows, width = shape
        ids = np.zeros(rows, np.int64)
        places = np.zeros(rows, np.int64)
        tables = np.full((rows, width), self._scratch, np.int64)
        ids[:sequences], places[:sequences] = token_ids, positions
        given = blocks[:, :width]
        tables[:sequences, : given.shape[1]] = np.where(given < 0, self._scratch, given)
        static.ids_B.copy_(torch.from_numpy(ids))
        static.positions_B.copy_(torch.from_numpy(places))
        static.tables_BM.copy_(torch.from_numpy(tables))
        if static.graph is not None:
            static.graph.replay()
        else:
            self._forward(static)
        assert static.hidden_BD is not None
        assert static.logits_BV is not None
        return static.hidden_BD[:sequences], static.logits_BV[:sequences]

    def _prepare(self, rows: int, width: int) -> _Static:
        device = self._pool.device
        static = _Static(
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.full((rows, width), self._scratch, dtype=torch.int64, device=device),
        )
        if self._replays:
            # Libraries set themselves up in the first runs, which must not be part of what is replayed.
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(3):
                    self._forward(static)
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory):  # type: ignore[arg-type]
                self._forward(static)
            self._memory = self._memory or graph.pool()
            static.graph = graph
        return static

    def _forward(self, static: _Static) -> None:
        model = self._model
        tables = _tables(model.config, self._frequencies, static.positions_B, static.tables_BM.shape[1])
        cache = _BatchCache(self._pool, self._layers, static.positions_B, static.tables_BM)
        x_BTD = model.model.embed_tokens(static.ids_B[:, None])
        for layer in model.model.layers:
            x_BTD = layer(x_BTD, tables, cache, None)
        static.hidden_BD = model.model.norm(x_BTD)[:, 0]
        static.logits_BV = F.linear(static.hidden_BD, model.head_weight()).float()


def _power(count: int) -> int:
    """The least power of two that is not below ``count``."""
    return 1 << (count - 1).bit_length()
