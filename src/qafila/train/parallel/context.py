"""Context parallel: the processes share every row, and each sees the keys and values of all.

A row is cut into 2 n chunks, of which process i takes chunks i and 2 n - 1 - i, so that all have as much to read.
Keys and values are gathered for each layer, and their gradients summed and shared out again: all-gather rather than a
ring, as in Llama 3 (arXiv 2407.21783 section 3.3.2), which makes masks of documents easy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from qafila.config import AttentionKind, ModelConfig
from qafila.model.llama import LlamaModel
from qafila.model.packed import PackedDocuments
from qafila.train.objective import DeviceBatch
from qafila.train.parallel.collectives import gather_tokens


def own_chunks(tokens: int, sequence: int, rank: int, size: int) -> list[range]:
    """The tokens of process ``rank`` of ``size``, as stretches of ``tokens`` that are rows of ``sequence`` each."""
    chunk = sequence // (2 * size)
    assert tokens % sequence == 0 == sequence % (2 * size)
    starts = [row + chunk * number for row in range(0, tokens, sequence) for number in (rank, 2 * size - 1 - rank)]
    return [range(start, start + chunk) for start in starts]


def own_tokens(tokens: int, sequence: int, rank: int, size: int) -> Tensor:
    """As `own_chunks`, as one rising list of numbers ``[tokens / size]``."""
    return torch.cat([torch.arange(c.start, c.stop) for c in own_chunks(tokens, sequence, rank, size)])


def share_batch(batch: DeviceBatch, sequence: int, group: dist.ProcessGroup) -> DeviceBatch:
    """This process's part of the tokens and targets; ``documents`` stay those of whole rows."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    own_T = own_tokens(batch.ids_1T.shape[1], sequence, rank, size).to(batch.ids_1T.device)
    return replace(batch, ids_1T=batch.ids_1T[:, own_T], targets_T=batch.targets_T[own_T])


def share_rows(model: LlamaModel, group: dist.ProcessGroup, sequence: int) -> None:
    """Let ``model.hidden`` take this process's tokens of rows of ``sequence`` tokens, with whole rows' documents."""
    model.pattern_of = lambda documents: SharedDocuments.of(model.config, documents, sequence, group)


@dataclass(frozen=True)
class _Piece:
    """Neighbouring queries (local numbers) of one document, and the keys (global numbers) the last of them reads."""

    queries: slice
    keys: slice


@dataclass(frozen=True)
class SharedDocuments:
    """An `AttentionPattern` for this process's tokens of packed documents.

    ``order_T`` puts gathered tokens into their order in the rows; ``pieces`` holds for each attention kind what is
    computed together.
    """

    positions_T: Tensor
    order_T: Tensor
    pieces: dict[AttentionKind, tuple[_Piece, ...]]
    group: dist.ProcessGroup

    @staticmethod
    def of(config: ModelConfig, documents: Sequence[int], sequence: int, group: dist.ProcessGroup) -> SharedDocuments:
        """The pattern of documents of these lengths, which are whole rows of ``sequence`` tokens."""
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        whole = PackedDocuments.of(config, documents)
        tokens = len(whole.positions_T)
        gathered_T = torch.cat([own_tokens(tokens, sequence, i, size) for i in range(size)])
        chunks = own_chunks(tokens, sequence, rank, size)
        return SharedDocuments(
            positions_T=whole.positions_T[own_tokens(tokens, sequence, rank, size)],
            order_T=gathered_T.argsort(),
            pieces={kind: _pieces(spans, chunks) for kind, spans in whole.spans.items()},
            group=group,
        )

    def attend(self, q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, kind: AttentionKind) -> Tensor:
        """Causal attention inside each span, of this process's queries: ``[1, T / n, H * N]``."""
        both_1TKN = torch.cat([k_BKSN, v_BKSN], dim=1).transpose(1, 2)
        both_1TKN = gather_tokens(both_1TKN, self.group)[:, self.order_T.to(both_1TKN.device)]
        k_1KSN, v_1KSN = both_1TKN.transpose(1, 2).chunk(2, dim=1)
        outputs = []
        for piece in self.pieces[kind]:
            q, k, v = q_BHTN[:, :, piece.queries], k_1KSN[:, :, piece.keys], v_1KSN[:, :, piece.keys]
            # The last query reads the last key, the one before it all but that, ...
            visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            visible = visible.tril(k.shape[2] - q.shape[2])
            out_1HTN = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
            outputs.append(out_1HTN.transpose(1, 2).flatten(-2))
        return torch.cat(outputs, dim=1)


def _pieces(spans: Sequence[int], chunks: Sequence[range]) -> tuple[_Piece, ...]:
    """Where stretches of attention meet this process's chunks; both are in rising order."""
    pieces = []
    local = 0
    span_start, number = 0, 0
    for chunk in chunks:
        start = chunk.start
        while start < chunk.stop:
            while span_start + spans[number] <= start:
                span_start += spans[number]
                number += 1
            stop = min(chunk.stop, span_start + spans[number])
            pieces.append(_Piece(slice(local, local + stop - start), slice(span_start, stop)))
            local += stop - start
            start = stop
    return tuple(pieces)
