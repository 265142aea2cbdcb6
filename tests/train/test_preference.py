"""DPO and reward losses against their formulas, written here once more in float64 and document by document."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

from qafila.config import ModelConfig
from qafila.data.encode import CHOSEN, PLAIN, REJECTED
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.train.loop import OneProcess, largest_batch
from qafila.train.objective import DeviceBatch
from qafila.train.preference import Preference, Reward, RewardHead

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, vocab_size=61)
DOCUMENTS = (6, 8, 5, 4, 9)
KINDS = (CHOSEN, REJECTED, CHOSEN, REJECTED, PLAIN)  # the last one is the unused end of a row
MARGINS = (1.0, 1.0, 1 / 3, 1 / 3, 0.0)


def model_of(seed: int) -> LlamaModel:
    return load_model(CONFIG, random_tensors(CONFIG, seed=seed, scale=2.0)).requires_grad_(True)


@pytest.fixture
def batch() -> DeviceBatch:
    """Two pairs; in each document the last three tokens are the answer."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(CONFIG.vocab_size, (sum(DOCUMENTS),), generator=generator)
    targets = torch.full_like(ids, -100)
    start = 0
    for length, kind in zip(DOCUMENTS, KINDS, strict=True):
        if kind != PLAIN:
            targets[start + length - 4 : start + length - 1] = ids[start + length - 3 : start + length]
        start += length
    return DeviceBatch(ids[None], targets, DOCUMENTS, KINDS, MARGINS, 12, ())


def answers(model: LlamaModel, batch: DeviceBatch) -> list[float]:
    """Log-probability of each document's last three tokens, each document computed alone."""
    found = []
    start = 0
    for length in DOCUMENTS[:4]:
        ids = batch.ids_1T[:, start : start + length]
        logprobs = model(ids)[0].detach().double().log_softmax(-1)
        found.append(sum(float(logprobs[t - 1, ids[0, t]]) for t in range(length - 3, length)))
        start += length
    return found


@pytest.mark.parametrize(("beta", "nll"), [(0.1, 0.0), (0.1, 0.2), (0.5, 1.0)])
def test_dpo_is_its_formula(batch: DeviceBatch, beta: float, nll: float) -> None:
    policy, reference = model_of(1), model_of(2)
    objective = Preference(beta, nll, reference)
    loss = objective(policy, batch, 0.5)
    c1, r1, c2, r2 = answers(policy, batch)
    d1, s1, d2, s2 = answers(reference, batch)
    differences = [beta * ((c1 - d1) - (r1 - s1)), beta * ((c2 - d2) - (r2 - s2))]
    expected = sum(math.log1p(math.exp(-x)) for x in differences) + nll * (-c1 - c2) / 3
    assert objective.weight(batch) == 2
    assert float(loss.total.detach()) == pytest.approx(0.5 * expected, rel=1e-4)
    sums = objective.evaluate(policy, batch)
    assert float(sums["loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(sums["margin"]) == pytest.approx(sum(differences), rel=1e-3)
    assert float(sums["accuracy"]) == sum(x > 0 for x in differences)


def test_dpo_begins_at_the_logarithm_of_two_with_the_model_as_its_own_reference(batch: DeviceBatch) -> None:
    model = model_of(1)
    objective = Preference(0.1, 0.0, lambda policy: nullcontext())
    loss = objective(model, batch, 0.5)
    assert float(loss.total.detach()) == pytest.approx(math.log(2), rel=1e-6)
    assert float(objective.evaluate(model, batch)["accuracy"]) == 1  # of two pairs: ties, not faults
    loss.total.backward()
    # Each gradient of DPO at its start is beta / 2 times that of the rejected less the chosen answer.
    grad = model.lm_head.weight.grad
    assert grad is not None
    assert float(grad.abs().sum()) > 0


def test_dpo_moves_probability_from_the_rejected_to_the_chosen_answer(batch: DeviceBatch) -> None:
    policy, reference = model_of(1), model_of(1)
    before = answers(policy, batch)
    loss = Preference(0.1, 0.0, reference)(policy, batch, 0.5)
    loss.total.backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            assert parameter.grad is not None
            parameter -= 0.01 * parameter.grad
    after = answers(policy, batch)
    for chosen in (0, 2):
        gain = (after[chosen] - before[chosen]) - (after[chosen + 1] - before[chosen + 1])
        assert gain > 0


def test_reward_is_its_formula(batch: DeviceBatch) -> None:
    model = model_of(1)
    head = RewardHead(model)
    with torch.no_grad():
        head.score.normal_(generator=torch.Generator().manual_seed(3))
    objective = Reward(head)
    loss = objective(model, batch, 0.5)
    scores = []
    start = 0
    for length in DOCUMENTS[:4]:
        hidden = model.model(batch.ids_1T[:, start : start + length], None, None, None)[0, -1]
        scores.append(float(hidden.detach().double() @ head.score[0].detach().double()))
        start += length
    # Llama 2's small margins: 1 for significantly better, 1/3 for slightly better.
    differences = [scores[0] - scores[1], scores[2] - scores[3]]
    expected = sum(math.log1p(math.exp(-(x - m))) for x, m in zip(differences, (1.0, 1 / 3), strict=True))
    assert float(loss.total.detach()) == pytest.approx(0.5 * expected, rel=1e-4)
    assert float(objective.evaluate(model, batch)["accuracy"]) == sum(x > 0 for x in differences)
    loss.total.backward()
    assert head.score.grad is not None
    sums = objective.evaluate(model, batch)
    assert {key: float(value) for key, value in sums.items() if key.startswith("pairs at ")} == {
        "pairs at margin 0": 0.0,
        "pairs at margin to 1/3": 1.0,
        "pairs at margin to 2/3": 0.0,
        "pairs at margin to 1": 1.0,
        "pairs at margin to 2": 0.0,
        "pairs at margin above 2": 0.0,
    }
    assert float(sums["right at margin to 1"]) == (differences[0] > 0)
    assert float(sums["right at margin to 1/3"]) == (differences[1] > 0)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_largest_batch_has_a_pair_in_each_row_and_computes_it(rows: int) -> None:
    # A row without a pair weighs nothing and is skipped: no memory is tried, and a dry run measures no time.
    model = model_of(0)
    objective = Preference(beta=0.1, nll=0.0, reference=model_of(1))
    largest = largest_batch(rows, 16, torch.device("cpu"), pairs=not objective.per_token)
    assert objective.weight(largest) == rows
    assert sum(largest.documents) == largest.ids_1T.shape[1] == 16 * rows
    assert len(largest.documents) == len(largest.kinds) == len(largest.margins)
    assert math.isfinite(float(OneProcess(model, objective).forward_backward([largest], 1.0)["loss"]))
    assert all(p.grad is not None for p in model.parameters())
