"""The one training loop: batches of an objective, steps of an optimiser, and what is measured on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qafila.data.batch import Batch
from qafila.data.encode import CHOSEN, PLAIN, REJECTED
from qafila.data.loader import Loader
from qafila.errors import TrainingError
from qafila.model.llama import LlamaModel
from qafila.model.out_of_memory import is_out_of_memory
from qafila.train.objective import DeviceBatch, Objective

Sums = dict[str, float]


class Optimizer(Protocol):
    """What the loop needs of an optimiser (`qafila.train.optim`)."""

    def step(self, factor: float) -> None:
        """Move the weights with the learning rates times ``factor``."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave."""


class Executor(Protocol):
    """Where the model is and how a step of it is computed: by this process alone, or by many."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    @property
    def objective(self) -> Objective:
        """The loss."""

    @property
    def fewest(self) -> int:
        """Micro-batches that a step must have at least."""

    @property
    def share(self) -> tuple[int, int]:
        """Which share of what is read this process reads, counted from 0, and how many shares there are."""

    def train(self, mode: bool) -> None:
        """Turn dropout on or off."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This process's parameters, or parts of them."""

    def trained(self) -> dict[str, Tensor]:
        """All parameters that are trained, whole, on the process that writes files; on others none. All call it."""

    def evaluate(self, batch: DeviceBatch) -> Mapping[str, Tensor]:
        """The objective's sums over a validation batch."""

    def forward_backward(self, batches: Sequence[DeviceBatch], scale: float) -> Mapping[str, Tensor]:
        """Gradients of ``scale`` times the batches' loss, and the objective's sums over them."""

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes that saw different batches."""

    def clip(self, largest: float) -> float:
        """The norm of all gradients, which are scaled down to ``largest`` (0: left as they are)."""


@dataclass
class OneProcess:
    """The obvious executor: this process alone, one micro-batch after the other."""

    model: LlamaModel
    objective: Objective

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def fewest(self) -> int:
        """One."""
        return 1

    @property
    def share(self) -> tuple[int, int]:
        """All."""
        return 0, 1

    def train(self, mode: bool) -> None:
        """As `Executor` says."""
        self.model.train(mode)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's."""
        return self.model.named_parameters()

    def trained(self) -> dict[str, Tensor]:
        """As they are, without a copy."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def evaluate(self, batch: DeviceBatch) -> Mapping[str, Tensor]:
        """As `Executor` says."""
        return self.objective.evaluate(self.model, batch)

    def forward_backward(self, batches: Sequence[DeviceBatch], scale: float) -> Mapping[str, Tensor]:
        """As `Executor` says."""
        sums: dict[str, Tensor] = {}
        for batch in batches:
            if not self.objective.weight(batch):
                continue
            loss = self.objective(self.model, batch, scale)
            if not bool(torch.isfinite(loss.total)):
                raise NotFinite(f"the loss is {loss.total.detach().item()}", batch.rows)
            loss.total.backward()  # type: ignore[no-untyped-call]
            _add(sums, loss.sums)
        return sums

    def add_up(self, values: Tensor) -> Tensor:
        """As they are."""
        return values

    def clip(self, largest: float) -> float:
        """As `Executor` says."""
        from qafila.train.clip import clip_gradients

        return float(clip_gradients(self.model.parameters(), largest))


class NotFinite(Exception):  # noqa: N818 - what happened, not an error of ours yet
    """A loss or gradient that is no number, with the rows it came from."""

    def __init__(self, what: str, rows: Sequence[tuple[str, int]]) -> None:
        super().__init__(what)
        self.rows = tuple(rows)


@dataclass(frozen=True)
class StepReport:
    """One optimiser step, as metrics.jsonl tells it. Times are seconds, memory is bytes."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    targets: int
    seconds: float
    sums: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Throughput of the step, all processes together."""
        return self.tokens / max(self.seconds, 1e-9)


@dataclass
class Trainer:
    """The state of a run and the step that moves it.

    Args:
        loader: gives this process's micro-batches of each step.
        optimizer: moves the weights. schedule: learning-rate factor of a step (counted from 0).
        executor: has the model, in training mode, and the loss, and computes a step.
        lr: peak learning rate, to report. clip: largest norm of the gradient, 0 for none.
    """

    loader: Loader
    optimizer: Optimizer
    schedule: Callable[[int], float]
    executor: Executor
    lr: float
    clip: float
    step: int = 0
    tokens: int = 0

    def train_step(self) -> StepReport:
        """One optimiser step.

        Raises:
            StopIteration: the data is used up.
            TrainingError: loss or gradient is no number (the weights are as before the step), or memory ran out.
        """
        started = time.perf_counter()
        batches = [DeviceBatch.of(batch, self.executor.device) for batch in self.loader.next_step()]
        weight = sum(self.executor.objective.weight(batch) for batch in batches)
        counts = torch.tensor([weight, sum(b.ids_1T.shape[1] for b in batches), sum(b.n_targets for b in batches)])
        total, tokens, targets = (int(v) for v in self.executor.add_up(counts))
        rows = [row for batch in batches for row in batch.rows]
        if not total:
            raise TrainingError(f"step {self.step + 1}: no token of the batch is a target, at {_rows(rows)}")
        try:
            with memory_for(batches[0]):
                sums = self.executor.forward_backward(batches, 1.0 / total)
            norm = self.executor.clip(self.clip)
            if not math.isfinite(norm):
                raise NotFinite(f"the norm of the gradient is {norm}", rows)
        except NotFinite as error:
            self.optimizer.zero_grad()
            raise TrainingError(
                f"step {self.step + 1}: {error}, at {_rows(error.rows)}; look at them with `qafila data show`, lower "
                "optimizer.lr, or clip more"
            ) from None
        factor = self.schedule(self.step)
        self.optimizer.step(factor)
        self.optimizer.zero_grad()
        means = self._means(sums, total)
        self.step += 1
        self.tokens += tokens
        seconds = time.perf_counter() - started
        return StepReport(self.step, means.pop("loss"), self.lr * factor, norm, tokens, targets, seconds, means)

    def probe(self, rows: int, sequence: int) -> None:
        """Compute the largest step there can be, without moving a weight, so that too little memory shows at once.

        Raises:
            TrainingError: memory ran out; says what to change.
        """
        state = torch.get_rng_state()  # dropout must not begin elsewhere for it
        executor = self.executor
        largest = largest_batch(rows, sequence, executor.device, pairs=not executor.objective.per_token)
        try:
            with memory_for(largest):
                scale = 1.0 / max(1, executor.objective.weight(largest))
                executor.forward_backward([largest] * executor.fewest, scale)
        finally:
            self.optimizer.zero_grad()
            torch.set_rng_state(state)

    def validate(self, batches: Sequence[Batch]) -> Sums:
        """Means of the objective's figures over validation batches; the model is as before afterwards.

        All processes are given all batches; each computes its share of them, as often as any other.
        """
        executor = self.executor
        rank, shares = executor.share
        sums: dict[str, Tensor] = {}
        total = 0
        executor.train(False)
        try:
            placed = (DeviceBatch.of(batch, executor.device) for batch in batches)
            counted = ((batch, weight) for batch in placed if (weight := executor.objective.weight(batch)))
            while turn := list(islice(counted, shares)):
                # Where the last turn is short, some compute a batch of another's and forget it: weights are gathered
                # by all processes together.
                own = rank < len(turn)
                batch, weight = turn[rank if own else 0]
                found = executor.evaluate(batch)
                _add(sums, found if own else {name: torch.zeros_like(value) for name, value in found.items()})
                total += weight if own else 0
        finally:
            executor.train(True)
        everywhere = int(executor.add_up(torch.tensor([total]))[0])
        return self._means(sums, everywhere) if everywhere else {}

    def _means(self, sums: Mapping[str, Tensor], weight: int) -> Sums:
        names = sorted(sums)
        stacked = torch.stack([sums[name] for name in names]) if names else torch.zeros(0)
        return {name: float(value) / weight for name, value in zip(names, self.executor.add_up(stacked), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, but the weights and random number generators."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.step, self.tokens = int(state["step"]), int(state["tokens"])


def _add(sums: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu()


def largest_batch(rows: int, sequence: int, device: torch.device, *, pairs: bool = False) -> DeviceBatch:
    """A micro-batch that nothing exceeds, every token of which is a target.

    Args:
        rows: one document each. sequence: tokens of a row.
        device: where the batch is made.
        pairs: each row is a pair instead, which shares it: the longest chosen answer, and the shortest there is.
    """
    ids = torch.zeros((1, rows * sequence), dtype=torch.int64, device=device)
    documents, kinds = ((sequence - 2, 2), (CHOSEN, REJECTED)) if pairs else ((sequence,), (PLAIN,))
    return DeviceBatch(ids, ids[0], documents * rows, kinds * rows, (0.0,) * len(documents) * rows, rows * sequence, ())


@contextmanager
def memory_for(batch: DeviceBatch) -> Iterator[None]:
    """Within it, a lack of memory is a TrainingError that says what to change."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"not enough memory for micro-batches of {batch.ids_1T.shape[1]:,} tokens; lower train.micro_batch or "
            "data.sequence, set train.checkpoint_activations=true, or train an adapter; `--dry-run` shows where the "
            "bytes go"
        ) from None


def _rows(rows: Sequence[tuple[str, int]]) -> str:
    """Rows by source: ``chats rows 3, 17``."""
    by_source: dict[str, list[int]] = {}
    for source, row in rows:
        by_source.setdefault(source, []).append(row)
    return (
        "; ".join(
            f"{source} row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:8]))}"
            + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
            for source, numbers in by_source.items()
        )
        or "a batch without rows"
    )
