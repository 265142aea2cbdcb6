"""What an objective is: a batch and a loss. Everything else about training is the loop's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from qafila.data.batch import Batch
from qafila.model.llama import LlamaModel


@dataclass(frozen=True)
class DeviceBatch:
    """A `qafila.data.batch.Batch` where the model is: T tokens of packed documents.

    ``ids_1T`` and ``targets_T`` are int64 (-100: no target), ``documents`` the lengths of the documents back to back,
    ``kinds`` and ``margins`` one value a document, ``rows`` names where each row came from.
    """

    ids_1T: Tensor
    targets_T: Tensor
    documents: tuple[int, ...]
    kinds: tuple[int, ...]
    margins: tuple[float, ...]
    n_targets: int
    rows: tuple[tuple[str, int], ...]

    @staticmethod
    def of(batch: Batch, device: torch.device) -> DeviceBatch:
        """The batch on ``device``."""
        return DeviceBatch(
            ids_1T=torch.from_numpy(batch.ids)[None].to(device),
            targets_T=torch.from_numpy(batch.targets).to(device),
            documents=tuple(batch.lengths.tolist()),
            kinds=tuple(batch.kinds.tolist()),
            margins=tuple(batch.margins.tolist()),
            n_targets=batch.n_targets,
            rows=tuple(batch.rows),
        )


@dataclass(frozen=True)
class Loss:
    """What one micro-batch gives.

    ``total`` is the scaled loss that gradients are taken of. ``sums`` are detached and add up over micro-batches and
    processes: ``loss`` (unscaled), and what else the objective reports; the loop divides them by the step's weight.
    """

    total: Tensor
    sums: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss over packed batches."""

    @property
    def per_token(self) -> bool:
        """Whether the loss is a mean over tokens, so that it has a perplexity."""

    @property
    def others(self) -> tuple[LlamaModel, ...]:
        """Models besides the one that is trained, which stay as they are."""

    def weight(self, batch: DeviceBatch) -> int:
        """What the batch counts for: its targets, or its pairs. A step's loss is divided by the sum."""

    def __call__(self, model: LlamaModel, batch: DeviceBatch, scale: float) -> Loss:
        """The loss of one micro-batch, times ``scale``."""

    def evaluate(self, model: LlamaModel, batch: DeviceBatch) -> Mapping[str, Tensor]:
        """Sums over one validation batch, to be divided by the weight, without gradients."""
