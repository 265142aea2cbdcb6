"""`qafila pull SOURCE`: fetch a model into the cache."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def command(
    source: Annotated[str, typer.Argument(help="`default`, `hf:owner/name[@revision][:file]`, or a path.")],
    file: Annotated[
        str | None, typer.Option(help="One file of the repository (a GGUF), or a pattern such as 'original/*'.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of the repository.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was fetched as JSON.")] = False,
) -> None:
    """Fetch a model into the model cache (QAFILA_HOME); what is there already is not fetched again.

    Downloads resume, are checked by hash, and appear only when whole.
    """
    from qafila.weights import cache, hub

    def notice(text: str) -> None:
        shown = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
        print(f"{shown}\n", file=sys.stderr)

    path = hub.pull(source, file=file, revision=revision, notice=notice)
    model = next((m for m in cache.cached_models() if m.path == path), None)
    if not as_json:
        typer.echo(str(path))
        return
    record: dict[str, object] = {"path": str(path), "name": source}
    if model is not None:
        record = {
            "path": str(path),
            "name": model.name,
            "source": model.source,
            "format": model.format,
            "bytes": model.nbytes,
            "files": [f.path for f in model.files],
            "commit": model.commit,
            "license": model.license,
            "fetched": model.fetched,
        }
    typer.echo(json.dumps(record, ensure_ascii=False))
