"""Parameters of which every process holds a part, for modules that know nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Plan = Mapping[str, Sequence[Placement]]


def cut(module: nn.Module, mesh: DeviceMesh, plan: Plan) -> None:
    """Make DTensors of parameters that every process has whole (or that have no memory yet)."""
    for name, placements in plan.items():
        whole: nn.Parameter = getattr(module, name)
        # No message: every process cuts its own part out of what it has.
        part = distribute_tensor(whole.detach(), mesh, placements, src_data_rank=None)
        setattr(module, name, nn.Parameter(part, requires_grad=whole.requires_grad))


def cut_within(module: nn.Module, mesh: DeviceMesh, plan: Plan) -> None:
    """As `cut`; and while ``module`` computes, it sees its own parts as plain tensors.

    Gradients of parameters that all processes hold whole are parts of a sum, since a process sees a part of the tokens
    or computes a part of the layer; whoever reduces gradients over processes adds those up too.
    """
    cut(module, mesh, plan)
    gradients = {name: [Partial() if isinstance(p, Replicate) else p for p in ps] for name, ps in plan.items()}
    held: dict[str, Any] = {}

    def take_parts(module: nn.Module, _arguments: Any) -> None:
        parameters: dict[str, Any] = module._parameters
        for name, placements in gradients.items():
            held[name] = parameters[name]
            if isinstance(held[name], DTensor):
                parameters[name] = held[name].to_local(grad_placements=placements)

    def put_back(module: nn.Module, _arguments: Any, _output: Tensor | None) -> None:
        module._parameters.update(held)
        held.clear()

    module.register_forward_pre_hook(take_parts)
    module.register_forward_hook(put_back, always_call=True)


def fill(module: nn.Module, initial: Callable[[str], Tensor], device: str) -> None:
    """Make room on ``device`` for the parts of the parameters that this process holds, and give them their values.

    Args:
        module: on the device ``meta``, laid over a mesh.
        initial: the whole value of a parameter; no more than one is in memory at a time.
        device: where this process computes.
    """
    module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        whole = initial(name)
        held = parameter.detach()
        if isinstance(held, DTensor):
            shape, offset = compute_local_shape_and_global_offset(held.shape, held.device_mesh, held.placements)
            whole = whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
            held = held.to_local()
        held.copy_(whole)


def is_here(module: nn.Module) -> bool:
    """Whether the module has anything to compute with: of a pipeline's stages, each has its own layers only."""
    return any(True for _ in module.parameters())
