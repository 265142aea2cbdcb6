"""Rotary position embedding: pairs of a head's dimensions turn by an angle that grows with the position.

Source: RoFormer (arXiv 2104.09864). The inverse frequencies, scaling applied, come from the configuration; nothing here
knows a scaling rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotary_angles(
    inverse_frequencies: npt.NDArray[np.float32], positions_T: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[T, N/2]`` of every pair's angle at ``positions_T``, in float32 on ``device``.

    The frequencies are no buffer of the model on purpose: ``model.to(bfloat16)`` would round them.
    """
    frequencies = torch.tensor(inverse_frequencies, dtype=torch.float32, device=device)
    angles = torch.outer(positions_T.to(device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x_BHTN: Tensor, angles: tuple[Tensor, Tensor], *, interleaved: bool) -> Tensor:
    """Turn every pair of ``x_BHTN`` by its angle, in float32; the input's type comes back.

    ``interleaved`` pairs dimensions ``(2i, 2i + 1)``; otherwise pairs are half a head apart, ``(i, i + N/2)``.
    """
    if x_BHTN.dtype is torch.float32 and x_BHTN.device.type == "cpu" and not interleaved:
        y_BHTN: Tensor = _Turned.apply(x_BHTN, *angles)  # type: ignore[no-untyped-call]
        return y_BHTN
    cos, sin = angles
    x = x_BHTN.float()
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x.chunk(2, dim=-1)
    turned = (first * cos - second * sin, first * sin + second * cos)
    out = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return out.to(x_BHTN.dtype)


class _Turned(torch.autograd.Function):
    """Half a head apart: it keeps nothing but the angles, since the way back is the turn the other way round."""

    @staticmethod
    def forward(ctx: Any, x_BHTN: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_BHTN, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, -1), None, None


def _turn(x_BHTN: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    first, second = x_BHTN.chunk(2, dim=-1)
    out_BHTN = torch.empty_like(x_BHTN)
    one, other = out_BHTN.chunk(2, dim=-1)
    torch.mul(first, cos, out=one).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=other).addcmul_(first, sin, value=direction)
    return out_BHTN
