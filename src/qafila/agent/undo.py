"""Taking back what calls did to the workspace and the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qafila.agent.edits import Edit, alone, apply
from qafila.agent.events import Event, Intended, Observed, Undone
from qafila.agent.journal import Journal
from qafila.agent.observation import observation
from qafila.agent.state import State
from qafila.errors import AgentError


@dataclass(frozen=True, slots=True)
class Forgotten:
    """An entry of the memory that was taken back; shown as an edit is."""

    path: str
    text: str

    def diff(self) -> str:
        """What is gone."""
        return f"--- {self.path}\n-{self.text}\n"


def undo(journal: Journal, run: str, *, everything: bool = False) -> list[Edit | Forgotten]:
    """Take back the edits of the last call of a run that made some, or of all of them, newest first.

    Gives what was taken back: edits reversed, and entries of the memory. The model is told when the run goes on.

    Raises:
        AgentError: there is nothing to take back, or another process works on the run.
        SandboxError: a file was changed since: it is left as it is, and what was not taken back yet stays.
    """
    with journal.hold(run):
        state = State.of(journal.events(run))
        calls = [call for call in reversed(state.done) if _is_there(journal, state.done[call])]
        if not calls:
            raise AgentError(f"run {run} has changed nothing that is still there to be undone")
        taken: list[Edit | Forgotten] = []
        for call in calls if everything else calls[:1]:
            done = state.done[call]
            edits = [edit.reversed() for edit in reversed(done.edits)]
            workspace = Path(state.began.workspace)
            if edits:
                with alone(workspace):
                    apply(workspace, edits)
            entry = None if edits else journal.memory.take_back(done.key)
            if entry is not None:
                taken.append(Forgotten(f"memory/{entry.id}", entry.text))
            events: list[Event] = [*_interrupted(state, call), Undone(call=call)]
            for event in events:
                journal.add(run, state.events, event)
                state.add(event)
            taken += edits
        return taken


def _is_there(journal: Journal, done: Intended) -> bool:
    return bool(done.edits) or journal.memory.holds(done.key)


def _interrupted(state: State, call: str) -> Iterator[Observed]:
    """What a call came to that was under way when its process ended: else it would be finished by the next one."""
    for one in state.pending:
        if one.call.id == call and one.observed is None:
            found = observation("it was interrupted, and the user took it back", "refused")
            yield Observed(call=call, name=one.call.name, observation=found)
