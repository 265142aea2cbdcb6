"""A step over a mesh of processes: what the training loop's executor is when there are several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qafila.errors import UsageError
from qafila.model.llama import LlamaModel
from qafila.train.clip import clip_gradients
from qafila.train.next_token import NextToken
from qafila.train.objective import DeviceBatch, Objective
from qafila.train.parallel.apply import parallelize
from qafila.train.parallel.context import share_batch
from qafila.train.parallel.fsdp import Precision, sharded
from qafila.train.parallel.mesh import Mesh
from qafila.train.parallel.pipeline import Pipeline, Stage


@dataclass(frozen=True)
class ManyProcesses:
    """This process's part of a model that is laid over a mesh. `qafila.train.loop.Executor` says what it does.

    ``parts`` are the stages of a pipeline that this process holds, or one model.
    """

    parts: tuple[LlamaModel, ...]
    objective: Objective
    mesh: Mesh
    sequence: int
    pipeline: Pipeline | None

    @staticmethod
    def of(
        model: LlamaModel,
        objective: Objective,
        mesh: Mesh,
        precision: Precision,
        *,
        sequence: int,
        reshard_after_forward: bool = True,
    ) -> ManyProcesses:
        """Lay ``model`` over ``mesh``; it is used up by that.

        Args:
            model: whole, the same on every process; float32 for ``bfloat16``, else of the precision.
            objective: the loss.
            mesh: the grid of processes.
            precision: of the arithmetic.
            sequence: tokens of a row.
            reshard_after_forward: free a layer's gathered weights after its forward pass.

        Raises:
            UsageError: the layout does not fit the model, or the objective.
        """
        layout = mesh.layout
        layout.check(model.config, sequence=sequence)
        if layout.pipeline * layout.context > 1 and not isinstance(objective, NextToken):
            raise UsageError("parallel: pairs of answers need whole rows and models: set pipeline and context to 1")
        parts: tuple[LlamaModel, ...] = (model,)
        pipeline = None
        if layout.pipeline > 1:
            ranges = layout.stage_layers(model.config.n_layers)
            own = range(mesh.pipeline.get_local_rank(), layout.stages, layout.pipeline)
            stages = tuple(
                Stage.of(model, ranges[n], first=n == 0, last=n == layout.stages - 1, objective=objective) for n in own
            )
            pipeline = Pipeline(stages, mesh, torch.float32 if precision == "float32" else torch.bfloat16)
            parts = stages
        for part in parts:
            parallelize(part, mesh, precision, sequence=sequence, reshard_after_forward=reshard_after_forward)
        return ManyProcesses(parts, objective, mesh, sequence, pipeline)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This process's parameters, by the names they have in the whole model."""
        for part in self.parts:
            yield from part.named_parameters()

    def forward_backward(self, batches: Sequence[DeviceBatch], scale: float) -> Mapping[str, Tensor]:
        """Gradients of ``scale`` times the batches' loss, added up over all processes, and this process's sums."""
        shared = [self._share(batch) for batch in batches]
        if self.pipeline is not None:
            return self.pipeline.run(shared, scale, learn=True)
        (model,) = self.parts
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(shared):
            self._reduce_after(number == len(shared) - 1)
            loss = self.objective(model, batch, scale)
            loss.total.backward()  # type: ignore[no-untyped-call]
            if not bool(torch.isfinite(loss.total)):
                # The others must not wait for this process: they hear of it by the norm of the gradient.
                sums["not_finite"] = torch.ones(())
            for name, value in loss.sums.items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu()
        return sums

    def evaluate(self, batch: DeviceBatch) -> Mapping[str, Tensor]:
        """The objective's sums over a validation batch, which every process calls with as many batches."""
        shared = self._share(batch)
        with torch.no_grad():
            if self.pipeline is not None:
                return self.pipeline.run([shared] * self.mesh.layout.pipeline, 1.0, learn=False)
            (model,) = self.parts
            sums = self.objective.evaluate(model, shared)
        for module in sharded(model):
            module.reshard()  # no backward pass does it, and the next step's weights are others
        return sums

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes that saw different tokens."""
        return self.mesh.add_losses(values)

    def clip(self, largest: float) -> float:
        """The norm of all gradients, which are scaled down to ``largest`` (0: left as they are)."""
        gradients = [p for _, p in self.named_parameters() if p.grad is not None]
        if self.mesh.layout.pipeline == 1:
            return clip_gradients(gradients, largest)
        square = torch.tensor([clip_gradients(gradients, 0.0) ** 2])
        dist.all_reduce(square, group=self.mesh.pipeline.get_group())
        norm = math.sqrt(square.item())
        if largest > 0 and math.isfinite(norm) and norm > largest:
            for parameter in gradients:
                assert parameter.grad is not None
                parameter.grad.mul_(largest / norm)
        return norm

    def _share(self, batch: DeviceBatch) -> DeviceBatch:
        if self.mesh.layout.context == 1:
            return batch
        return share_batch(batch, self.sequence, self.mesh.context.get_group())

    def _reduce_after(self, last: bool) -> None:
        """Gradients travel after the last micro-batch only."""
        for module in sharded(self.parts[0]):
            module.set_requires_gradient_sync(last, recurse=False)
            module.set_is_last_backward(last)


def whole_state(executor: ManyProcesses) -> dict[str, Tensor]:
    """All parameters, whole and on the CPU, on the first process; on the others an empty dict. All must call it."""
    first = dist.get_rank() == 0
    state: dict[str, Tensor] = {}
    for name, parameter in executor.named_parameters():
        value = parameter.detach()
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        state[name] = whole.cpu()
    mesh = executor.mesh
    if mesh.layout.pipeline > 1:
        states: list[dict[str, Tensor]] | None = (
            [{}] * mesh.layout.pipeline if mesh.pipeline.get_local_rank() == 0 else None
        )
        root = dist.get_global_rank(mesh.pipeline.get_group(), 0)
        dist.gather_object(state, states, dst=root, group=mesh.pipeline.get_group())
        for other in states or []:
            state.update(other)
    return state if first else {}
