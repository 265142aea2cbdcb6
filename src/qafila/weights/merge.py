"""Merge a LoRA or DoRA adapter into its base model: lazily, one weight at a time, rounded once.

A merged weight is ``W + scaling * B @ A``; with DoRA its rows are then brought to the trained magnitude:
``m * V / |V|`` with ``V = W + scaling * B @ A`` and ``|V|`` the length of each row (arXiv 2402.09353, equation 5; peft
``tuners/lora/dora.py``). The sum is made in float32 from the base's dequantised weights, and rounded once, to the type
that is asked for: never back into 4-bit blocks, in which most of what an adapter has learned would be lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from qafila.config import ModelConfig
from qafila.errors import FormatError, UnsupportedError
from qafila.parameters import EMBEDDING, LM_HEAD
from qafila.quant import dequantise, quantise
from qafila.quant.dtypes import DType
from qafila.weights.adapter import Adapter, LoraModule
from qafila.weights.check import check_tensors
from qafila.weights.load import Checkpoint
from qafila.weights.tensor import LazyTensor, Tensor

Float32 = npt.NDArray[np.float32]

# Rows are merged in portions of about this many elements, so that float32 copies stay small beside the weight.
_PORTION = 1 << 23


def kept_or_f16(stored: DType) -> DType:
    """The type of a merged weight, by the type that the base stores: plain types stay, blocks become F16."""
    return stored if stored in (DType.F32, DType.F16, DType.BF16) else DType.F16


def exact_f32(stored: DType) -> DType:
    """F32 whatever the base stores: for who rounds to a type of their own afterwards, so that it is done once."""
    return DType.F32


def merge(checkpoint: Checkpoint, adapter: Adapter, dtype: Callable[[DType], DType] = kept_or_f16) -> Checkpoint:
    """The base with the adapter in its weights; nothing is computed before a tensor is read.

    Args:
        checkpoint: the base model.
        adapter: what was trained on it; whole weights in it replace the base's, and an embedding with more rows makes
            the vocabulary larger.
        dtype: the type of a merged weight, by the type that the base stores it in; plain or blocks.

    Raises:
        FormatError: the adapter was made for another model. UnsupportedError: it changes what cannot be changed alone.
    """
    where = checkpoint.path
    tensors = dict(checkpoint.tensors)
    config = checkpoint.config
    for name, lazy in adapter.saved.items():
        base = tensors.get(name)
        if base is None and not (name == LM_HEAD and config.tie_embeddings):
            raise FormatError(where, f"the adapter replaces {name}, which its base does not have")
        stored = base.dtype if base is not None else tensors[EMBEDDING].dtype
        tensors[name] = _as_type(lazy, DType.F32 if len(lazy.shape) == 1 else dtype(stored))
    config = _resized(config, adapter, tensors)
    for name, module in adapter.modules.items():
        base = tensors.get(name)
        if base is None:
            if name == LM_HEAD and config.tie_embeddings:
                raise UnsupportedError(
                    where, "the adapter changes lm_head, which is one with the embedding in its base; train it without"
                )
            raise FormatError(where, f"the adapter changes {name}, which its base does not have")
        shape = (*module.b.shape[:1], *module.a.shape[1:])
        if base.shape != shape:
            raise FormatError(where, f"the adapter changes {name} as {list(shape)}, its base has {list(base.shape)}")
        tensors[name] = merged_weight(base, module, dtype(base.dtype))
    check_tensors(config, tensors, source=where)
    return replace(checkpoint, config=config, tensors=tensors)


def _resized(config: ModelConfig, adapter: Adapter, tensors: dict[str, LazyTensor]) -> ModelConfig:
    """The configuration that goes with the embedding and head that the adapter brings."""
    if LM_HEAD in adapter.saved and config.tie_embeddings:
        # PEFT saves both of a tied pair. Where they are no longer equal, they are no longer one.
        if EMBEDDING in adapter.saved and _equal(adapter.saved[EMBEDDING], adapter.saved[LM_HEAD]):
            del tensors[LM_HEAD]
        else:
            config = config.with_changes(tie_embeddings=False)
    if EMBEDDING in adapter.saved:
        shape = adapter.saved[EMBEDDING].shape
        if len(shape) == 2 and shape[0] > config.extra_embeddings:
            config = config.with_changes(vocab_size=shape[0] - config.extra_embeddings)
    return config


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return bool(np.array_equal(one.read().data, other.read().data))


def merged_weight(base: LazyTensor, module: LoraModule, dtype: DType) -> LazyTensor:
    """One weight ``[out, in]`` with its adapter in it, computed when read and rounded once to ``dtype``.

    Reading raises FormatError where the result has numbers that ``dtype`` cannot hold.
    """

    def read() -> Tensor:
        source = base.read()
        rows = source.rows()
        a = _float32(module.a)
        b = _float32(module.b) * np.float32(module.scaling)
        magnitude = None if module.magnitude is None else _float32(module.magnitude)
        width = base.shape[-1]
        out = np.empty((len(rows), dtype.nbytes((width,))), dtype=np.uint8)
        step = max(1, _PORTION // max(1, width))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            values = dequantise(source.dtype, rows[part]).reshape(-1, width).astype(np.float32)
            values += b[part] @ a
            if magnitude is not None:
                lengths = np.linalg.norm(values, axis=1)
                values *= (magnitude[part] / np.maximum(lengths, np.finfo(np.float32).tiny))[:, None]
            if dtype is DType.F16 and np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
                raise FormatError(base.origin, "merged with its adapter it has numbers too large for F16; take BF16")
            out[part] = quantise(dtype, values).reshape(len(values), -1)
        return Tensor(dtype, base.shape, out.reshape(-1))

    return LazyTensor(dtype, base.shape, f"{base.origin} with its adapter", read)


def _float32(tensor: LazyTensor) -> Float32:
    read = tensor.read()
    values: Float32 = dequantise(read.dtype, read.rows()).reshape(tensor.shape).astype(np.float32)
    return values


def _as_type(tensor: LazyTensor, dtype: DType) -> LazyTensor:
    if tensor.dtype is dtype:
        return tensor

    def convert(source: Tensor) -> Tensor:
        values = dequantise(source.dtype, source.rows())
        return Tensor(dtype, source.shape, quantise(dtype, values).reshape(-1))

    return tensor.mapped(convert, dtype=dtype)
