"""Optimisers, clipping and the loss over two processes that share the tensors, against one process that has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked_processes import run_forked
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from qafila.train.clip import clip_gradients
from qafila.train.loss import VocabularyShard, chunked_cross_entropy, chunked_logprobs, token_scores
from qafila.train.optim import make_optimizer
from qafila.train.recipe import OptimizerSection

SHAPES = {"q.weight": (97, 128), "o.weight": (128, 512), "experts.weight": (4, 64, 64), "norm.weight": (128,)}
CUTS = {"q.weight": Shard(0), "o.weight": Shard(1), "experts.weight": Shard(0), "norm.weight": Replicate()}


def _tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def _optimise(name: str) -> None:
    mesh = init_device_mesh("cpu", (2,))
    section = OptimizerSection.model_validate({"name": name, "lr": 1e-2, "weight_decay": 0.1})
    whole = {n: nn.Parameter(t) for n, t in _tensors(0).items()}
    cut = {n: nn.Parameter(distribute_tensor(t, mesh, [CUTS[n]])) for n, t in _tensors(0).items()}
    ours = make_optimizer(list(cut.items()), section, "float32")
    plain = make_optimizer(list(whole.items()), section, "float32")
    for step in range(4):
        for n, gradient in _tensors(1 + step).items():
            whole[n].grad = gradient.clone()
            cut[n].grad = distribute_tensor(gradient, mesh, [CUTS[n]])
        wanted = float(nn.utils.clip_grad_norm_(list(whole.values()), 3.0))
        assert clip_gradients(cut.values(), 3.0) == pytest.approx(wanted, rel=1e-6)
        ours.step(0.7)
        plain.step(0.7)
    for n, parameter in cut.items():
        assert isinstance(parameter, DTensor)
        got = parameter.full_tensor().detach()
        difference = (got - whole[n].detach()).abs()
        # The last bit of a gradient may move a moment to the next of 256 levels.
        assert float(difference.mean()) < 1e-6
        assert float(difference.max()) < (1e-2 if name == "adamw8bit" else 1e-4)
    moments = [v for v in ours.state_dict()["q.weight"].values() if v.ndim]
    assert moments
    assert all(isinstance(moment, DTensor) for moment in moments)


def _lose(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=generator).requires_grad_()
    head = torch.randn(50, 16, generator=generator).requires_grad_()
    targets = torch.randint(50, (23,), generator=generator)
    targets[::3] = -100
    rows = slice(0, 30) if rank == 0 else slice(30, 50)
    part = head.detach()[rows].clone().requires_grad_()
    shard = VocabularyShard(dist.group.WORLD, rows.start)  # type: ignore[arg-type]
    scores = token_scores(hidden, part, targets, chunk=5, shard=shard)
    assert torch.equal(scores.hits_T, token_scores(hidden, head, targets).hits_T)
    for lose in (
        lambda w, s: chunked_cross_entropy(hidden, w, targets, 0.1, chunk=7, shard=s),
        lambda w, s: chunked_logprobs(hidden, w, targets, chunk=7, shard=s).square().sum(),
    ):
        mine, wanted = lose(part, shard), lose(head, None)
        torch.testing.assert_close(mine, wanted)
        mine_hidden, mine_head = torch.autograd.grad(mine, (hidden, part))
        hidden_grad, head_grad = torch.autograd.grad(wanted, (hidden, head))
        torch.testing.assert_close(mine_hidden, hidden_grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine_head, head_grad[rows], rtol=1e-4, atol=1e-5)


def _process(rank: int, store: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    try:
        for name in ("adamw", "adamw8bit", "muon"):
            _optimise(name)
        _lose(rank)
    finally:
        dist.destroy_process_group()


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    run_forked(_process, 2, str(tmp_path / "store"))
