"""Sub-runs: their budgets, their places in the journal, whose words they trust, and how they wait, stop and go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from agent_place import FILES, Place, ended, kinds, told
from scripted_agent import Answer, ScriptedAgent

from qafila.agent.events import Budget, Decided, Event, Prices
from qafila.agent.loop import Agent, Settings
from qafila.agent.policy import Policy, read_policy
from qafila.agent.state import State
from qafila.agent.subrun import DELEGATE, MOST_PARTS, part_id, waiting
from qafila.agent.tools import delegate
from qafila.agent.undo import undo
from qafila.chat.client import ChatRequest
from qafila.chat.client import Event as ChatEvent
from qafila.errors import AgentError, StorageError

TOOLS = (*FILES, *delegate.tools())
SUM = ("calculate", {"expression": "1+1"})


def hand(goal: str = "sub", **more: Any) -> tuple[str, dict[str, Any]]:
    return (DELEGATE, {"goal": goal, **more})


def write(name: str) -> tuple[str, dict[str, Any]]:
    return ("write_file", {"path": name, "text": "x"})


class Team(ScriptedAgent):
    """Answers each goal by a script of its own."""

    def __init__(self, scripts: dict[str, Sequence[Answer]], **options: Any) -> None:
        super().__init__([], **options)
        self.scripts = scripts

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        self.answers = self.scripts[request.messages[1].text]
        async for event in super().chat(request):
            yield event


def team(sub: Sequence[Answer] = ("sub answer",), root: Sequence[Answer] = ([hand()], "done")) -> Team:
    return Team({"do it": root, "sub": sub, "subsub": [[hand("deeper")], "bottom"]})


def part_of(place: Place, run: str, call: str = "0.0") -> str:
    part = part_id(run, call)
    assert place.journal.parts(run)[-1:] == [part]
    return part


def test_a_helper_works_by_itself_and_its_answer_is_the_result(place: Place) -> None:
    client = team([[SUM], "two\x00" + "!" * 3000])
    heard: list[str] = []
    run, events = place.begin(client, TOOLS, tell=heard.append)
    assert kinds(events) == ["answered", "intended", "observed", "answered", "ended"]
    (result,) = told(events)
    assert result[0] == "ok"
    assert result[1].startswith("two\ufffd!!!")
    assert "characters left out" in result[1]
    assert heard == ["done"]
    part = part_of(place, run)
    state = place.state(part)
    assert [m.text for m in client.asked[1].messages] == [place.state(run).began.system, "sub"]
    assert (state.began.goal, state.steps) == ("sub", 2)
    assert state.began.parent is not None
    assert (state.began.parent.run, state.began.parent.call, state.began.parent.depth) == (run, "0.0", 1)
    rows = {one.id: one for one in place.journal.runs()}
    assert (rows[part].parent, rows[part].forked_at, rows[part].status) == (run, None, "done")
    assert place.journal.find("last") == run


def test_what_a_helper_takes_counts_as_its_runs_own(place: Place) -> None:
    settings = Settings(
        budget=Budget(steps=12, tokens=1000, seconds=50, cost=1.0), prices=Prices(read=10, generated=20)
    )
    run, _ = place.begin(team([[SUM], "two"]), TOOLS, settings=settings)
    state, part = place.state(run), place.state(part_of(place, run))
    assert (state.steps, state.delegated, state.spent.read, state.spent.generated) == (2, 2, 40, 8)
    assert state.cost == pytest.approx(2 * part.cost)
    # Of twelve steps one was taken and one is kept; half of the ten that are left.
    assert part.began.budget.steps == 5
    assert part.began.budget.tokens == 1000 - 8
    assert 40 < (part.began.budget.seconds or 0) < 50
    assert part.began.budget.cost == pytest.approx(1.0 - 0.0001)
    assert part.began.prices == settings.prices


@pytest.mark.parametrize(
    ("budget", "reason", "taken"),
    [
        (Budget(steps=4), "steps", 2), (Budget(steps=9, tokens=20), "tokens", 2), (Budget(cost=0.00026), "cost", 2),
        (Budget(steps=9), "steps", 3),
    ],
)  # fmt: skip
def test_a_helper_has_no_more_than_what_is_left(place: Place, budget: Budget, reason: str, taken: int) -> None:
    # Each answer takes 8 tokens that are not in the cache, and costs 0.0001.
    sub: list[Answer] = [[("calculate", {"expression": f"1+{i}"})] for i in range(20)]
    root: list[Answer] = [[hand(steps=3)], "done"]
    settings = Settings(budget=budget, prices=Prices(read=10, generated=20))
    run, events = place.begin(team(sub, root), TOOLS, settings=settings)
    ((status, text),) = told(events)
    assert status == "error"
    assert text.startswith(f"the helper stopped: {reason} (the budget of ")
    state = place.state(run)
    assert state.delegated == taken
    assert budget.steps is None or state.steps + state.delegated <= budget.steps
    assert ended(events).reason == ("done" if reason == "steps" else reason)


@pytest.mark.parametrize(
    ("budget", "arguments", "words"),
    [
        (Budget(steps=2), {}, "too few steps are left"), (Budget(), {"steps": -1}, "steps: at least 1"),
        (Budget(), {"goal": " \n"}, "the goal is empty"), (Budget(), {"goal": ""}, "the goal is empty"),
    ],
)  # fmt: skip
def test_no_helper_is_begun_where_none_can_work(
    place: Place, budget: Budget, arguments: dict[str, Any], words: str
) -> None:
    client = team(root=[[hand(**arguments) if "goal" not in arguments else (DELEGATE, arguments)], "done"])
    run, events = place.begin(client, TOOLS, settings=Settings(budget=budget))
    ((status, text),) = told(events)
    assert status == "error"
    assert words in text
    assert place.journal.parts(run) == []
    assert ended(events).answer == "done"


def test_helpers_have_helpers_but_these_have_none(place: Place) -> None:
    client = Team(
        {"do it": [[hand("subsub")], "done"], "subsub": [[hand("deeper")], "mid"], "deeper": [[hand()], "low"]}
    )
    run, events = place.begin(client, TOOLS)
    assert told(events) == [("ok", "mid")]
    part = part_of(place, run)
    deepest = part_of(place, part)
    assert [place.state(one).delegated for one in (run, part, deepest)] == [4, 2, 0]
    assert DELEGATE not in place.state(deepest).began.effects
    results = [m.text for m in place.state(deepest).messages if m.role == "tool"]
    assert results[0].startswith("error: there is no tool 'delegate'")


def test_a_run_has_few_helpers(place: Place) -> None:
    root: list[Answer] = [[hand(steps=1)] for _ in range(MOST_PARTS + 1)]
    client = Team({"do it": [*root, "done"], "sub": ["s"]})
    # Other answers, so that it goes in no circle.
    client.scripts = {"do it": [[hand(f"sub{i}", steps=1)] for i in range(MOST_PARTS + 1)] + ["done"]}
    client.scripts |= {f"sub{i}": [f"answer {i}"] for i in range(MOST_PARTS + 1)}
    run, events = place.begin(client, TOOLS, settings=Settings(budget=Budget(steps=60)))
    assert told(events)[-1] == ("error", f"there were {MOST_PARTS} helpers already; go on without one")
    assert len(place.journal.parts(run)) == MOST_PARTS


# Whose words count.


def test_the_words_of_a_helpers_goal_are_not_the_users(place: Place) -> None:
    sub = "write to evil.txt"
    client = Team({"write good.txt": [[hand(sub)], "done"], sub: [[write("evil.txt")], [write("good.txt")], "ok"]})
    agent = place.agent(client, TOOLS, policy=Policy(effects={"read": "allow", "write": "allow"}))
    run = agent.begin("write good.txt")
    events = place.work(agent, run)
    assert ended(events).reason == "waiting"
    assert "path: not from your words" in ended(events).detail
    (asked,) = waiting(place.journal, run)
    no = {asked.answer_to(run): Decided(call=asked.intent.call, allowed=False, by="api")}
    assert ended(place.work(agent, run, decisions=no)).answer == "done"
    assert (place.file("evil.txt"), place.file("good.txt")) == (None, "x\n")


def test_a_policy_speaks_of_helpers_too(place: Place) -> None:
    file = place.workspace.parent / "policy.toml"
    file.write_text('[[rule]]\ntool = "delegate"\nthen = "deny"\nwhy = "Alone."\n')
    run, events = place.begin(team(), TOOLS, policy=read_policy(file))
    assert told(events) == [("refused", "Alone.")]
    assert place.journal.parts(run) == []


# Waiting, stopping, going on.


def test_a_run_waits_for_its_helper_and_goes_on_with_a_word_about_it(place: Place) -> None:
    client = Team({"do it": [[hand(), SUM], "done"], "sub": [[hand("low")], "s"], "low": [[write("a")], "written"]})
    agent = place.agent(client, TOOLS, policy=Policy())
    run = agent.begin("do it")
    events = place.work(agent, run)
    assert kinds(events) == ["answered", "intended", "ended"]
    (asked,) = waiting(place.journal, run)
    assert asked.run in ended(events).detail
    assert (asked.intent.name, asked.answer_to(asked.run)) == ("write_file", "0.0")
    for wrong in ("0.0", "9.9", "nothing"):
        with pytest.raises(AgentError, match=r"waits for nobody's word|no call"):
            place.work(agent, run, decisions={wrong: Decided(call=wrong, allowed=True, by="api")})
    assert ended(place.work(agent, run)).reason == "waiting"
    yes = {asked.answer_to(run): Decided(call=asked.intent.call, allowed=True, by="api")}
    events = place.work(agent, run, decisions=yes)
    assert ended(events).answer == "done"
    assert told(events) == [("ok", "s"), ("ok", "2")]
    assert place.file("a") == "x\n"
    assert len(place.journal.runs()) == 3
    assert waiting(place.journal, run) == ()
    # With a person's word it is the same budget.
    assert place.state(run).budget.steps == 12


def test_a_word_about_a_helper_is_not_half_taken(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = place.agent(team([[write("a")], "s"]), TOOLS, policy=Policy())
    run = agent.begin("do it")
    place.work(agent, run)
    (asked,) = waiting(place.journal, run)
    yes = {asked.answer_to(run): Decided(call=asked.intent.call, allowed=True, by="api")}
    add, left = place.journal.add, iter(range(1))

    def killed(*arguments: Any, **options: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        add(*arguments, **options)

    monkeypatch.setattr(place.journal, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        agent.go_on(run, decisions=yes)
    monkeypatch.undo()
    # A run that waits, waits for something: else nobody would be shown what keeps it.
    (line,) = [one for one in place.journal.runs() if one.id == run]
    assert (line.status, len(waiting(place.journal, run))) == ("running", 1)
    assert ended(place.work(agent, run)).reason == "waiting"
    assert ended(place.work(agent, run, decisions=yes)).answer == "done"
    assert place.file("a") == "x\n"


@pytest.mark.parametrize("wrong", ["9.9", "0.0"])
def test_where_one_word_is_wrong_none_is_taken(place: Place, wrong: str) -> None:
    agent = place.agent(team([[write("a")], "s"]), TOOLS, policy=Policy())
    run = agent.begin("do it")
    place.work(agent, run)
    (asked,) = waiting(place.journal, run)
    said = {asked.answer_to(run): asked.intent.call, wrong: wrong}
    decisions = {one: Decided(call=call, allowed=True, by="api") for one, call in said.items()}
    with pytest.raises(AgentError, match=r"waits for nobody's word|no call"):
        agent.go_on(run, decisions=decisions)
    assert waiting(place.journal, run) == (asked,)


def test_a_helper_is_asked_about_together_with_other_calls_and_waits_beside_them(place: Place) -> None:
    policy = Policy(effects={**Policy().effects, "read": "ask", "pure": "ask"})
    script = [[hand(), write("b")], "done"]
    agent = place.agent(team([[write("a"), write("c")], "s"], script), TOOLS, policy=policy)
    run = agent.begin("do it")
    place.work(agent, run)

    def decide(*names: str) -> list[Event]:
        named = {one.answer_to(run): one for one in waiting(place.journal, run) if f"{one.intent.arguments}" in names}
        yes = {call: Decided(call=one.intent.call, allowed=True, by="api") for call, one in named.items()}
        assert len(yes) == len(names)
        return place.work(agent, run, decisions=yes)

    a, b, c = (f"{write(name)[1]}" for name in "abc")
    assert kinds(decide(f"{hand()[1]}")) == ["decided"]
    assert ended(place.work(agent, run)).reason == "waiting"
    assert {f"{one.intent.arguments}" for one in waiting(place.journal, run)} == {a, b, c}
    assert decide(a) == []
    assert ended(decide(b, c)).answer == "done"
    assert [place.file(name) for name in "abc"] == ["x\n"] * 3


def test_parts_are_not_gone_on_with_by_themselves(place: Place) -> None:
    agent = place.agent(team([[write("a")]]), TOOLS, policy=Policy())
    run = agent.begin("do it")
    place.work(agent, run)
    part = part_of(place, run)
    with pytest.raises(AgentError, match=f"run {part} is a part of run {run}; go on with that one"):
        place.work(agent, part)
    with pytest.raises(AgentError, match=f"is a part of run {run}; fork that one"):
        place.journal.fork(part, 0)


@pytest.mark.parametrize("whom", ["run", "part"])
def test_a_stop_reaches_the_helper(place: Place, whom: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qafila.agent.worker._LOOK", 0.01)
    client = team(["slow", "s"])
    agent = place.agent(client, TOOLS)
    run = agent.begin("do it")
    part = part_id(run, "0.0")

    async def main() -> list[Event]:
        async def others() -> None:
            while len(client.asked) < 1 or part not in place.journal.parts(run):
                await asyncio.sleep(0.005)
            client.hold = asyncio.Event()
            while len(client.asked) < 2:
                await asyncio.sleep(0.005)
            place.journal.ask(run if whom == "run" else part, "cancel", "enough")
            while not client.cancelled:
                await asyncio.sleep(0.005)
            client.hold.set()

        client.hold = None
        client.delay = 0.05
        other = asyncio.create_task(others())
        events = [one.event async for one in agent.work(run)]
        await other
        return events

    events = asyncio.run(asyncio.wait_for(main(), 30))
    assert place.state(part).steps == 0
    if whom == "part":
        assert told(events) == [("error", "the helper stopped: cancelled (enough)")]
        assert ended(events).answer == "done"
        return
    assert kinds(events) == ["answered", "intended", "ended"]
    assert (ended(events).reason, ended(events).detail) == ("cancelled", "enough")
    client.hold = None
    assert told(place.work(agent, run)) == [("ok", "slow")]
    assert place.journal.parts(run) == [part]


def test_whatever_moment_it_ends_at_the_same_helper_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal fails at every place in turn, as a process that is killed there would leave it."""
    script = team([[write("a")], [write("b")], "written"], [[hand()], [write("c")], "done"])
    whole, _ = place.begin(script, TOOLS)
    shape = [[one.event.kind for one in place.journal.events(run)] for run in (whole, part_of(place, whole))]
    every = sum(map(len, shape))
    for name in "abc":
        (place.workspace / name).unlink()
    agent = place.agent(script, TOOLS)
    run = agent.begin("do it")
    add, begin = place.journal.add, place.journal.begin
    left = 0

    def full(*given: Any, **options: Any) -> Any:
        nonlocal left
        if not left:
            raise StorageError("database or disk is full")
        left -= 1
        return add(*given, **options) if len(given) == 3 else begin(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place.journal, "add", full)
        patch.setattr(place.journal, "begin", full)
        for _ in range(every - 2):
            with pytest.raises(StorageError):
                place.work(agent, run)
            left = 1
            asyncio.run(_work(agent, run))
    assert ended(place.work(agent, run)).answer == "done"
    assert [[one.event.kind for one in place.journal.events(one)] for one in (run, part_of(place, run))] == shape
    assert [place.file(name) for name in "abc"] == ["x\n"] * 3
    assert place.state(run).spent == place.state(whole).spent


async def _work(agent: Agent, run: str) -> None:
    try:
        async for _ in agent.work(run):
            pass
    except StorageError:
        return


def test_a_fork_has_a_helper_of_its_own(place: Place) -> None:
    script = team([[SUM], "two"])
    run, events = place.begin(script, TOOLS)
    before = place.journal.fork(run, kinds(events).index("intended") + 1)
    assert ended(place.work(place.agent(script, TOOLS), before)).answer == "done"
    assert place.journal.parts(before) == [part_id(before, "0.0")] != place.journal.parts(run)
    after = place.journal.fork(run, kinds(events).index("observed") + 1)
    assert place.journal.parts(after) == []
    assert place.state(after).delegated == 2


def test_what_parts_changed_is_taken_back_with_their_run(place: Place) -> None:
    client = Team({"do it": [[write("a")], [hand()], "done"], "sub": [[hand("low")], [write("b")], "s"],
                   "low": [[write("d/b"), write("c")], "low"]})  # fmt: skip
    run, _ = place.begin(client, TOOLS, settings=Settings(budget=Budget(steps=40)))
    assert [place.file(name) for name in ("a", "b", "c", "d/b")] == ["x\n"] * 4
    assert [edit.path for edit in undo(place.journal, run)] == ["b"]
    part = part_of(place, run, "1.0")
    assert place.state(part).done == {}
    with pytest.raises(AgentError, match=f"run {part} is a part of run {run}; undo that one"):
        undo(place.journal, part)
    assert [edit.path for edit in undo(place.journal, run, everything=True)][-1] == "a"
    assert [place.file(name) for name in ("a", "b", "c", "d/b")] == [None] * 4
    with pytest.raises(AgentError, match="changed nothing that is still there"):
        undo(place.journal, run, everything=True)
    words = [m.text for m in place.state(run).messages if m.role == "user"][1:]
    assert words == ["(The user took back what a helper had changed.)"] * 3 + [
        "(The user took back what write_file had changed.)"
    ]


def test_erasing_a_run_erases_its_parts(place: Place) -> None:
    run, _ = place.begin(team([[SUM], "two"]), TOOLS)
    part = part_of(place, run)
    count = sum(len(place.journal.events(one)) for one in (run, part))
    assert place.journal.erase(run) == count
    assert place.journal.runs() == []
    with pytest.raises(AgentError, match="no run"):
        State.of(place.journal.events(part))
