"""Everything at once: a plain model, laid over the processes of a mesh."""

from __future__ import annotations

import torch

from qafila.model.llama import LlamaModel
from qafila.train.parallel.context import share_rows
from qafila.train.parallel.expert import share_experts
from qafila.train.parallel.fsdp import shard
from qafila.train.parallel.mesh import Mesh
from qafila.train.parallel.tensor import share_matrices


def parallelize(
    model: LlamaModel,
    mesh: Mesh,
    *,
    sequence: int,
    compute: torch.dtype | None = None,
    reshard_after_forward: bool = True,
) -> None:
    """Lay ``model``, or one stage of it, over ``mesh``, in place.

    Parameters become DTensors and keep their names. ``hidden`` takes this process's part of the tokens
    (`qafila.train.parallel.context.share_batch`) and gives their hidden states.

    Args:
        model: whole, the same on every process, or without memory (on the device ``meta``).
        mesh: the grid of processes; its layout was checked against the model.
        sequence: tokens of a row.
        compute: type that weights are gathered in; by default their own.
        reshard_after_forward: free a layer's gathered weights after its forward pass.
    """
    layout = mesh.layout
    if layout.context > 1:
        share_rows(model, mesh.context.get_group(), sequence)
    if layout.expert > 1:
        share_experts(model, mesh)
    if layout.tensor > 1:
        share_matrices(model, mesh.tensor)
    shard(model, mesh, compute, reshard_after_forward=reshard_after_forward)
