"""The dense feed-forward part, SwiGLU (arXiv 2002.05202): ``down(silu(gate(x)) * up(x))``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class MLP(nn.Module):
    """A dense feed-forward layer from ``dim`` to ``ffn_dim`` and back."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]``."""
        out_BTD: Tensor = self.down_proj(gated(self.gate_proj(x_BTD), self.up_proj(x_BTD)))
        return out_BTD


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, shapes alike; on a CPU as one step of the backward pass that keeps only its two inputs."""
    if gate.device.type == "cpu" and torch.is_grad_enabled():
        y: Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
        return y
    return F.silu(gate) * up


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (grad,) = grads
        grad_up = F.silu(gate).mul_(grad)
        grad_gate = grad * up
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate, grad_up
