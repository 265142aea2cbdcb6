"""What would have been done without a part: by a scripted model, whose odds are known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from agent_place import Place
from scripted_agent import ScriptedAgent

from qafila.agent.calibration import NEUTRAL_GOAL
from qafila.agent.events import Answered
from qafila.agent.explain import Cause, explain
from qafila.agent.finding import on_demand
from qafila.agent.journal import Recorded
from qafila.agent.loop import Agent, Settings
from qafila.agent.tool import FIND, Toolbox, tool
from qafila.agent.tools import calculate
from qafila.chat.client import Abilities, ChatRequest, TokenInfo, ToolOdds


def convert_units(value: float, unit: str, to: str) -> str:
    """Convert units of measure."""
    return f"{value * 1000:g} {to}"


def list_units() -> str:
    """List the units of measure that can be converted."""
    return "m, km"


MORE = tuple(tool(one, effect="read") for one in (convert_units, list_units))
FOUND = (FIND, {"words": "units of measure"})


class Scored(ScriptedAgent):
    """Every token is as likely as any other; of the tools that can be called, the last one is the likeliest."""

    def __init__(self, *answers: Sequence[tuple[str, dict[str, object]]]) -> None:
        super().__init__([*answers], abilities=Abilities(), odds=self._odds)
        self.could: list[list[str]] = []  # at each question but those about habits and without a goal

    def _odds(self, request: ChatRequest) -> ToolOdds:
        every = [one.name for one in (*request.tools, *request.untold)]
        names = [name for name in every if request.tool_names is None or name in request.tool_names]
        if request.messages[1].text != NEUTRAL_GOAL:
            self.could.append(names)
        rest = 0.1 / max(1, len(names) - 1)
        return ToolOdds(0.9, tuple((name, 0.9 if name == names[-1] else rest) for name in names))

    async def score(self, prompt: str | Sequence[int], top: int = 0) -> list[TokenInfo]:
        return [TokenInfo(1, "x", b"x", -1.0)] * len(prompt)


def explained(place: Place, client: Scored, toolbox: Toolbox) -> dict[str, str | None]:
    """What would have been done instead of the last call without each part of the results before it."""
    settings = Settings(choosing="likelihood")
    agent = Agent(client, toolbox, place.journal, workspace=place.workspace, settings=settings)
    run = agent.begin("How many metres are 3 km?")
    place.work(agent, run)
    recorded = [with_ids(one) for one in place.journal.events(run)]
    number = [one.number for one in recorded if isinstance(one.event, Answered)][-2]
    client.could.clear()

    async def main() -> list[Cause]:
        return [one async for one in explain(client, recorded, number)]

    causes = asyncio.run(main())
    assert [one.instead for one in causes[:2]] == [None, None]  # the instructions, the goal
    return {one.part.text.partition("(")[0]: one.instead and one.instead.name for one in causes[2:]}


def with_ids(one: Recorded) -> Recorded:
    if not isinstance(one.event, Answered):
        return one
    return replace(one, event=one.event.model_copy(update={"message": {**one.event.message, "ids": [1, 2]}}))


def test_what_was_found_cannot_be_called_where_the_line_that_tells_of_it_is_left_out(place: Place) -> None:
    client = Scored([FOUND], [("list_units", {})])
    instead = explained(place, client, on_demand(calculate.tools(), MORE))
    assert instead == {"You can call these now:": None, "convert_units": None, "list_units": "convert_units"}
    every = ["calculate", "convert_units", "list_units"]
    assert client.could == [every, every, every, ["calculate", "list_units"], ["calculate", "convert_units"]]


def test_what_was_found_twice_can_still_be_called(place: Place) -> None:
    client = Scored([FOUND], [(FIND, {"words": "units that can be converted"})], [("list_units", {})])
    instead = explained(place, client, on_demand(calculate.tools(), MORE))
    assert instead["list_units"] is None
    assert len(client.could) == 8
    assert all(set(names) >= {"convert_units", "list_units"} for names in client.could)


def test_where_nothing_is_left_to_be_called_the_model_answers_in_words(place: Place) -> None:
    client = Scored([FOUND], [("convert_units", {"value": 3, "unit": "km", "to": "m"})])
    instead = explained(place, client, on_demand((), MORE[:1]))
    assert instead == {"You can call these now:": None, "convert_units": ""}
    assert client.could[-1] == ["convert_units"]  # of none, nobody is asked how likely it is
