"""Learning rates of published recipes, and transformers' schedulers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_linear_schedule_with_warmup

from qafila.train.recipe import ScheduleSection
from qafila.train.schedule import learning_rate_factor, short_of_warmup


@pytest.mark.parametrize(("kind", "final"), [("cosine", 0.1), ("linear", 0.0)])
def test_as_transformers(kind: str, final: float) -> None:
    section = ScheduleSection(kind=kind, warmup=10, final=final)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    if kind == "cosine":
        peer = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 10, 109, min_lr_rate=final)
    else:
        peer = get_linear_schedule_with_warmup(optimizer, 10, 109)
    theirs = []
    for _ in range(110):
        theirs.append(peer.get_last_lr()[0])
        optimizer.step()
        peer.step()
    # Theirs begins with a step of learning rate zero, ours does not: after the warm-up they agree.
    ours = [learning_rate_factor(section, step, 110) for step in range(110)]
    assert ours[10:] == pytest.approx(theirs[10:], abs=1e-6)
    assert ours[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])


def test_published_ends() -> None:
    llama2 = ScheduleSection(kind="cosine", warmup=2000, final=0.1)
    assert 3e-4 * learning_rate_factor(llama2, 1999, 500_000) == pytest.approx(3e-4)
    assert 3e-4 * learning_rate_factor(llama2, 499_999, 500_000) == pytest.approx(3e-5)
    largest = ScheduleSection(kind="cosine", warmup=8000, final=0.01)
    assert 8e-5 * learning_rate_factor(largest, 1_199_999, 1_200_000) == pytest.approx(8e-7)
    code = ScheduleSection(kind="cosine", warmup=1000, final=1 / 30)
    assert learning_rate_factor(code, 124_999, 125_000) == pytest.approx(1 / 30)


@pytest.mark.parametrize(("warmup", "steps", "told"), [(100, 40, True), (40, 40, False), (0.5, 1, False)])
def test_a_warm_up_longer_than_the_run_is_told(warmup: float, steps: int, told: bool) -> None:
    message = short_of_warmup(ScheduleSection(warmup=warmup), steps)
    assert (message is not None) == told
    if message is not None:
        assert message.startswith("schedule.warmup: 100 steps of warm-up, and the run has 40")


def test_stable_then_decay() -> None:
    section = ScheduleSection(kind="wsd", warmup=0.1, final=0.0, decay=0.2)
    factors = [learning_rate_factor(section, step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:80] == [1.0] * 70
    assert all(a > b for a, b in pairwise(factors[80:]))
    assert factors[-1] == 0.0


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_short_runs_stay_between_zero_and_one(kind: str, steps: int) -> None:
    section = ScheduleSection(kind=kind)
    assert all(0 <= learning_rate_factor(section, step, steps) <= 1 for step in range(steps + 2))
