"""Frozen linear layers whose weights stay small: in the blocks of their file, or in NF4.

The matrix is decoded when it is needed, in the forward pass and again in the backward pass, and forgotten at once.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qafila.adapt import blocks, nf4

PLAIN: Final = "plain"
NF4: Final = "nf4"


def dense(form: str, stored: tuple[Tensor, ...], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A matrix ``[out, in]`` in ``dtype``.

    Args:
        form: ``plain``, ``nf4`` or the name of a block type.
        stored: the matrix itself; the four parts of :class:`qafila.adapt.nf4.Nf4`; or blocks ``[out, row bytes]``.
        shape: ``(out, in)``.
        dtype: what comes out.
    """
    if form == PLAIN:
        return stored[0].to(dtype)
    if form == NF4:
        return nf4.dequantise(nf4.Nf4(*stored), shape, dtype)
    weight: Tensor = blocks.dequantise(stored[0], form, dtype)
    return weight


class _FrozenProduct(torch.autograd.Function):
    """``x W^T`` that keeps nothing for the backward pass but the stored weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: str, shape: tuple[int, int], *stored: Tensor) -> Tensor:
        ctx.form, ctx.shape = form, shape
        ctx.save_for_backward(*stored)
        return F.linear(x, dense(form, stored, shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        nothing = (None,) * (2 + len(ctx.saved_tensors))
        if not ctx.needs_input_grad[0]:
            return (None, *nothing)
        return (grad @ dense(ctx.form, ctx.saved_tensors, ctx.shape, grad.dtype), *nothing)


def frozen_product(x: Tensor, form: str, shape: tuple[int, int], stored: tuple[Tensor, ...]) -> Tensor:
    """``x W^T`` with a W that gets no gradient; see :func:`dense` for the last three."""
    if form == PLAIN and stored[0].dtype == x.dtype:
        return F.linear(x, stored[0])
    result: Tensor = _FrozenProduct.apply(x, form, shape, *stored)  # type: ignore[no-untyped-call]
    return result


class FrozenLinear(nn.Module):
    """A bias-free linear layer that is never trained, ``[..., in]`` to ``[..., out]``.

    Its state is buffers: ``blocks`` ``[out, row bytes]``, or for NF4 ``codes``, ``scale_codes``, ``scale_steps`` and
    ``scale_mean``.
    """

    def __init__(self, in_features: int, out_features: int, form: str, stored: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.in_features, self.out_features, self.form = in_features, out_features, form
        self._parts = _register(self, form, stored)

    def stored(self) -> tuple[Tensor, ...]:
        """The weight as :func:`dense` takes it."""
        return tuple(getattr(self, name) for name in self._parts)

    def forward(self, x: Tensor) -> Tensor:
        """Computed in the type of ``x``."""
        return frozen_product(x, self.form, (self.out_features, self.in_features), self.stored())

    def extra_repr(self) -> str:
        """What printing the model says."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.form}"


class FrozenStackedLinear(nn.Module):
    """The experts' maps (:class:`qafila.model.moe.StackedLinear`), stored small: one expert is decoded at a time."""

    def __init__(self, in_features: int, out_features: int, form: str, stored: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.in_features, self.out_features, self.form = in_features, out_features, form
        self._parts = _register(self, form, stored)

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """Apply one expert's map to ``[tokens, in]``."""
        stored = tuple(getattr(self, name)[expert] for name in self._parts)
        return frozen_product(x, self.form, (self.out_features, self.in_features), stored)


def _register(module: nn.Module, form: str, stored: tuple[Tensor, ...]) -> tuple[str, ...]:
    names = nf4.Nf4._fields if form == NF4 else ("blocks",)
    for name, tensor in zip(names, stored, strict=True):
        module.register_buffer(name, tensor)
    return names
