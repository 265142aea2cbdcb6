"""`qafila agent replay`: the same run again, to the token; or another one, in which a tool said something else."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import typer

from qafila.cli.agent_setup import open_client

if TYPE_CHECKING:
    from qafila.agent.journal import Journal
    from qafila.agent.replay import Check


def verify_run(journal: Journal, run: str, *, threads: int | None, context: int | None, as_json: bool) -> None:
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


def what_if_run(journal: Journal, run: str, number: int, text: str) -> None:
    """Make a run in which one call came to something else, and say how to go on with it."""
    from qafila.agent.replay import what_if

    new = what_if(journal, run, number, text)
    print(new)
    print(f"go on with it: qafila agent resume {new}", file=sys.stderr)
