"""Every kind of parallelism on real processes (gloo): the same loss, gradients and optimiser step as one process."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked_processes import run_forked
from torch import Tensor
from torch.distributed.tensor import DTensor

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig
from qafila.data.batch import Batch
from qafila.data.encode import CHOSEN, REJECTED
from qafila.model.llama import LlamaModel
from qafila.train.evaluate import measure
from qafila.train.loop import Executor, OneProcess, Trainer
from qafila.train.next_token import NextToken
from qafila.train.objective import DeviceBatch, Objective
from qafila.train.parallel.executor import ManyProcesses
from qafila.train.parallel.layout import Layout
from qafila.train.parallel.mesh import Mesh
from qafila.train.preference import Preference, Reward, RewardHead

SEQUENCE = 32
DENSE = ModelConfig(dim=32, n_layers=5, n_heads=4, n_kv_heads=4, head_dim=8, ffn_dim=48, vocab_size=64)
MIXTURE = replace(
    DENSE,
    n_layers=4,
    rope_interleaved=True,
    moe=MixtureOfExperts(n_experts=4, top_k=2, ffn_dim=24, layer_step=2),
    no_rope_layers=(3,),
    attention_chunk=8,
    qk_norm=True,
    temperature=AttentionTemperature(floor_scale=4, attn_scale=0.1),
)
MODELS = {"dense": DENSE, "tied": replace(DENSE, tie_embeddings=True), "mixture": MIXTURE}
OBJECTIVES = ("preference", "reward")

KINDS = {
    2: {
        "fsdp": Layout(shard=2),
        "copies": Layout(replicate=2),
        "tensor": Layout(tensor=2),
        "context": Layout(context=2),
        "pipeline": Layout(pipeline=2),
        "interleaved": Layout(pipeline=2, virtual=2),
        "expert": Layout(shard=2, expert=2),
    },
    4: {
        "fsdp": Layout(shard=4),
        "hybrid": Layout(shard=2, replicate=2),
        "tensor": Layout(tensor=4),
        "tensor, fsdp": Layout(shard=2, tensor=2),
        "context": Layout(context=4),
        "context, fsdp": Layout(shard=2, context=2),
        "context, tensor": Layout(context=2, tensor=2),
        "pipeline": Layout(pipeline=4),
        "pipeline, fsdp": Layout(pipeline=2, shard=2),
        "interleaved, fsdp": Layout(pipeline=2, virtual=2, shard=2),
        "pipeline, tensor": Layout(pipeline=2, tensor=2),
        "pipeline, context": Layout(pipeline=2, context=2),
        "expert": Layout(shard=4, expert=4),
        "expert, fsdp": Layout(shard=4, expert=2),
        "expert, copies": Layout(shard=2, replicate=2, expert=2),
        "expert, tensor": Layout(shard=2, expert=2, tensor=2),
    },
}


def _model(config: ModelConfig) -> LlamaModel:
    torch.manual_seed(0)
    model = LlamaModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.15)
    return model


def _batches() -> list[DeviceBatch]:
    """Eight micro-batches of two rows: documents of several lengths, padding without targets."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for number in range(8):
        documents = ((SEQUENCE, 5, 20, 7), (1, 30, 1, 16, 16), (12, 20, SEQUENCE))[number % 3]
        ids = torch.randint(0, 64, (1, 2 * SEQUENCE), generator=generator)
        targets = ids[0].roll(-1)
        targets[torch.tensor(documents).cumsum(0) - 1] = -100
        targets[torch.rand(2 * SEQUENCE, generator=generator) < 0.1 * number] = -100
        count = int((targets != -100).sum())
        kinds = (CHOSEN, REJECTED, CHOSEN, REJECTED, CHOSEN)[: len(documents)]
        margins = (0.3,) * len(documents)
        batches.append(DeviceBatch(ids, targets, documents, kinds, margins, count, (("x", 0), ("x", 1))))
    return batches


def _objective(name: str, model: LlamaModel) -> Objective:
    if name == "next":
        return NextToken((3,))
    if name == "reward":
        model.reward_head = RewardHead(model)
        return Reward(model.reward_head)
    return Preference(0.3, 0.2, copy.deepcopy(model).requires_grad_(False).eval())


def _parameters(config: ModelConfig, objective: str) -> dict[str, Tensor]:
    model = _model(config)
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    if objective == "reward":
        values["reward_head.score"] = torch.linspace(-0.5, 0.5, config.dim)[None]
    return values


def _expected(
    config: ModelConfig, objective: str
) -> tuple[float, float, dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    model, batches = _model(config), _batches()
    told_by = _objective(objective, model)
    model.load_state_dict(_parameters(config, objective), strict=False)
    executor = OneProcess(model, told_by)
    scale = 1 / sum(told_by.weight(b) for b in batches)
    loss = float(executor.forward_backward(batches, scale)["loss"])
    norm = executor.clip(0.5)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    told = {n: float(v) for n, v in told_by.evaluate(model, batches[0]).items()}
    return loss * scale, norm, gradients, {n: p.detach() for n, p in model.named_parameters()}, told


def _compare(kind: str, config: ModelConfig, layout: Layout, objective: str = "next") -> None:
    loss, norm, gradients, weights, told = _expected(config, objective)
    mesh = Mesh.start(layout)
    values = _parameters(config, objective)
    with torch.device("meta"):
        model = LlamaModel(config)
    objective_there = _objective(objective, model)
    executor = ManyProcesses.of(model, objective_there, mesh, sequence=SEQUENCE, initial=values.__getitem__)
    batches = _batches()
    scale = 1 / sum(objective_there.weight(b) for b in batches)
    sums = executor.forward_backward(batches[mesh.batch_rank :: layout.data], scale)
    got = float(executor.add_up(sums["loss"].double().reshape(1))) * scale
    assert got == pytest.approx(loss, abs=1e-4), kind
    assert executor.clip(0.5) == pytest.approx(norm, rel=1e-4), kind
    parameters = dict(executor.named_parameters())
    learning = {name: parameter for name, parameter in parameters.items() if name in gradients}
    assert all(p.grad is None for n, p in parameters.items() if n not in learning), kind  # a reward needs no head
    for name, parameter in learning.items():
        assert parameter.grad is not None, (kind, name)
        assert isinstance(parameter.grad, DTensor)
        torch.testing.assert_close(
            parameter.grad.full_tensor(),
            gradients[name],
            rtol=1e-3,
            atol=1e-5,
            msg=lambda m: f"{kind} {name}: {m}",  # noqa: B023
        )
    torch.optim.SGD(parameters.values(), lr=1.0, foreach=False).step()
    state = executor.trained()
    if dist.get_rank() == 0:
        assert state.keys() == weights.keys(), kind
        for name, weight in weights.items():
            torch.testing.assert_close(state[name], weight, rtol=1e-3, atol=1e-5)
    found = executor.evaluate(batches[0])
    assert {n: float(v) for n, v in found.items()} == pytest.approx(told, rel=1e-3), kind


def _cases(world: int, names: tuple[str, ...]) -> Iterator[tuple[str, str, Layout]]:
    """Layouts with the models and objectives of ``names`` that go with them.

    Four processes show how layouts go together; what each makes of every model, two have shown.
    """
    for kind, layout in KINDS[world].items():
        for name in names:
            if name in OBJECTIVES:
                fits = layout.pipeline * layout.context * layout.expert == 1
            elif name == "mixture":
                fits = world == 2 or layout.expert > 1
            else:
                fits = layout.expert == 1 and (layout.pipeline == 1 or name != "tied")
            if fits:
                yield kind, name, layout


def _validation() -> list[Batch]:
    """Seven batches for two processes: the last of fewer rows, one with nothing to count, targets that are ends."""
    batches = []
    for number, placed in enumerate(_batches()[:7]):
        targets = placed.targets_T.clone()
        kinds, documents = placed.kinds, placed.documents
        if number == 2:
            targets[:], kinds = -100, (REJECTED,) * len(documents)
        rows = 1 if number == 6 else 2
        kept = 3 if number == 6 else len(documents)
        if rows == 1:
            documents = (5, 20, 7)
        lengths = np.array(documents[:kept], dtype=np.int32)
        targets = targets[: rows * SEQUENCE]
        targets[torch.tensor(documents[:kept]).cumsum(0) - 1] = -100
        batches.append(
            Batch(
                ids=placed.ids_1T[0, : rows * SEQUENCE].numpy(),
                targets=targets.numpy(),
                lengths=lengths,
                kinds=np.array((*kinds, REJECTED)[:kept], dtype=np.uint8),
                margins=np.linspace(0, 3, kept, dtype=np.float32),
                rows=(("x", number),) * rows,
            )
        )
    return batches


def _measured(executor: Executor, batches: list[Batch]) -> dict[str, float]:
    unused: Any = None
    return measure(Trainer(unused, unused, unused, executor, 0.0, 0.0), batches, 1000)


@dataclass
class _Counting:
    """An objective, and how often it was asked."""

    told_by: Objective
    calls: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.told_by, name)

    def evaluate(self, model: LlamaModel, batch: DeviceBatch) -> Mapping[str, Tensor]:
        self.calls += 1
        return self.told_by.evaluate(model, batch)


def _compare_validation(kind: str, config: ModelConfig, layout: Layout, name: str) -> None:
    model = _model(config)
    told_by = _objective(name, model)
    model.load_state_dict(_parameters(config, name), strict=False)
    whole = _measured(OneProcess(model, told_by), _validation())
    mesh = Mesh.start(layout)
    values = _parameters(config, name)
    with torch.device("meta"):
        outline = LlamaModel(config)
    counting: Any = _Counting(_objective(name, outline))
    executor = ManyProcesses.of(outline, counting, mesh, sequence=SEQUENCE, initial=values.__getitem__)
    assert len(whole) >= 3
    for batches, expected in ((_validation(), whole), (_validation()[2:3], {})):
        counting.calls = 0
        assert _measured(executor, batches) == pytest.approx(expected, rel=1e-6), kind
        if layout.pipeline == 1:  # six batches count; all processes compute as many
            assert counting.calls == (-(-6 // layout.data) if expected else 0), kind
    # Fewer batches than processes: all compute, one counts.
    one = _validation()[:1]
    assert _measured(executor, one) == pytest.approx(_measured(OneProcess(model, told_by), one), rel=1e-6), kind


def _validation_worker(rank: int, world: int, file: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    for kind, name, layout in _cases(world, names):
        objective = name if name in OBJECTIVES else "next"
        _compare_validation(f"{kind}, {name}", MODELS.get(name, DENSE), layout, objective)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "names", [("dense", "preference"), pytest.param(("mixture", "reward"), marks=pytest.mark.slow)]
)
def test_two_processes_share_out_the_validation(tmp_path: Path, names: tuple[str, ...]) -> None:
    run_forked(_validation_worker, 2, 2, str(tmp_path / "store"), names)


@pytest.mark.slow
def test_four_processes_share_out_the_validation(tmp_path: Path) -> None:
    run_forked(_validation_worker, 4, 4, str(tmp_path / "store"), ("dense", "mixture"))


def _worker(rank: int, world: int, file: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    for kind, name, layout in _cases(world, names):
        _compare(f"{kind}, {name}", MODELS.get(name, DENSE), layout, name if name in OBJECTIVES else "next")
    dist.destroy_process_group()


@pytest.mark.parametrize("names", [("dense",), pytest.param(("tied", "mixture", *OBJECTIVES), marks=pytest.mark.slow)])
def test_two_processes_are_as_one(tmp_path: Path, names: tuple[str, ...]) -> None:
    run_forked(_worker, 2, 2, str(tmp_path / "store"), names)


@pytest.mark.slow
def test_four_processes_are_as_one(tmp_path: Path) -> None:
    run_forked(_worker, 4, 4, str(tmp_path / "store"), ("dense", "mixture"))
