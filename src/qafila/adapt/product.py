"""The product of an adapted layer, ``x W^T + s (x' A^T) B^T``, as one step of the backward pass.

Only ``x`` (which the layer before keeps anyway) and the weights are saved: ``x A^T`` and a quantised ``W`` are made
again on the way back, no ``[tokens, out]`` or ``[tokens, in]`` beside the result is ever filled, and ``W`` gets no
gradient. LoRA: arXiv 2106.09685.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qafila.adapt.frozen import dense


def low_rank_product(
    x: Tensor, dropped: Tensor | None, a: Tensor, b: Tensor, scaling: float, form: str, stored: tuple[Tensor, ...]
) -> Tensor:
    """``[..., out]`` in the type of ``x``, in which everything is computed.

    Args:
        x: ``[..., in]``.
        dropped: what A reads: ``x`` after dropout; None for ``x`` itself.
        a: ``[r, in]``, and ``b``: ``[out, r]``, of any floating type; their gradients have it too.
        b: see ``a``.
        scaling: s.
        form: of the frozen W, with its parts in ``stored``, as :func:`qafila.adapt.frozen.dense` takes them.
        stored: see ``form``.
    """
    y: Tensor = _LowRankProduct.apply(x, dropped, a, b, scaling, form, *stored)  # type: ignore[no-untyped-call]
    return y


class _LowRankProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, a: Tensor, b: Tensor, scaling: float, form: str, *stored: Tensor
    ) -> Tensor:
        """``[..., out]``."""
        ctx.one_input, ctx.scaling, ctx.form = dropped is None, scaling, form
        dropped = x if dropped is None else dropped
        ctx.save_for_backward(dropped, a, b, *stored)
        weight = dense(form, stored, (b.shape[0], a.shape[1]), x.dtype)
        y = x.reshape(-1, x.shape[-1]) @ weight.T
        low = dropped.reshape(-1, x.shape[-1]) @ a.to(x.dtype).T
        y.addmm_(low, b.to(x.dtype).T, alpha=scaling)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, dropped, a and b; None for what is frozen."""
        dropped, a, b, *stored = ctx.saved_tensors
        dtype = grads[0].dtype
        grad = grads[0].reshape(-1, b.shape[0])
        flat = dropped.reshape(-1, a.shape[1])
        a_now, b_now = a.to(dtype), b.to(dtype)
        grad_low = (grad @ b_now).mul_(ctx.scaling)  # [tokens, r]
        grad_x = grad_dropped = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ dense(ctx.form, tuple(stored), (b.shape[0], a.shape[1]), dtype)
            if ctx.one_input:
                grad_x.addmm_(grad_low, a_now)
            else:
                grad_dropped = (grad_low @ a_now).view_as(dropped)
            grad_x = grad_x.view_as(dropped)
        if ctx.needs_input_grad[2]:
            grad_a = (grad_low.T @ flat).to(a.dtype)
        if ctx.needs_input_grad[3]:
            grad_b = (grad.T @ (flat @ a_now.T)).mul_(ctx.scaling).to(b.dtype)
        return (grad_x, grad_dropped, grad_a, grad_b, None, None, *(None for _ in stored))
