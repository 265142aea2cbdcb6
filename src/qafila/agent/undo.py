"""Taking back what calls did to the workspace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qafila.agent.edits import Edit, apply
from qafila.agent.events import Event, Observed, Undone
from qafila.agent.journal import Journal
from qafila.agent.observation import observation
from qafila.agent.state import State
from qafila.errors import AgentError


def undo(journal: Journal, run: str, *, everything: bool = False) -> list[Edit]:
    """Take back the edits of the last call of a run that made some, or of all of them, newest first.

    Gives the edits that were taken back. The model is told when the run goes on.

    Raises:
        AgentError: there is nothing to take back, or another process works on the run.
        SandboxError: a file was changed since: it is left as it is, and what was not taken back yet stays.
    """
    with journal.hold(run):
        state = State.of(journal.events(run))
        if not state.done:
            raise AgentError(f"run {run} has changed nothing that is still there to be undone")
        calls = list(reversed(state.done))
        taken: list[Edit] = []
        for call in calls if everything else calls[:1]:
            edits = [edit.reversed() for edit in reversed(state.done[call].edits)]
            apply(Path(state.began.workspace), edits)
            events: list[Event] = [*_interrupted(state, call), Undone(call=call)]
            for event in events:
                journal.add(run, state.events, event)
                state.add(event)
            taken += edits
        return taken


def _interrupted(state: State, call: str) -> Iterator[Observed]:
    """What a call came to that was under way when its process ended: else it would be finished by the next one."""
    for one in state.pending:
        if one.call.id == call and one.observed is None:
            found = observation("it was interrupted, and the user took it back", "refused")
            yield Observed(call=call, name=one.call.name, observation=found)
