"""A place for agent runs: a journal and a workspace, and agents that follow a script there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripted_agent import Answer, ScriptedAgent

from qafila.agent.events import Decided, Ended, Event, Observed
from qafila.agent.journal import Journal
from qafila.agent.loop import Agent
from qafila.agent.policy import Policy, with_writes
from qafila.agent.state import State
from qafila.agent.tool import Tool, Toolbox
from qafila.agent.tools import calculate, files

YES = with_writes(Policy())
FILES = (*files.tools(), *calculate.tools())


class Place:
    """Where the runs of a test happen."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/agent.sqlite3"
        self.journal = Journal(self.url)
        self.workspace = folder / "workspace"
        self.workspace.mkdir()

    def agent(self, script: Sequence[Answer] | ScriptedAgent, tools: Sequence[Tool] = FILES, **options: Any) -> Agent:
        """An agent that follows a script; it may change files unless rules say otherwise."""
        client = script if isinstance(script, ScriptedAgent) else ScriptedAgent(script)
        options = {"policy": YES, **options}
        return Agent(client, Toolbox(tuple(tools)), self.journal, workspace=self.workspace, **options)

    def work(
        self, agent: Agent, run: str, *, say: str | None = None, decisions: Mapping[str, Decided] | None = None
    ) -> list[Event]:
        """What happens until the run ends; it is in the journal, in this order."""

        async def main() -> list[Event]:
            return [one.event async for one in agent.work(run, say=say, decisions=decisions)]

        before = len(self.journal.events(run))
        events = asyncio.run(asyncio.wait_for(main(), 60))
        recorded = self.journal.events(run)
        assert [one.event for one in recorded[before:]] == events
        assert [one.number for one in recorded] == list(range(len(recorded)))
        return events

    def begin(
        self, script: Sequence[Answer] | ScriptedAgent, tools: Sequence[Tool] = FILES, **options: Any
    ) -> tuple[str, list[Event]]:
        """A new run, worked on until it ends: its id, and what happened."""
        agent = self.agent(script, tools, **options)
        run = agent.begin("do it")
        return run, self.work(agent, run)

    def state(self, run: str) -> State:
        return State.of(self.journal.events(run))

    def file(self, name: str) -> str | None:
        path = self.workspace / name
        return path.read_text() if path.exists() else None


def told(events: Sequence[Event]) -> list[tuple[str, str]]:
    """Status and text of every result."""
    return [(e.observation.status, e.observation.text) for e in events if isinstance(e, Observed)]


def ended(events: Sequence[Event]) -> Ended:
    """How it ended: the last event, and the only such one since work began."""
    (found,) = [event for event in events if isinstance(event, Ended)]
    assert events[-1] is found
    return found


def kinds(events: Sequence[Event]) -> list[str]:
    return [event.kind for event in events]
