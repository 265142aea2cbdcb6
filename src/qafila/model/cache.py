"""Keys and values of the tokens already seen, one growing buffer a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from qafila.config import ModelConfig

_FIRST_CAPACITY = 64


class KVCache:
    """The KV cache of ``batch`` sequences of equal length.

    Buffers double as they fill, so that a short chat in a model with a long context costs little; give ``capacity`` to
    reserve all of it at once. Attention reads back what was stored, in the cache's own type. Cross-attention layers
    store nothing here.

    Args:
        config: the model the cache belongs to.
        batch: B, sequences decoded together.
        dtype: type of stored keys and values.
        device: where they are kept.
        capacity: tokens to reserve room for at the start.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = _FIRST_CAPACITY,
    ) -> None:
        self.length = 0
        self.positions_S = torch.empty(0, dtype=torch.int64)
        shape = (batch, config.n_kv_heads, max(capacity, 1), config.head_dim)
        kept = [plan.index for plan in config.layers if plan.attention != "cross"]
        self._keys = {i: torch.empty(shape, dtype=dtype, device=device) for i in kept}
        self._values = {i: torch.empty(shape, dtype=dtype, device=device) for i in kept}

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, room for later tokens included."""
        return sum(buffer.nbytes for store in (self._keys, self._values) for buffer in store.values())

    def store(self, layer: int, k_BKTN: Tensor, v_BKTN: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new tokens of one layer after the seen ones; gives all keys and values ``[B, K, S, N]``.

        The cache's ``length`` moves only with :meth:`advance`, when every layer has stored.
        """
        end = self.length + k_BKTN.shape[2]
        for store, new in ((self._keys, k_BKTN), (self._values, v_BKTN)):
            if end > store[layer].shape[2]:
                store[layer] = _grown(store[layer], self.length, max(end, 2 * store[layer].shape[2]))
            store[layer][:, :, self.length : end] = new
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def advance(self, positions_T: Tensor) -> None:
        """Count the tokens at ``positions_T`` as seen."""
        self.positions_S = torch.cat([self.positions_S, positions_T.cpu()])
        self.length += len(positions_T)

    def truncate(self, length: int) -> None:
        """Forget every token from the ``length``-th on; buffers keep their size."""
        assert 0 <= length <= self.length
        self.length = length
        self.positions_S = self.positions_S[:length]


def _grown(buffer: Tensor, used: int, capacity: int) -> Tensor:
    batch, heads, _, dim = buffer.shape
    larger = buffer.new_empty(batch, heads, capacity, dim)
    larger[:, :, :used] = buffer[:, :, :used]
    return larger
