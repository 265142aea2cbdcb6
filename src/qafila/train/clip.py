"""The norm of all gradients together, and scaling them down to a limit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> float:
    """Scale the gradients so that their norm is at most ``largest`` (0: leave them), and return the norm they had.

    The norm is over all parameters, in float32; those that are sharded over processes (DTensor) count as a whole. A
    norm that is no number is returned and nothing is scaled: the caller must not step.
    """
    gradients = [_reduced(p.grad) for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norm = _norm(gradients)
    if largest > 0 and norm > largest and norm < float("inf"):
        for gradient in gradients:
            gradient.mul_(largest / norm)
    return norm


def _norm(gradients: Sequence[Tensor]) -> float:
    # Tensors that are cut alike are summed up together: one message for each way of cutting, not for each tensor.
    cuts: dict[tuple[DeviceMesh, tuple[int, ...]] | None, list[Tensor]] = {}
    for gradient in gradients:
        cut, local = None, gradient
        if isinstance(gradient, DTensor):
            dims = tuple(i for i, placement in enumerate(gradient.placements) if not isinstance(placement, Replicate))
            cut, local = ((gradient.device_mesh, dims) if dims else None), gradient.to_local()
        norm = torch.linalg.vector_norm(local, dtype=torch.float32)
        cuts.setdefault(cut, []).append(norm)
    norms = []
    for cut, parts in cuts.items():
        square = torch.linalg.vector_norm(torch.stack([part.to(parts[0].device) for part in parts])).square()
        if cut is not None:
            mesh, dims = cut
            for dim in dims:
                dist.all_reduce(square, group=mesh.get_group(dim))
        norms.append(square.sqrt())
    return float(torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms])))


def _reduced(gradient: Tensor) -> Tensor:
    """The gradient, whose sum over processes must have been taken before anything is read off it."""
    if isinstance(gradient, DTensor):
        assert not any(isinstance(p, Partial) for p in gradient.placements), "a gradient was not reduced"
    return gradient
