"""What a call came to, where that is more than a text."""

from __future__ import annotations

from dataclasses import dataclass, field

from qafila.agent.events import Spent
from qafila.agent.observation import Observation


@dataclass(frozen=True, slots=True)
class Result:
    """What a call came to, and what else follows from it.

    Attributes:
        observation: what the model is told. found: tools that can be called from now on.
        steps: of a sub-run. spent: by it, or by a tool that asked the model; both count as the run's own.
    """

    observation: Observation
    found: tuple[str, ...] = ()
    steps: int = 0
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True, slots=True)
class Paused:
    """A call that cannot be finished now, and is made again when its run goes on.

    Attributes:
        waits: what a person's word is needed for; "" where the run is to stop.
    """

    waits: str = ""
