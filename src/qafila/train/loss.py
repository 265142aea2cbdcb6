"""Cross-entropy and log-probabilities of tokens, computed in chunks: the whole logits matrix ``[T, V]`` never exists.

Only rows with a target are computed. The loss finds its gradients on the way forward, where the probabilities are there
anyway, so that a training step computes each logit once; log-probabilities compute theirs again on the way back.

Logits are float32 whatever the type of the weights. On CPUs the products are too: they are several times faster
than bfloat16's there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

IGNORED: Final = -100
"""The target of a position that is not learned from."""

# Logits in memory at a time: products want many rows, caches and small machines few.
_CPU_ELEMENTS: Final = 256 * 49152
_GPU_ELEMENTS: Final = 1 << 27


@dataclass(frozen=True)
class VocabularyShard:
    """This process's rows of an output matrix that is cut along the vocabulary (tensor parallel).

    ``group`` are the processes that hold the other rows, ``first`` is the token of this one's first row.
    """

    group: dist.ProcessGroup
    first: int


class TokenScores(NamedTuple):
    """What a model says of each target: its log-probability ``[T]``, and whether it is the likeliest token ``[T]``."""

    logprobs_T: Tensor
    hits_T: Tensor


def chunked_cross_entropy(
    hidden_TD: Tensor,
    head_VD: Tensor,
    targets_T: Tensor,
    scale: float | Tensor = 1.0,
    *,
    chunk: int | None = None,
    shard: VocabularyShard | None = None,
) -> Tensor:
    """``scale`` times the sum of ``-log softmax(hidden @ head^T)[target]`` over all positions with a target.

    With ``scale = 1 / number of targets`` that is ``F.cross_entropy(logits, targets, ignore_index=-100)``; a step of
    several micro-batches and processes divides by the targets of all of them. Without any target it is zero, and so
    are the gradients.

    Args:
        hidden_TD: normed hidden states.
        head_VD: output matrix; its gradient is accumulated in float32 and only where it is required.
        targets_T: int64; -100 where there is no target.
        scale: a number, or a tensor of no dimensions; no gradient flows into it.
        chunk: rows of logits that exist at a time; by default about 50 MB of them on a CPU, 0.5 GB on a GPU.
        shard: where this process's rows of a head cut along the vocabulary lie; every process of its group gets the
            whole loss and the whole gradient of ``hidden_TD``. A DTensor that is cut so needs no ``shard``.

    Returns:
        A float32 scalar (float64 for float64 inputs).
    """
    head_VD, shard = _own_rows(head_VD, shard)
    learns = torch.is_grad_enabled()
    arguments = (hidden_TD, head_VD, targets_T, scale, chunk, shard)
    wanted = (learns and hidden_TD.requires_grad, learns and head_VD.requires_grad)
    loss: Tensor = _CrossEntropy.apply(*arguments, *wanted)  # type: ignore[no-untyped-call]
    return loss


def chunked_logprobs(
    hidden_TD: Tensor,
    head_VD: Tensor,
    targets_T: Tensor,
    *,
    chunk: int | None = None,
    shard: VocabularyShard | None = None,
) -> Tensor:
    """``log softmax(hidden @ head^T)[target]`` of each position ``[T]``, float32; zero where the target is -100.

    Differentiable; the logits are computed again, chunk by chunk, in the backward pass. Arguments are those of
    :func:`chunked_cross_entropy`.
    """
    head_VD, shard = _own_rows(head_VD, shard)
    logprobs_T: Tensor = _LogProbs.apply(hidden_TD, head_VD, targets_T, chunk, shard)  # type: ignore[no-untyped-call]
    return logprobs_T


@torch.no_grad()
def token_scores(
    hidden_TD: Tensor,
    head_VD: Tensor,
    targets_T: Tensor,
    *,
    chunk: int | None = None,
    shard: VocabularyShard | None = None,
) -> TokenScores:
    """Log-probability of each target, and whether no token is likelier; zero and False where the target is -100."""
    head_VD, shard = _own_rows(head_VD, shard)
    rows = _Rows.of(hidden_TD, head_VD, targets_T, chunk, shard)
    logprobs_N = torch.zeros_like(rows.targets_N, dtype=rows.dtype)
    hits_N = torch.zeros_like(rows.targets_N, dtype=torch.bool)
    for part in rows.parts():
        logits_CV = rows.logits(part)
        scored = rows.softmax_(logits_CV, part)
        logprobs_N[part] = scored.logprobs_C
        hits_N[part] = scored.hits_C
    return TokenScores(rows.spread(logprobs_N), rows.spread(hits_N))


def _own_rows(head_VD: Tensor, shard: VocabularyShard | None) -> tuple[Tensor, VocabularyShard | None]:
    """A head that is cut along the vocabulary as this process's rows, and where they lie."""
    if not isinstance(head_VD, DTensor):
        return head_VD, shard
    assert head_VD.placements == (Shard(0),)
    assert head_VD.shape[0] % head_VD.device_mesh.size() == 0
    own_VD = head_VD.to_local()
    group = head_VD.device_mesh.get_group()
    return own_VD, VocabularyShard(group, dist.get_rank(group) * own_VD.shape[0])


class _Scored(NamedTuple):
    logprobs_C: Tensor
    hits_C: Tensor
    total_C: Tensor  # of the exponentials that the logits were turned into
    log_sum_C: Tensor  # of the exponentials of the logits themselves


@dataclass(frozen=True)
class _Rows:
    """The positions that have a target, gathered, and the output matrix in the type its products are computed in."""

    hidden_ND: Tensor
    head_VD: Tensor
    targets_N: Tensor
    kept_N: Tensor | None  # positions of the rows; None: all of them
    length: int
    dtype: torch.dtype
    chunk: int
    shard: VocabularyShard | None

    @staticmethod
    def of(
        hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, chunk: int | None, shard: VocabularyShard | None
    ) -> _Rows:
        dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
        kept_N = torch.nonzero(targets_T != IGNORED).flatten()
        everything = kept_N.numel() == targets_T.numel()
        hidden_ND = hidden_TD if everything else hidden_TD.index_select(0, kept_N)
        targets_N = targets_T if everything else targets_T.index_select(0, kept_N)
        if hidden_TD.device.type == "cpu":
            hidden_ND, head_VD = hidden_ND.to(dtype), head_VD.to(dtype)
        if chunk is None:
            elements = _CPU_ELEMENTS if hidden_TD.device.type == "cpu" else _GPU_ELEMENTS
            chunk = max(16, elements // head_VD.shape[0])
        length = hidden_TD.shape[0]
        return _Rows(hidden_ND, head_VD, targets_N, None if everything else kept_N, length, dtype, chunk, shard)

    def parts(self) -> list[slice]:
        """Rows to compute together, of nearly equal numbers."""
        n = self.targets_N.shape[0]
        count = -(-n // self.chunk)
        edges = [n * i // count for i in range(count + 1)] if count else [0]
        return [slice(first, last) for first, last in pairwise(edges)]

    def logits(self, part: slice) -> Tensor:
        """``[C, V]`` in float32."""
        return _product(self.hidden_ND[part], self.head_VD.t(), self.dtype)

    def softmax_(self, logits_CV: Tensor, part: slice) -> _Scored:
        """Turn logits into the exponentials of their distance to the row's largest, and score the targets."""
        targets_C1 = self.targets_N[part, None]
        largest_C = logits_CV.amax(-1)
        if self.shard is None:
            target_C = logits_CV.gather(1, targets_C1).squeeze(1)
        else:
            dist.all_reduce(largest_C, dist.ReduceOp.MAX, self.shard.group)
            local_C1, here_C1 = self._local(targets_C1)
            target_C = (logits_CV.gather(1, local_C1) * here_C1).squeeze(1)
            dist.all_reduce(target_C, group=self.shard.group)
        total_C = logits_CV.sub_(largest_C[:, None]).exp_().sum(-1)
        if self.shard is not None:
            dist.all_reduce(total_C, group=self.shard.group)
        log_sum_C = total_C.log() + largest_C
        return _Scored(target_C - log_sum_C, target_C >= largest_C, total_C, log_sum_C)

    def subtract_targets_(self, matrix_CV: Tensor, part: slice, amount_C: Tensor) -> None:
        """Subtract ``amount_C`` from each row's target."""
        targets_C1 = self.targets_N[part, None]
        amount_C1 = amount_C[:, None]
        if self.shard is not None:
            targets_C1, here_C1 = self._local(targets_C1)
            amount_C1 = amount_C1 * here_C1
        matrix_CV.scatter_add_(1, targets_C1, -amount_C1)

    def spread(self, values_N: Tensor) -> Tensor:
        """Values of rows at their positions ``[T, ...]``, zeros elsewhere."""
        if self.kept_N is None:
            return values_N
        spread_T = values_N.new_zeros((self.length, *values_N.shape[1:]))
        return spread_T.index_copy_(0, self.kept_N, values_N)

    def _local(self, targets_C1: Tensor) -> tuple[Tensor, Tensor]:
        """Targets as rows of this process's shard (0 where another has them), and whether they are here."""
        assert self.shard is not None
        local_C1 = targets_C1 - self.shard.first
        here_C1 = (local_C1 >= 0) & (local_C1 < self.head_VD.shape[0])
        return torch.where(here_C1, local_C1, 0), here_C1


@dataclass
class _Gradients:
    """Gradients of the rows' hidden states and of the head, collected part by part."""

    rows: _Rows
    hidden_ND: Tensor | None
    head_VD: Tensor | None

    @staticmethod
    def of(rows: _Rows, like: Tensor, hidden: bool, head: bool) -> _Gradients:
        hidden_ND = torch.zeros_like(rows.hidden_ND, dtype=like.dtype) if hidden else None
        return _Gradients(rows, hidden_ND, torch.zeros_like(rows.head_VD, dtype=rows.dtype) if head else None)

    def add(self, part: slice, gradient_CV: Tensor) -> None:
        """Take in the gradient of one part's logits."""
        gradient_CV = gradient_CV.to(self.rows.head_VD.dtype)
        if self.hidden_ND is not None:
            found_CD = gradient_CV @ self.rows.head_VD
            if self.rows.shard is not None:
                dist.all_reduce(found_CD, group=self.rows.shard.group)
            self.hidden_ND[part] = found_CD
        if self.head_VD is not None:
            hidden_CD = self.rows.hidden_ND[part]
            if hidden_CD.dtype == self.head_VD.dtype:
                self.head_VD.addmm_(gradient_CV.t(), hidden_CD)
            else:
                self.head_VD += _product(gradient_CV.t(), hidden_CD, self.head_VD.dtype)

    def hidden(self) -> Tensor | None:
        return None if self.hidden_ND is None else self.rows.spread(self.hidden_ND)


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix product whose result has never been rounded to less than ``dtype``."""
    if left.dtype == dtype:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=dtype)
    return left.to(dtype) @ right.to(dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        targets_T: Tensor,
        scale: float | Tensor,
        chunk: int | None,
        shard: VocabularyShard | None,
        learn_hidden: bool,
        learn_head: bool,
    ) -> Tensor:
        rows = _Rows.of(hidden_TD, head_VD, targets_T, chunk, shard)
        gradients = _Gradients.of(rows, hidden_TD, learn_hidden, learn_head)
        sums = []
        for part in rows.parts():
            logits_CV = rows.logits(part)
            scored = rows.softmax_(logits_CV, part)
            sums.append(scored.logprobs_C.sum(dtype=torch.float64))
            if learn_hidden or learn_head:
                logits_CV.mul_((scale / scored.total_C)[:, None])
                rows.subtract_targets_(logits_CV, part, torch.ones_like(scored.total_C) * scale)
                gradients.add(part, logits_CV)
        # Casts are for autograd: a gradient has its tensor's type.
        head = gradients.head_VD
        ctx.save_for_backward(gradients.hidden(), None if head is None else head.to(head_VD.dtype))
        total = torch.stack(sums).sum() if sums else hidden_TD.new_zeros((), dtype=torch.float64)
        return (-total * scale).to(rows.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, head_VD = ctx.saved_tensors
        # Nearly always the loss is what backward() starts from; looking costs nothing on a CPU, and waiting on a GPU.
        if not (gradient.device.type == "cpu" and gradient.item() == 1):
            hidden_TD = None if hidden_TD is None else hidden_TD * gradient.to(hidden_TD.dtype)
            head_VD = None if head_VD is None else head_VD * gradient.to(head_VD.dtype)
        return hidden_TD, head_VD, None, None, None, None, None, None


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        targets_T: Tensor,
        chunk: int | None,
        shard: VocabularyShard | None,
    ) -> Tensor:
        rows = _Rows.of(hidden_TD, head_VD, targets_T, chunk, shard)
        logprobs_N = torch.zeros_like(rows.targets_N, dtype=rows.dtype)
        log_sum_N = torch.zeros_like(logprobs_N)
        for part in rows.parts():
            scored = rows.softmax_(rows.logits(part), part)
            logprobs_N[part], log_sum_N[part] = scored.logprobs_C, scored.log_sum_C
        ctx.save_for_backward(hidden_TD, head_VD, targets_T, log_sum_N)
        ctx.chunk, ctx.shard = chunk, shard
        return rows.spread(logprobs_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_T: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, head_VD, targets_T, log_sum_N = ctx.saved_tensors
        rows = _Rows.of(hidden_TD, head_VD, targets_T, ctx.chunk, ctx.shard)
        learn_hidden, learn_head = ctx.needs_input_grad[:2]
        gradients = _Gradients.of(rows, hidden_TD, learn_hidden, learn_head)
        gradient_N = gradient_T if rows.kept_N is None else gradient_T.index_select(0, rows.kept_N)
        for part in rows.parts():
            probabilities_CV = rows.logits(part).sub_(log_sum_N[part, None]).exp_()
            gradient_C = -gradient_N[part].to(rows.dtype)
            probabilities_CV.mul_(gradient_C[:, None])
            rows.subtract_targets_(probabilities_CV, part, gradient_C)
            gradients.add(part, probabilities_CV)
        head = gradients.head_VD
        return gradients.hidden(), None if head is None else head.to(head_VD.dtype), None, None, None
