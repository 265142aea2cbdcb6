"""A run at the terminal: its steps as they happen, Ctrl-C, and how it stands at the end."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING

import typer

from qafila.cli import terminal

if TYPE_CHECKING:
    from qafila.agent.events import Decided
    from qafila.agent.loop import Agent


def work(
    agent: Agent, run: str, as_json: bool, *, say: str | None = None, decisions: dict[str, Decided] | None = None
) -> None:
    """Work on a run while a person watches, and say at the end how it stands (``as_json``: in one object, at the end).

    Args:
        agent, run: which. say: something to tell it first. decisions: answers to what it asked about, by call.

    Raises:
        typer.Exit: with 1, it ended without being done, and does not wait.
    """
    from qafila.agent.show import as_json as in_json
    from qafila.agent.show import summary
    from qafila.agent.signing import Signer
    from qafila.agent.state import State
    from qafila.agent.subrun import waiting

    journal = agent.journal
    try:
        asyncio.run(_watch(agent, run, as_json, say, decisions))
    finally:
        if sys.stdout.isatty():
            print()
    journal.audit.checkpoint(Signer())
    recorded = journal.events(run)
    state = State.of(recorded)
    if as_json:
        print(json.dumps(in_json(run, recorded, waiting(journal, run), journal.parts(run)), ensure_ascii=False))
    else:
        print(summary(run, state), file=sys.stderr)
        if state.ended is not None and state.ended.reason == "waiting":
            print(
                f"see it with `qafila agent show {run}`, then `qafila agent approve {run}` or --deny", file=sys.stderr
            )
    if state.ended is None or state.ended.reason not in ("done", "waiting"):
        raise typer.Exit(1)


async def _watch(agent: Agent, run: str, as_json: bool, say: str | None, decisions: dict[str, Decided] | None) -> None:
    """Show each event as it happens; Ctrl-C stops the run, a second one leaves it as it is."""
    from qafila.agent.events import Answered
    from qafila.agent.show import lines
    from qafila.agent.state import State

    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked and task is not None:
            task.cancel()
        elif not asked:
            asked = True
            print("\n(stopping; Ctrl-C again leaves at once)", file=sys.stderr)
            agent.journal.ask(run, "cancel", "Ctrl-C")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    step = State.of(agent.journal.events(run)).steps
    try:
        async for recorded in agent.work(run, say=say, decisions=decisions):
            if isinstance(recorded.event, Answered):
                step += 1
                if not as_json and recorded.event.message.get("content"):
                    sys.stdout.write("\n")
            if not as_json:
                for line in lines(recorded.event, step):
                    print(terminal.printable(line), file=sys.stderr)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        await agent.toolbox.close()
        await agent.client.close()
