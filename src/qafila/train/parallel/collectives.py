"""Messages between processes that gradients flow through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_tokens(x_1TD: Tensor, group: dist.ProcessGroup, *, alike: bool = False) -> Tensor:
    """``[1, T / n, ...]`` of each process to ``[1, T, ...]`` of all, in order.

    The gradients of all copies are added up. With ``alike`` the processes do the very same with their copies: their
    gradients are equal already, and each process keeps its own stretch of them.
    """
    out: Tensor = _Gather.apply(x_1TD, group, alike)  # type: ignore[no-untyped-call]
    return out


def scatter_sum(x_1TD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """``[1, T, ...]``, added up over the processes, of which each keeps its own stretch ``[1, T / n, ...]``."""
    out: Tensor = _ScatterSum.apply(x_1TD, group)  # type: ignore[no-untyped-call]
    return out


def exchange(x_TD: Tensor, sends: Sequence[int], receives: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """All to all: ``sends[i]`` rows go to process i, in order; ``receives[i]`` rows come from it."""
    out: Tensor = _Exchange.apply(x_TD, list(sends), list(receives), group)  # type: ignore[no-untyped-call]
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_1TD: Tensor, group: dist.ProcessGroup, alike: bool) -> Tensor:
        ctx.group, ctx.alike = group, alike
        return _gathered(x_1TD, group)

    @staticmethod
    def backward(ctx: Any, gradient_1TD: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.alike:
            return _scattered(gradient_1TD, ctx.group), None, None
        stretches = gradient_1TD.chunk(dist.get_world_size(ctx.group), dim=1)
        return stretches[dist.get_rank(ctx.group)].contiguous(), None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_1TD: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _scattered(x_1TD, group)

    @staticmethod
    def backward(ctx: Any, gradient_1TD: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient_1TD, ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, sends: list[int], receives: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sends, ctx.receives, ctx.group = sends, receives, group
        return _exchanged(x_TD, sends, receives, group)

    @staticmethod
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(gradient_TD, ctx.receives, ctx.sends, ctx.group), None, None, None


def _gathered(x_1TD: Tensor, group: dist.ProcessGroup) -> Tensor:
    x_1TD = x_1TD.contiguous()
    out_1TD = x_1TD.new_empty((1, dist.get_world_size(group) * x_1TD.shape[1], *x_1TD.shape[2:]))
    dist.all_gather_single(out_1TD[0], x_1TD[0], group=group)
    return out_1TD


def _scattered(x_1TD: Tensor, group: dist.ProcessGroup) -> Tensor:
    x_1TD = x_1TD.contiguous()
    out_1TD = x_1TD.new_empty((1, x_1TD.shape[1] // dist.get_world_size(group), *x_1TD.shape[2:]))
    dist.reduce_scatter_single(out_1TD[0], x_1TD[0], group=group)
    return out_1TD


def _exchanged(x_TD: Tensor, sends: list[int], receives: list[int], group: dist.ProcessGroup) -> Tensor:
    out_TD = x_TD.new_empty((sum(receives), *x_TD.shape[1:]))
    dist.all_to_all_single(out_TD, x_TD.contiguous(), receives, sends, group=group)
    return out_TD
