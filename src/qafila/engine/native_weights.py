"""From a checkpoint's tensors to the native model: the types it computes in, and where each matrix goes."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qafila.config import LayerPlan, ModelConfig
from qafila.errors import UnsupportedError
from qafila.native import _native
from qafila.parameters import EMBEDDING, FINAL_NORM, LM_HEAD
from qafila.quant.codec import dequantise, quantise
from qafila.quant.dtypes import DType
from qafila.weights.tensor import Bytes, LazyTensor, Tensor

#: Weight types that products exist for.
NATIVE_TYPES = frozenset(
    {DType.F32, DType.F16, DType.BF16, DType.Q8_0, DType.Q4_0, DType.Q4_1, DType.Q4_K, DType.Q5_K, DType.Q6_K}
)

# The native model's numbers for the matrices of a layer (model.h): roles, then the experts' roles. -1 is the head.
ROLES = {
    "self_attn.q_proj": 0,
    "self_attn.k_proj": 1,
    "self_attn.v_proj": 2,
    "self_attn.o_proj": 3,
    "mlp.gate_proj": 4,
    "mlp.up_proj": 5,
    "mlp.down_proj": 6,
    "mlp.shared_expert.gate_proj": 4,
    "mlp.shared_expert.up_proj": 5,
    "mlp.shared_expert.down_proj": 6,
    "mlp.router": 7,
    "mlp.experts.gate_proj": 8,
    "mlp.experts.up_proj": 9,
    "mlp.experts.down_proj": 10,
}
_HEAD_LAYER = -1

# Bytes of every tensor that its fingerprint reads: all of a small one, else spread evenly.
_SAMPLED = 4096


def stored_as(dtype: DType) -> DType:
    """The type the native engine holds weights of ``dtype`` in: their own, or the next one that has products.

    Block types without products go to Q8_0, which keeps more than any of them has; F64 goes to F32.

    Raises:
        UnsupportedError: no type of weights.
    """
    if dtype in NATIVE_TYPES:
        return dtype
    if dtype.quantised:
        return DType.Q8_0
    if dtype is DType.F64:
        return DType.F32
    raise UnsupportedError(dtype.name, "is no type of weights")


def held_bytes(config: ModelConfig, tensors: Mapping[str, LazyTensor]) -> int:
    """Bytes of the weights in panels (rows filled up to 16), without an untied embedding: that stays in its file."""
    total = 0
    for name, lazy in tensors.items():
        if len(lazy.shape) > 1 and not (name == EMBEDDING and not config.tie_embeddings):
            rows = -(-lazy.shape[-2] // 16) * 16
            total += stored_as(lazy.dtype).nbytes((*lazy.shape[:-2], rows, lazy.shape[-1]))
    return total


def fill(model: _native.Model, config: ModelConfig, tensors: Mapping[str, LazyTensor]) -> str:
    """Declare, pack and set every weight; one tensor at a time is read.

    Returns:
        A fingerprint of the weights: names, types, shapes and a sample of every tensor's bytes.
    """
    fingerprint = hashlib.blake2b(repr(config).encode(), digest_size=12)
    places = list(_places(config))
    for place in places:
        lazy = tensors[place.name]
        for expert in range(place.experts or 1):
            model.declare(place.layer, place.role, expert, stored_as(lazy.dtype).ggml_type)
    model.allocate_weights()
    for place in places:
        tensor = _read(place.name, tensors, fingerprint)
        held = convert(tensor)
        size = held.nbytes // (place.experts or 1)
        mapped = held is tensor and _is_mapped(tensor.data)
        for expert in range(place.experts or 1):
            model.pack(place.layer, place.role, expert, held.data[expert * size : (expert + 1) * size], mapped)
    for plan in config.layers:
        for ffn, name in enumerate(("input_layernorm", "post_attention_layernorm")):
            norm = _read(f"model.layers.{plan.index}.{name}.weight", tensors, fingerprint)
            model.set_norm(plan.index, bool(ffn), dequantise(norm.dtype, norm.data))
    norm = _read(FINAL_NORM, tensors, fingerprint)
    model.set_norm(-1, False, dequantise(norm.dtype, norm.data))
    if not config.tie_embeddings:
        embedding = _read(EMBEDDING, tensors, fingerprint)
        model.set_embedding(embedding.dtype.ggml_type, embedding.data)
    return fingerprint.hexdigest()


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    layer: int
    role: int
    experts: int  # 0: one matrix


def _places(config: ModelConfig) -> Iterator[_Place]:
    """Every matrix in the order in which a step reads it, so that memory is read straight through."""
    for plan in config.layers:
        for module in _modules(plan):
            experts = config.moe.n_experts if config.moe and module.startswith("mlp.experts.") else 0
            yield _Place(f"model.layers.{plan.index}.{module}.weight", plan.index, ROLES[module], experts)
    yield _Place(EMBEDDING if config.tie_embeddings else LM_HEAD, _HEAD_LAYER, 0, 0)


def _modules(plan: LayerPlan) -> Iterator[str]:
    yield from (f"self_attn.{name}_proj" for name in "qkvo")
    dense = "mlp.shared_expert" if plan.mixture else "mlp"
    yield from (f"{dense}.{name}_proj" for name in ("gate", "up", "down"))
    if plan.mixture:
        yield "mlp.router"
        yield from (f"mlp.experts.{name}_proj" for name in ("gate", "up", "down"))


def convert(tensor: Tensor) -> Tensor:
    """The tensor in the type it is held in; itself where that is its own."""
    dtype = stored_as(tensor.dtype)
    if dtype is tensor.dtype:
        return tensor
    values = dequantise(tensor.dtype, tensor.rows())
    return Tensor(dtype, tensor.shape, quantise(dtype, values).reshape(-1))


def _read(name: str, tensors: Mapping[str, LazyTensor], fingerprint: hashlib.blake2b) -> Tensor:
    tensor = tensors[name].read()
    sample = tensor.data[:: max(1, tensor.nbytes // _SAMPLED)]
    fingerprint.update(f"{name} {tensor.dtype.name} {tensor.shape} ".encode())
    fingerprint.update(np.ascontiguousarray(sample).data)
    return tensor


def _is_mapped(data: Bytes) -> bool:
    """Whether the bytes lie in a mapped file, whose pages come back when they are touched after having been dropped."""
    owner: object = data
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return isinstance(owner, mmap.mmap)
