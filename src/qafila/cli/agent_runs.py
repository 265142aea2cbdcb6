"""What `qafila agent` tells of runs that there are: lists, events, replays, and why a step did what it did."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from qafila.cli import agent_options as agent_opt
from qafila.cli import options as opt
from qafila.cli import terminal
from qafila.cli.agent_question import question
from qafila.cli.agent_setup import open_client, open_journal
from qafila.errors import QafilaError, UsageError

if TYPE_CHECKING:
    from qafila.agent.explain import Cause
    from qafila.agent.journal import Journal
    from qafila.agent.replay import Check


def runs(
    most: Annotated[int, typer.Option("-n", "--most", min=1, help="How many of the newest.")] = 20,
    database: agent_opt.Database = None,
    as_json: agent_opt.JSON = False,
) -> None:
    """List the runs, newest first."""
    from qafila.agent.show import run_row

    journal = open_journal(database)
    # What is under way in the journal and in no process was interrupted.
    found = [
        replace(one, status="interrupted") if one.status == "running" and not _worked_on(journal, one.id) else one
        for one in journal.runs(most)
    ]
    if as_json:
        typer.echo(json.dumps([run_row(one) for one in found], ensure_ascii=False, indent=2))
        return
    if not found:
        typer.echo('no runs yet; `qafila agent "goal"` makes one', err=True)
    for one in found:
        goal = " ".join(terminal.printable(one.goal).split())
        when = run_row(one)["created"][:16].replace("T", " ")
        part = f"(part of {one.parent}) " if one.parent and one.forked_at is None else ""
        typer.echo(f"{one.id}  {when}  {one.status:<12} {part}{goal[:80]}")


def show(run: agent_opt.Run, database: agent_opt.Database = None, as_json: agent_opt.JSON = False) -> None:
    """Show a run: every event, in order."""
    from qafila.agent.show import as_json as in_json
    from qafila.agent.show import summary, transcript
    from qafila.agent.state import State
    from qafila.agent.subrun import waiting

    journal = open_journal(database)
    found = journal.find(run)
    recorded = journal.events(found)
    if as_json:
        working = _worked_on(journal, found)
        told = in_json(found, recorded, waiting(journal, found), journal.parts(found), working=working)
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    state = State.of(recorded)
    for line in transcript(recorded):
        typer.echo(terminal.printable(line))
    for part in journal.parts(found):
        typer.echo(f"has a part: run {part}")
    asked = waiting(journal, found)
    for number, one in enumerate(asked, 1):
        which = f" {number} of {len(asked)}" if len(asked) > 1 else ""
        where = "" if one.run == found else f" (in its part {one.run})"
        typer.echo(f"\nwaits for a word on{which}{where}:\n{question(one.asked)}")
    typer.echo(summary(found, state))


def _worked_on(journal: Journal, run: str) -> bool:
    """Whether somebody works on a run; where that cannot be told (nothing can be locked here) it is believed."""
    try:
        return journal.worked_on(run)
    except QafilaError:
        return True


def replay(
    run: agent_opt.Run,
    verify: Annotated[bool, typer.Option("--verify", help="Ask the model again, and compare every token.")] = False,
    what_if: Annotated[
        tuple[int, str] | None,
        typer.Option("--what-if", metavar="EVENT TEXT", help="Make a run in which that call came to TEXT."),
    ] = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    database: agent_opt.Database = None,
    as_json: agent_opt.JSON = False,
) -> None:
    """Prove that a run happened as it is written down, or make another of it in which one result was different."""
    if verify == (what_if is not None):
        raise UsageError("give --verify, or --what-if EVENT TEXT")
    journal = open_journal(database)
    found = journal.find(run)
    if what_if is not None:
        if threads is not None or context is not None:
            raise UsageError("--threads and --context go with --verify: --what-if asks no model")
        _what_if(journal, found, *what_if, as_json=as_json)
        return
    _verify(journal, found, threads=threads, context=context, as_json=as_json)


def explain(
    run: agent_opt.Run,
    event: Annotated[int, typer.Argument(metavar="EVENT", min=0, help="The answer's number, as `show` has it.")],
    threads: opt.Threads = None,
    context: opt.Context = None,
    database: agent_opt.Database = None,
    as_json: agent_opt.JSON = False,
) -> None:
    """Measure which parts of what the model was told caused an answer, by leaving each of them out."""
    from qafila.agent.explain import explain as causes_of
    from qafila.agent.state import State

    journal = open_journal(database)
    found = journal.find(run)
    recorded = journal.events(found)
    model = State.of(recorded).began.model
    client = open_client(model, endpoint=None, key_variable=None, threads=threads, context=context, adapter=None)

    async def measure() -> list[Cause]:
        try:
            return [cause async for cause in causes_of(client, recorded, event)]
        finally:
            await client.close()

    causes = sorted(asyncio.run(measure()), key=lambda cause: -cause.change)
    if as_json:
        rows = [cause.to_dict() for cause in causes]
        print(json.dumps({"run": found, "event": event, "causes": rows}, ensure_ascii=False))
        return
    print("log-probability of this answer that each part gave it (below zero: took from it)")
    for cause in causes:
        text = " ".join(terminal.printable(cause.part.text).split())
        print(f"{cause.change:+8.2f}  {cause.part.what}: {text[:90]}{'…' if len(text) > 90 else ''}")
        if cause.instead is not None:
            what = f"called {cause.instead.name}" if cause.instead.name else "answered in words"
            print(f"          without it: it would have {what} ({cause.instead.probability:.2f})")


def _verify(journal: Journal, run: str, *, threads: int | None, context: int | None, as_json: bool) -> None:
    """Ask the model for every answer of a run again, and say whether all tokens are the same; status 1 if not."""
    from qafila.agent.replay import verify
    from qafila.agent.state import State

    recorded = journal.events(run)
    model = State.of(recorded).began.model
    client = open_client(model, endpoint=None, key_variable=None, threads=threads, context=context, adapter=None)

    async def check() -> list[Check]:
        found = []
        try:
            async for one in verify(client, recorded):
                found.append(one)
                if not as_json:
                    result = one.difference or f"{one.tokens} tokens, the same"
                    print(f"event {one.number}: {result}", file=sys.stderr)
        finally:
            await client.close()
        return found

    checks = asyncio.run(check())
    wrong = [one for one in checks if one.difference is not None]
    tokens = sum(one.tokens for one in checks)
    if as_json:
        rows = [{"event": one.number, "tokens": one.tokens, "difference": one.difference} for one in checks]
        print(json.dumps({"run": run, "same": not wrong, "answers": rows}))
    elif wrong:
        print(f"run {run}: {len(wrong)} of {len(checks)} answers are not the same")
    else:
        print(f"run {run}: {len(checks)} answers, {tokens} tokens, all the same")
    if wrong:
        raise typer.Exit(1)


def _what_if(journal: Journal, run: str, number: int, text: str, *, as_json: bool) -> None:
    """Make a run in which one call came to something else, and say how to go on with it."""
    from qafila.agent.replay import what_if

    new = what_if(journal, run, number, text)
    if as_json:
        print(json.dumps({"run": new, "parent": run}))
        return
    print(new)
    print(f"go on with it: qafila agent resume {new}", file=sys.stderr)
