"""How much of a processor's arithmetic a run uses (MFU), as plans and metrics both count it. No torch.

Source: torchtitan's ``benchmarks/`` (the convention: see `qafila.train.flops.flops_per_token`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qafila.config import ModelConfig
from qafila.errors import UsageError
from qafila.train.flops import attention_flops, flops_per_token, processor, time_products
from qafila.train.footprint import trained_parameters
from qafila.train.recipe import Recipe

_AGAIN = 0.05
"""Seconds for timing a peak again: within a run, so much shorter than at its start."""


def needed_flops(recipe: Recipe, config: ModelConfig, tokens: float) -> float:
    """Floating-point operations that a recipe takes for one token, nothing of it counted twice.

    `flops_per_token` for a model that is trained whole. Frozen weights need no gradient of their own: two thirds of the
    work of a matrix, and 6 FLOPs a parameter for the adapter. A reward model has no vocabulary to score. The reference
    of DPO is another forward pass, a third.

    Args:
        recipe: what is trained, and how.
        config: the model.
        tokens: T, tokens that see one another: the row, or the mean document of a packed one.
    """
    whole = flops_per_token(config, tokens)
    head = 2 * config.vocab_size * config.dim  # of the forward pass
    needed = whole
    if recipe.objective == "reward":
        needed -= 3 * head
    if recipe.adapter is not None:
        seen = attention_flops(config, tokens)
        alone = recipe.adapter.model_copy(update={"save": ()})
        added = trained_parameters(recipe.model_copy(update={"adapter": alone}), config)
        needed = (whole - seen) * 2 / 3 + seen + 6 * added
        if "lm_head" in recipe.adapter.save or (config.tie_embeddings and "embed_tokens" in recipe.adapter.save):
            needed += head  # the gradient of what is trained whole besides
    if recipe.objective == "dpo":
        needed += whole / 3
    return needed


@dataclass(slots=True)
class Utilisation:
    """What a token takes (FLOPs), and what all processes together could do (FLOP/s); None where nobody knows.

    Attributes:
        again: times this process's share of the peak once more, where a peak was timed and may have been timed low.
    """

    flops_per_token: float
    peak: float | None
    again: Callable[[], float] | None = None

    @staticmethod
    def of(recipe: Recipe, config: ModelConfig, gpu: str | None, world: int = 1) -> Utilisation:
        """Of a run of ``world`` processes.

        Args:
            recipe: what is trained, and how. config: the model.
            gpu: what the driver calls the GPU of each process; None: a CPU, whose peak is that of float32 matrix
                products timed now, and again when a step is faster. A GPU that is in no table has no known peak.
            world: processes. On a CPU each times what the others leave it, so their peaks add up as those of GPUs do.
        """
        flops = needed_flops(recipe, config, recipe.data.sequence)
        if gpu is None:
            return Utilisation(flops, time_products() * world, lambda: time_products(_AGAIN, timings=1) * world)
        try:
            return Utilisation(flops, processor(gpu).peak * world)
        except UsageError:
            return Utilisation(flops, None)

    def figures(self, tokens_per_second: float) -> dict[str, float]:
        """``mfu`` (1: the peak) at that speed of all processes together, for metrics.jsonl; nothing where unknown.

        Never above 1: a peak that a step exceeds was timed while the machine was busy. It is timed again then, and
        what the step itself reached is the least that it can be.
        """
        if self.peak is None:
            return {}
        reached = self.flops_per_token * tokens_per_second
        if reached > self.peak and self.again is not None:
            self.peak = max(self.peak, self.again(), reached)
        return {"mfu": min(1.0, round(reached / self.peak, 6))}
