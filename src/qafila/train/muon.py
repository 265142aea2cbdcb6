"""Muon: momentum whose matrices are made orthogonal before they move the weights.

Source: Keller Jordan's Muon and modded-nanogpt: five Newton-Schulz steps with (3.4445, -4.7750, 2.0315), Nesterov
momentum 0.95, the update scaled by ``sqrt(max(1, rows / columns))``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS: Final = 5
_EPS: Final = 1e-7


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, roughly: singular values come out between about 0.7 and 1.2.

    Args:
        matrix: ``[..., rows, columns]``; stacked experts are taken one by one.
    """
    x = matrix.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(_EPS)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon over matrices; a matrix that is sharded over processes is gathered to be made orthogonal."""

    def __init__(self, params: list[Tensor], *, lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    def fresh_state(self, tensor: Tensor) -> dict[str, Tensor]:
        """The state before the first step."""
        return {"momentum": torch.zeros_like(tensor)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move the weights."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(self.fresh_state(parameter))
                average = state["momentum"]
                average.mul_(group["momentum"]).add_(parameter.grad)
                update = parameter.grad.add(average, alpha=group["momentum"])
                update = _sharded_like(orthogonalised(_whole(update)), parameter)
                scale = max(1.0, parameter.shape[-2] / parameter.shape[-1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)
        return None


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return tensor
    # Every process has the whole of it, so that each keeps its own part and nothing is sent.
    everywhere = [Replicate()] * like.device_mesh.ndim
    mine: Tensor = DTensor.from_local(tensor, like.device_mesh, everywhere, run_check=False)
    return mine.redistribute(placements=like.placements)  # type: ignore[attr-defined, no-any-return]
