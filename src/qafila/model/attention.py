"""Grouped-query attention over the text, and cross-attention over image states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qafila.config import AttentionKind, LayerPlan, ModelConfig
from qafila.model.cache import KVCache
from qafila.model.norm import RMSNorm, rms_normalise
from qafila.model.rope import rotary_angles, rotate


class AttentionPattern(Protocol):
    """Which keys each query reads, and how that is computed: what differs between decoding, training and clusters."""

    def attend(self, q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, kind: AttentionKind) -> Tensor:
        """``softmax(q k^T / sqrt(N)) v`` over the keys that ``kind`` lets each query see: ``[B, T, H * N]``."""


@dataclass(frozen=True)
class Masked:
    """The obvious pattern: ``visible`` holds for each attention kind a boolean mask ``[T, S]``."""

    visible: dict[AttentionKind, Tensor]

    @staticmethod
    def causal(config: ModelConfig, positions_T: Tensor, positions_S: Tensor, device: torch.device) -> Masked:
        """Queries at ``positions_T`` read keys at ``positions_S`` (both on the CPU) up to their own position."""
        causal_TS = positions_S[None, :] <= positions_T[:, None]
        visible: dict[AttentionKind, Tensor] = {"full": causal_TS.to(device)}
        if config.attention_chunk is not None:
            # Block-diagonal, not a sliding window: a chunk's first token sees only itself (facts: Llama 4).
            chunk_S, chunk_T = positions_S // config.attention_chunk, positions_T // config.attention_chunk
            visible["chunked"] = (causal_TS & (chunk_S[None, :] == chunk_T[:, None])).to(device)
        return Masked(visible)

    def attend(self, q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, kind: AttentionKind) -> Tensor:
        """As `AttentionPattern` says."""
        return _attend(q_BHTN, k_BKSN, v_BKSN, self.visible[kind])


@dataclass(frozen=True)
class StepTables:
    """What every layer shares in one forward pass: it depends on the positions and not on the tokens.

    ``angles`` are the rotary cosines and sines ``[T, N/2]``; ``query_scale_T`` is the attention temperature of each
    query.
    """

    angles: tuple[Tensor, Tensor]
    pattern: AttentionPattern
    query_scale_T: Tensor | None

    @staticmethod
    def build(config: ModelConfig, positions_T: Tensor, pattern: AttentionPattern, device: torch.device) -> StepTables:
        """Tables for queries at ``positions_T`` (on the CPU)."""
        scale_T = None
        if config.temperature is not None:
            scale_T = torch.from_numpy(config.temperature.query_scale(positions_T.numpy())).to(device)
        return StepTables(rotary_angles(config.inverse_frequencies, positions_T, device), pattern, scale_T)


def _split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """``[B, T, heads * N]`` to ``[B, heads, T, N]``."""
    batch, tokens, _ = x_BTD.shape
    return x_BTD.view(batch, tokens, heads, -1).transpose(1, 2)


def _attend(q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, visible_TS: Tensor | None) -> Tensor:
    """``softmax(q k^T / sqrt(N)) v`` with each key/value head shared by H / K query heads: ``[B, T, H * N]``."""
    dtype = q_BHTN.dtype
    out_BHTN = F.scaled_dot_product_attention(
        q_BHTN, k_BKSN.to(dtype), v_BKSN.to(dtype), attn_mask=visible_TS, enable_gqa=True
    )
    return out_BHTN.transpose(1, 2).flatten(-2)


class _Projections(nn.Module):
    """The four matrices both kinds of attention have."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)


class SelfAttention(_Projections):
    """Causal attention of one layer, full or within chunks, as its plan says."""

    def __init__(self, config: ModelConfig, plan: LayerPlan) -> None:
        super().__init__(config)
        self.plan = plan
        self.interleaved = config.rope_interleaved
        self.eps = config.norm_eps

    def forward(self, x_BTD: Tensor, tables: StepTables, cache: KVCache | None) -> Tensor:
        """``[B, T, D]`` to ``[B, T, D]``; new keys and values go into ``cache`` where there is one."""
        plan = self.plan
        q_BHTN = _split_heads(self.q_proj(x_BTD), self.n_heads)
        k_BKTN = _split_heads(self.k_proj(x_BTD), self.n_kv_heads)
        v_BKTN = _split_heads(self.v_proj(x_BTD), self.n_kv_heads)
        if plan.rotary:
            q_BHTN = rotate(q_BHTN, tables.angles, interleaved=self.interleaved)
            k_BKTN = rotate(k_BKTN, tables.angles, interleaved=self.interleaved)
        if plan.qk_norm:
            q_BHTN = rms_normalise(q_BHTN, self.eps)
            k_BKTN = rms_normalise(k_BKTN, self.eps)
        if plan.temperature:
            assert tables.query_scale_T is not None
            q_BHTN = (q_BHTN * tables.query_scale_T[:, None]).to(q_BHTN.dtype)
        if cache is not None:
            k_BKTN, v_BKTN = cache.store(plan.index, k_BKTN, v_BKTN)
        out_BTD: Tensor = self.o_proj(tables.pattern.attend(q_BHTN, k_BKTN, v_BKTN, plan.attention))
        return out_BTD


class CrossAttention(_Projections):
    """Attention from the text to image states, with normed queries and keys (Llama 3.2 Vision).

    Source: llama-models ``models/llama3/multimodal/model.py``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x_BTD: Tensor, image_BID: Tensor) -> Tensor:
        """``[B, T, D]`` to ``[B, T, D]``, reading all of ``image_BID``."""
        q_BHTN = self.q_norm(_split_heads(self.q_proj(x_BTD), self.n_heads))
        k_BKIN = self.k_norm(_split_heads(self.k_proj(image_BID), self.n_kv_heads))
        v_BKIN = _split_heads(self.v_proj(image_BID), self.n_kv_heads)
        out_BTD: Tensor = self.o_proj(_attend(q_BHTN, k_BKIN, v_BKIN, None))
        return out_BTD
