"""Root-mean-square normalisation, with weights (every layer) and without (queries and keys of Llama 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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
        if x.dtype is torch.float32 and x.device.type == "cpu" and torch.is_grad_enabled():
            return trained_norm(x, self.weight.float(), self.eps)
        return rms_normalise(x, self.eps) * self.weight


def trained_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``rms_normalise(x) * weight`` for float32 ``[..., D]``, as one step of the backward pass.

    It keeps ``x``, which the residual keeps anyway, and one number a token, where the plain formula keeps two more
    tensors of ``x``'s size.
    """
    y: Tensor = _Norm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        y: Tensor = (x * inverse).mul_(weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        (grad,) = grads
        product = grad * x
        # d/dx of x r with r = (mean(x^2) + eps)^(-1/2): r (g w) - x r^3 mean(x g w)
        along = torch.matmul(product, weight)[..., None] * inverse.pow(3).div_(-x.shape[-1])
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = inverse.flatten() @ product.flatten(0, -2)
        grad_x = torch.mul(grad, weight, out=product).mul_(inverse).addcmul_(x, along)
        return grad_x, grad_weight, None
