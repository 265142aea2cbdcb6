"""The mixture of experts, as a slow and obvious loop over the experts.

Source: llama-models ``models/llama4/moe.py``: the router's logits go through top-k first and a sigmoid after it, the
score multiplies the expert's *input*, and one shared expert sees every token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qafila.config import MixtureOfExperts
from qafila.model.mlp import MLP


class StackedLinear(nn.Module):
    """One bias-free linear map for each expert: ``weight`` is ``[E, out, in]``."""

    def __init__(self, n_experts: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_experts, out_dim, in_dim))

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """Apply one expert's map to ``[tokens, in]``."""
        return F.linear(x, self.weight[expert])


class Experts(nn.Module):
    """The routed experts' weights, stacked."""

    def __init__(self, dim: int, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.gate_proj = StackedLinear(moe.n_experts, dim, moe.ffn_dim)
        self.up_proj = StackedLinear(moe.n_experts, dim, moe.ffn_dim)
        self.down_proj = StackedLinear(moe.n_experts, moe.ffn_dim, dim)

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """SwiGLU of one expert on ``[tokens, D]``."""
        hidden = F.silu(self.gate_proj(x, expert)) * self.up_proj(x, expert)
        out: Tensor = self.down_proj(hidden, expert)
        return out


class MoE(nn.Module):
    """``top_k`` of ``n_experts`` for every token, and the shared expert for all."""

    def __init__(self, dim: int, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.top_k = moe.top_k
        self.n_experts = moe.n_experts
        self.router = nn.Linear(dim, moe.n_experts, bias=False)
        self.experts = Experts(dim, moe)
        self.shared_expert = MLP(dim, moe.ffn_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """``[B, T, D]`` to ``[B, T, D]``; each token's result depends on that token alone."""
        tokens = x_BTD.flatten(0, 1)
        out: Tensor = self.shared_expert(tokens)
        logits, chosen = self.router(tokens).topk(self.top_k, dim=-1)
        scores = torch.sigmoid(logits.float()).to(tokens.dtype)
        # Rising expert numbers fix the order in which a token's experts are added.
        for expert in range(self.n_experts):
            rows, slots = torch.where(chosen == expert)
            if rows.numel():
                scored = tokens[rows] * scores[rows, slots, None]
                out = out.index_add(0, rows, self.experts(scored, expert))
        return out.view_as(x_BTD)
