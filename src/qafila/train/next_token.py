"""The next token: pretraining, tuning on conversations and infilling differ in their targets only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qafila.model.llama import LlamaModel
from qafila.train.loss import chunked_cross_entropy, token_scores
from qafila.train.objective import DeviceBatch, Loss


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of each target, given the tokens before it in its document.

    ``end_ids`` are the tokens that end an answer or a document: validation tells how often the model would stop there.
    """

    end_ids: Collection[int] = ()
    per_token: ClassVar[bool] = True
    others: ClassVar[tuple[LlamaModel, ...]] = ()

    def weight(self, batch: DeviceBatch) -> int:
        """The number of targets."""
        return batch.n_targets

    def __call__(self, model: LlamaModel, batch: DeviceBatch, scale: float) -> Loss:
        """Cross-entropy, summed over the targets and scaled."""
        hidden_1TD = model.hidden(batch.ids_1T, batch.documents)
        total = chunked_cross_entropy(hidden_1TD[0], model.head_weight(), batch.targets_T, scale)
        return Loss(total, {"loss": total.detach() / scale})

    @torch.no_grad()
    def evaluate(self, model: LlamaModel, batch: DeviceBatch) -> Mapping[str, Tensor]:
        """Sums of the loss, of right guesses, of end tokens and of those that are the likeliest token there."""
        hidden_1TD = model.hidden(batch.ids_1T, batch.documents)
        scores = token_scores(hidden_1TD[0], model.head_weight(), batch.targets_T)
        ends_T = torch.isin(batch.targets_T, torch.tensor(sorted(self.end_ids), device=batch.targets_T.device))
        return {
            "loss": -scores.logprobs_T.double().sum(),
            "accuracy": scores.hits_T.sum(),
            "ends": ends_T.sum(),
            "ends_met": (ends_T & scores.hits_T).sum(),
        }
