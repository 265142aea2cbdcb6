"""Every Llama, as one readable module whose ``state_dict`` has the canonical parameter names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qafila.config import LayerPlan, ModelConfig
from qafila.model.attention import AttentionPattern, CrossAttention, Masked, SelfAttention, StepTables
from qafila.model.cache import KVCache
from qafila.model.mlp import MLP
from qafila.model.moe import MoE
from qafila.model.norm import RMSNorm
from qafila.model.packed import PackedDocuments, PackedPattern


class SelfAttentionLayer(nn.Module):
    """Attention over the text and a feed-forward part, each with its norm before it and a residual around it."""

    def __init__(self, config: ModelConfig, plan: LayerPlan) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = SelfAttention(config, plan)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp: nn.Module
        if plan.mixture:
            assert config.moe is not None
            self.mlp = MoE(config.dim, config.moe)
        else:
            self.mlp = MLP(config.dim, plan.ffn_dim)

    def forward(self, x_BTD: Tensor, tables: StepTables, cache: KVCache | None, image_BID: Tensor | None) -> Tensor:
        """``[B, T, D]`` to ``[B, T, D]``."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), tables, cache)
        ffn_BTD: Tensor = self.mlp(self.post_attention_layernorm(x_BTD))
        return x_BTD + ffn_BTD


class CrossAttentionLayer(nn.Module):
    """Attention over image states, behind learned gates; without an image the whole layer is skipped."""

    def __init__(self, config: ModelConfig, plan: LayerPlan) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.cross_attn = CrossAttention(config)
        self.cross_attn_attn_gate = nn.Parameter(torch.zeros(1))
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, plan.ffn_dim)
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTD: Tensor, tables: StepTables, cache: KVCache | None, image_BID: Tensor | None) -> Tensor:
        """``[B, T, D]`` to ``[B, T, D]``."""
        if image_BID is None:
            return x_BTD
        attended = self.cross_attn(self.input_layernorm(x_BTD), image_BID)
        x_BTD = x_BTD + self.cross_attn_attn_gate.tanh() * attended
        ffn_BTD: Tensor = self.mlp(self.post_attention_layernorm(x_BTD))
        return x_BTD + self.cross_attn_mlp_gate.tanh() * ffn_BTD


class Decoder(nn.Module):
    """Embedding, layers and final norm: everything under the prefix ``model.``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size + config.extra_embeddings, config.dim)
        self.layers = nn.ModuleList(
            CrossAttentionLayer(config, plan) if plan.attention == "cross" else SelfAttentionLayer(config, plan)
            for plan in config.layers
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self,
        ids_BT: Tensor,
        positions_T: Tensor | None,
        cache: KVCache | None,
        image_BID: Tensor | None,
        pattern: AttentionPattern | None = None,
    ) -> Tensor:
        """Token ids to normed hidden states ``[B, T, D]``; without ``pattern`` every token reads all before it."""
        seen = cache.length if cache is not None else 0
        if positions_T is None:
            positions_T = torch.arange(seen, seen + ids_BT.shape[1])
        positions_T = positions_T.cpu()
        if pattern is None:
            positions_S = torch.cat([cache.positions_S, positions_T]) if cache is not None else positions_T
            pattern = Masked.causal(self.config, positions_T, positions_S, ids_BT.device)
        tables = StepTables.build(self.config, positions_T, pattern, ids_BT.device)
        x_BTD: Tensor = self.embed_tokens(ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, tables, cache, image_BID)
        if cache is not None:
            cache.advance(positions_T)
        hidden_BTD: Tensor = self.norm(x_BTD)
        return hidden_BTD


class LlamaModel(nn.Module):
    """A Llama: token ids to logits.

    Its parameters have exactly the names and shapes of :func:`qafila.parameters.parameter_shapes`. A tied head is no
    parameter of its own. ``pattern_of`` gives for the lengths of packed documents how they are attended to.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.pattern_of: Callable[[Sequence[int]], PackedPattern] = partial(PackedDocuments.of, config)
        self.model = Decoder(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return self.model.embed_tokens.weight.dtype

    def head_weight(self) -> Tensor:
        """The output matrix ``[V, D]``: the head's own, or the embedding's rows of the vocabulary."""
        if self.config.tie_embeddings:
            return self.model.embed_tokens.weight[: self.config.vocab_size]
        return self.lm_head.weight

    def new_cache(self, *, batch: int = 1, dtype: torch.dtype | None = None, capacity: int = 64) -> KVCache:
        """An empty cache on the model's device, in the model's type unless ``dtype`` says otherwise."""
        return KVCache(self.config, batch=batch, dtype=dtype or self.dtype, device=self.device, capacity=capacity)

    def hidden(self, ids_1T: Tensor, documents: Sequence[int]) -> Tensor:
        """Normed hidden states ``[1, T, D]`` of documents that stand back to back and do not see each other.

        Args:
            ids_1T: token ids, int64.
            documents: tokens of each document, in order; they add up to T. Positions begin at 0 in each.
        """
        pattern = self.pattern_of(documents)
        hidden_1TD: Tensor = self.model(ids_1T, pattern.positions_T, None, None, pattern)
        return hidden_1TD

    def forward(
        self,
        ids_BT: Tensor,
        positions_T: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        image_BID: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of the next token after each position.

        Args:
            ids_BT: token ids, int64, below ``vocab_size + extra_embeddings``; all sequences have equal length.
            positions_T: rising absolute positions of the new tokens, shared by the batch; by default they follow what
                ``cache`` has seen.
            cache: keys and values of the tokens before; the new ones are added to it.
            image_BID: image states for cross-attention layers, which are skipped without them.
            last_only: compute logits of the last position only.

        Returns:
            ``[B, T, V]`` (``[B, 1, V]`` with ``last_only``), float32 whatever the parameters' type.
        """
        x_BTD = self.model(ids_BT, positions_T, cache, image_BID)
        if last_only:
            x_BTD = x_BTD[:, -1:]
        return F.linear(x_BTD, self.head_weight().to(x_BTD.dtype)).float()
