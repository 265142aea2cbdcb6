"""`qafila models`: what is in the model cache; remove, verify and clean."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

command = typer.Typer(
    add_completion=False, rich_markup_mode=None, invoke_without_command=True, help="The models in the cache."
)
_JSON = typer.Option("--json", help="Print JSON.")


@command.callback()
def _list(ctx: typer.Context, as_json: Annotated[bool, _JSON] = False) -> None:
    """List the models in the cache (QAFILA_HOME): name, format, size, when and where from."""
    if ctx.invoked_subcommand is not None:
        return
    from qafila.weights import cache

    models = cache.cached_models()
    if as_json:
        rows = [
            {
                "name": m.name,
                "format": m.format,
                "bytes": m.nbytes,
                "source": m.source,
                "revision": m.revision,
                "commit": m.commit,
                "license": m.license,
                "fetched": m.fetched,
                "path": str(m.path),
            }
            for m in models
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if models:
        table = [("NAME", "FORMAT", "SIZE", "FETCHED", "SOURCE")]
        for m in models:
            at = f"{m.source} ({m.commit[:8]})" if m.commit else m.source
            table.append((m.name, m.format, cache.human_size(m.nbytes), m.fetched[:16].replace("T", " "), at))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    else:
        typer.echo("no models here yet; `qafila pull default` fetches one", err=True)
    if damaged := [m.name for m in cache.cached_models(whole=False) if m not in models]:
        typer.echo(f"files are missing from {', '.join(damaged)}: pull again, or `qafila models remove`", err=True)
    if waiting := cache.unfinished():
        size = cache.human_size(waiting)
        typer.echo(f"{size} of unfinished downloads: pull again to resume, or `qafila models clean`", err=True)


@command.command("remove")
def _remove(
    name: Annotated[str, typer.Argument(help="A name from `qafila models`.")], as_json: Annotated[bool, _JSON] = False
) -> None:
    """Delete a model, every cached revision of it."""
    from qafila.weights import cache

    removed = cache.remove(name)
    if as_json:
        typer.echo(json.dumps([{"name": m.name, "commit": m.commit, "bytes": m.nbytes} for m in removed]))
        return
    for m in removed:
        typer.echo(f"removed {m.name}{' at ' + m.commit[:8] if m.commit else ''}, {cache.human_size(m.nbytes)}")


@command.command("verify")
def _verify(
    name: Annotated[str | None, typer.Argument(help="A name from `qafila models`; every model when not given.")] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> int:
    """Hash the files again; status 2 when one is missing or has changed."""
    from qafila.errors import ModelNotFoundError
    from qafila.weights import cache

    models = cache.cached_models(whole=False) if name is None else cache.find(name, whole=False)
    if name is not None and not models:
        raise ModelNotFoundError(f"no model {name!r} in the cache; `qafila models` lists them")
    damaged = {m.folder: cache.verify(m) for m in models}
    if as_json:
        rows = [
            {"name": m.name, "commit": m.commit, "ok": not damaged[m.folder], "bad": damaged[m.folder]} for m in models
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False))
    for m in models:
        bad = damaged[m.folder]
        if bad:
            way_out = f"`qafila models remove {m.name}` and pull it again"
            print(f"error: {m.folder}: {', '.join(bad)} missing or changed; {way_out}", file=sys.stderr)
        elif not as_json:
            typer.echo(f"{m.name}: {len(m.files)} file{'s' * (len(m.files) != 1)} as published")
    return 2 if any(damaged.values()) else 0


@command.command("clean")
def _clean() -> None:
    """Delete unfinished downloads."""
    from qafila.weights import cache

    typer.echo(f"freed {cache.human_size(cache.clean())}")
