"""Expert parallel: each process has some of a mixture's experts, and tokens travel to them and back (all to all)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import Shard

from qafila.model.llama import LlamaModel
from qafila.model.moe import Experts, MoE
from qafila.train.parallel.collectives import exchange
from qafila.train.parallel.mesh import Mesh
from qafila.train.parallel.parts import cut_within, is_here


def share_experts(model: LlamaModel, mesh: Mesh) -> None:
    """Share out the experts of every mixture in place; with tensor parallelism each of them is cut besides."""
    for layer in filter(is_here, model.model.layers):
        mixture: Any = layer.mlp
        if not isinstance(mixture, MoE):
            continue
        experts: Any = mixture.experts
        for name, dim in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 2)):
            if mesh.layout.tensor > 1:
                cut_within(getattr(experts, name), mesh.grid["expert", "tensor"], {"weight": [Shard(0), Shard(dim)]})
            else:
                cut_within(getattr(experts, name), mesh.expert, {"weight": [Shard(0)]})
        experts.__class__ = _OwnExperts
        _scatter(mixture, mesh.expert.get_group())


def _scatter(mixture: Any, group: dist.ProcessGroup) -> None:
    mixture.__class__ = _ScatteredMoE
    mixture.group = group


class _OwnExperts(Experts):
    """This process's experts, all in one call: their weights are gathered (FSDP) once, and all get a gradient."""

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:  # type: ignore[override]
        """``counts[i]`` tokens of ``x`` ``[tokens, D]`` are for expert i, in order."""
        parts = enumerate(torch.split(x, list(counts)))
        return torch.cat([super(_OwnExperts, self).forward(part, expert) for expert, part in parts])


class _ScatteredMoE(MoE):
    """A mixture whose experts are on several processes."""

    group: dist.ProcessGroup

    def forward(self, x_BTD: Tensor) -> Tensor:
        """``[B, T, D]`` to ``[B, T, D]``, as the plain mixture computes it."""
        tokens = x_BTD.flatten(0, 1)
        logits, chosen = self.router(tokens).topk(self.top_k, dim=-1)
        scores = torch.sigmoid(logits.float()).to(tokens.dtype)
        order = chosen.flatten().argsort(stable=True)  # by expert, that is by process too
        rows = order // self.top_k
        scored = tokens[rows] * scores.flatten()[order, None]
        processed = self._elsewhere(scored, torch.bincount(chosen.flatten(), minlength=self.n_experts))
        out: Tensor = self.shared_expert(tokens)
        return out.index_add(0, rows, processed).view_as(x_BTD)

    def _elsewhere(self, scored: Tensor, counts_E: Tensor) -> Tensor:
        """What the experts make of tokens that are sorted by expert, ``counts_E`` for each."""
        size = dist.get_world_size(self.group)
        sent = counts_E.view(size, -1)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        sends, receives = sent.sum(1).tolist(), received.sum(1).tolist()
        there = exchange(scored, sends, receives, self.group)
        # Rows came sorted by process, then expert; the experts want them by expert.
        numbers = torch.arange(received.shape[1], device=received.device).repeat(size)
        by_expert = torch.repeat_interleave(numbers, received.flatten()).argsort(stable=True)
        done = self.experts(there[by_expert], received.sum(0).tolist())
        back = torch.empty_like(done).index_copy(0, by_expert, done)
        return exchange(back, receives, sends, self.group)
