"""A step over a mesh of processes: what the training loop's executor is when there are several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qafila.model.llama import LlamaModel
from qafila.train.clip import clip_gradients
from qafila.train.objective import DeviceBatch, Objective
from qafila.train.parallel.apply import parallelize
from qafila.train.parallel.context import share_batch
from qafila.train.parallel.fsdp import sharded
from qafila.train.parallel.mesh import Mesh
from qafila.train.parallel.parts import fill
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
        *,
        sequence: int,
        compute: torch.dtype | None = None,
        reshard_after_forward: bool = True,
        initial: Callable[[str], Tensor] | None = None,
    ) -> ManyProcesses:
        """Lay ``model`` over ``mesh``; it is used up by that.

        Args:
            model: whole, the same on every process; or without memory (on the device ``meta``).
            objective: the loss; models that it has besides are laid over the mesh as well.
            mesh: the grid of processes.
            sequence: tokens of a row.
            compute: type that weights are gathered in and computed with; by default their own. With float32 weights
                and bfloat16 here they are their own master weights.
            reshard_after_forward: free a layer's gathered weights after its forward pass.
            initial: gives the value of each parameter of a model without memory: this process makes room for its own
                part alone.
        """
        layout = mesh.layout
        parts: tuple[LlamaModel, ...] = (model,)
        pipeline = None
        if layout.pipeline > 1:
            ranges = layout.stage_layers(model.config.n_layers)
            own = range(mesh.pipeline.get_local_rank(), layout.stages, layout.pipeline)
            stages = tuple(
                Stage.of(model, ranges[n], first=n == 0, last=n == layout.stages - 1, objective=objective) for n in own
            )
            pipeline = Pipeline(stages, mesh, compute or model.dtype)
            parts = stages
        for part in (*parts, *objective.others):
            parallelize(part, mesh, sequence=sequence, compute=compute, reshard_after_forward=reshard_after_forward)
            if initial is not None:
                fill(part, initial, mesh.grid.device_type)
        return ManyProcesses(parts, objective, mesh, sequence, pipeline)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This process's parameters, by the names they have in the whole model."""
        for part in self.parts:
            yield from part.named_parameters()

    def trained(self) -> dict[str, Tensor]:
        """All parameters that are trained, whole and on the CPU, on the first process; on others none. All call it."""
        dimensions = self.mesh.grid.mesh_dim_names or ()
        keeps = all(self.mesh.grid.get_local_rank(name) == 0 for name in dimensions if name != "pipeline")
        state: dict[str, Tensor] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                value = parameter.detach()
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                if keeps:
                    state[name] = whole.cpu()
        if keeps and self.mesh.layout.pipeline > 1:
            is_first = self.mesh.pipeline.get_local_rank() == 0
            states: list[dict[str, Tensor]] | None = [{}] * self.mesh.layout.pipeline if is_first else None
            dist.gather_object(state, states, group_dst=0, group=self.mesh.pipeline.get_group())
            state = {name: value for each in states or [] for name, value in each.items()}
        return state

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return next(self.parts[0].parameters()).device

    @property
    def fewest(self) -> int:
        """Micro-batches that fill the pipeline."""
        return self.mesh.layout.pipeline

    @property
    def share(self) -> tuple[int, int]:
        """This process's share of rows, of how many: processes that share a model or a row read the same."""
        return self.mesh.batch_rank, self.mesh.layout.data

    def train(self, mode: bool) -> None:
        """Turn dropout on or off."""
        for part in self.parts:
            part.train(mode)

    def forward_backward(self, batches: Sequence[DeviceBatch], scale: float) -> Mapping[str, Tensor]:
        """Gradients of ``scale`` times the loss of all processes' batches, and the sums over this process's.

        A loss that is no number shows in the norm of the gradients, to all processes at once.
        """
        shared = [self._share(batch) for batch in batches]
        if self.pipeline is not None:
            return self._whole_rows(self.pipeline.run(shared, scale, learn=True))
        (model,) = self.parts
        found = []
        for number, batch in enumerate(shared):
            self._reduce_after(number == len(shared) - 1)
            loss = self.objective(model, batch, scale)
            loss.total.backward()  # type: ignore[no-untyped-call]
            found.append(loss.sums)
        sums = {name: torch.stack([each[name].double().cpu() for each in found]).sum() for name in found[0]}
        return self._whole_rows(sums)

    def evaluate(self, batch: DeviceBatch) -> Mapping[str, Tensor]:
        """The objective's sums over a validation batch; all processes call it as often as each other."""
        shared = self._share(batch)
        with torch.no_grad():
            if self.pipeline is not None:
                times = self.mesh.layout.pipeline  # a pipeline must be full
                sums: Mapping[str, Tensor] = {
                    name: value / times for name, value in self.pipeline.run([shared] * times, 1.0, learn=False).items()
                }
            else:
                sums = self.objective.evaluate(self.parts[0], shared)
        for part in self.parts:
            for module in sharded(part):
                module.reshard()  # no backward pass does it, and after the next step the weights are others
        return self._whole_rows(sums)

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes that read different batches."""
        return self.mesh.added_up(values, self.mesh.batches)

    def clip(self, largest: float) -> float:
        """The norm of all gradients, which are scaled down to ``largest`` (0: left as they are)."""
        gradients = [p for _, p in self.named_parameters() if p.grad is not None]
        if self.mesh.layout.pipeline == 1:
            return clip_gradients(gradients, largest)
        square = torch.tensor([clip_gradients(gradients, 0.0) ** 2])
        norm = math.sqrt(self.mesh.added_up(square, self.mesh.pipeline).item())
        if largest > 0 and math.isfinite(norm) and norm > largest:
            for parameter in gradients:
                assert parameter.grad is not None
                parameter.grad.mul_(largest / norm)
        return norm

    def _whole_rows(self, sums: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Sums over a process's part of rows, as sums over the rows."""
        if self.mesh.layout.context == 1:
            return sums
        values = torch.stack([value.double().cpu() for value in sums.values()])
        return dict(zip(sums, self.mesh.added_up(values, self.mesh.context), strict=True))

    def _share(self, batch: DeviceBatch) -> DeviceBatch:
        if self.mesh.layout.context == 1:
            return batch
        return share_batch(batch, self.sequence, self.mesh.context.get_group())

    def _reduce_after(self, last: bool) -> None:
        """Gradients travel after the last micro-batch only."""
        for module in sharded(self.parts[0]):
            module.set_requires_gradient_sync(last, recurse=False)
            module.set_is_last_backward(last)
