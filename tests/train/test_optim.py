"""Optimisers against torch's own, rounding at random against its mean, and moments of eight bits against float32."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qafila.train.adam8bit import AdamW8bit, Codebook, block_of, dynamic_levels
from qafila.train.clip import clip_gradients
from qafila.train.muon import Muon, orthogonalised
from qafila.train.optim import Optimizer, Precision, make_optimizer
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
        weight.sum().backward()
        optimizer.step(1.0)
        optimizer.zero_grad()
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


def test_eight_bits_throw_no_weight_away() -> None:
    """A weight that had one small gradient beside large ones moves by no more than the learning rate a step.

    Its second moment is 1e-7 of the block's largest: rounded to zero, the first would be divided by epsilon alone.
    """
    weight = nn.Parameter(torch.zeros(64, 64))
    eight = AdamW8bit([weight], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for step in range(20):
        weight.grad = torch.zeros(64, 64)
        weight.grad[:, 0] = 1.0
        weight.grad[:, 1] = 3e-4 if step == 0 else 0.0
        eight.step()
    moved = weight.detach()
    torch.testing.assert_close(moved[:, 0], torch.full((64,), -0.02), rtol=0.02, atol=0)
    assert float(moved[:, 1].abs().max()) < 20 * 1e-3
    assert not moved[:, 2:].any()


def test_rows_of_tokens_that_do_not_come_stop_as_in_float32() -> None:
    ours, theirs = (nn.Parameter(torch.zeros(64, 96)) for _ in range(2))
    eight = AdamW8bit([ours], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    full = torch.optim.AdamW([theirs], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    gradient = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    for step in range(60):
        for weight, optimizer in ((ours, eight), (theirs, full)):
            weight.grad = gradient.clone()
            weight.grad[1:] *= 1e-3 * (step == 0)
            optimizer.step()
        if step == 50:
            late = ours.detach().clone()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0.25, atol=1e-4)
    assert float((ours.detach() - late)[1:].abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("shape", "block"),
    [((64, 576), 192), ((64, 1536), 256), ((5, 32, 64), 64), ((4096, 16), None), ((64, 63), None), ((8192,), 256)],
)
def test_blocks_lie_within_rows(shape: tuple[int, ...], block: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(shape))
    other = nn.Parameter(torch.zeros(shape))
    assert block_of(weight) == block
    eight = AdamW8bit([weight], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    full = torch.optim.AdamW([other], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        weight.grad = torch.randn(shape, generator=generator)
        other.grad = weight.grad.clone()
        eight.step()
        full.step()
    # Most of the way is the same; single steps differ where a gradient is small beside its block's largest.
    mine, wanted = weight.detach(), other.detach()
    assert float((mine - wanted).abs().mean()) < (0.02 if block else 1e-6) * float(wanted.abs().mean())
    if block:
        assert eight.state[weight]["exp_avg_scale"].shape == (*shape[:-1], shape[-1] // block)


def test_codebooks_give_the_nearest_level() -> None:
    for signed in (True, False):
        book = Codebook(signed=signed, device=torch.device("cpu"))
        values = torch.cat([torch.logspace(-6, 0, 2047, dtype=torch.float64).float(), torch.zeros(1)]).view(8, 256)
        values = torch.cat([values, -values]) if signed else values
        numbers = torch.zeros(values.shape, dtype=torch.uint8)
        scale = torch.zeros(len(values))
        book.write(values, numbers, scale)
        levels = dynamic_levels(signed=signed)
        shares = values / scale[:, None]
        nearest = (shares[..., None] - levels).abs().amin(-1)
        error = (book.read(numbers, scale) / scale[:, None] - shares).abs()
        assert float((error - nearest).max()) < 5e-4
        assert torch.equal(book.read(numbers, scale)[:, -1] == 0, values[:, -1] == 0)


def test_gradients_of_bfloat16_weights_are_added_up_in_float32() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    make_optimizer([("w", weight)], OptimizerSection(), "bfloat16")
    for _ in range(300):
        weight.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [300.0] * 4  # bfloat16 stops at 256


def test_rounding_at_random_keeps_no_copy() -> None:
    weight = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = make_optimizer([("w", weight)], OptimizerSection(), "bfloat16-stochastic")
    for _ in range(2):
        assert optimizer.memory_bytes() == 8 * 64 * 64 + 4
        weight.sum().backward()
        optimizer.step(1.0)
    assert weight.grad is not None
    assert weight.grad.dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "muon"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bfloat16-stochastic"])
def test_goes_on_bit_for_bit_from_its_state(name: str, precision: Precision) -> None:
    def begin() -> tuple[nn.Parameter, nn.Parameter, Optimizer]:
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        matrix, vector = (nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((64, 96), (96,)))
        section = OptimizerSection.model_validate({"name": name, "lr": 1e-2, "weight_decay": 0.1})
        return matrix, vector, make_optimizer([("q.weight", matrix), ("norm.weight", vector)], section, precision)

    def go(matrix: nn.Parameter, vector: nn.Parameter, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            inputs = torch.randn(8, 64).to(matrix.dtype)
            ((inputs @ matrix) * vector).square().mean().backward()
            optimizer.step(1.0)
            optimizer.zero_grad()

    straight, resumed = begin(), begin()
    go(*straight, range(6))
    first = begin()
    go(*first, range(3))
    with torch.no_grad():
        for target, source in zip(resumed[:2], first[:2], strict=True):
            target.copy_(source)
    resumed[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    go(*resumed, range(3, 6))
    assert torch.equal(resumed[0], straight[0])
    assert torch.equal(resumed[1], straight[1])


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
