"""The norm of all gradients together, and scaling them down to a limit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> float:
    """Scale the gradients so that their norm is at most ``largest`` (0: leave them), and return the norm they had.

    The norm is over all parameters, in float32; those that are sharded over processes (DTensor) count as a whole. A
    norm that is no number is returned and nothing is scaled: the caller must not step.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
    whole = [n.full_tensor() if isinstance(n, DTensor) else n for n in norms]
    norm = float(torch.linalg.vector_norm(torch.stack([n.to(whole[0].device) for n in whole])))
    if largest > 0 and norm > largest and norm < float("inf"):
        for gradient in gradients:
            gradient.mul_(largest / norm)
    return norm
