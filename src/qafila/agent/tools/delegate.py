"""Handing a part of the task over to a sub-run, with a context and a budget of its own."""

from __future__ import annotations

from typing import Annotated, Any

from qafila.agent.subrun import DELEGATE
from qafila.agent.tool import Surroundings, Tool, ToolError, tool

# What ends it is its own budget.
_SECONDS = 7 * 24 * 3600.0


async def delegate(
    place: Surroundings,
    goal: Annotated[str, "all that it has to know"],
    steps: Annotated[int, "at most"] = 0,
) -> Any:
    """Give a helper a part of the task; it works by itself, and its answer is the result."""
    if place.delegate is None:
        raise ToolError("no helper can be had here")
    return await place.delegate(goal, steps)


def tools() -> tuple[Tool, ...]:
    """The tools of this module."""
    # By itself it does nothing: what the helper does is judged call by call. Asked again, it is the same helper.
    return (tool(delegate, effect="read", name=DELEGATE, seconds=_SECONDS, origin="built-in", repeats=True),)
