"""Taking back what calls did to the workspace and the memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from qafila.agent.edits import Edit, alone, apply
from qafila.agent.events import Event, Intended, Observed, Undone
from qafila.agent.journal import Journal
from qafila.agent.observation import observation
from qafila.agent.state import State
from qafila.agent.subrun import part_id
from qafila.errors import AgentError

#: Runs and their calls, from the whole to the part.
_Path: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """An entry of the memory that was taken back; shown as an edit is."""

    path: str
    text: str

    def diff(self) -> str:
        """What is gone."""
        return f"--- {self.path}\n-{self.text}\n"


def undo(journal: Journal, run: str, *, everything: bool = False) -> list[Edit | Forgotten]:
    """Take back what the last call that changed something did, of a run or its parts, or all of them, newest first.


    Gives what was taken back: edits reversed, and entries of the memory. The model is told when the run goes on.

    Raises:
        AgentError: there is nothing to take back, or another process works on the run.
        SandboxError: a file was changed since: it is left as it is, and what was not taken back yet stays.
    """
    with journal.hold(run):
        parent = State.of(journal.events(run)).began.parent
        if parent is not None:
            raise AgentError(f"run {run} is a part of run {parent.run}; undo that one, or it goes on as if nothing was")
        calls = list(reversed(_changes(journal, run)))
        if not calls:
            raise AgentError(f"run {run} has changed nothing that is still there to be undone")
        taken: list[Edit | Forgotten] = []
        for path in calls if everything else calls[:1]:
            taken += _take_back(journal, path)
        return taken


def _changes(journal: Journal, run: str) -> list[_Path]:
    """The calls that changed something, oldest first: each by its run and call, after those that it is a part of."""
    recorded = journal.events(run)
    done, parts = State.of(recorded).done, journal.parts(run)
    found: list[_Path] = []
    for event in (one.event for one in recorded):
        if isinstance(event, Intended):
            here = ((run, event.call),)
            if event.call in done and _is_there(journal, done[event.call]):
                found.append(here)
            if (part := part_id(run, event.call)) in parts:
                found += [(*here, *path) for path in _changes(journal, part)]
    return found


def _is_there(journal: Journal, done: Intended) -> bool:
    return bool(done.edits) or journal.memory.holds(done.key)


def _take_back(journal: Journal, path: _Path) -> list[Edit | Forgotten]:
    """Undo what the last call of a path did, and tell of it in every run there."""
    *above, (run, call) = path
    taken: list[Edit | Forgotten] = []
    with contextlib.ExitStack() as held:
        for part, _ in path[1:]:
            held.enter_context(journal.hold(part))
        state = State.of(journal.events(run))
        done = state.done[call]
        edits = [edit.reversed() for edit in reversed(done.edits)]
        if edits:
            workspace = Path(state.began.workspace)
            with alone(workspace):
                apply(workspace, edits)
        elif (entry := journal.memory.take_back(done.key)) is not None:
            taken.append(Forgotten(f"memory/{entry.id}", entry.text))
        _write(journal, run, [*_interrupted(state, call), Undone(call=call)])
        for whole, delegated in reversed(above):
            _write(journal, whole, [Undone(call=delegated)])
    return [*taken, *edits]


def _write(journal: Journal, run: str, events: Sequence[Event]) -> None:
    number = len(journal.events(run))
    for place, event in enumerate(events, number):
        journal.add(run, place, event)


def _interrupted(state: State, call: str) -> Iterator[Observed]:
    """What a call came to that was under way when its process ended: else it would be finished by the next one."""
    for one in state.pending:
        if one.call.id == call and one.observed is None:
            found = observation("it was interrupted, and the user took it back", "refused")
            yield Observed(call=call, name=one.call.name, observation=found)
