"""Attention over documents that are packed into one row: each is causal in itself and sees no other.

Masks are never built. On a CPU each document is a call of its own, documents of one length together; on a GPU one call
takes them all, with their boundaries (variable-length attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from qafila.config import AttentionKind, ModelConfig


class PackedPattern(Protocol):
    """An `AttentionPattern` of packed documents, which knows where each of them begins."""

    @property
    def positions_T(self) -> Tensor:  # noqa: N802 - its axes are part of the name
        """Position of each token in its document, int64, on the CPU."""

    def attend(self, q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, kind: AttentionKind) -> Tensor:
        """As `AttentionPattern` says."""


@dataclass(frozen=True)
class PackedDocuments:
    """An `AttentionPattern` for ``[1, T]`` tokens.

    ``spans`` holds for each attention kind the lengths of the stretches, back to back, inside which attention is
    causal: documents, or for chunked attention the chunks of documents.
    """

    positions_T: Tensor
    spans: dict[AttentionKind, tuple[int, ...]]

    @staticmethod
    def of(config: ModelConfig, documents: Sequence[int]) -> PackedDocuments:
        """The pattern of documents of these lengths, for a model of ``config``."""
        positions_T = torch.cat([torch.arange(n) for n in documents])
        spans: dict[AttentionKind, tuple[int, ...]] = {"full": tuple(documents)}
        if (chunk := config.attention_chunk) is not None:
            spans["chunked"] = tuple(
                min(chunk, length - start) for length in documents for start in range(0, length, chunk)
            )
        return PackedDocuments(positions_T, spans)

    def attend(self, q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, kind: AttentionKind) -> Tensor:
        """Causal attention inside each span: ``[1, T, H * N]``."""
        spans = self.spans[kind]
        if q_BHTN.is_cuda and q_BHTN.dtype in (torch.float16, torch.bfloat16):
            return _variable_length(q_BHTN, k_BKSN, v_BKSN, spans)
        return _span_by_span(q_BHTN, k_BKSN, v_BKSN, spans)


def _span_by_span(q_1HTN: Tensor, k_1KTN: Tensor, v_1KTN: Tensor, spans: Sequence[int]) -> Tensor:
    outputs = []
    # Neighbours of one length go together: rows that are one document each are the usual case of pretraining.
    runs = _runs(spans)
    sizes = [length * count for length, count in runs]
    # Split once: the gradient of a slice is a tensor as long as all of them, that of a split their concatenation.
    parts = zip(*(torch.split(x_1HTN, sizes, dim=2) for x_1HTN in (q_1HTN, k_1KTN, v_1KTN)), strict=True)
    for (_, count), part in zip(runs, parts, strict=True):
        q, k, v = (_stacked(x_1HTN, count) for x_1HTN in part)
        out_CHLN = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        outputs.append(out_CHLN.transpose(1, 2).flatten(0, 1).flatten(-2))
    return torch.cat(outputs)[None]


def _runs(spans: Sequence[int]) -> list[tuple[int, int]]:
    """Lengths with how many times each stands in a row."""
    runs: list[tuple[int, int]] = []
    for length in spans:
        if runs and runs[-1][0] == length:
            runs[-1] = (length, runs[-1][1] + 1)
        else:
            runs.append((length, 1))
    return runs


def _stacked(x_1HTN: Tensor, count: int) -> Tensor:
    """``[1, H, count * L, N]`` to ``[count, H, L, N]``."""
    heads, tokens, dims = x_1HTN.shape[1:]
    return x_1HTN[0].view(heads, count, tokens // count, dims).transpose(0, 1)


def _variable_length(q_1HTN: Tensor, k_1KTN: Tensor, v_1KTN: Tensor, spans: Sequence[int]) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *spans], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(q_1HTN.device)
    # The CUDA kernels want each query head's own key head before torch 2.13; repeating costs little beside the rest.
    repeat = q_1HTN.shape[1] // k_1KTN.shape[1]
    q_THN, k_THN, v_THN = (
        x_1HTN[0].repeat_interleave(times, 0).transpose(0, 1).contiguous()
        for x_1HTN, times in ((q_1HTN, 1), (k_1KTN, repeat), (v_1KTN, repeat))
    )
    longest = max(spans)
    out_THN = varlen_attn(q_THN, k_THN, v_THN, ends, ends, longest, longest, window_size=(-1, 0))
    assert isinstance(out_THN, Tensor)
    out_1TD: Tensor = out_THN.flatten(-2)[None]
    return out_1TD
