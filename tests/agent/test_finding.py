"""Tools that are found on demand: which ones, that they can be called then, and that the prompt only grows."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence

import pytest
from agent_place import FILES, Place, ended, told
from scripted_agent import ScriptedAgent

from qafila import Llama
from qafila.agent.calibration import NEUTRAL_GOAL
from qafila.agent.choose import Chooser
from qafila.agent.events import Answered, Began, Budget, Observed, Thresholds
from qafila.agent.finding import MOST_FOUND, on_demand, ranked, signature, without
from qafila.agent.loop import Agent, Settings
from qafila.agent.replay import verify, what_if
from qafila.agent.scaffold import system_prompt
from qafila.agent.state import State
from qafila.agent.tool import FIND, Tool, Toolbox, tool
from qafila.agent.tools.builtin import builtin
from qafila.chat.client import Abilities, ChatRequest, ToolOdds
from qafila.chat.local import LocalClient
from qafila.errors import AgentError
from qafila.text.messages import Message, ToolSchema


def convert_units(value: float, unit: str, to: str) -> str:
    """Convert a quantity from one unit of measure to another."""
    return f"{value * 1000:g} {to}"


def translate(text: str, language: str) -> str:
    """Translate a text into another language."""
    return f"{language}: {text}"


def add_event(title: str, start: str) -> str:
    """Add an event to the calendar."""
    return title


def list_tasks() -> str:
    """List the tasks that are to be done."""
    return "none"


def plot(column: str, kind: str = "line") -> str:
    """Plot a table's columns as a picture."""
    return column


MORE = tuple(tool(one, effect="read") for one in (convert_units, translate, add_event, list_tasks, plot))
SCHEMAS = tuple(one.schema for one in MORE)
BOX = on_demand(FILES, MORE)
UNITS = ("convert_units", {"value": 3, "unit": "km", "to": "m"})
LOOK = (FIND, {"words": "convert kilometres to metres"})


def agent_of(place: Place, client: ScriptedAgent, toolbox: Toolbox = BOX, **options: object) -> Agent:
    return Agent(client, toolbox, place.journal, workspace=place.workspace, settings=Settings(**options))  # type: ignore[arg-type]


# Which tools some words are about.


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("convert units", "convert_units"), ("unit conversions", "convert_units"), ("TRANSLATION", "translate"),
        ("translating a letter", "translate"), ("calendar", "add_event"), ("what are my tasks?", "list_tasks"),
        ("plotter of pictures", "plot"), ("a unit converter", "convert_units"),
        ("list_tasks", "list_tasks"), ("حوّل الوحدات", "convert_units"),
        ("ترجمة النصّ", "translate"), ("أضف موعدًا إلى التقويم", "add_event"), ("المهام", "list_tasks"),
        ("ارسم مخططًا للبيانات", "plot"), ("كم كيلومترًا في ٣ أميال", "convert_units"), ("وبالتقويم", "add_event"),
        ("3 km to m", "convert_units"), ("ٱرسم", "plot"), ("ترجمه", "translate"), ("تقویم", "add_event"),
    ],
)  # fmt: skip
def test_words_find_what_they_are_about(words: str, first: str) -> None:
    assert ranked(words, SCHEMAS)[:1] == [first]


@pytest.mark.parametrize("words", ["", " \n", "the of a", "؟!", "٣٤٥", "zebra", "\u202e\u200f", "a" * 10_000])
def test_words_about_nothing_find_nothing(words: str) -> None:
    assert ranked(words, SCHEMAS) == []


def test_few_are_found_and_in_an_order_that_stays() -> None:
    many = [ToolSchema(f"send_{i}", "Send a message.") for i in range(30)]
    assert ranked("send message", many) == [f"send_{i}" for i in range(MOST_FOUND)]
    assert ranked("message send, please", many) == ranked("send message", many)
    assert ranked("anything", []) == []
    assert ranked("use it", [ToolSchema("use")]) == []


def test_signatures_are_short_and_say_what_can_be_given() -> None:
    parameters = {
        "properties": {
            "to": {"type": "string", "description": "an address"},
            "kind": {"enum": ["a", "b"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "size": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "odd": True,
        },
        "required": ["to"],
    }
    told = signature(ToolSchema("send", "Send\n it.", parameters))
    assert (
        told == "send(to: string (an address), kind?: a|b, tags?: [string], size?: integer|null, odd?: any): Send it."
    )
    assert len(signature(ToolSchema("long", "x" * 5000))) == 400


def test_a_toolbox_without_more_has_nothing_that_finds() -> None:
    assert FIND not in on_demand(FILES, ()).by_name
    assert [one.name for one in without(BOX, "plot").more] == [one.name for one in MORE if one.name != "plot"]
    assert without(BOX, "nothing") is BOX
    assert FIND not in without(on_demand(FILES, MORE[:1]), MORE[0].name).by_name


# In runs.


def test_found_tools_can_be_called_and_the_tools_of_the_prompt_stay(place: Place) -> None:
    client = ScriptedAgent([[UNITS], [LOOK], [UNITS], "3000 m"])
    agent = agent_of(place, client)
    run = agent.begin("How many metres are 3 km?")
    events = place.work(agent, run)
    assert ended(events).answer == "3000 m"
    refused, found, done = told(events)
    assert refused[0] == "error"
    assert refused[1].startswith("there is no tool 'convert_units'; there are list_files, ")
    assert refused[1].endswith(FIND)
    assert found[1].startswith("You can call these now:\nconvert_units(value: number, unit: string, to: string): ")
    assert done == ("ok", "3000 m")
    names = [one.name for one in (*FILES, BOX.by_name[FIND])]
    assert [[one.name for one in asked.tools] for asked in client.asked] == [names] * 4
    assert [[one.name for one in asked.untold] for asked in client.asked] == [[], [], *[["convert_units"]] * 2]
    began = place.journal.events(run)[0].event
    assert isinstance(began, Began)
    assert [one["function"]["name"] for one in began.more] == [one.name for one in MORE]
    assert set(began.effects) == {*names, *(one.name for one in MORE)}


def test_nothing_is_found_says_what_there_is(place: Place) -> None:
    client = ScriptedAgent([[(FIND, {"words": "zebra"})], "no"])
    agent = agent_of(place, client)
    events = place.work(agent, agent.begin("go"))
    assert told(events) == [
        ("error", "no tool is about these words; there are convert_units, translate, add_event, list_tasks, plot")
    ]
    assert client.asked[1].untold == ()


def test_a_run_goes_on_after_any_event_with_what_it_had_found(place: Place) -> None:
    script = [[LOOK], [UNITS], [(FIND, {"words": "tasks"})], [("list_tasks", {})], "ok"]
    agent = agent_of(place, ScriptedAgent(script))
    run = agent.begin("go")
    events = place.work(agent, run)
    whole = place.state(run)
    assert whole.found == ["convert_units", "list_tasks"]
    for after in range(len(events)):
        fork = place.journal.fork(run, after)
        assert ended(place.work(agent_of(place, ScriptedAgent(script)), fork)).answer == "ok"
        assert place.state(fork).messages == whole.messages
        assert place.state(fork).found == whole.found


def test_what_if_another_tool_had_been_found(place: Place) -> None:
    agent = agent_of(place, ScriptedAgent([[LOOK], [UNITS], "ok"]))
    run = agent.begin("go")
    place.work(agent, run)
    assert place.state(what_if(place.journal, run, 2, "translate(text: string): instead")).found == ["translate"]
    assert place.state(what_if(place.journal, run, 2, "nothing, or plot(x)")).found == []
    assert place.state(what_if(place.journal, run, 4, "4")).found == ["convert_units"]


def test_other_tools_to_be_found_are_refused(place: Place) -> None:
    agent = agent_of(place, ScriptedAgent(["hello"]))
    run = agent.begin("go")
    for more in (MORE[:-1], (*MORE[:-1], tool(convert_units, effect="read", name="other"))):
        with pytest.raises(AgentError, match="which is not among these"):
            place.work(agent_of(place, ScriptedAgent([]), on_demand(FILES, more)), run)
    with pytest.raises(AgentError, match="other tools, or other versions"):
        place.work(agent_of(place, ScriptedAgent([]), on_demand(FILES, MORE[::-1])), run)


@pytest.mark.parametrize(("more", "barred"), [(MORE[:1], [0, 0, 1, 1]), (MORE, [0, 0, 1, 0])])
def test_what_finds_is_barred_just_after_it_has_and_once_all_are_found(
    place: Place, more: Sequence[Tool], barred: list[int]
) -> None:
    client = ScriptedAgent([[(FIND, {"words": "zebra"})], [LOOK], [UNITS], "ok"])
    agent = agent_of(place, client, on_demand(FILES, more))
    events = place.work(agent, agent.begin("convert units, then list my tasks"))
    options = [event.options.barred for event in events if isinstance(event, Answered)]
    assert [FIND in names for names in options] == barred


def test_whoever_is_told_something_new_may_find_again(place: Place) -> None:
    agent = agent_of(place, ScriptedAgent([[LOOK], "ok", "ok", "ok"]))
    run = agent.begin("convert units")
    place.work(agent, run)
    for said, barred in (("thank you", True), ("والآن ترجم هذا", False)):
        events = place.work(agent, run, say=said)
        assert [FIND in event.options.barred for event in events if isinstance(event, Answered)] == [barred]


# Odds of tools that were found.


def test_habits_of_found_tools_are_those_of_tools_that_were_told(place: Place) -> None:
    asked: list[ChatRequest] = []

    def odds(request: ChatRequest) -> ToolOdds:
        asked.append(request)
        every = [*request.tools, *request.untold]
        names = [one.name for one in every if request.tool_names is None or one.name in request.tool_names]
        if request.messages[1].text == NEUTRAL_GOAL:
            return ToolOdds(0.5, tuple((one, 1 / len(names)) for one in names))
        name = {2: FIND, 4: "convert_units"}.get(len(request.messages), "list_files")
        return ToolOdds(0.9, tuple((one, 0.9 if one == name else 0.1 / (len(names) - 1)) for one in names))

    client = ScriptedAgent([[LOOK], [UNITS], "ok"], abilities=Abilities(), odds=odds)
    agent = agent_of(place, client, choosing="likelihood")
    events = place.work(agent, agent.begin("How many metres are 3 km?"))
    assert [one.name for one in events if isinstance(one, Observed)][:2] == [FIND, "convert_units"]
    begins = [one for one in asked if len(one.messages) == 2 and one.messages[1].text == NEUTRAL_GOAL]
    assert [one.untold for one in begins] == [()] * len(begins)
    names = [[tool.name for tool in one.tools] for one in begins]
    assert names == [[*(one.name for one in (*FILES, BOX.by_name[FIND])), "convert_units"]]
    _, second, *_ = [event for event in events if isinstance(event, Answered)]
    assert second.decision.candidates[0].name == "convert_units"


# With the default model.


@pytest.fixture(scope="module")
def client(default_gguf: object) -> Iterator[LocalClient]:
    made = LocalClient(Llama.load(str(default_gguf), threads=1, context=2048), "default", owns_model=True)
    yield made
    asyncio.run(made.close())


def test_the_scaffold_with_ten_tools_is_under_700_tokens(client: LocalClient) -> None:
    toolbox = builtin()
    assert len(toolbox.tools) == 10
    scaffold = [Message("system", system_prompt())]
    assert asyncio.run(client.count(scaffold, toolbox.schemas)) <= 700


def test_prompts_only_grow_across_a_find_and_replay_gives_the_same_tokens(place: Place, client: LocalClient) -> None:
    toolbox = on_demand((), MORE)
    settings = Settings(
        choosing="likelihood", answer_tokens=48, thresholds=Thresholds(call=0.0), budget=Budget(steps=3)
    )
    agent = Agent(client, toolbox, place.journal, workspace=place.workspace, settings=settings)
    run = agent.begin("Find a tool that converts units, then convert 3 km to m.")

    async def main() -> None:
        async for _ in agent.work(run):
            pass
        recorded = place.journal.events(run)
        prompts = []
        state = State.of(recorded[:1])
        for one in recorded[1:]:
            if isinstance(one.event, Answered):
                prompt = await client.render(state.messages, toolbox.schemas)
                prompts.append([*prompt, *one.event.message["ids"]])
            state.add(one.event)
        assert state.found, [one.event for one in recorded]
        assert len(prompts) > 1
        for before, after in itertools.pairwise(prompts):
            assert after[: len(before)] == before
        checks = [one async for one in verify(client, recorded)]
        assert [one.difference for one in checks] == [None] * len(prompts)
        odds = await Chooser().odds(client, ChatRequest(tuple(state.messages), toolbox.schemas, untold=state.untold))
        assert {name for name, _ in odds.tools} == {FIND, *state.found}
        assert sum(share for _, share in odds.tools) == pytest.approx(1)

    asyncio.run(main())
