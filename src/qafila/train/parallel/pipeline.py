"""Pipeline parallel: each process has some of the layers, and micro-batches stream through them.

torch's schedules (torch.distributed.pipelining): 1F1B (PipeDream-Flush, arXiv 2006.09503) and interleaved 1F1B, in
which a process holds several stages (arXiv 2104.04473). A stage is the plain model without the others' layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from qafila.errors import UsageError
from qafila.model.llama import LlamaModel
from qafila.train.objective import DeviceBatch, Objective
from qafila.train.parallel.mesh import Mesh


class _Elsewhere(nn.Module):
    """In place of what another stage computes: gives back what it is given."""

    def forward(self, x: Tensor, *_rest: object) -> Tensor:
        """``x``."""
        return x


class Stage(LlamaModel):
    """A model with some of its layers; the first stage embeds, the last one knows the loss.

    Called with its input and the number of a micro-batch of ``feed``. Parameters keep the names they have in the whole
    model.
    """

    objective: Objective
    feed: Sequence[DeviceBatch]
    scale: float
    is_last: bool
    found: dict[str, Tensor]

    @staticmethod
    def of(model: LlamaModel, layers: range, *, first: bool, last: bool, objective: Objective) -> Stage:
        """The stage of ``model`` with ``layers``; it shares their parameters with it."""
        stage: Any = copy.copy(model)
        stage._modules = dict(model._modules)
        decoder: Any = copy.copy(model.model)
        decoder._modules = dict(model.model._modules)
        stage.model = decoder
        decoder.layers = nn.ModuleList(
            layer if number in layers else _Elsewhere() for number, layer in enumerate(model.model.layers)
        )
        if not first:
            decoder.embed_tokens = _Elsewhere()
        if not last:
            decoder.norm = _Elsewhere()
            stage.lm_head = _Elsewhere()
        stage.__class__ = Stage
        assert isinstance(stage, Stage)
        stage.objective, stage.is_last, stage.found = objective, last, {}
        return stage

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(self, x: Tensor, number: Tensor) -> Tensor:  # type: ignore[override]
        """Token ids ``[1, T]`` or activations ``[1, T, D]`` to activations, at the end to the scaled loss ``[1]``."""
        batch = self.feed[int(number)]
        if not self.is_last:
            return self.hidden(x, batch.documents)
        # The objective asks the model for hidden states of ids; this model makes them of activations.
        placed = replace(batch, ids_1T=x)
        if torch.is_grad_enabled():
            loss = self.objective(self, placed, self.scale)
            total, sums = loss.total, loss.sums
        else:
            sums = self.objective.evaluate(self, placed)
            total = torch.zeros(1, device=x.device)
        for name, value in sums.items():
            self.found[name] = self.found.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu()
        return torch.stack([total.float()])


class Pipeline:
    """The stages of this process and the order in which micro-batches go through them.

    Args:
        stages: this process's stages, by rising number, parallelized.
        mesh: the grid of processes.
        dtype: type of the activations between stages.
    """

    def __init__(self, stages: Sequence[Stage], mesh: Mesh, dtype: torch.dtype) -> None:
        self._stages, self._mesh, self._dtype = stages, mesh, dtype
        self._schedules: dict[tuple[int, int], Callable[..., None]] = {}
        self._evaluations: dict[tuple[int, int], Callable[..., None]] = {}

    def run(self, batches: Sequence[DeviceBatch], scale: float, *, learn: bool) -> Mapping[str, Tensor]:
        """Send micro-batches through; the sums over them, which the last stage tells all others.

        Raises:
            UsageError: micro-batches are of different sizes.
        """
        tokens = {batch.ids_1T.shape[1] for batch in batches}
        if len(tokens) > 1:
            raise UsageError("parallel.pipeline: micro-batches must be of one size; make train.batch a multiple")
        for stage in self._stages:
            stage.feed, stage.scale, stage.found = batches, scale, {}
        key = (len(batches), tokens.pop())
        if key not in self._schedules:
            self._schedules[key], self._evaluations[key] = self._schedule(*key)
        numbers = torch.arange(len(batches))
        ids = torch.cat([batch.ids_1T for batch in batches])
        first = self._mesh.pipeline.get_local_rank() == 0
        last = self._mesh.pipeline.get_local_rank() == self._mesh.layout.pipeline - 1
        arguments = (ids,) if first else ()
        run = self._schedules[key] if learn else self._evaluations[key]
        run(*arguments, number=numbers, target=numbers if last else None, return_outputs=False)
        for stage in self._stages:
            stage.feed = ()
        group = self._mesh.pipeline.get_group()
        told = [self._stages[-1].found]
        dist.broadcast_object_list(told, group_src=dist.get_world_size(group) - 1, group=group)
        return told[0]

    def _schedule(self, count: int, tokens: int) -> tuple[Callable[..., None], Callable[..., None]]:
        layout = self._mesh.layout
        rank = self._mesh.pipeline.get_local_rank()
        own = [
            self._stage(stage, rank + layout.pipeline * turn, tokens // layout.tensor)
            for turn, stage in enumerate(self._stages)
        ]

        def loss(total: Tensor, _target: Tensor) -> Tensor:
            return total.sum()

        # Losses are scaled by the targets of all micro-batches already.
        if layout.virtual > 1:
            interleaved = ScheduleInterleaved1F1B(own, count, loss_fn=loss, scale_grads=False)  # type: ignore[arg-type]
            return interleaved.step, interleaved.eval
        plain = Schedule1F1B(own[0], count, loss_fn=loss, scale_grads=False)
        return plain.step, plain.eval

    def _stage(self, stage: Stage, number: int, tokens: int) -> PipelineStage:
        stages = self._mesh.layout.stages
        activations = torch.empty(1, tokens, stage.config.dim, dtype=self._dtype, device="meta", requires_grad=True)
        ids = torch.empty(1, tokens, dtype=torch.int64, device="meta")
        return PipelineStage(
            stage,
            number,
            stages,
            stage.device,
            input_args=(ids if number == 0 else activations,),
            output_args=(torch.empty(1, device="meta", requires_grad=True) if number == stages - 1 else activations,),
            group=self._mesh.pipeline.get_group(),
        )
