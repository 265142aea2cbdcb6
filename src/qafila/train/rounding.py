"""Rounding at random: float32 to bfloat16 so that the mean over many roundings is the number itself."""

from __future__ import annotations

import torch
from torch import Tensor


def round_stochastically(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """float32 to bfloat16, up or down with the probability that the distance to each neighbour says.

    A bfloat16 is the upper half of a float32, so random lower bits are added and cut off (arXiv 2010.06192).
    """
    # Drawing is most of the work: one draw of 64 bits is four noises.
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    draws.random_(-(1 << 63), None, generator=generator)
    noise = draws.view(torch.int16)[: values.numel()].view(values.shape).to(torch.int32) & 0xFFFF
    rounded = noise.add_(values.contiguous().view(torch.int32)).bitwise_and_(-65536).view(torch.float32)
    # Infinities and what is no number must not be changed into each other.
    return torch.where(torch.isfinite(values), rounded, values).to(torch.bfloat16)
