"""Optimisers against torch's own, rounding at random against its mean, and moments of eight bits against float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qafila.train.adam8bit import AdamW8bit, dynamic_levels
from qafila.train.clip import clip_gradients
from qafila.train.muon import Muon, orthogonalised
from qafila.train.optim import make_optimizer
from qafila.train.recipe import OptimizerSection
from qafila.train.rounding import round_stochastically


def regression(dtype: torch.dtype = torch.float32) -> tuple[nn.Parameter, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 64, generator=generator)
    outputs = inputs @ torch.randn(64, 96, generator=generator)
    return nn.Parameter(torch.zeros(64, 96, dtype=dtype)), inputs, outputs


def fit(weight: nn.Parameter, inputs: torch.Tensor, outputs: torch.Tensor, step: object, steps: int) -> float:
    for _ in range(steps):
        loss = (inputs @ weight.float() - outputs).square().mean()
        weight.grad = None
        loss.backward()
        step()  # type: ignore[operator]
    return float((inputs @ weight.detach().float() - outputs).square().mean())


def test_adamw_is_torchs() -> None:
    section = OptimizerSection(lr=1e-2, weight_decay=0.1)
    ours, inputs, outputs = regression()
    theirs, _, _ = regression()
    mine = make_optimizer([("w", ours)], section, "float32")
    peer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    fit(ours, inputs, outputs, lambda: mine.step(0.5), 5)
    for group in peer.param_groups:
        group["lr"] = 5e-3
    fit(theirs, inputs, outputs, peer.step, 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_vectors_and_embeddings_do_not_decay() -> None:
    named = [
        (name, nn.Parameter(torch.ones(shape)))
        for name, shape in (("model.embed_tokens.weight", (4, 4)), ("model.norm.weight", (4,)), ("q.weight", (4, 4)))
    ]
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(named, OptimizerSection(lr=0.1, weight_decay=0.5), "float32").step(1.0)
    assert [float(p.detach().mean()) for _, p in named] == pytest.approx([1.0, 1.0, 0.95])


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16-stochastic"])
def test_small_updates_of_bfloat16_weights_are_not_lost(precision: str) -> None:
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    torch.manual_seed(0)
    optimizer = make_optimizer([("w", weight)], OptimizerSection(lr=1e-4), precision)  # type: ignore[arg-type]
    for _ in range(20):
        weight.grad = torch.ones_like(weight)
        optimizer.step(1.0)
    # Each step moves by 1e-4, far below bfloat16's spacing of 0.0039 there: rounded to nearest, nothing would move.
    assert float(weight.detach().float().mean()) == pytest.approx(
        1 - 20e-4, abs=2e-4 if precision != "bfloat16" else 4e-3
    )
    if precision == "bfloat16":
        assert float(optimizer.state_dict()["masters"]["w"].mean()) == pytest.approx(1 - 20e-4, abs=1e-6)


def test_rounding_is_right_on_average() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([1.001, -3.3, 1e-20, 0.0, 65504.5]).repeat_interleave(20_000)
    rounded = round_stochastically(values, generator).float().view(5, -1)
    for row, value in zip(rounded, (1.001, -3.3, 1e-20, 0.0, 65504.5), strict=True):
        assert float(row.mean()) == pytest.approx(value, rel=2e-4)
        assert len(row.unique()) <= 2
    odd = torch.tensor([float("inf"), -float("inf"), float("nan")])
    assert torch.equal(round_stochastically(odd)[:2].float(), odd[:2])
    assert torch.isnan(round_stochastically(odd)[2])


def test_eight_bit_moments_follow_float32() -> None:
    small, inputs, outputs = regression()
    large, _, _ = regression()
    eight = AdamW8bit([small], lr=2e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    full = torch.optim.AdamW([large], lr=2e-2, betas=(0.9, 0.95), weight_decay=0.0)
    start = float(outputs.square().mean())
    ours = fit(small, inputs, outputs, eight.step, 300)
    theirs = fit(large, inputs, outputs, full.step, 300)
    assert theirs < 0.05 * start
    assert ours < 0.05 * start
    state = eight.state[small]
    assert state["exp_avg"].dtype is torch.uint8
    assert state["exp_avg"].numel() == small.numel()


def test_levels_are_those_of_the_paper() -> None:
    for signed in (True, False):
        levels = dynamic_levels(signed=signed)
        assert len(levels.unique()) == 256
        assert 0.0 in levels
        assert float(levels.max()) == 1.0
    assert float(dynamic_levels(signed=True).min()) == pytest.approx(-0.9929688)


def test_muon_is_torchs() -> None:
    ours, inputs, outputs = regression()
    theirs, _, _ = regression()
    mine = Muon([ours], lr=0.02)
    peer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, momentum=0.95, nesterov=True)
    a = fit(ours, inputs, outputs, mine.step, 40)
    b = fit(theirs, inputs, outputs, peer.step, 40)
    assert a == pytest.approx(b, rel=0.05)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrix = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3


def test_clipping_is_torchs() -> None:
    parameters = [nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(7))]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    others = [nn.Parameter(p.detach().clone()) for p in parameters]
    for other, parameter in zip(others, parameters, strict=True):
        other.grad = parameter.grad.clone()  # type: ignore[union-attr]
    norm = clip_gradients(parameters, 0.5)
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(others, 0.5)), rel=1e-6)
    for other, parameter in zip(others, parameters, strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-5, atol=1e-7)
    parameters[0].grad.fill_(float("nan"))  # type: ignore[union-attr]
    before = parameters[1].grad.clone()  # type: ignore[union-attr]
    assert clip_gradients(parameters, 0.5) != clip_gradients(parameters, 0.5)
    assert torch.equal(before, parameters[1].grad)  # type: ignore[arg-type]
