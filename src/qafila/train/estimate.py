"""Know before you run: memory by part, tokens, steps, time and cost of a recipe. Nothing is loaded; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from qafila.config import ModelConfig
from qafila.errors import UsageError
from qafila.machine import Machine
from qafila.memory import Estimate, gigabytes
from qafila.parameters import active_parameters, text_parameters
from qafila.train.flops import (
    Processor,
    assumed_mfu,
    carbon,
    energy,
    flops_per_token,
    processor,
    time_products,
)
from qafila.train.footprint import footprint, trained_parameters
from qafila.train.parallel.layout import Layout
from qafila.train.recipe import Recipe
from qafila.train.utilisation import needed_flops

# Share of the speed of large matrix products that a whole training step keeps on a CPU.
_CPU_SHARE = 0.5
# Memory that a process leaves unused: what an allocator cannot place.
_RESERVE = 0.04


@dataclass(frozen=True, slots=True)
class Amounts:
    """What the packed data came to: ``rows`` of one epoch, ``tokens`` without padding, ``targets`` learned from.

    ``document`` is the mean length of a document in tokens (0: as long as a row), which attention's work depends on.
    """

    rows: int
    tokens: int
    targets: int
    document: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will be. Bytes, seconds, tokens; None where it cannot be known before the data is there.

    ``memory`` is that of the process that needs the most, ``available`` what it may take; ``changes`` are overrides of
    the recipe that together make it fit (empty where it fits, or where nothing known helps). ``basis`` says where the
    speed comes from.
    """

    name: str
    objective: str
    processor: str
    processes: int
    layout: dict[str, int]
    parameters: int
    active: int
    trained: int
    sequence: int
    batch: int
    micro_batches: int
    tokens_per_step: int
    steps: int | None
    tokens: int | None
    targets: int | None
    epochs: float | None
    memory: Estimate
    available: int
    fits: bool
    verdict: str
    changes: tuple[str, ...]
    flops_per_token: float
    flops: float | None
    mfu: float | None
    tokens_per_second: float
    seconds: float | None
    processor_hours: float | None
    cost: float | None
    kilowatt_hours: float | None
    tonnes_co2: float | None
    basis: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = asdict(replace(self, memory=Estimate({})))
        found["memory"] = {"parts": dict(self.memory.parts), "total": self.memory.total}
        found["changes"] = list(self.changes)
        return found


def steps_of(recipe: Recipe, rows: int | None) -> int | None:
    """Optimiser steps of a run whose packed data has ``rows`` rows in an epoch; None where that must be known first."""
    train = recipe.train
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return max(1, math.ceil(train.tokens / (train.batch * recipe.data.sequence)))
    if rows is None:
        return None
    return max(1, round(rows * (train.epochs or 1.0)) // train.batch)  # what is left over is less than a step


def estimate(
    recipe: Recipe,
    config: ModelConfig,
    amounts: Amounts | None,
    machine: Machine,
    world: int | None = None,
    *,
    unit: Processor | None = None,
    memory: int | None = None,
    stored_bits: float | None = None,
    tokens_per_second: float | None = None,
    utilisation: float | None = None,
    availability: float = 1.0,
    peak: float | None = None,
) -> Plan:
    """Plan a run.

    Args:
        recipe: what to do.
        config: of the model it trains.
        amounts: what its data came to; None: not known yet.
        machine: memory of this machine, which all processes share that compute on its CPU.
        world: processes; None: as many as the recipe's ``parallel`` table says (``data = 0`` counting as 1).
        unit: the GPU of each process; None: what ``recipe.processor`` says, and with ``here`` this machine's CPU.
        memory: bytes of the GPU that are free; None: all it has.
        stored_bits: bits of a weight in the base's file.
        tokens_per_second: of one process, measured; None: from the GPU's peak, or from matrix products timed here.
        utilisation: share of the processor's peak, instead of the tabulated one.
        availability: share of the time in which the machines train (Llama 3 405B: over 0.9).
        peak: FLOP/s of this machine's matrix products, which its CPU's MFU is a share of; None: they are timed where
            the speed is to follow from them, and there is no such share.

    Raises:
        UsageError: the layout does not fit the processes or the model; an unknown processor.
    """
    if unit is None and recipe.processor.lower() != "here":
        unit = processor(recipe.processor)
    section = recipe.parallel
    if world is None:
        world = max(1, section.data) * section.replicate * section.tensor * section.context * section.pipeline
    layout = Layout.of(section, world)
    _check_batch(recipe, layout)
    micro_batches = max(1, recipe.train.batch // (recipe.train.micro_batch * layout.data))
    layout.check(config, sequence=recipe.data.sequence, micro_batches=micro_batches)

    need = footprint(recipe, config, layout, on_gpu=unit is not None, stored_bits=stored_bits)
    room = (memory or unit.memory) if unit is not None else machine.available // world
    room = int(room * (1 - _RESERVE))
    where = f"each {unit.name}" if unit is not None else "this machine" if world == 1 else f"each of {world} processes"
    fits = need.total <= room
    changes: tuple[str, ...] = ()
    verdict = f"needs {gigabytes(need.total)}, {where} has {gigabytes(room)} to give"
    if not fits:
        changes, least = _smaller(recipe, config, layout, unit is not None, stored_bits, room)
        verdict += f"; {' '.join(changes)} would need {gigabytes(least)}" if changes else ""
        if least > room:
            verdict += ", still too much: use more processes (parallel.data), a larger machine or a smaller model"
            changes = ()

    per_step = recipe.train.batch * recipe.data.sequence
    steps = steps_of(recipe, amounts.rows if amounts else None)
    tokens = None if steps is None else steps * per_step
    counted = needed_flops(recipe, config, recipe.data.sequence)
    speed, basis = _speed(recipe, config, amounts, unit, world, tokens_per_second, utilisation, peak)
    whole = peak if unit is None else unit.peak * world
    share = None if whole is None else counted * speed / whole
    seconds = None if tokens is None else tokens / speed / availability
    hours = None if seconds is None else seconds / 3600 * (world if unit is not None else 1)
    power = None if hours is None or unit is None else energy(hours, unit.watts)
    fill = None if amounts is None or not amounts.rows else amounts.targets / (amounts.rows * recipe.data.sequence)
    return Plan(
        name=recipe.name,
        objective=recipe.objective,
        processor=unit.name if unit is not None else "CPU",
        processes=world,
        layout={k: v for k, v in asdict(layout).items() if v > 1},
        parameters=text_parameters(config),
        active=active_parameters(config),
        trained=trained_parameters(recipe, config),
        sequence=recipe.data.sequence,
        batch=recipe.train.batch,
        micro_batches=micro_batches,
        tokens_per_step=per_step,
        steps=steps,
        tokens=tokens,
        targets=None if fill is None or tokens is None else int(fill * tokens),
        epochs=None
        if amounts is None or not amounts.rows or steps is None
        else steps * recipe.train.batch / amounts.rows,
        memory=need,
        available=room,
        fits=fits,
        verdict=verdict,
        changes=changes,
        flops_per_token=counted,
        flops=None if tokens is None else counted * tokens,
        mfu=share,
        tokens_per_second=speed,
        seconds=seconds,
        processor_hours=hours,
        cost=None if hours is None or recipe.cost_per_hour is None else hours * recipe.cost_per_hour,
        kilowatt_hours=power,
        tonnes_co2=None if power is None else carbon(power),
        basis=basis,
    )


def _check_batch(recipe: Recipe, layout: Layout) -> None:
    train = recipe.train
    if train.batch % layout.data:
        raise UsageError(
            f"train.batch: {train.batch} rows cannot be shared by {layout.data} data-parallel processes; use a multiple"
        )


def _speed(
    recipe: Recipe,
    config: ModelConfig,
    amounts: Amounts | None,
    unit: Processor | None,
    world: int,
    measured: float | None,
    utilisation: float | None,
    peak: float | None,
) -> tuple[float, str]:
    """Tokens a second of all processes together, and where the figure comes from."""
    if measured is not None:
        return measured * world, "measured here"
    if unit is None:
        document = amounts.document if amounts is not None and amounts.document else recipe.data.sequence
        work = _work(recipe, config, document)
        return (peak or time_products()) * _CPU_SHARE / work, "matrix products timed here"
    share = utilisation or assumed_mfu(unit, compile=recipe.train.compile, float8=recipe.train.float8)
    # A tabulated MFU counts the whole square of attention, and so must the work it is divided by.
    return unit.peak * share / _work(recipe, config, recipe.data.sequence) * world, (
        f"{100 * share:.0f}% of {unit.peak / 1e12:.0f} TFLOP/s, "
        + ("as given" if utilisation else "as published for large dense models")
    )


def _work(recipe: Recipe, config: ModelConfig, document: float) -> float:
    """FLOPs really done for one token: what is needed, and what is computed a second time."""
    work = needed_flops(recipe, config, document)
    if recipe.train.checkpoint_activations:
        work += flops_per_token(config, document) / 3
    return work


def _smaller(
    recipe: Recipe, config: ModelConfig, layout: Layout, on_gpu: bool, stored_bits: float | None, room: int
) -> tuple[tuple[str, ...], int]:
    """The mildest changes of the recipe that make it fit, and what it needs then; otherwise all there are."""
    made: tuple[str, ...] = ()
    least = footprint(recipe, config, layout, on_gpu=on_gpu, stored_bits=stored_bits).total
    for changed, override in _milder(recipe):
        need = footprint(changed, config, layout, on_gpu=on_gpu, stored_bits=stored_bits).total
        if need >= least:
            continue
        # A later change of the same key takes the earlier one's place.
        key = override.partition("=")[0]
        made = (*(m for m in made if m.partition("=")[0] != key), override)
        least = need
        if least <= room:
            break
    return made, least


def _milder(recipe: Recipe) -> Iterator[tuple[Recipe, str]]:
    """Recipes that need less and less memory, each with the override that makes it of the one before."""
    train, optimizer = recipe.train, recipe.optimizer
    while train.micro_batch > 1:
        train = train.model_copy(update={"micro_batch": train.micro_batch // 2})
        recipe = recipe.model_copy(update={"train": train})
        yield recipe, f"train.micro_batch={train.micro_batch}"
    if not train.checkpoint_activations:
        train = train.model_copy(update={"checkpoint_activations": True})
        recipe = recipe.model_copy(update={"train": train})
        yield recipe, "train.checkpoint_activations=true"
    if train.precision == "float32":
        train = train.model_copy(update={"precision": "bfloat16"})
        recipe = recipe.model_copy(update={"train": train})
        yield recipe, "train.precision=bfloat16"
    if recipe.adapter is None:
        if optimizer.name != "adamw8bit":
            recipe = recipe.model_copy(update={"optimizer": optimizer.model_copy(update={"name": "adamw8bit"})})
            yield recipe, "optimizer.name=adamw8bit"
        recipe = recipe.model_copy(update={"train": train.model_copy(update={"precision": "bfloat16-stochastic"})})
        yield recipe, "train.precision=bfloat16-stochastic"
    if recipe.model.base is None or recipe.objective == "reward":
        return
    from qafila.train.recipe import AdapterSection

    adapter = recipe.adapter
    if adapter is None:
        adapter = AdapterSection()
        recipe = recipe.model_copy(update={"adapter": adapter})
        yield recipe, f"adapter.rank={adapter.rank}"
    if adapter.base == "plain":
        recipe = recipe.model_copy(update={"adapter": adapter.model_copy(update={"base": "nf4"})})
        yield recipe, "adapter.base=nf4"
