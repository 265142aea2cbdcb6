"""`qafila memory`: what the agent remembers, where it has it from, and how it is made to forget."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from qafila.cli import terminal
from qafila.cli.agent_options import JSON, Database
from qafila.cli.agent_setup import open_journal
from qafila.errors import UsageError

if TYPE_CHECKING:
    from qafila.agent.memory.store import Entry, Kind

_LISTS = "list"
# Entries of this machine's user; the server keeps each tenant's apart.
_OWNER = ""


class _ListGroup(TyperGroup):
    """`qafila memory` and `qafila memory --search ...` are `qafila memory list ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = [_LISTS, *args]
        return super().parse_args(ctx, args)


command = typer.Typer(
    cls=_ListGroup,
    add_completion=False,
    rich_markup_mode=None,
    help="What the agent remembers of you and of what was done; without a command it is listed.",
)

_Entry = Annotated[str, typer.Argument(metavar="ID", help="The first letters of the entry's id.")]
_Text = Annotated[str, typer.Argument(metavar="TEXT", help="In your own words.")]


@command.command(_LISTS)
def _list(
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="profile, fact or episode.")] = None,
    search: Annotated[str | None, typer.Option("--search", metavar="WORDS", help="Only what holds such words.")] = None,
    database: Database = None,
    as_json: JSON = False,
) -> None:
    """List what is remembered, newest first; what is proposed waits for `approve` or `forget`."""
    chosen = None if kind is None else _kind(kind)
    found = open_journal(database).memory.list(_OWNER, kind=chosen, words=search)
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in found], ensure_ascii=False, indent=2))
        return
    if not found:
        typer.echo("nothing of this is remembered" if kind or search else "nothing is remembered yet", err=True)
    for one in found:
        typer.echo(_line(one))


@command.command("add")
def _add(
    text: _Text,
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="profile (told to every run) or fact.")] = "fact",
    database: Database = None,
) -> None:
    """Have something remembered."""
    if kind == "episode":
        raise UsageError("--kind episode: episodes are kept by runs; use profile or fact")
    typer.echo(_line(open_journal(database).memory.add(_OWNER, _kind(kind), text)))


@command.command("edit")
def _edit(entry: _Entry, text: _Text, database: Database = None) -> None:
    """Put your words in an entry's place."""
    memory = open_journal(database).memory
    typer.echo(_line(memory.edit(_OWNER, memory.find(_OWNER, entry).id, text)))


@command.command("approve")
def _approve(entry: _Entry, database: Database = None) -> None:
    """Keep what the agent proposes to remember."""
    memory = open_journal(database).memory
    typer.echo(_line(memory.keep(_OWNER, memory.find(_OWNER, entry).id)))


@command.command("forget")
def _forget(entry: _Entry, database: Database = None) -> None:
    """Forget an entry for ever."""
    memory = open_journal(database).memory
    gone = memory.forget(_OWNER, memory.find(_OWNER, entry).id)
    typer.echo(f"forgotten: {_line(gone)}")
    if gone.run is not None:
        note = f"note: the journal of run {gone.run} still holds it; `qafila audit erase {gone.run}` erases that"
        print(note, file=sys.stderr)


def _kind(kind: str) -> Kind:
    from qafila.agent.memory.store import KINDS

    for known in KINDS:
        if kind == known:
            return known
    raise UsageError(f"--kind {kind!r:.40}: is none of {', '.join(KINDS)}")


def _line(entry: Entry) -> str:
    day = datetime.fromtimestamp(entry.created).strftime("%Y-%m-%d")
    how = "proposed" if entry.state == "proposed" else "your words" if entry.trusted else "kept"
    return f"{entry.id}  {day}  {entry.kind:<7}  {how:<10}  {terminal.printable(entry.text)}  [{entry.source}]"
