"""The torch model as a runner, with the model's own modules over a paged KV cache: the reference on the CPU, and CUDA.

Import this module where torch is wanted; nothing else in the engine does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from qafila.engine.runner import BLOCK_TOKENS, Float32, Step
from qafila.engine.torch_decode import BatchedDecode
from qafila.errors import UnsupportedError, UsageError
from qafila.model.cache import KVCache
from qafila.model.llama import LlamaModel
from qafila.model.out_of_memory import memory_told


class _Paged(KVCache):
    """One sequence's view of the pool: what the model takes for its cache.

    Keys and values are gathered into one piece for every layer, so attention sees the tensors it would see in a plain
    cache, and its numbers are the same.
    """

    def __init__(self, pool: Tensor, layers: dict[int, int], blocks: Tensor, seen: int) -> None:
        self.length = seen
        self.positions_S = torch.arange(seen)
        self._pool, self._layers, self._blocks = pool, layers, blocks

    def store(self, layer: int, k_BKTN: Tensor, v_BKTN: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens of one layer into their slots; all keys and values of the sequence come back."""
        pool = self._pool[self._layers[layer]]
        end = self.length + k_BKTN.shape[2]
        positions = torch.arange(self.length, end, device=pool.device)
        blocks, slots = self._blocks[positions // BLOCK_TOKENS], positions % BLOCK_TOKENS
        # Indices with a slice between them come first in the result: [T, K, N].
        pool[blocks, 0, :, slots] = k_BKTN[0].transpose(0, 1).to(pool.dtype)
        pool[blocks, 1, :, slots] = v_BKTN[0].transpose(0, 1).to(pool.dtype)
        used = pool[self._blocks[: -(-end // BLOCK_TOKENS)]]
        # [M, 2, K, 16, N] to [2, K, M * 16, N]
        both = used.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, None, :, :end].contiguous()
        return both[0], both[1]


class TorchRunner:
    """A `Runner` over the torch model.

    On the CPU it computes one sequence after the other, as plain generation does. On CUDA, sequences with one new token
    are computed together (`BatchedDecode`). Torch's matrix products may round differently with another number of rows:
    numbers that are equal to the last bit in any batch are what ``exact`` is for.

    Args:
        model: the model, in whatever type and on whatever device it is.
        num_blocks: blocks of the KV cache.
        max_tokens: most tokens of one step.
        max_rows: most rows of logits of one step.
        kv_dtype: type of stored keys and values; the model's by default, as in plain generation.
        exact: read prompts one token at a time. Matrix products of torch may round differently with another number of
            tokens; with this, numbers are the same bit for bit however a prompt is cut, and prompts take long.
        batched: compute decoding sequences together; by default on CUDA alone.
    """

    def __init__(
        self,
        model: LlamaModel,
        num_blocks: int,
        *,
        max_tokens: int = 512,
        max_rows: int = 64,
        kv_dtype: torch.dtype | None = None,
        exact: bool = False,
        batched: bool | None = None,
    ) -> None:
        for name, value in (("num_blocks", num_blocks), ("max_tokens", max_tokens), ("max_rows", max_rows)):
            if value < 1:
                raise UsageError(f"{name} must be 1 or more, not {value!r}")
        config = model.config
        self.config = config
        self._at_once = 1 if exact else max_tokens
        self.num_blocks, self.max_tokens, self.max_rows = num_blocks, max_tokens, max_rows
        kept = [plan.index for plan in config.layers if plan.attention != "cross"]
        self._layers = {layer: place for place, layer in enumerate(kept)}
        # The last block is scratch: rows of a batch that stand for no sequence write there.
        shape = (len(kept), num_blocks + 1, 2, config.n_kv_heads, BLOCK_TOKENS, config.head_dim)
        with memory_told(f"a KV cache of {num_blocks * BLOCK_TOKENS} tokens"):
            self._pool = torch.zeros(shape, dtype=kv_dtype or model.dtype, device=model.device)
        self._model: LlamaModel | None = model
        self._decode: BatchedDecode | None = None
        if batched or (batched is None and model.device.type == "cuda" and not exact):
            most = min(num_blocks, -(-config.context_length // BLOCK_TOKENS))
            self._decode = BatchedDecode(model, self._pool, self._layers, most)
        self.fingerprint = _fingerprint(model, self._pool.dtype)

    def logits(self, step: Step) -> Float32:
        """Logits after each wanted token: ``[R, V]``."""
        assert self._model is not None
        with torch.inference_mode():
            sequences = len(step.starts) - 1
            if self._decode is not None and len(step.token_ids) == len(step.wanted) == sequences:
                self._check(step)
                return _array(self._decode.run(step.token_ids, step.positions, step.blocks)[1])
            hidden_RD = self._hidden(step)
            # One row at a time: a matrix product may round differently with another number of rows.
            weight = self._model.head_weight()
            rows = [F.linear(hidden_1D, weight) for hidden_1D in hidden_RD[:, None]]
            return _array(torch.cat(rows) if rows else hidden_RD.new_zeros(0, self.config.vocab_size))

    def hidden(self, step: Step) -> Float32:
        """Normed last hidden states of the wanted tokens: ``[R, D]``."""
        with torch.inference_mode():
            return _array(self._hidden(step))

    def _check(self, step: Step) -> None:
        assert self._model is not None, "the runner is closed"
        if step.adapters.any():
            raise UsageError("the torch runner applies no adapters; merge the adapter when the model is loaded")

    def _hidden(self, step: Step) -> Tensor:
        self._check(step)
        wanted_T = np.zeros(len(step.token_ids), np.bool_)
        wanted_T[step.wanted] = True
        states: dict[int, Tensor] = {}
        alone = range(len(step.starts) - 1)
        with memory_told(f"a step of {len(step.token_ids)} tokens"):
            if self._decode is not None:
                lengths = np.diff(step.starts)
                single = np.flatnonzero(lengths == 1)
                if len(single):
                    at = step.starts[single]
                    hidden_SD, _ = self._decode.run(step.token_ids[at], step.positions[at], step.blocks[single])
                    states.update(zip(single.tolist(), hidden_SD.clone()[:, None], strict=True))
            for s in alone:
                if s not in states:
                    states[s] = self._sequence(step, s)
        parts = [states[s][_tensor(wanted_T[step.starts[s] : step.starts[s + 1]], self._pool)] for s in alone]
        return torch.cat(parts)

    def _sequence(self, step: Step, s: int) -> Tensor:
        """Hidden states ``[T, D]`` of one sequence's new tokens."""
        assert self._model is not None
        start, end = int(step.starts[s]), int(step.starts[s + 1])
        ids_T = _tensor(step.token_ids[start:end].astype(np.int64), self._pool)
        blocks = _tensor(step.blocks[s].astype(np.int64), self._pool)
        cache = _Paged(self._pool, self._layers, blocks, int(step.positions[start]))
        portions = torch.split(ids_T, self._at_once)
        return torch.cat([self._model.model(part_T[None], None, cache, None)[0] for part_T in portions])

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block's keys and values of all layers."""
        self._pool[:, target] = self._pool[:, source]

    def load_adapter(self, path: Path) -> int:
        """Refused: adapters are merged into this runner's model when it is loaded."""
        raise UnsupportedError(path, "the torch runner applies no adapters; give it to the loader, which merges it")

    def unload_adapter(self, adapter: int) -> None:
        """There is none."""
        raise UsageError(f"there is no adapter {adapter}")

    def close(self) -> None:
        """Free the cache, and let go of the model."""
        self._model = None
        self._decode = None
        self._pool = self._pool.new_empty(0)


def _tensor(values: npt.NDArray[np.int64] | npt.NDArray[np.bool_], beside: Tensor) -> Tensor:
    return torch.from_numpy(values).to(beside.device)


def _array(values: Tensor) -> Float32:
    out: Float32 = values.float().cpu().numpy()
    return out


def _fingerprint(model: LlamaModel, kv_dtype: torch.dtype) -> str:
    """Of the configuration and of some of every parameter's values."""
    digest = hashlib.blake2b(repr(model.config).encode(), digest_size=16)
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)].float().cpu().numpy()
        digest.update(name.encode() + some.tobytes())
    return f"torch {torch.__version__} {model.device.type} {model.dtype} {kv_dtype} {digest.hexdigest()}"
