"""`qafila audit`: a log of all that agents did here, which nobody can change unseen."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qafila.cli.agent_options import JSON, Database, Run
from qafila.cli.agent_setup import open_journal
from qafila.errors import UsageError

if TYPE_CHECKING:
    from qafila.agent.signing import Signer

command = typer.Typer(
    add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="The signed log of what agents did."
)


@command.command("verify")
def _verify(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="An exported log (default: the log of this machine).")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="The public key to trust, from `qafila audit key`."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", metavar="FILE", help="A checkpoint that was kept elsewhere; may be repeated."),
    ] = None,
    database: Database = None,
    as_json: JSON = False,
) -> None:
    """Prove that nothing in the log was changed, removed, reordered or added; status 1 if something was."""
    from qafila.agent.audit import MOST_NAMED, verify

    notes = [_text(path) for path in checkpoint or ()]
    if file is not None:
        # Lines end at line feeds alone: texts in them may hold what Unicode counts as an end of a line.
        verdict = verify(_text(file).removesuffix("\n").split("\n"), key=key, kept=notes)
    else:
        signer = _signer()
        log = open_journal(database).audit
        verdict = verify(log.lines(signer.public), key=key or signer.public, kept=notes)
    if as_json:
        print(json.dumps({"good": verdict.good, **asdict(verdict)}, ensure_ascii=False))
    else:
        for problem in verdict.problems[:MOST_NAMED]:
            print(f"wrong: {problem}")
        if len(verdict.problems) > MOST_NAMED:
            print(f"wrong: {len(verdict.problems) - MOST_NAMED} more")
        how = "as it was written" if verdict.good else "NOT as it was written"
        erased = f", {verdict.erased} erased" if verdict.erased else ""
        print(f"{verdict.events} events of {verdict.runs} runs{erased}, {verdict.signed} of them signed: {how}")
        if file is not None and key is None:
            print("note: verified with the key in the file itself; --key names one you trust", file=sys.stderr)
    if not verdict.good:
        raise typer.Exit(1)


@command.command("export")
def _export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it (JSONL).")],
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    database: Database = None,
) -> None:
    """Sign the log as it is now and write it out, to be verified anywhere."""
    from qafila.weights.storage import staging

    if file.exists() and not force:
        raise UsageError(f"{file}: is there already; --force replaces it")
    signer, log = _signer(), open_journal(database).audit
    log.checkpoint(signer)
    with staging(file.parent) as stage, stage.open(file.name) as write:
        for line in log.lines(signer.public):
            write(f"{line}\n".encode())
    print(f"{file}; its key is {signer.public}")


@command.command("checkpoint")
def _checkpoint(database: Database = None) -> None:
    """Sign the log as it is now and print the note; keep it elsewhere, and a log that is cut short later shows."""
    print(open_journal(database).audit.checkpoint(_signer()), end="")


@command.command("key")
def _key() -> None:
    """Print the public key of this machine's log."""
    print(_signer().public)


@command.command("erase")
def _erase(
    run: Run,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    database: Database = None,
) -> None:
    """Erase a run and all that it holds, for ever; the log still verifies."""
    journal = open_journal(database)
    found = journal.find(run)
    if not yes and not typer.confirm(f"erase run {found} for ever?", err=True):
        raise typer.Abort
    print(f"erased {journal.erase(found)} events of run {found}; the log keeps their places and hashes")


def _signer() -> Signer:
    try:
        from qafila.agent.signing import Signer
    except ModuleNotFoundError as error:
        raise UsageError(f"audit: {error.name} is missing; `pip install 'qafila[agent]'` brings it") from None
    return Signer()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text") from None
