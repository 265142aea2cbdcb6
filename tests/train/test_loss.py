"""Chunked losses against torch's own, which build the whole logits matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qafila.train.loss import IGNORED, chunked_cross_entropy, chunked_logprobs, token_scores


def _case(T: int = 37, V: int = 101, D: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(T, D, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(V, (T,), generator=generator)
    targets[torch.rand(T, generator=generator) < 0.4] = IGNORED
    return hidden, head, targets


@pytest.mark.parametrize("chunk", [1, 5, 16, 1000, None])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_cross_entropy_and_its_gradients(chunk: int | None, masked: bool) -> None:
    hidden, head, targets = _case()
    if not masked:
        targets = targets.clamp(min=0)
    expected = F.cross_entropy(hidden @ head.t(), targets, ignore_index=IGNORED)
    expected_grads = torch.autograd.grad(expected, (hidden, head))
    loss = chunked_cross_entropy(hidden, head, targets, 1 / int((targets != IGNORED).sum()), chunk=chunk)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    for got, wanted in zip(torch.autograd.grad(loss, (hidden, head)), expected_grads, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_gradient_is_scaled_by_what_comes_from_outside() -> None:
    hidden, head, targets = _case()
    once = torch.autograd.grad(chunked_cross_entropy(hidden, head, targets, 0.5), (hidden, head))
    scale = torch.tensor(0.25)
    loss = 6 * chunked_cross_entropy(hidden, head, targets, scale)
    for got, wanted in zip(torch.autograd.grad(loss, (hidden, head)), once, strict=True):
        torch.testing.assert_close(got, 3 * wanted)


def test_finite_differences() -> None:
    hidden, head, targets = _case(T=7, V=11, D=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: chunked_cross_entropy(x, w, targets, 0.7, chunk=3), (hidden, head))
    assert torch.autograd.gradcheck(lambda x, w: chunked_logprobs(x, w, targets, chunk=3), (hidden, head))


def test_no_target_is_zero_with_zero_gradients() -> None:
    hidden, head, targets = _case()
    loss = chunked_cross_entropy(hidden, head, torch.full_like(targets, IGNORED))
    assert loss.item() == 0
    assert all(not grad.any() for grad in torch.autograd.grad(loss, (hidden, head)))


def test_bfloat16_logits_are_float32() -> None:
    hidden, head, targets = _case(D=64, dtype=torch.bfloat16)
    exact = F.cross_entropy(hidden.double() @ head.double().t(), targets, ignore_index=IGNORED, reduction="sum")
    loss = chunked_cross_entropy(hidden, head, targets)
    assert loss.dtype == torch.float32
    # Logits rounded to bfloat16 would be off by about 1e-3 of them.
    torch.testing.assert_close(loss.double(), exact, atol=0, rtol=1e-6)
    grads = torch.autograd.grad(loss, (hidden, head))
    for got, wanted in zip(grads, torch.autograd.grad(exact, (hidden, head)), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-2)


def test_large_logits_do_not_overflow() -> None:
    hidden, head, targets = _case()
    expected = F.cross_entropy((300 * hidden) @ head.t(), targets, ignore_index=IGNORED, reduction="sum")
    loss = chunked_cross_entropy(300 * hidden, head, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_a_frozen_head_gets_no_gradient_and_evaluation_computes_none() -> None:
    hidden, head, targets = _case()
    head = head.detach()
    chunked_cross_entropy(hidden, head, targets).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, head, targets).requires_grad
    assert not chunked_cross_entropy(hidden.detach(), head, targets).requires_grad


@pytest.mark.parametrize("chunk", [4, None])
def test_logprobs_and_their_gradients(chunk: int | None) -> None:
    hidden, head, targets = _case()
    seen = targets != IGNORED
    whole = (hidden @ head.t()).log_softmax(-1).gather(1, targets.clamp(min=0)[:, None]).squeeze(1) * seen
    got = chunked_logprobs(hidden, head, targets, chunk=chunk)
    torch.testing.assert_close(got, whole, atol=1e-5, rtol=1e-6)
    weights = torch.randn(len(targets), generator=torch.Generator().manual_seed(2))
    wanted = torch.autograd.grad((whole * weights).sum(), (hidden, head))
    for mine, theirs in zip(torch.autograd.grad((got * weights).sum(), (hidden, head)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_token_scores() -> None:
    hidden, head, targets = _case()
    best = (hidden @ head.t()).argmax(-1)
    targets[:10] = best[:10]
    scores = token_scores(hidden, head, targets, chunk=6)
    torch.testing.assert_close(scores.logprobs_T, chunked_logprobs(hidden, head, targets))
    assert torch.equal(scores.hits_T, best == targets)


def test_chunks_do_not_change_a_row() -> None:
    """Rows are cut into nearly equal parts; each row's logits are there once."""
    hidden, head, targets = _case(T=101)
    torch.testing.assert_close(
        chunked_logprobs(hidden, head, targets, chunk=7), chunked_logprobs(hidden, head, targets, chunk=50)
    )
