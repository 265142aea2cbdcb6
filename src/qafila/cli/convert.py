"""`qafila convert`: write a model in another format."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Target(StrEnum):
    """The formats that can be written."""

    hf = "hf"
    gguf = "gguf"
    meta = "meta"


def command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="`default`, `hf:owner/name`, a path, or a pulled name.")],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="The folder to write; for gguf a .gguf file or a folder.")
    ],
    to: Annotated[Target, typer.Option("--to", help="The format to write.")],
    quant: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="Type of the matrices: F32, F16, BF16; for gguf also Q8_0, Q4_0, Q4_1, Q4_K."
        ),
    ] = None,
    shards: Annotated[int, typer.Option(min=1, max=1024, help="meta: number of model-parallel files.")] = 1,
    max_shard_size: Annotated[float, typer.Option(min=0.001, max=1e6, help="hf: largest file, in GB.")] = 5.0,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at DST.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a model in another format, with its tokenizer, generation settings and chat template."""
    from qafila.cli.writing import write
    from qafila.weights.export import dtype_named
    from qafila.weights.hub import resolve
    from qafila.weights.load import open_checkpoint

    dtype = dtype_named(quant) if quant is not None else None
    checkpoint = open_checkpoint(resolve(source))
    started = time.perf_counter()
    written = write(
        checkpoint,
        destination,
        to.value,
        quiet=as_json,
        dtype=dtype,
        shards=shards,
        max_shard_bytes=int(max_shard_size * 1e9),
        overwrite=force,
    )
    files = sorted(written.iterdir()) if written.is_dir() else [written]
    size = sum(file.stat().st_size for file in files)
    if as_json:
        report = {
            "source": source,
            "path": str(written),
            "format": to.value,
            "bytes": size,
            "seconds": round(time.perf_counter() - started, 3),
            "files": [file.name for file in files],
        }
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(f"{written}: {size / 1e6:,.1f} MB, {len(files)} file{'s' if len(files) != 1 else ''}")
