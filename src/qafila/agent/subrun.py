"""Sub-runs: a part of a run with a goal, a context and a budget of its own, begun by a call of the model.

A sub-run is a run in the same journal. Its id is made of its call's key, so that after a crash the same one goes on.
Its goal is the model's words: what may be trusted in it is what the user said in the runs above it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from qafila.agent.events import Asked, Began, Budget, Ended, Intended, Parent
from qafila.agent.journal import Journal
from qafila.agent.observation import observation
from qafila.agent.reasons import Reason
from qafila.agent.result import Result
from qafila.agent.state import State
from qafila.agent.tool import Toolbox, ToolError

#: The tool that begins one, how deep sub-runs may lie in one another, and how many one run may begin.
DELEGATE = "delegate"
MOST_DEPTH, MOST_PARTS = 2, 8


def key_of(run: str, call: str) -> str:
    """Stands for a call of a run, in every attempt at it."""
    return hashlib.sha256(f"{run}/{call}".encode()).hexdigest()[:32]


def part_id(run: str, call: str) -> str:
    """The id of the sub-run that a call begins."""
    return key_of(run, call)[:12]


def depth(began: Began) -> int:
    """How many runs there are above one."""
    return began.parent.depth if began.parent is not None else 0


def begin_part(
    journal: Journal, above: State, part: str, parent: Parent, goal: str, toolbox: Toolbox, budget: Budget
) -> None:
    """Write down a new sub-run.

    Args:
        journal: where. above: the run it is a part of. part: its id. parent: where it comes from.
        goal, toolbox, budget: of it.

    Raises:
        ToolError: the run has begun as many as it may. StorageError: it cannot be written down.
    """
    if len(journal.parts(parent.run)) >= MOST_PARTS:
        raise ToolError(Reason("too_many_parts", most=MOST_PARTS))
    began = above.began.model_copy(
        update={
            "goal": goal,
            "parent": parent,
            "budget": budget,
            "tools": tuple(schema.to_dict() for schema in toolbox.schemas),
            "more": tuple(schema.to_dict() for schema in toolbox.untold),
            "effects": {name: one.effect for name, one in toolbox.by_name.items()},
        }
    )
    journal.begin(began, run=part)


def came_to(state: State, ended: Ended) -> Result:
    """What a sub-run is to the run above it: its answer, or why there is none, and what it took."""
    if ended.reason == "done":
        told = observation(ended.answer)
    else:
        words = f"the helper stopped: {ended.reason}{f' ({ended.detail})' if ended.detail else ''}"
        told = observation(words, "error")
    return Result(told, steps=state.steps + state.delegated, spent=state.spent)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a person's word is needed for. ``run``: the run, or its part, in which the call stands."""

    run: str
    asked: Asked

    @property
    def intent(self) -> Intended:
        """The call."""
        return self.asked.intent

    def answer_to(self, run: str) -> str:
        """What an answer is given under when this run is gone on with: the call's id, or the key of a part's call."""
        return self.intent.call if run == self.run else self.intent.key


def waiting(journal: Journal, run: str) -> tuple[Waiting, ...]:
    """What a run waits for, in itself or in one of its parts; calls of one answer may wait together."""
    found: list[Waiting] = []
    for pending in State.of(journal.events(run)).pending:
        if pending.observed is not None:
            continue
        if pending.asked is not None and pending.decided is None:
            found.append(Waiting(run, pending.asked))
            continue
        part = part_id(run, pending.call.id)
        if pending.call.name == DELEGATE and part in journal.parts(run):
            found += waiting(journal, part)
    return tuple(found)
