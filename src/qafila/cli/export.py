"""`qafila export`: a trained run as a model that opens elsewhere: merged, with tokenizer, template and model card."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qafila.cli.convert import Target
from qafila.errors import FormatError, UsageError

if TYPE_CHECKING:
    from qafila.quant.dtypes import DType
    from qafila.weights.load import Checkpoint


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder (runs/NAME), or any model.")],
    destination: Annotated[
        Path | None,
        typer.Argument(metavar="[DST]", help="The folder to write, for gguf also a .gguf file; by default RUN-FORMAT."),
    ] = None,
    to: Annotated[Target, typer.Option("--to", help="The format to write.")] = Target.hf,
    quant: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="Type of the matrices: F32, F16, BF16; for gguf also Q8_0, Q4_0, Q4_1, Q4_K."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at DST.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a run's model, merged, with its tokenizer, chat template and a model card (README.md).

    Without --quant nothing that was learned is lost to rounding: matrices with an adapter in them are written in 16
    bits or more, even where their base is stored in 4. A reward model's head goes along in hf, in the folder reward.
    """
    from qafila.cli.writing import write
    from qafila.weights.export import dtype_named
    from qafila.weights.hub import resolve
    from qafila.weights.model_card import model_card
    from qafila.weights.reward_model import read_reward_head, write_reward_model
    from qafila.weights.run_card import read_run_card
    from qafila.weights.storage import staging

    dtype = dtype_named(quant) if quant is not None else None
    path = resolve(run)
    started = time.perf_counter()
    checkpoint, note = _opened(path, to, dtype)
    head = read_reward_head(path, checkpoint.config.dim) if path.is_dir() else None
    if head is not None and to is not Target.hf:
        note = f"the reward head stays behind, since {to.value} has no place for one; --to hf takes it along"
        head = None
    name = path.resolve().name.removesuffix(".gguf")
    if destination is None:
        if not path.is_dir() or run == "default" or run.startswith("hf:"):
            raise UsageError(f"export {run}: say where to, as the argument after it")
        destination = path.resolve().with_name(f"{name}-{to.value}")
    card_folder = destination.parent if destination.suffix == ".gguf" and to is Target.gguf else destination
    card = read_run_card(path) if path.is_dir() else None
    text = model_card(name, checkpoint, card, licence=_known_licence(path), with_reward=head is not None)
    if note and not as_json:
        print(f"note: {note}", file=sys.stderr)
    written = write(checkpoint, destination, to.value, quiet=as_json, dtype=dtype, overwrite=force)
    if head is not None:
        write_reward_model(head, written)
    # Beside a single file there may be somebody else's README.md: that one's card is named after it.
    card_name = "README.md" if card_folder == destination else f"{written.stem}.README.md"
    with staging(card_folder) as stage, stage.open(card_name) as put:
        put(text.encode())
    root = written if written.is_dir() else card_folder
    files = [written, card_folder / card_name]
    if written.is_dir():
        files = sorted(file for file in written.rglob("*") if file.is_file())
    # A reward model's weights are the model's own, linked: they lie on the disk once.
    size = sum({(found.st_dev, found.st_ino): found.st_size for found in map(Path.stat, files)}.values())
    if as_json:
        report = {
            "source": run,
            "path": str(written),
            "format": to.value,
            "bytes": size,
            "seconds": round(time.perf_counter() - started, 3),
            "files": [file.relative_to(root).as_posix() for file in files],
            "card": str(card_folder / card_name),
            "note": note,
        }
        print(json.dumps(report, ensure_ascii=False))
    else:
        beside = "" if head is None else " and a reward model (reward/)"
        print(f"{written}: {size / 1e6:,.1f} MB, {len(files)} files, with a model card ({card_name}){beside}")


def _opened(path: Path, to: Target, dtype: DType | None) -> tuple[Checkpoint, str | None]:
    """The checkpoint to write, an adapter merged with as little rounding as there can be; and what to say of it."""
    from qafila.weights.adapter_model import open_adapter_model
    from qafila.weights.load import open_checkpoint, sniff_format
    from qafila.weights.merge import exact_f32, kept_or_f16

    if sniff_format(path) != "adapter":
        return open_checkpoint(path), None
    model = open_adapter_model(path)
    matrices = [model.base.tensors[name].dtype for name in model.adapter.modules if name in model.base.tensors]
    blocks = sorted({stored.name for stored in matrices if stored.quantised})
    if dtype is not None:
        # Merged in F32, so that the one rounding is the one that was asked for.
        note = None
        if dtype.quantised:
            note = f"merged matrices are rounded to {dtype.name}, which loses some of what was learned; F16 keeps it"
        return model.merged(exact_f32), note
    if not blocks:
        return model.merged(), None
    if to is Target.gguf:
        return model.merged(kept_or_f16), (
            f"{len(matrices)} merged matrices are written as F16, not in the base's {'/'.join(blocks)}, which would "
            "lose much of what was learned; --quant writes a smaller file"
        )
    held = "/".join(blocks)
    note = f"the base is stored as {held}, which {to.value} cannot hold: written as F32; --quant BF16 halves it"
    return model.merged(lambda stored: exact_f32(stored) if stored.quantised else kept_or_f16(stored)), note


def _known_licence(path: Path) -> str | None:
    """The licence that the model cache knows for a model, or for the base of an adapter's folder."""
    from qafila.weights.adapter import CONFIG_FILE, read_adapter
    from qafila.weights.adapter_model import base_path
    from qafila.weights.cache import cached_models

    for _ in range(8):
        if not (path.is_dir() and (path / CONFIG_FILE).is_file()):
            break
        try:
            path = base_path(path, read_adapter(path).base_model_name)
        except FormatError:
            break
    for model in cached_models():
        if path.resolve() == model.path.resolve():
            return model.license
    return None
