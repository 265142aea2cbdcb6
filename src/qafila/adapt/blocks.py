"""GGUF's blocks as torch tensors: bytes ``[rows, row bytes]`` to weights ``[rows, in]``, on any device.

On the CPU the native kernels of :mod:`qafila.quant` do it; elsewhere the same formulas in torch, with the same bits.
Layouts and the order of products are those of `qafila.quant.legacy_blocks` and `qafila.quant.k_blocks` (ggml's
``ggml-common.h``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from qafila.quant import dequantise as native_dequantise
from qafila.quant.dtypes import DType

# Blocks are decoded in portions of about this many weights, so that the float32 beside a bfloat16 matrix stays small.
_PORTION: Final = 1 << 24


def _scale(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte ``start`` of every block, as float32 ``[n, 1]``."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _fields(packed: Tensor, width: int, run: int) -> Tensor:
    """Bytes ``[n, m]`` to numbers of ``width`` bits: of every ``run`` bytes first the lowest fields, then the next."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    runs = packed.reshape(len(packed), -1, 1, run)
    return ((runs >> shifts[:, None]) & ((1 << width) - 1)).reshape(len(packed), -1)


def _q4_0(blocks: Tensor) -> Tensor:
    return _scale(blocks, 0) * (_fields(blocks[:, 2:], 4, 16).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _scale(blocks, 0) * _fields(blocks[:, 4:], 4, 16).float() + _scale(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _scale(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _steps_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: what each of eight sub-blocks multiplies and subtracts, ``[n, 8, 1]`` both."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return (_scale(blocks, 0) * scales.float())[..., None], (_scale(blocks, 2) * minima.float())[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    steps, minima = _steps_and_minima(blocks)
    q = _fields(blocks[:, 16:], 4, 32).view(-1, 8, 32)
    return (steps * q.float() - minima).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    steps, minima = _steps_and_minima(blocks)
    q = _fields(blocks[:, 48:], 4, 32) | (_fields(blocks[:, 16:48], 1, 32) << 4)
    return (steps * q.view(-1, 8, 32).float() - minima).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    steps = _scale(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    q = _fields(blocks[:, :128], 4, 64) | (_fields(blocks[:, 128:192], 2, 32) << 4)
    return (steps[..., None] * (q.view(-1, 16, 16).float() - 32)).flatten(1)


_READERS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = MappingProxyType(
    {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
)


def is_kept(dtype: DType, device: torch.device) -> bool:
    """Whether matrices of this type can stay in their blocks on this device: every block type on the CPU, else six."""
    return dtype.quantised and (device.type == "cpu" or dtype.name in _READERS)


def dequantise_in_torch(blocks: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """As :func:`dequantise`, with torch alone; Q4_0, Q4_1, Q8_0, Q4_K, Q5_K and Q6_K."""
    stored = DType[kind]
    width = blocks.shape[1] // stored.block_bytes * stored.block_size
    out = torch.empty((len(blocks), width), dtype=dtype, device=blocks.device)
    step = max(1, _PORTION // max(1, width))
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        out[start : start + step] = _READERS[kind](part.reshape(-1, stored.block_bytes)).view(len(part), width)
    return out


@torch.library.custom_op("qafila::dequantise", mutates_args=(), device_types="cpu")
def dequantise(blocks: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Weights of quantised rows.

    Args:
        blocks: ``[rows, row bytes]`` uint8, contiguous.
        kind: the name of a block type, such as ``Q4_1``.
        dtype: what comes out: computed in float32, rounded once.

    Returns:
        ``[rows, in]``, new memory.
    """
    stored = DType[kind]
    data = blocks.numpy()
    width = data.shape[1] // stored.block_bytes * stored.block_size
    threads = torch.get_num_threads()
    step = max(1, _PORTION // max(1, width))
    if dtype is torch.float32 and len(data) <= step:
        return torch.from_numpy(native_dequantise(stored, data, threads=threads))
    out = torch.empty((len(data), width), dtype=dtype)
    for start in range(0, len(data), step):
        out[start : start + step] = torch.from_numpy(
            native_dequantise(stored, data[start : start + step], threads=threads)
        )
    return out


@dequantise.register_fake
def _(blocks: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    stored = DType[kind]
    width = blocks.shape[1] // stored.block_bytes * stored.block_size
    return blocks.new_empty((blocks.shape[0], width), dtype=dtype)


dequantise.register_kernel("cuda")(dequantise_in_torch)
