"""The learning rate over a run, as a share of its peak."""

from __future__ import annotations

import math

from qafila.train.recipe import ScheduleSection


def learning_rate_factor(section: ScheduleSection, step: int, steps: int) -> float:
    """The factor of step ``step`` (counted from 0) of ``steps``: between 0 and 1.

    Warm-up is linear, and its first step is not zero: ``(step + 1) / warmup``. After it, with p from 0 to 1 over the
    rest: ``cosine`` falls to ``final`` along half a cosine (LLaMA, arXiv 2302.13971 section 2.3), ``linear`` along a
    line, ``constant`` stays, and ``wsd`` (arXiv 2404.06395) stays until the last ``decay`` of the steps and then falls
    along a line.
    """
    warmup = warmup_steps(section, steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    progress = min(1.0, max(0.0, progress))
    low = section.final
    if section.kind == "cosine":
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if section.kind == "linear":
        return 1 - (1 - low) * progress
    if section.kind == "wsd":
        length = max(1, round(section.decay * steps))
        left = steps - 1 - step
        return 1.0 if left >= length else low + (1 - low) * max(0, left) / length
    return 1.0


def warmup_steps(section: ScheduleSection, steps: int) -> int:
    """Steps of warm-up: a number of them, or a share of all."""
    wanted = section.warmup if section.warmup >= 1 else section.warmup * steps
    return min(steps, math.ceil(wanted))


def short_of_warmup(section: ScheduleSection, steps: int) -> str | None:
    """What to tell of a warm-up that is longer than the run; None where it is not."""
    if section.warmup <= steps:
        return None
    return (
        f"schedule.warmup: {section.warmup:g} steps of warm-up, and the run has {steps}: the warm-up is cut to those, "
        "and nothing comes after it; lower it, or give a share below 1"
    )
