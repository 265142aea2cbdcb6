"""Tensor parallel: every matrix of a layer is shared out, and between the matrices the tokens are.

Attention's and the feed-forward part's first matrices are cut by output (heads, hidden columns), the last one by input,
so that one gathering of tokens before and one sum after suffice (Megatron, arXiv 1909.08053). Norms and residuals work
on each process's own stretch of the tokens (sequence parallel, arXiv 2205.05198). Embedding and head are cut by rows of
the vocabulary; `qafila.train.loss` computes over such a head.

Parameters are DTensors, so that sharding, checkpoints and optimisers know what they hold. While a module computes it
sees its own part as a plain tensor, and the plain code of the model runs unchanged.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard

from qafila.errors import UsageError
from qafila.model.llama import LlamaModel
from qafila.model.moe import MoE
from qafila.train.parallel.collectives import gather_tokens, scatter_sum
from qafila.train.parallel.parts import cut, cut_within, is_here

_BY_OUTPUT: dict[str, Placement] = {"weight": Shard(0), "lora_a": Replicate(), "lora_b": Shard(0)}
_BY_INPUT: dict[str, Placement] = {"weight": Shard(1), "lora_a": Shard(1), "lora_b": Replicate()}


def share_matrices(model: LlamaModel, mesh: DeviceMesh) -> None:
    """Share out ``model`` in place over the processes of ``mesh``; what does not divide was refused before.

    Experts of a mixture that are cut already (expert parallel) stay as they are.

    Raises:
        UsageError: a layer is of a kind that cannot be cut (quantised, DoRA).
    """
    group = mesh.get_group()
    decoder = model.model
    embedding: Any = decoder.embed_tokens
    if is_here(embedding):
        cut_within(embedding, mesh, {"weight": [Shard(0)]})
        embedding.__class__ = _VocabularyEmbedding
        embedding.group = group
    if not model.config.tie_embeddings and is_here(model.lm_head):
        cut(model.lm_head, mesh, {"weight": [Shard(0)]})
    for layer in filter(is_here, decoder.layers):
        _share_layer(layer, mesh)
    if is_here(decoder.norm):
        cut_within(decoder.norm, mesh, {"weight": [Replicate()]})
        decoder.norm.register_forward_hook(lambda module, arguments, out: gather_tokens(out, group, alike=True))


def _share_layer(layer: Any, mesh: DeviceMesh) -> None:
    attention = layer.self_attn
    attention.n_heads //= mesh.size()
    attention.n_kv_heads //= mesh.size()
    for name in ("q_proj", "k_proj", "v_proj"):
        _share_linear(getattr(attention, name), mesh, _BY_OUTPUT)
    _share_linear(attention.o_proj, mesh, _BY_INPUT)
    mlp = layer.mlp
    dense = mlp
    if isinstance(mlp, MoE):
        dense = mlp.shared_expert
        cut_within(mlp.router, mesh, {"weight": [Replicate()]})
        for name, dim in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 2)):
            if not hasattr(getattr(mlp.experts, name).weight, "placements"):
                cut_within(getattr(mlp.experts, name), mesh, {"weight": [Shard(dim)]})
    for name in ("gate_proj", "up_proj"):
        _share_linear(getattr(dense, name), mesh, _BY_OUTPUT)
    _share_linear(dense.down_proj, mesh, _BY_INPUT)
    for part in (attention, mlp):
        _gather_around(part, mesh.get_group())
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        cut_within(norm, mesh, {"weight": [Replicate()]})


def _share_linear(module: nn.Module, mesh: DeviceMesh, plan: dict[str, Placement]) -> None:
    names = [name for name, _ in module.named_parameters()]
    odd = [name for name in names if name not in plan]
    if odd or "weight" not in names:
        raise UsageError(
            f"parallel.tensor: a {type(module).__name__} layer ({', '.join(odd) or 'quantised'}) cannot be cut; set "
            "parallel.tensor to 1, or adapter.kind to lora and adapter.base to plain"
        )
    cut_within(module, mesh, {name: [plan[name]] for name in names})


def _gather_around(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Give ``module`` all tokens, and add up what the processes make of them."""
    module.register_forward_pre_hook(lambda module, arguments: (gather_tokens(arguments[0], group), *arguments[1:]))
    module.register_forward_hook(lambda module, arguments, out: scatter_sum(out, group))


class _VocabularyEmbedding(nn.Embedding):
    """An embedding of which this process holds some rows: the others' come out of the sum."""

    group: dist.ProcessGroup

    def forward(self, ids_1T: Tensor) -> Tensor:
        """``[1, T]`` to this process's stretch of the tokens, ``[1, T / n, D]``."""
        rows = self.weight.shape[0]
        own_1T = ids_1T - dist.get_rank(self.group) * rows
        foreign_1T = (own_1T < 0) | (own_1T >= rows)
        x_1TD = F.embedding(own_1T.masked_fill(foreign_1T, 0), self.weight)
        return scatter_sum(x_1TD.masked_fill(foreign_1T[..., None], 0), self.group)
