"""Root-mean-square normalisation, with weights (every layer) and without (queries and keys of Llama 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rms_normalise(x: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)`` along the last dimension, in float32, cast back to ``x``'s type."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm as Meta's code does it: the normalised value is cast back *before* the weight multiplies it.

    Source: llama-models ``models/llama3/model.py``. The order shows in the last bit of bf16 only.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; same shape and type come back."""
        return rms_normalise(x, self.eps) * self.weight
