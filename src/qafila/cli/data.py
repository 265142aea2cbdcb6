"""`qafila data`: examples and texts to packs of tokens, what is in a pack, and whether it is whole."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qafila.cli.main import one_line
from qafila.errors import UsageError

if TYPE_CHECKING:
    from qafila.data.manifest import Manifest
    from qafila.data.pack import Packed, Progress
    from qafila.data.shards import Row
    from qafila.text.chat_format import ChatFormat
    from qafila.text.tokenizer import Tokenizer

command = typer.Typer(
    name="data", no_args_is_help=True, rich_markup_mode=None, add_completion=False,
    help="Pack texts and examples into rows of tokens, look at them, and check them.",
)  # fmt: skip

PackFolder = Annotated[Path, typer.Argument(metavar="PACK", help="A folder that `qafila data pack` made.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@command.command()
def pack(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", help="Text, .jsonl, .json (.gz, .xz), .parquet, or folders.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the pack goes; must not exist yet.")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="MODEL", help="The model to train, or a tokenizer file alone.")
    ] = "default",
    objective: Annotated[
        str, typer.Option(help="pretrain or fim (texts), sft (conversations), dpo or reward (pairs of answers).")
    ] = "sft",
    sequence: Annotated[int, typer.Option(min=8, max=1 << 24, help="Tokens of a row.")] = 2048,
    chat_format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Chat format (default: the model's own).")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            help="How records are written: auto, text, messages, sharegpt, alpaca, dolly, prompt, preference."
        ),
    ] = "auto",
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME=THEIRS", help="A field of the form by another name; may be repeated."),
    ] = None,
    overlong: Annotated[
        str | None, typer.Option(help="Longer than a row: split (texts), truncate (the rest) or skip.")
    ] = None,
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Hold this share of the records out, in FOLDER-validation.")
    ] = 0.0,
    bad_lines: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the records that may be mistakes.")
    ] = 0.01,
    fim_rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="fim: share of the documents to rearrange.")] = 0.9,
    fim_spm: Annotated[float, typer.Option(min=0.0, max=1.0, help="fim: share of those with the suffix first.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, max=(1 << 64) - 1, help="fim: of the cuts.")] = 0,
    workers: Annotated[int, typer.Option(min=0, max=1024, help="Processes that tokenise; 0: one a core.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after that many records.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn texts and examples into a pack of token rows that training reads."""
    from qafila.data.encode import EncoderSettings
    from qafila.data.pack import RawSource, pack_sources

    settings = EncoderSettings(objective, sequence, overlong, fim_rate=fim_rate, fim_spm=fim_spm, seed=seed)
    named = _named(fields or [])
    opened, chat = _open(tokenizer, chat_format, with_chat=not settings.of_texts)
    with _shown(quiet=as_json) as progress:
        packed = pack_sources(
            [RawSource(path, form, named) for path in sources],
            to,
            settings,
            opened,
            chat,
            validation=to.with_name(f"{to.name}-validation") if validation else None,
            validation_share=validation,
            workers=workers,
            bad_records=bad_lines,
            limit=limit,
            progress=progress,
        )
    _tell(packed, to, as_json=as_json)


@command.command()
def show(
    folder: PackFolder,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 1,
    start: Annotated[int, typer.Option("--from", min=0, help="The first of them.")] = 0,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="MODEL", help="The model that the pack was made for.")
    ] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a document.")] = False,
) -> None:
    """Show rows as text, with what is learned marked."""
    from qafila.cli.terminal import direction_from_text
    from qafila.cli.tokenize import open_tokenizer
    from qafila.data.fingerprint import tokenizer_sha256
    from qafila.data.shards import Pack

    opened = open_tokenizer(tokenizer)
    data = Pack.open(folder)
    data.manifest.check_tokenizer(tokenizer_sha256(opened), opened.vocab_size, pack=str(folder), model=tokenizer)
    if start >= len(data):
        raise UsageError(f"--from {start}: {folder} has {len(data):,} rows, numbered from 0")
    with direction_from_text():
        for number in range(start, min(start + rows, len(data))):
            for document, source in _documents(data.row(number)):
                _show(opened, number, document, data.manifest.sources[source].path, as_json=as_json)


@command.command()
def verify(
    folder: PackFolder,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="MODEL", help="Also that the pack is in this model's tokens.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a pack against its manifest."""
    from qafila.data.shards import Pack

    manifest = Pack.open(folder, verify="hashes").manifest
    if tokenizer is not None:
        from qafila.cli.tokenize import open_tokenizer
        from qafila.data.fingerprint import tokenizer_sha256

        opened = open_tokenizer(tokenizer)
        manifest.check_tokenizer(tokenizer_sha256(opened), opened.vocab_size, pack=str(folder), model=tokenizer)
    if as_json:
        print(json.dumps({"pack": str(folder), "whole": True, **_totals(manifest)}, ensure_ascii=False))
        return
    print(f"{folder}: whole ({len(manifest.shards)} files, {_summary(manifest)})")


def _named(fields: Sequence[str]) -> dict[str, str]:
    named = {}
    for given in fields:
        name, equals, theirs = given.partition("=")
        if not (name and equals and theirs):
            raise UsageError(f"--field {given}: is written NAME=THEIRS, such as prompt=question")
        named[name] = theirs
    return named


def _open(source: str, name: str | None, *, with_chat: bool) -> tuple[Tokenizer, ChatFormat | None]:
    """The tokenizer of a model and, if asked for, its chat format."""
    from qafila.cli.tokenize import open_tokenizer
    from qafila.text.formats import chat_format, detect_format

    path = Path(source)
    if not with_chat or name is not None or (path.is_file() and path.suffix in (".json", ".model")):
        tokenizer = open_tokenizer(source)
        if not with_chat:
            return tokenizer, None
        return tokenizer, detect_format(None, tokenizer) if name is None else chat_format(name, tokenizer)
    from qafila.weights.hub import resolve
    from qafila.weights.load import open_checkpoint

    found = resolve(source)
    if found.is_dir() and not any((found / name).is_file() for name in ("config.json", "params.json")):
        tokenizer = open_tokenizer(source)
        return tokenizer, detect_format(None, tokenizer)
    checkpoint = open_checkpoint(found)
    return checkpoint.tokenizer, detect_format(checkpoint.chat_template, checkpoint.tokenizer)


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Any]:
    """Shows progress on a terminal; gives None elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("packing"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
    begin = time.monotonic()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("pack", total=None, told="")

        def update(done: Progress) -> None:
            rate = done.tokens / max(1e-9, time.monotonic() - begin)
            told = f"{done.documents:,} documents, {done.tokens:,} tokens, {rate / 1e6:.2f} M/s"
            if done.refused:
                told += f", {done.refused:,} left out"
            bar.update(task, total=done.total, completed=done.read, told=told)

        yield update


def _tell(packed: Packed, to: Path, *, as_json: bool) -> None:
    manifest, held = packed.manifest, packed.validation
    if as_json:
        told: dict[str, Any] = {"pack": str(to), **_totals(manifest), "problems": packed.problems.to_dict()}
        if held is not None:
            told["validation"] = {"pack": f"{to}-validation", **_totals(held)}
        print(json.dumps(told, ensure_ascii=False))
        return
    for line in packed.problems.lines():
        indent = line[: len(line) - len(line.lstrip())]
        print(indent + one_line(line), file=sys.stderr)
    print(f"{to}: {_summary(manifest)}")
    if held is not None:
        print(f"{to}-validation: {_summary(held)}")


def _totals(manifest: Manifest) -> dict[str, Any]:
    return {
        "rows": manifest.rows,
        "sequence": manifest.sequence,
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "targets": manifest.targets,
        "padding": round(manifest.padding_share, 6),
    }


def _summary(manifest: Manifest) -> str:
    return (
        f"{manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.targets:,} learned) "
        f"in {manifest.rows:,} rows of {manifest.sequence:,}, {manifest.padding_share:.2%} padding"
    )


def _documents(row: Row) -> Iterator[tuple[tuple[list[int], list[bool], int, float], int]]:
    """Ids, mask, kind and margin of the documents of a row, each with its source, without the row's unused end."""
    from qafila.data.shards import NO_SOURCE

    at = 0
    for length, kind, margin, source in zip(
        row.lengths.tolist(), row.kinds.tolist(), row.margins.tolist(), row.sources.tolist(), strict=True
    ):
        if source != NO_SOURCE:
            yield (row.ids[at : at + length].tolist(), row.mask[at : at + length].tolist(), kind, margin), source
        at += length


_KINDS = ("", "chosen", "rejected")


def _show(
    tokenizer: Tokenizer, row: int, document: tuple[list[int], list[bool], int, float], source: str, *, as_json: bool
) -> None:
    ids, mask, kind, margin = document
    runs: list[tuple[bool, list[int]]] = []
    for token, learned in zip(ids, mask, strict=True):
        if not runs or runs[-1][0] != learned:
            runs.append((learned, []))
        runs[-1][1].append(token)
    pieces = [(learned, tokenizer.decode(run)) for learned, run in runs]
    name = _KINDS[kind] if kind < len(_KINDS) else ""
    if as_json:
        shown = [{"text": text, "learned": learned} for learned, text in pieces]
        told = {"row": row, "source": source, "tokens": len(ids), "kind": name or "plain", "margin": margin}
        told["pieces"] = shown
        print(json.dumps(told, ensure_ascii=False))
        return
    from qafila.cli.terminal import printable
    from qafila.cli.terminal import show as write

    colour = sys.stdout.isatty()
    detail = f", {name}" + (f", margin {margin:g}" if margin else "") if name else ""
    print(f"--- row {row}, {len(ids)} tokens, {sum(mask)} learned{detail}, from {printable(source)}")
    for learned, text in pieces:
        if learned:
            sys.stdout.write("\x1b[32m" if colour else "⟦")
        write(text)
        if learned:
            sys.stdout.write("\x1b[0m" if colour else "⟧")
    print()
