"""From loaded tensors to a model: names and shapes are checked first, then each tensor is decoded once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from qafila.config import ModelConfig
from qafila.model.llama import LlamaModel
from qafila.quant.dtypes import DType
from qafila.weights.check import check_tensors
from qafila.weights.tensor import LazyTensor
from qafila.weights.tensor import Tensor as WeightTensor

# torch reads these types' bytes as they are; NumPy has no name for bfloat16.
_TORCH_TYPES = {
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.F64: torch.float64,
}

# Rows are decoded in portions of about this many elements, so that a dequantised stack of experts is never whole in
# float32 beside its final type.
_PORTION = 1 << 24


def load_model(
    config: ModelConfig,
    tensors: Mapping[str, LazyTensor],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    source: object = "weights",
) -> LlamaModel:
    """Build the model of ``config`` and fill it from ``tensors``, in evaluation mode.

    The model is laid out without memory first, so the weights exist once; quantised ones are dequantised.

    Args:
        config: the model's configuration.
        tensors: canonical names to tensors, exactly those of :func:`qafila.parameters.parameter_shapes`.
        device: where the parameters go.
        dtype: the parameters' type.
        source: the file or folder the tensors came from, for error messages.

    Raises:
        FormatError: a tensor is missing, is not part of this configuration or has another shape.
        UnsupportedError: a tensor is of a type that no weight has.
    """
    check_tensors(config, tensors, source=source)
    with torch.device("meta"):
        model = LlamaModel(config)
    state = {name: to_torch(lazy.read(), dtype=dtype, device=device) for name, lazy in tensors.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def to_torch(tensor: WeightTensor, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A torch tensor of the same shape with its own memory, in ``dtype``; quantised blocks are dequantised."""
    rows = tensor.rows()
    width = tensor.shape[-1]
    out = torch.empty((rows.shape[0], width), dtype=dtype, device=device)
    step = max(1, _PORTION // width)
    for start in range(0, rows.shape[0], step):
        data = rows[start : start + step]
        out[start : start + step] = _decode(tensor.dtype, data.reshape(-1)).view(-1, width)
    return out.view(tensor.shape)


def _decode(dtype: DType, data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    if dtype.quantised:
        from qafila.quant import dequantise

        return torch.from_numpy(dequantise(dtype, data)).flatten()
    # A mapped file is read-only, which torch warns about: copy the bytes once, into memory that torch owns.
    buffer = torch.empty(data.size, dtype=torch.uint8)
    buffer.numpy()[:] = data
    return buffer.view(_TORCH_TYPES[dtype])
