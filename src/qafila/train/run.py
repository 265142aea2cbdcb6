"""A whole run: packs, model, loop, evaluations, checkpoints, and the model that is left in the run's folder."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qafila.data.batch import Batch
from qafila.data.loader import Loader, Source
from qafila.errors import DataError, FormatError, TrainingError, UsageError
from qafila.train import evaluate, plots
from qafila.train.card import write_card
from qafila.train.checkpoint import Checkpoints
from qafila.train.estimate import steps_of
from qafila.train.evaluate import Answerer
from qafila.train.loop import Executor, OneProcess, StepReport, Trainer
from qafila.train.objectives import make_objective
from qafila.train.optim import make_optimizer
from qafila.train.parallel.layout import Layout
from qafila.train.parallel.mesh import Mesh
from qafila.train.parallel.world import World, joined, world_size
from qafila.train.recipe import Recipe
from qafila.train.report import Reporter, Silent
from qafila.train.run_folder import MetricsLog, RunFolder
from qafila.train.save import save_model
from qafila.train.schedule import learning_rate_factor, short_of_warmup
from qafila.train.signals import StopRequest, stopping
from qafila.train.sources import NamedPack, Packs, find_packs
from qafila.train.subject import Subject, find_subject, start_device
from qafila.train.utilisation import Utilisation


@dataclass(frozen=True)
class Result:
    """What a run came to. ``stopped`` is the signal that ended it early, None where it went to its end."""

    folder: Path
    steps: int
    tokens: int
    seconds: float
    loss: float | None
    validation: Mapping[str, float] = field(default_factory=dict)
    stopped: int | None = None


def train(
    recipe: Recipe,
    *,
    beside: Path,
    out: Path = Path("runs"),
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    answerer: Answerer | None = None,
) -> Result:
    """Train by a recipe; the model is in ``out / recipe.name`` afterwards, and opens like any other.

    Args:
        recipe: what to do.
        beside: folder of the recipe, for its relative paths.
        out: where run folders are.
        resume: go on from the newest whole checkpoint of the run that is there.
        overwrite: start a run that is there again.
        reporter: is told of everything.
        answerer: answers the recipe's prompts, on a CPU; by default the training model itself does, more slowly.

    Raises:
        TrainingError: training had to stop; what was kept is said.
        DataError, UsageError, ...: something of the recipe cannot be used; nothing was trained.
    """
    layout = Layout.of(recipe.parallel, world_size())
    with joined() as world, stopping() as request:
        if reporter is None or not world.is_first:
            reporter = Silent()
        subject = find_subject(recipe, beside)
        _check(layout, subject)
        path = out / recipe.name
        folder = world.first_does(lambda: RunFolder.start(path, recipe, resume=resume, overwrite=overwrite))
        if world.size > 1:  # the first process packs what is raw, and the others find it there
            world.first_does(lambda: find_packs(subject, beside, folder.packs, reporter) and None)
        packs = find_packs(subject, beside, folder.packs, reporter)
        run = Run(subject, folder, packs, reporter, answerer, world, layout)
        try:
            return run.go(request, resume=resume)
        finally:
            reporter.finish()
            run.close()


class Run:
    """One run under way.

    Args:
        subject: what is trained. folder: where it is kept. packs: what it learns from. reporter: who is told.
        answerer: who answers prompts.
        world: all processes of the run. layout: how they share it.
    """

    def __init__(
        self,
        subject: Subject,
        folder: RunFolder,
        packs: Packs,
        reporter: Reporter,
        answerer: Answerer | None,
        world: World,
        layout: Layout,
    ) -> None:
        recipe = subject.recipe
        self._answerer = answerer
        self.subject, self.folder, self.packs, self.reporter = subject, folder, packs, reporter
        self.recipe, self.world = recipe, world
        self.device = start_device(recipe, processes=world.here)
        self.mesh = Mesh.start(layout, self.device.type) if world.size > 1 else None
        torch.manual_seed(recipe.train.seed)
        loader = self._loader(packs.train)
        self.steps = total_steps(recipe, loader)
        if (told := short_of_warmup(recipe.schedule, self.steps)) is not None:
            reporter.warn(told)
        self.validation = self._validation_batches()
        bits = recipe.objective == "pretrain" and self.validation
        self._text_bytes = evaluate.bytes_of_targets(self.validation, subject.tokenizer) if bits else None
        executor = self._executor()
        trained = [(name, p) for name, p in executor.named_parameters() if p.requires_grad]
        self.trainer = Trainer(
            loader=loader,
            optimizer=make_optimizer(trained, recipe.optimizer, recipe.train.precision),
            schedule=lambda step: learning_rate_factor(recipe.schedule, step, self.steps),
            executor=executor,
            lr=recipe.optimizer.lr,
            clip=recipe.optimizer.clip,
        )
        self.checkpoints = Checkpoints(
            folder.checkpoints,
            keep=recipe.checkpoint.keep,
            background=recipe.checkpoint.background,
            identity=self._identity(),
            warn=reporter.warn,
        )
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        self._utilisation = Utilisation.of(recipe, subject.config, gpu, world.size)
        self._log: MetricsLog | None = None
        self.last_validation: dict[str, float] = {}
        self.loss: float | None = None
        self._started = time.perf_counter()

    def _executor(self) -> Executor:
        recipe, mesh = self.recipe, self.mesh
        if mesh is None:
            model = self.subject.build(self.device)
            return OneProcess(model, make_objective(self.subject, model))
        from qafila.train.parallel.executor import ManyProcesses

        torch.manual_seed(recipe.train.seed + mesh.batch_rank)  # dropout is another one for each batch
        bfloat16 = self.device.type == "cuda" and recipe.train.precision == "bfloat16"
        whole = recipe.adapter is not None  # a frozen base may be in its blocks, which nothing cuts before it is there
        model = self.subject.build(self.device) if whole else self.subject.outline(self.device)
        return ManyProcesses.of(
            model,
            make_objective(self.subject, model),
            mesh,
            sequence=recipe.data.sequence,
            compute=torch.bfloat16 if bfloat16 else None,
            reshard_after_forward=recipe.parallel.reshard_after_forward,
            initial=None if whole else self.subject.initial,
        )

    def go(self, request: StopRequest, *, resume: bool) -> Result:
        """Train to the end, or until asked to stop."""
        trainer, recipe = self.trainer, self.recipe
        if resume:
            self._resume()
        if self.world.is_first:
            self.folder.forget_after(trainer.step)
            self._log = MetricsLog(self.folder, tensorboard=recipe.tensorboard)
            write_card(self)
        if recipe.train.longest_first:
            trainer.probe(min(recipe.train.micro_batch, recipe.train.batch), recipe.data.sequence)
        self.reporter.start(self.steps, trainer.step)
        if trainer.step == 0:
            self._evaluate()
        every_save = recipe.checkpoint.every or max(1, math.ceil(self.steps / 10))
        saved = trainer.step
        while trainer.step < self.steps and self._asked(request) is None:
            try:
                report = trainer.train_step()
            except StopIteration:
                break
            except TrainingError as error:
                self.checkpoints.wait()
                raise TrainingError(f"{error}; {self._kept()}") from None
            self._step_done(report)
            if recipe.evaluate.every and trainer.step % recipe.evaluate.every == 0 and trainer.step < self.steps:
                self._evaluate()
            if trainer.step % every_save == 0 and trainer.step < self.steps:
                self._save()
                saved = trainer.step
        if request.signal is None and trainer.step and self.last_validation.get("step") != trainer.step:
            self._evaluate()
        if saved != trainer.step:
            self._save()
        self.checkpoints.wait()
        if self.checkpoints.failure is not None:
            self.reporter.warn(
                f"{self.checkpoints.failure}; the model of the last step is in the run's folder all the same"
            )
        self._leave_model()
        return Result(
            self.folder.path,
            trainer.step,
            trainer.tokens,
            time.perf_counter() - self._started,
            self.loss,
            {k: v for k, v in self.last_validation.items() if k != "step"},
            request.signal,
        )

    def _asked(self, request: StopRequest) -> int | None:
        """The signal that asked any process to stop: all must stop after the same step."""
        request.signal = self.world.largest(request.signal or 0) or None
        return request.signal

    def close(self) -> None:
        """Finish what is under way in the background, and close files."""
        self.checkpoints.close()
        if self._log is not None:
            self._log.close()

    def _loader(self, packs: Sequence[NamedPack]) -> Loader:
        amounts = self.recipe.train
        endless = amounts.steps is not None or amounts.tokens is not None
        epochs = None if endless else amounts.epochs or 1.0
        return Loader(
            [Source(p.pack, p.weight, p.name, epochs) for p in packs],
            rows=amounts.batch,
            micro_rows=min(amounts.micro_batch, amounts.batch),
            rank=self.mesh.batch_rank if self.mesh is not None else 0,
            world=self.mesh.layout.data if self.mesh is not None else 1,
            seed=amounts.seed,
        )

    def _validation_batches(self) -> list[Batch]:
        rows = sum(len(p.pack) for p in self.packs.validation)
        if not rows:
            return []
        wanted = min(rows, self.recipe.evaluate.rows)
        sources = [Source(p.pack, 1.0, p.name, 1.0) for p in self.packs.validation]
        shares = self.mesh.layout.data if self.mesh is not None else 1
        loader = Loader(
            sources,
            rows=wanted,
            micro_rows=min(self.recipe.train.micro_batch, math.ceil(wanted / shares)),  # some for every process
            seed=self.recipe.train.seed,
        )
        return loader.next_step()

    def _identity(self) -> dict[str, str]:
        """What a checkpoint must agree with to be of this run."""
        packs = {f"data {p.name}": p.pack.manifest.identity for p in self.packs.train}
        return {
            "objective": self.recipe.objective,
            "model": repr(self.subject.config),
            "tokenizer": self.subject.tokenizer_sha256,
            **packs,
        }

    def _state(self) -> dict[str, Any]:
        model = {n: p.detach() for n, p in self.trainer.executor.named_parameters() if p.requires_grad}
        return {"model": model, **self.trainer.state_dict()}

    def _resume(self) -> None:
        found = self.checkpoints.newest()
        if found is None:
            self.reporter.note("no checkpoint yet: starting from the beginning")
            return
        state = self._state()  # its tensors are the weights' own memory, and are filled in place
        try:
            self.checkpoints.load(state, found)
            self.trainer.load_state_dict(state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                found.path,
                f"is of another form than this version's ({type(error).__name__}: {error}); go on with the version of "
                "Qafila that wrote it, or start the run again with --force",
            ) from None
        self.reporter.note(f"resumed at step {self.trainer.step} of {self.steps}")

    def _save(self) -> None:
        self.checkpoints.save(self.trainer.step, self._state(), self.last_validation.get("loss"))

    def _kept(self) -> str:
        if self.world.size > 1:  # perhaps not all processes got here, and what is asked together would never end
            return f"checkpoints are kept in {self.folder.checkpoints}; --resume goes on from the newest"
        found = self.checkpoints.newest()
        if found is None:
            return "no checkpoint was there yet"
        return f"the checkpoint of step {found.step} is kept in {self.folder.checkpoints}; --resume goes on from it"

    def _step_done(self, report: StepReport) -> None:
        self.loss = report.loss
        line = {
            "step": report.step,
            "tokens": self.trainer.tokens,
            "loss": report.loss,
            "lr": report.lr,
            "grad_norm": report.grad_norm,
            "targets": report.targets,
            "tokens_per_second": round(report.tokens_per_second, 1),
            **self._utilisation.figures(report.tokens_per_second),
            "seconds": round(report.seconds, 4),
            "memory": memory_in_use(self.device),
            **report.sums,
        }
        self._write(line)
        self.reporter.step(line)

    def _evaluate(self) -> None:
        found = evaluate.measure(self.trainer, self.validation, self._text_bytes) if self.validation else {}
        samples = self._answers() if self.recipe.evaluate.prompts else []
        if not found and not samples:
            return
        line: dict[str, Any] = {"step": self.trainer.step}
        if found:
            line["validation"] = found
            self.last_validation = {**found, "step": self.trainer.step}
        if samples:
            line["samples"] = samples
        self._write(line)
        self.reporter.evaluated(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.write(line)

    def _answers(self) -> list[dict[str, Any]]:
        wanted = self.recipe.evaluate
        executor = self.trainer.executor
        if isinstance(executor, OneProcess) and (self._answerer is None or self.device.type != "cpu"):
            return evaluate.answers(executor.model, self.subject, wanted.prompts, wanted.max_tokens)
        if self._answerer is None:
            return []
        trained = executor.trained()
        if not self.world.is_first:
            return []
        staged = self.folder.path / ".samples"
        staged.mkdir(exist_ok=True)
        try:
            save_model(self.subject, trained, staged)
            chat = self.recipe.objective not in ("pretrain", "fim") and self.subject.chat is not None
            return self._answerer(staged, wanted.prompts, chat=chat, max_tokens=wanted.max_tokens)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _leave_model(self) -> None:
        trained = self.trainer.executor.trained()
        if self.world.is_first:
            save_model(self.subject, trained, self.folder.path)
            plots.draw(self.folder.lines(), self.folder.plots)
            write_card(self)


def _check(layout: Layout, subject: Subject) -> None:
    """Refuse a layout that the model or the objective cannot be computed in."""
    recipe = subject.recipe
    rows = max(1, recipe.train.batch // layout.data)
    micro_batches = -(-rows // min(recipe.train.micro_batch, rows))
    layout.check(subject.config, sequence=recipe.data.sequence, micro_batches=micro_batches)
    if layout.pipeline * layout.context > 1 and recipe.objective in ("dpo", "reward"):
        raise UsageError("parallel: pairs of answers need whole rows and models: set pipeline and context to 1")


def total_steps(recipe: Recipe, loader: Loader) -> int:
    """Optimiser steps of the run.

    Raises:
        DataError: there is less data than one step takes.
    """
    steps = steps_of(recipe, None)
    if steps is None:
        steps = loader.steps
    if not steps:
        raise DataError(
            f"the data is less than one step of {recipe.train.batch} rows; lower train.batch or data.sequence"
        )
    return steps


def memory_in_use(device: torch.device) -> int:
    """The most bytes that this process has held: on the GPU where it computes there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
