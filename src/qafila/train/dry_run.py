"""What a run will take, before it is run: the estimate, with what can be known here by looking."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from qafila.config import ModelConfig
from qafila.errors import ModelNotFoundError
from qafila.machine import this_machine
from qafila.train.estimate import Amounts, Plan, estimate
from qafila.train.flops import time_products
from qafila.train.loop import OneProcess, largest_batch, memory_for
from qafila.train.objectives import make_objective
from qafila.train.recipe import Recipe
from qafila.train.report import Silent
from qafila.train.shape import planned_config
from qafila.train.sources import find_packs
from qafila.train.subject import Subject, beside, find_subject, start_device


def dry_run(recipe: Recipe, folder: Path, *, world: int | None = None, measure: bool = True) -> Plan:
    """Plan a run; nothing of it is kept.

    Args:
        recipe: what to do. folder: the recipe's own, for relative paths.
        world: processes; by default what the recipe's layout says.
        measure: run the largest micro-batch once, where the run is for this machine and fits it: its time is the
            plan's, and memory that does not suffice shows now.

    Raises:
        QafilaError: model, tokenizer or data cannot be used.
    """
    subject, config = _subject(recipe, folder)
    amounts = _amounts(subject, folder) if subject is not None else None
    machine = this_machine()
    peak = time_products() if recipe.processor.lower() == "here" else None
    plan = estimate(recipe, config, amounts, machine, world, peak=peak)
    here = peak is not None and plan.processes == 1
    if not (measure and here and plan.fits) or subject is None:
        return plan
    return estimate(recipe, config, amounts, machine, world, tokens_per_second=_measured(subject), peak=peak)


def _subject(recipe: Recipe, folder: Path) -> tuple[Subject | None, ModelConfig]:
    """What is trained; where model or tokenizer is not here, the published shape alone."""
    try:
        subject = find_subject(recipe, folder)
    except ModelNotFoundError:
        config = planned_config(recipe)
        if config is None:
            raise
        return None, config
    return subject, subject.config


def _amounts(subject: Subject, folder: Path) -> Amounts | None:
    """What the data comes to; None where it is not here."""
    sections = (*subject.recipe.data.train, *subject.recipe.data.validation)
    if not all(Path(beside(section.path, folder)).exists() for section in sections):
        return None
    with tempfile.TemporaryDirectory(prefix="qafila-dry-run-") as scratch:
        packs = find_packs(subject, folder, Path(scratch), Silent())
        manifests = [named.pack.manifest for named in packs.train]
        rows, tokens = sum(m.rows for m in manifests), sum(m.tokens for m in manifests)
        documents = max(1, sum(m.documents for m in manifests))
        return Amounts(rows, tokens, sum(m.targets for m in manifests), tokens / documents)


def _measured(subject: Subject) -> float:
    """Tokens a second of the largest micro-batch, run twice: the first time pays for setting things up."""
    recipe = subject.recipe
    device = start_device(recipe)
    model = subject.build(device)
    objective = make_objective(subject, model)
    executor = OneProcess(model, objective)
    rows = min(recipe.train.micro_batch, recipe.train.batch)
    largest = largest_batch(rows, recipe.data.sequence, device, pairs=not objective.per_token)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        with memory_for(largest):
            executor.forward_backward([largest], 1.0 / max(1, objective.weight(largest)))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        model.zero_grad(set_to_none=True)
    return largest.n_targets / min(seconds)
