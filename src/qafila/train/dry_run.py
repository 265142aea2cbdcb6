"""What a run will take, before it is run: the estimate, with what can be known here by looking."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from qafila.config import ModelConfig
from qafila.machine import this_machine
from qafila.presets import preset
from qafila.train.estimate import Amounts, Plan, estimate
from qafila.train.loop import OneProcess, Trainer
from qafila.train.recipe import Recipe
from qafila.train.report import Silent
from qafila.train.sources import find_packs
from qafila.train.subject import Subject, beside, find_subject


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
    plan = estimate(recipe, config, amounts, machine, world)
    here = recipe.processor.lower() == "here" and plan.processes == 1
    if not (measure and here and plan.fits) or subject is None:
        return plan
    return estimate(recipe, config, amounts, machine, world, tokens_per_second=_measured(subject))


def _subject(recipe: Recipe, folder: Path) -> tuple[Subject | None, ModelConfig]:
    """What is trained; of a published shape whose tokenizer is not here, the shape alone."""
    model = recipe.model
    if model.preset is not None and model.tokenizer is not None and not Path(beside(model.tokenizer, folder)).exists():
        return None, preset(model.preset)
    subject = find_subject(recipe, folder)
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
    """Tokens a second of the largest micro-batch, run twice."""
    from qafila.machine import usable_cores
    from qafila.train.objectives import make_objective

    recipe = subject.recipe
    torch.set_num_threads(recipe.train.threads or usable_cores())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = subject.build(device)
    objective = make_objective(subject, model)
    executor = OneProcess(model, objective)
    rows = min(recipe.train.micro_batch, recipe.train.batch)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        Trainer.largest(executor, rows, recipe.data.sequence)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        model.zero_grad(set_to_none=True)
    return rows * recipe.data.sequence / min(seconds)
