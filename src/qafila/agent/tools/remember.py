"""Tools over the memory: what a model wants to keep, and what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qafila.agent.memory.store import Memory
from qafila.agent.tool import Surroundings, Tool, ToolError, tool

_MOST_FOUND = 8


def tools(memory: Memory, owner: str = "") -> tuple[Tool, ...]:
    """The tools of this module, over the entries of an owner."""

    def remember(place: Surroundings, text: str) -> str:
        """Remember a fact, in the user's own words, for later tasks."""
        if not text.strip():
            raise ToolError("text: is empty")
        own = place.trusted.says(text)
        entry = memory.add(
            owner,
            "fact",
            text,
            source=f"remember in run {place.run}",
            trusted=own,
            state="kept" if own else "proposed",
            run=place.run,
            key=place.key,
        )
        return "kept" if entry.state == "kept" else "proposed to the user: these are not the user's own words"

    def recall(words: str) -> str:
        """Find remembered facts and earlier tasks by words."""
        found = memory.list(owner, state="kept", words=words, most=_MOST_FOUND)
        return "\n".join(f"- {one.text}" for one in found) or "(nothing was kept about this)"

    def kept(place: Surroundings, made: Sequence[Mapping[str, Any]]) -> Mapping[str, dict[str, Any]] | None:
        return {} if memory.list(owner, state="kept", most=1) else None

    return (
        tool(remember, effect="write", origin="built-in", repeats=True),
        tool(recall, effect="read", live=kept, origin="built-in"),
    )
