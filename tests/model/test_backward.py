"""Steps of the backward pass that are written by hand: the values and gradients of the plain formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qafila.model.mlp import gated
from qafila.model.norm import RMSNorm, rms_normalise, trained_norm
from qafila.model.rope import rotate


def _plain_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "SwiGLU": (gated, lambda gate, up: F.silu(gate) * up, ((2, 5, 24), (2, 5, 24))),
    "norm": (
        lambda x, weight: trained_norm(x, weight, 1e-5),
        lambda x, weight: rms_normalise(x, 1e-5) * weight,
        ((2, 5, 24), (24,)),
    ),
    "rotation": (
        lambda x, angles: rotate(x, (angles.detach().cos(), angles.detach().sin()), interleaved=False),
        lambda x, angles: _plain_rotation(x, angles.detach().cos(), angles.detach().sin()),
        ((1, 3, 7, 8), (7, 4)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_as_the_plain_formula(case: str) -> None:
    ours, plain, shapes = CASES[case]
    torch.manual_seed(0)
    values = [torch.randn(shape) for shape in shapes]
    upstream = torch.randn(shapes[0])
    found = []
    for formula in (ours, plain):
        arguments = [value.clone().requires_grad_() for value in values]
        y = formula(*arguments)
        y.backward(upstream)
        found.append([y.detach(), *(a.grad for a in arguments if a.grad is not None)])
    assert len(found[0]) == len(found[1]) >= 2
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_frozen_norm_gets_no_gradient() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.ones(8)
    trained_norm(x, weight, 1e-5).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def test_a_frozen_bfloat16_norm_trains_what_is_before_it_in_float32() -> None:
    norm = RMSNorm(8, 1e-5).to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(4, 8, requires_grad=True)
    y = norm(x)
    y.square().sum().backward()
    assert y.dtype is torch.float32
    assert x.grad is not None
    assert x.grad.dtype is torch.float32
