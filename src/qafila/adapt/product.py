"""The product of an adapted layer, ``x W^T + s (x' A^T) B^T``, as one step of the backward pass.

Only ``x`` (which the layer before keeps anyway) and the weights are saved: ``x A^T`` and a quantised ``W`` are made
again on the way back, no ``[tokens, out]`` or ``[tokens, in]`` beside the result is ever filled, and ``W`` gets no
gradient. Where tokens are many and arithmetic is float32 on a CPU, ``x (W + s B A)^T`` is computed instead: thin
products over all tokens wait for memory, while the sum is made once. LoRA: arXiv 2106.09685.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qafila.adapt.frozen import PLAIN, dense


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


def _merging_pays(x: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether ``W + s B A`` costs less than two thin products over all tokens, and loses nothing to rounding."""
    n_in, n_out = a.shape[1], b.shape[0]
    exact = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return exact and x.numel() // n_in * (n_in + n_out) >= 2 * n_in * n_out


def _merged(a: Tensor, b: Tensor, scaling: float, form: str, stored: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """``W + s B A``, ``[out, in]``."""
    weight = dense(form, stored, (b.shape[0], a.shape[1]), dtype)
    out = None if form == PLAIN and stored[0].dtype == dtype else weight  # the stored matrix itself must stay as it is
    return torch.addmm(weight, b.to(dtype), a.to(dtype), alpha=scaling, out=out)


class _LowRankProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, a: Tensor, b: Tensor, scaling: float, form: str, *stored: Tensor
    ) -> Tensor:
        """``[..., out]``."""
        ctx.one_input, ctx.scaling, ctx.form = dropped is None, scaling, form
        ctx.merged = dropped is None and _merging_pays(x, a, b)
        dropped = x if dropped is None else dropped
        ctx.save_for_backward(dropped, a, b, *stored)
        if ctx.merged:
            return F.linear(x, _merged(a, b, scaling, form, stored, x.dtype))
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
            if ctx.merged:
                grad_x = grad @ _merged(a, b, ctx.scaling, ctx.form, tuple(stored), dtype)
            else:
                grad_x = grad @ dense(ctx.form, tuple(stored), (b.shape[0], a.shape[1]), dtype)
            if not ctx.one_input:
                grad_dropped = (grad_low @ a_now).view_as(dropped)
            elif not ctx.merged:
                grad_x.addmm_(grad_low, a_now)
            grad_x = grad_x.view_as(dropped)
        if ctx.needs_input_grad[2]:
            grad_a = (grad_low.T @ flat).to(a.dtype)
        if ctx.needs_input_grad[3]:
            grad_b = (grad.T @ (flat @ a_now.T)).mul_(ctx.scaling).to(b.dtype)
        return (grad_x, grad_dropped, grad_a, grad_b, None, None, *(None for _ in stored))
