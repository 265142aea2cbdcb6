"""Fully sharded data parallel: every process keeps a share of each weight and gathers a layer when it is needed.

torch's ``fully_shard`` (FSDP2, arXiv 2304.11277), a layer at a time. Gradients are added up in float32, not averaged: a
loss is divided by the targets of all processes before it is differentiated, so that the result is that of one process.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from qafila.model.llama import LlamaModel
from qafila.model.moe import MoE
from qafila.train.parallel.mesh import Mesh
from qafila.train.parallel.parts import is_here


def shard(model: LlamaModel, mesh: Mesh, compute: torch.dtype | None, *, reshard_after_forward: bool) -> None:
    """Shard ``model`` in place over the data and context-parallel processes of ``mesh``.

    Embedding, final norm and head form the root's group. It stays gathered from ``hidden`` to the end of the backward
    pass: the loss reads the head's weight outside of any module. After a pass without backward, call ``model.reshard``.

    Args:
        model: whole, or cut by tensor or expert parallelism already.
        mesh: the grid of processes.
        compute: type that weights are gathered in and computed with; by default their own.
        reshard_after_forward: free a layer's gathered weights after its forward pass, and gather them again.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=True)
    for layer in filter(is_here, model.model.layers):
        if isinstance(layer.mlp, MoE) and mesh.layout.expert > 1:
            experts = layer.mlp.experts
            fully_shard(
                experts, mesh=mesh.expert_weights, mp_policy=policy, reshard_after_forward=reshard_after_forward
            )
        fully_shard(layer, mesh=mesh.weights, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh.weights, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in sharded(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def sharded(model: nn.Module) -> list[FSDPModule]:
    """The modules of ``model`` that gather and free their weights."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
