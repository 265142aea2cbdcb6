"""Pairs of answers: direct preference optimisation, and the reward model before it.

A pair is two documents side by side, the chosen answer first, each with the same prompt in front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qafila.data.encode import CHOSEN, REJECTED
from qafila.model.llama import LlamaModel
from qafila.train.loss import IGNORED, chunked_logprobs
from qafila.train.objective import DeviceBatch, Loss

MARGINS: Final = ("margin 0", "margin to 1/3", "margin to 2/3", "margin to 1", "margin to 2", "margin above 2")
"""Ranges of margins that accuracy is told for: each rating of both of Llama 2's scales has its own (table 27)."""
_EDGES: Final = (1e-6, 1 / 3 + 1e-6, 2 / 3 + 1e-6, 1 + 1e-6, 2 + 1e-6)


def pairs(batch: DeviceBatch) -> list[int]:
    """Numbers of the documents that are a chosen answer; the rejected one of each is the next document."""
    kinds = batch.kinds
    return [i for i in range(len(kinds) - 1) if kinds[i] == CHOSEN and kinds[i + 1] == REJECTED]


def document_sums(values_T: Tensor, batch: DeviceBatch) -> Tensor:
    """Sums of ``values_T`` over each document."""
    lengths = torch.tensor(batch.documents, device=values_T.device)
    numbers_T = torch.repeat_interleave(torch.arange(len(batch.documents), device=values_T.device), lengths)
    return values_T.new_zeros(len(batch.documents)).index_add(0, numbers_T, values_T)


class _OfPairs(ABC):
    """What both objectives share: a batch counts as its pairs, and a loss is measured as it is trained."""

    per_token = False

    @property
    def others(self) -> tuple[LlamaModel, ...]:
        """None, unless the objective says otherwise."""
        return ()

    def weight(self, batch: DeviceBatch) -> int:
        """The number of pairs."""
        return len(pairs(batch))

    def __call__(self, model: LlamaModel, batch: DeviceBatch, scale: float) -> Loss:
        """The loss, summed over the pairs and scaled."""
        loss, sums = self._loss(model, batch)
        return Loss(loss * scale, sums)

    @torch.no_grad()
    def evaluate(self, model: LlamaModel, batch: DeviceBatch) -> Mapping[str, Tensor]:
        """Sums of the loss, of pairs told right, and of the difference in rewards."""
        return self._loss(model, batch)[1]

    @abstractmethod
    def _loss(self, model: LlamaModel, batch: DeviceBatch) -> tuple[Tensor, dict[str, Tensor]]: ...


def _told(losses: Tensor, difference: Tensor, **others: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of all pairs, and what is reported of them: ``difference`` is how much better the chosen answer is."""
    told = {"loss": losses, "accuracy": _right(difference), "margin": difference, **others}
    return losses.sum(), {name: value.detach().sum() for name, value in told.items()}


def _right(difference: Tensor) -> Tensor:
    """One for each pair that is told right, a half for a tie: a policy that is its own reference has no preference."""
    return (difference.sign() + 1) / 2


@dataclass(frozen=True)
class Preference(_OfPairs):
    """DPO: ``-log sigmoid(beta * ((c - c0) - (r - r0)))`` for each pair, and the chosen answer's likelihood.

    c and r are the log-probabilities of the chosen and the rejected answer, c0 and r0 those of the reference (arXiv
    2305.18290, equation 7). ``nll`` times the chosen answer's mean negative log-likelihood is added, and header and end
    tokens count in neither where the data masks them (Llama 3, arXiv 2407.21783 section 4.1.4).

    Attributes:
        beta: how far the policy may leave the reference. nll: weight of the likelihood.
        reference: gives, for the model, a context in which it is the reference; or another model that is it.
    """

    beta: float
    nll: float
    reference: Callable[[LlamaModel], AbstractContextManager[object]] | LlamaModel

    @property
    def others(self) -> tuple[LlamaModel, ...]:
        """The reference, where it is a model of its own."""
        return (self.reference,) if isinstance(self.reference, LlamaModel) else ()

    def _reference(self, model: LlamaModel, batch: DeviceBatch) -> Tensor:
        if isinstance(self.reference, LlamaModel):
            return answer_logprobs(self.reference, batch)
        training = model.training
        model.eval()  # the reference drops nothing out
        try:
            with self.reference(model):
                return answer_logprobs(model, batch)
        finally:
            model.train(training)

    def _loss(self, model: LlamaModel, batch: DeviceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            reference = self._reference(model, batch)
        policy = answer_logprobs(model, batch)
        chosen = torch.tensor(pairs(batch), device=policy.device)
        counts = document_sums((batch.targets_T != IGNORED).to(policy.dtype), batch).clamp_min(1)
        rewards = self.beta * (policy - reference)
        difference = rewards[chosen] - rewards[chosen + 1]
        likelihood = -(policy[chosen] / counts[chosen])
        return _told(-F.logsigmoid(difference) + self.nll * likelihood, difference, chosen_nll=likelihood)


def answer_logprobs(model: LlamaModel, batch: DeviceBatch) -> Tensor:
    """Log-probability of each document's targets together."""
    hidden_1TD = model.hidden(batch.ids_1T, batch.documents)
    return document_sums(chunked_logprobs(hidden_1TD[0], model.head_weight(), batch.targets_T), batch)


class RewardHead(nn.Module):
    """A score for a whole answer, read off its last token: ``score`` is ``[1, D]``, zero at first."""

    def __init__(self, model: LlamaModel) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.zeros(1, model.config.dim, dtype=torch.float32, device=model.device))

    def forward(self, model: LlamaModel, batch: DeviceBatch) -> Tensor:
        """The score of each document."""
        hidden_TD = model.hidden(batch.ids_1T, batch.documents)[0]
        last = torch.tensor(batch.documents, device=hidden_TD.device).cumsum(0) - 1
        return F.linear(hidden_TD[last].float(), self.score)[:, 0]


@dataclass(frozen=True)
class Reward(_OfPairs):
    """``-log sigmoid(s_c - s_r - m)`` for each pair, m the margin that people gave it.

    Source: Llama 2, arXiv 2307.09288 section 3.2.2, equation 2.
    """

    head: RewardHead

    def _differences(self, model: LlamaModel, batch: DeviceBatch) -> tuple[Tensor, Tensor]:
        """By how much each pair's chosen answer is scored better, and by how much people found it better."""
        scores = self.head(model, batch)
        chosen = torch.tensor(pairs(batch), device=scores.device)
        margins = torch.tensor(batch.margins, device=scores.device)[chosen]
        return scores[chosen] - scores[chosen + 1], margins

    def _loss(self, model: LlamaModel, batch: DeviceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        difference, margins = self._differences(model, batch)
        return _told(-F.logsigmoid(difference - margins), difference)

    @torch.no_grad()
    def evaluate(self, model: LlamaModel, batch: DeviceBatch) -> Mapping[str, Tensor]:
        """The sums of `_OfPairs.evaluate`, and for each range of margins its pairs and those of them told right.

        All ranges are always there, so that several processes add up the same figures. Llama 2 reports accuracy by
        rating too (arXiv 2307.09288, table 8).
        """
        difference, margins = self._differences(model, batch)
        sums = _told(-F.logsigmoid(difference - margins), difference)[1]
        bins = torch.bucketize(margins, torch.tensor(_EDGES, device=margins.device))
        for number, name in enumerate(MARGINS):
            of_range = bins == number
            sums[f"pairs at {name}"] = of_range.sum()
            sums[f"right at {name}"] = _right(difference)[of_range].sum()
        return sums
