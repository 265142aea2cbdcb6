"""A model to adapt: `qafila.model.load` with linear layers that stay in their file's blocks, or become NF4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from qafila.adapt import nf4
from qafila.adapt.blocks import is_kept
from qafila.adapt.frozen import NF4, FrozenLinear, FrozenStackedLinear
from qafila.config import ModelConfig
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model, to_torch
from qafila.model.moe import StackedLinear
from qafila.weights.check import check_tensors
from qafila.weights.tensor import LazyTensor

BaseKind = Literal["plain", "stored", "nf4"]


def load_base(
    config: ModelConfig,
    tensors: Mapping[str, LazyTensor],
    *,
    base: BaseKind = "plain",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    source: object = "weights",
) -> LlamaModel:
    """Build a frozen model for an adapter to sit on, in evaluation mode.

    Embedding, head, norms and routers are in ``dtype``; so are linear layers, or, with ``stored``, they keep the blocks
    they have in the file (a type without blocks, or one that the device cannot decode, becomes ``dtype``), and with
    ``nf4`` they become NF4, one matrix at a time.

    Args:
        config: the model's configuration.
        tensors: canonical names to tensors, exactly those of :func:`qafila.parameters.parameter_shapes`.
        base: how the linear layers lie in memory.
        device: where everything goes.
        dtype: of what is not quantised.
        source: the file or folder the tensors came from, for error messages.

    Raises:
        FormatError: a tensor is missing, is not part of this configuration or has another shape.
        UnsupportedError: a tensor is of a type that no weight has.
    """
    if base == "plain":
        return load_model(config, tensors, device=device, dtype=dtype, source=source)
    check_tensors(config, tensors, source=source)
    device = torch.device(device)
    with torch.device("meta"):
        model = LlamaModel(config)
    state: dict[str, Tensor] = {}
    frozen: dict[str, nn.Module] = {}
    for name, lazy in tensors.items():
        path = name.removesuffix(".weight")
        module = model.get_submodule(path) if name.endswith(".weight") else None
        small = isinstance(module, nn.Linear | StackedLinear) and path.rsplit(".", 1)[-1] not in ("lm_head", "router")
        if small and base == "nf4":
            # From the file's own precision: rounding to ``dtype`` first would move weights across NF4's borders.
            frozen[path] = _nf4(to_torch(lazy.read(), dtype=torch.float32, device=device))
        elif small and is_kept(lazy.dtype, device):
            frozen[path] = _kept(lazy, device)
        else:
            state[name] = to_torch(lazy.read(), dtype=dtype, device=device)
    for path, module in frozen.items():
        model.set_submodule(path, module)
    model.load_state_dict(state, strict=False, assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval().requires_grad_(False)


def _kept(lazy: LazyTensor, device: torch.device) -> nn.Module:
    data = lazy.read().rows().reshape(*lazy.shape[:-1], -1)
    # Memory of its own: a mapped file's pages would be read again and again, and torch warns about read-only ones.
    blocks = torch.empty(data.shape, dtype=torch.uint8)
    blocks.numpy()[...] = data
    kind = FrozenLinear if len(lazy.shape) == 2 else FrozenStackedLinear
    return kind(lazy.shape[-1], lazy.shape[-2], lazy.dtype.name, (blocks.to(device),))


def _nf4(weight: Tensor) -> nn.Module:
    out_features, in_features = weight.shape[-2:]
    if weight.ndim == 2:
        return FrozenLinear(in_features, out_features, NF4, nf4.quantise(weight))
    experts = [nf4.quantise(expert) for expert in weight]
    stored = tuple(torch.stack(parts) for parts in zip(*experts, strict=True))
    return FrozenStackedLinear(in_features, out_features, NF4, stored)
