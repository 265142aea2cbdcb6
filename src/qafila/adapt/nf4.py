"""NF4 with double quantisation, the frozen base of QLoRA (arXiv 2305.14314).

Sixteen levels at the quantiles of a normal distribution; every 64 weights share one scale, their largest magnitude.
The scales in turn, less their mean, are 8-bit numbers that share a float32 for every 256 of them: 4.127 bits a weight.
The levels are those of the paper's appendix E, the 8-bit numbers the "dynamic tree" ones of its reference
implementation (arXiv 2110.02861, section 2; bitsandbytes ``create_dynamic_map``).
"""

from __future__ import annotations

from math import prod
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS: Final = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
BLOCK: Final = 64
SCALE_BLOCK: Final = 256
_PORTION: Final = 1 << 24


class Nf4(NamedTuple):
    """A matrix in NF4.

    ``codes`` ``[n / 2]`` uint8, two levels a byte, the first in its high half; ``scale_codes`` ``[n / 64]`` uint8;
    ``scale_steps`` ``[n / 64 / 256]`` and ``scale_mean`` ``[]`` float32. Numbers that do not divide are rounded up.
    """

    codes: Tensor
    scale_codes: Tensor
    scale_steps: Tensor
    scale_mean: Tensor


def dynamic_levels(device: torch.device | str = "cpu") -> Tensor:
    """The 256 values of an 8-bit "dynamic" number, rising, float32.

    For each of seven decades ``10^-6`` to ``1``, the middles of ``2^i`` equal parts of ``[0.1, 1]`` with either sign;
    0 and 1 besides.
    """
    values = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        values += [middles, -middles]
    return torch.cat(values).sort().values.to(device)


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The number of the nearest of rising ``levels``, uint8."""
    borders = (levels[:-1] + levels[1:]) / 2
    return torch.bucketize(values, borders, out_int32=True).to(torch.uint8)


def _blocks(values: Tensor, size: int) -> Tensor:
    """A flat tensor as ``[blocks, size]``, zeros after its end."""
    return F.pad(values, (0, -values.numel() % size)).view(-1, size)


def quantise(weight: Tensor) -> Nf4:
    """A matrix of any floating type and shape, as it lies in memory, in NF4."""
    flat = weight.detach().reshape(-1)
    levels = torch.tensor(LEVELS, device=weight.device)
    codes, scales = [], []
    for part in torch.split(flat, _PORTION):
        blocks = _blocks(part.float(), BLOCK)
        largest = blocks.abs().amax(dim=1)
        codes.append(_nearest(blocks / largest.clamp_min(torch.finfo(torch.float32).tiny)[:, None], levels).view(-1))
        scales.append(largest)
    pairs = torch.cat(codes).view(-1, 2)
    scale = torch.cat(scales)
    mean = scale.mean()
    second = _blocks(scale - mean, SCALE_BLOCK)
    steps = second.abs().amax(dim=1)
    tiny = torch.finfo(torch.float32).tiny
    scale_codes = _nearest(second / steps.clamp_min(tiny)[:, None], dynamic_levels(weight.device))
    return Nf4((pairs[:, 0] << 4) | pairs[:, 1], scale_codes.view(-1)[: scale.numel()], steps, mean)


def dequantise(stored: Nf4, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The weights that were quantised, ``shape`` and ``dtype``: computed in float32, rounded once."""
    device = stored.codes.device
    levels = torch.tensor(LEVELS, device=device)
    # One look-up gives both weights of a byte.
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)
    second = dynamic_levels(device)[stored.scale_codes.int()]
    scales = (_blocks(second, SCALE_BLOCK) * stored.scale_steps[:, None]).view(-1)[: second.numel()] + stored.scale_mean
    count = prod(shape)
    out = torch.empty(stored.codes.numel() * 2, dtype=dtype, device=device)
    portion = _PORTION // BLOCK
    for start in range(0, scales.numel(), portion):
        stop = min(start + portion, scales.numel())
        codes = stored.codes[start * BLOCK // 2 : stop * BLOCK // 2]
        values = F.embedding(codes.int(), pairs).view(-1, BLOCK) * scales[start:stop, None]
        out[start * BLOCK : stop * BLOCK] = values.view(-1)
    return out[:count].view(shape)
