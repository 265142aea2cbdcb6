"""`qafila info`: what a model is, what it takes to store, run and train, and whether that fits here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qafila.config import ModelConfig
from qafila.engine.native_weights import stored_as
from qafila.errors import ModelNotFoundError, UsageError
from qafila.memory import (
    AS_STORED,
    TORCH_CPU,
    Estimate,
    Runner,
    TrainMethod,
    Verdict,
    gigabytes,
    judge,
    longest_context,
    memory_to_run,
    memory_to_train,
    run_alternatives,
    train_alternatives,
    weight_bytes,
)
from qafila.parameters import active_parameters, text_parameters
from qafila.presets import PUBLISHED, preset, preset_names
from qafila.quant.dtypes import DType
from qafila.vision import vision_parameters

if TYPE_CHECKING:
    from qafila.machine import Machine
    from qafila.weights.tensor import LazyTensor

_RUN_CONTEXT, _TRAIN_CONTEXT = 4096, 2048
_MOST = 1 << 40
_METHODS: dict[str, TrainMethod] = {"full": "full", "lora": "lora", "qlora": "qlora"}
_TRAINED_AS = (
    "gradients in bfloat16 (2 bytes a trained parameter); optimizer: AdamW's two moments (8) and master weights (4) in "
    "float32"
)
_STORABLE = [dtype.name for dtype in DType if dtype.quantised or dtype.name in ("F32", "F16", "BF16")]


@dataclass(frozen=True)
class Subject:
    """A model to describe: by name alone, or with the tensors of a checkpoint (which are not read)."""

    name: str
    format: str
    config: ModelConfig
    tensors: Mapping[str, LazyTensor] | None = None
    vision_tensors: Mapping[str, LazyTensor] = field(default_factory=dict)


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A preset's name, `default`, hf:owner/name or a path.")],
    context: Annotated[
        int | None, typer.Option(help="Tokens per sequence (default: 4096, in training 2048).", min=1, max=_MOST)
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences at a time.", min=1, max=1 << 20)] = 1,
    quant: Annotated[
        str | None, typer.Option(metavar="TYPE", help="As if its weights were stored and held in TYPE, e.g. Q4_0.")
    ] = None,
    train: Annotated[str | None, typer.Option(metavar="METHOD", help="Also training: full, lora or qlora.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters, bytes and memory of MODEL, and whether it fits in this machine. No weights are loaded."""
    from qafila.machine import this_machine

    if train is not None and train not in _METHODS:
        raise UsageError(f"--train {train!r}: choose from {', '.join(_METHODS)}")
    found = describe(
        open_subject(model),
        this_machine(),
        context=context,
        batch=batch,
        quant=None if quant is None else storable(quant),
        train=None if train is None else _METHODS[train],
    )
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print(found)


def storable(name: str) -> DType:
    """The weight type of that name, in either case.

    Raises:
        UsageError: there is none that weights are stored in.
    """
    if name.upper() not in _STORABLE:
        raise UsageError(f"--quant {name!r}: choose from {', '.join(_STORABLE)}")
    return DType[name.upper()]


def open_subject(model: str) -> Subject:
    """A preset by its name; otherwise a checkpoint that is here (a folder named like a preset is ``./name``).

    Raises:
        ModelNotFoundError: neither a preset nor a model that is here. QafilaError: a checkpoint that cannot be opened.
    """
    if model.strip().lower() in preset_names():
        config = preset(model)
        return Subject(config.name, "preset", config)
    from qafila.weights.hub import resolve
    from qafila.weights.load import open_checkpoint

    try:
        path = resolve(model)
    except ModelNotFoundError as error:
        if any(mark in model for mark in "/\\:"):
            raise
        try:
            preset(model)
        except ModelNotFoundError as unknown:
            raise ModelNotFoundError(f"{unknown} (and no such file or cached model)") from error
        raise
    checkpoint = open_checkpoint(path)
    return Subject(model, checkpoint.format, checkpoint.config, checkpoint.tensors, checkpoint.vision_tensors)


def describe(
    subject: Subject,
    machine: Machine,
    *,
    context: int | None = None,
    batch: int = 1,
    quant: DType | None = None,
    train: TrainMethod | None = None,
    runner: Runner | None = None,
) -> dict[str, Any]:
    """Everything ``qafila info`` says, as plain values; byte counts are integers.

    ``fits`` and ``reason`` answer what was asked: training when ``train`` is given, else running with ``runner``: by
    default the native engine, or torch where that cannot run the model (with ``quant``: weights held in that type).
    """
    config = subject.config
    stored, types = _stored(subject, quant)
    if runner is None:
        native = quant is not None or all(plan.attention != "cross" for plan in config.layers)
        runner = AS_STORED if native else TORCH_CPU
    converted, held = _held(subject, quant) if runner.weights is None else ({}, stored)
    run_context = context or min(_RUN_CONTEXT, config.context_length)
    run = memory_to_run(config, held, context=run_context, batch=batch, runner=runner)
    verdict = judge(run, machine, run_alternatives(config, context=run_context, batch=batch, runner=runner))
    longest = longest_context(config, held, machine, batch=batch, runner=runner)
    if not verdict.fits and 512 <= longest < run_context:
        verdict = Verdict(False, f"{judge(run, machine).reason}; a context of {longest} would fit")
    vision = vision_parameters(config, layout="huggingface" if subject.format == "hf" else "meta")
    parameters = text_parameters(config)
    published = PUBLISHED.get(config.name) if subject.format == "preset" else None
    found: dict[str, Any] = {
        "model": subject.name,
        "format": subject.format,
        "published_size": published.card if published else None,
        "parameters": parameters,
        "active_parameters": active_parameters(config),
        "vision_parameters": sum(vision.values()),
        "vision_parts": vision,
        "total_parameters": parameters + sum(vision.values()),
        **_shape(config),
        "kv_bytes_per_token": config.kv_bytes_per_token(),
        "weights_bytes": stored,
        "weights_types": types,
        "vision_bytes": sum(t.nbytes for t in subject.vision_tensors.values()) or 2 * sum(vision.values()),
        "context": run_context,
        "batch": batch,
        "weights_held_as": runner.weights.name if runner.weights else "stored",
        "weights_converted": converted,
        "longest_context": longest,
        "run": _told(run, verdict),
        "train": None,
        "machine": {"total": machine.total, "available": machine.available, "limited_by": machine.limited_by},
    }
    if train is not None:
        train_context = context or min(_TRAIN_CONTEXT, config.context_length)
        need = memory_to_train(config, train, context=train_context, batch=batch)
        lighter = train_alternatives(config, train, context=train_context, batch=batch)
        verdict = judge(need, machine, lighter)
        found["train"] = {"method": train, "context": train_context, **_told(need, verdict)}
    found["fits"], found["reason"] = verdict.fits, verdict.reason
    return found


def _stored(subject: Subject, quant: DType | None) -> tuple[int, dict[str, int]]:
    """Bytes of the text weights as stored, in all and by type; a preset is taken as bfloat16, as it was released."""
    if subject.tensors is None or quant is not None:
        dtype = quant or DType.BF16
        size = weight_bytes(subject.config, dtype)
        return size, {dtype.name: size}
    types: dict[str, int] = {}
    for tensor in subject.tensors.values():
        types[tensor.dtype.name] = types.get(tensor.dtype.name, 0) + tensor.nbytes
    return sum(types.values()), dict(sorted(types.items(), key=lambda item: -item[1]))


def _held(subject: Subject, quant: DType | None) -> tuple[dict[str, str], int]:
    """Which stored types the native engine converts when it loads them, to which, and the bytes it then holds."""
    if subject.tensors is None or quant is not None:
        dtype = quant or DType.BF16
        kept = stored_as(dtype)
        return {} if kept is dtype else {dtype.name: kept.name}, weight_bytes(subject.config, kept)
    converted: dict[str, str] = {}
    size = 0
    for tensor in subject.tensors.values():
        kept = stored_as(tensor.dtype)
        size += kept.nbytes(tensor.shape)
        if kept is not tensor.dtype:
            converted[tensor.dtype.name] = kept.name
    return converted, size


def _shape(config: ModelConfig) -> dict[str, Any]:
    kinds = [plan.attention for plan in config.layers]
    return {
        "layers": config.n_layers,
        "dim": config.dim,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "ffn_dim": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling.kind if config.rope_scaling else None,
        "tied_embeddings": config.tie_embeddings,
        "attention_layers": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "experts": config.moe.n_experts if config.moe else 0,
        "experts_per_token": config.moe.top_k if config.moe else 0,
        "expert_layers": sum(plan.mixture for plan in config.layers),
    }


def _told(need: Estimate, verdict: Verdict) -> dict[str, Any]:
    return {"bytes": need.total, "parts": dict(need.parts), "fits": verdict.fits, "reason": verdict.reason}


def _print(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _lines(found):
        table.add_row(Text(label, style="dim"), Text(value))
    for title, part in (("run", found["run"]), ("train", found["train"])):
        if part is None:
            continue
        answer = Text("yes" if part["fits"] else "no", style="bold green" if part["fits"] else "bold red")
        answer.append(f", because it {part['reason']}", style="not bold default")
        table.add_row(Text(f"fits ({title})", style="dim"), answer)
    Console(highlight=False, soft_wrap=True).print(table)


def _lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is shown above the verdicts: label and value."""
    lines = [("model", f"{found['model']} ({found['format']})")]
    if found["published_size"]:
        lines[0] = ("model", f"{found['model']} (preset, published as {found['published_size']})")
    lines.append(("parameters", f"{found['parameters']:,}"))
    if found["active_parameters"] != found["parameters"]:
        lines.append(("active", f"{found['active_parameters']:,} per token"))
    if found["vision_parameters"]:
        whole = f"{found['vision_parameters']:,} more, {found['total_parameters']:,} in all (described, not run)"
        lines.append(("image tower", whole))
    shape = f"{found['layers']} layers, dim {found['dim']}, {found['heads']} heads, {found['kv_heads']} KV heads of "
    shape += f"{found['head_dim']}, feed-forward {found['ffn_dim']}, vocabulary {found['vocab_size']:,}"
    lines.append(("shape", shape))
    if found["experts"]:
        experts = f"{found['experts']} in {found['expert_layers']} layers, {found['experts_per_token']} per token"
        lines.append(("experts", f"{experts}, and a shared one"))
    if set(found["attention_layers"]) != {"full"}:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found["attention_layers"].items())
        lines.append(("attention", f"{kinds} layers"))
    lines.append(("context", f"{found['context_length']:,} tokens"))
    lines.append(("KV cache", f"{found['kv_bytes_per_token']:,} bytes per token in 16 bits"))
    types = ", ".join(f"{name} {gigabytes(size)}" for name, size in found["weights_types"].items())
    lines.append(("weights", f"{gigabytes(found['weights_bytes'])} ({types})" if types else "none"))
    if found["weights_converted"]:
        changes = ", ".join(f"{stored} becomes {held}" for stored, held in found["weights_converted"].items())
        lines.append(("", f"converted when loaded: {changes}; {gigabytes(found['run']['parts']['weights'])} in all"))
    batch = "" if found["batch"] == 1 else f" × {found['batch']} sequences"
    held = "" if found["weights_held_as"] == "stored" else f", weights held in {found['weights_held_as']}"
    lines.append(("to run", _sum(found["run"], f"{found['context']:,} tokens{batch}{held}")))
    if found["context"] > found["context_length"]:
        lines.append(("", f"{found['context']:,} tokens are beyond the context it was trained for"))
    if found["train"]:
        title = f"{found['train']['method']}, {found['train']['context']:,} tokens{batch}"
        lines.append(("to train", _sum(found["train"], title)))
        lines.append(("", _TRAINED_AS))
        if found["train"]["method"] == "full":
            more = gigabytes(found["train"]["parts"]["gradients"])
            lines.append(
                ("", f"on one GPU qafila train adds gradients up in float32: {more} more (its --dry-run counts)")
            )
    return lines


def _sum(part: Mapping[str, Any], title: str) -> str:
    terms = " + ".join(f"{name} {gigabytes(size)}" for name, size in part["parts"].items())
    return f"{gigabytes(part['bytes'])} for {title}: {terms}"
