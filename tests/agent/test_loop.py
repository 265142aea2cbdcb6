"""Runs by a script: how they go on, end, are stopped and steered, and resumed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_place import FILES, YES, Place, ended, kinds, told
from scripted_agent import REMOTE, Answer, ScriptedAgent

from qafila.agent.events import Answered, Budget, Decided, Event, Prices, Steered, Thresholds
from qafila.agent.loop import Agent, Settings
from qafila.agent.policy import Policy
from qafila.agent.state import CIRCLE_ENDS, CIRCLE_TOLD
from qafila.agent.tool import Surroundings, Toolbox, tool
from qafila.chat.client import Abilities, CallPiece, ChatRequest, Finished, ToolOdds
from qafila.chat.client import Event as ChatEvent
from qafila.errors import AgentError, ContextLengthError, StorageError, UpstreamError
from qafila.text.messages import Message, ToolCall

SUM = ("calculate", {"expression": "1+1"})
LIST = ("list_files", {})


def write(name: str, text: str = "x") -> tuple[str, dict[str, Any]]:
    return ("write_file", {"path": name, "text": text})


def test_words_end_a_run(place: Place) -> None:
    client = ScriptedAgent(["It is 4."])
    run, events = place.begin(client)
    assert kinds(events) == ["answered", "ended"]
    assert (ended(events).reason, ended(events).answer) == ("done", "It is 4.")
    (asked,) = client.asked
    assert [(m.role, m.text) for m in asked.messages][1:] == [("user", "do it")]
    assert asked.messages[0].role == "system"
    assert [one.name for one in asked.tools] == [one.name for one in FILES]
    assert place.journal.runs()[0].status == "done"
    assert place.journal.find("last") == run


def test_calls_then_words(place: Place) -> None:
    client = ScriptedAgent([[SUM], [SUM, LIST], "2, and no files"])
    run, events = place.begin(client)
    assert kinds(events) == ["answered", "observed", "answered", "observed", "observed", "answered", "ended"]
    assert ended(events).answer == "2, and no files"
    state = place.state(run)
    assert (state.steps, state.spent.read, state.spent.cached, state.spent.generated) == (3, 30, 12, 6)
    calls = [call.id for message in state.messages for call in message.tool_calls]
    assert calls == ["0.0", "1.0", "1.1"]
    seeds = [request.generation.seed for request in client.asked]
    assert len(set(seeds)) == 3


def test_messages_are_only_ever_added(place: Place) -> None:
    client = ScriptedAgent([[SUM], [LIST, write("a")], [("nothing", {})], [write("../x"), SUM], "done"])
    run, _ = place.begin(client)
    place.work(place.agent(client), run, say="and more")
    assert len(client.asked) == 6
    for before, after in zip(client.asked, client.asked[1:], strict=False):
        assert after.messages[: len(before.messages)] == before.messages
        assert after.tools == before.tools
        assert len(after.messages) > len(before.messages)


def test_a_goal_must_say_something(place: Place) -> None:
    for goal in ("", " \n\t"):
        with pytest.raises(AgentError, match="the goal is empty"):
            place.agent([]).begin(goal)
    assert place.journal.runs() == []


def test_letters_that_are_none_do_not_break_the_record(place: Place) -> None:
    bad = "a\ud800b"
    client = ScriptedAgent([[("write_file", {"path": bad, "text": bad}), (bad, {bad: [bad]})], f"say {bad}"])
    with pytest.raises(AgentError, match="no text"):
        place.agent(client).begin(bad)
    run, events = place.begin(client)
    assert ended(events).answer == "say a\ufffdb"
    assert place.file("a\ufffdb") == "a\ufffdb\n"
    with pytest.raises(AgentError, match="no text"):
        place.work(place.agent(client), run, say=bad)
    assert ended(place.work(place.agent(client), run, say="good")).reason == "done"


def test_files_with_names_that_are_no_text_do_not_break_the_record(place: Place) -> None:
    name = b"caf\xe9.txt"
    Path(bytes(place.workspace).decode(), name.decode("utf-8", "surrogateescape")).write_text("x needle")
    _, events = place.begin([[LIST, ("search_files", {"text": "needle"})], "ok"])
    assert ended(events).reason == "done"
    assert {status for status, _ in told(events)} == {"ok"}


# Ends.


@pytest.mark.parametrize(
    ("budget", "steps", "reason"),
    [
        (Budget(steps=2), 2, "steps"), (Budget(steps=1), 1, "steps"), (Budget(tokens=17), 3, "tokens"),
        (Budget(tokens=16), 2, "tokens"), (Budget(cost=0.0003), 3, "cost"), (Budget(seconds=1e-9), 0, "seconds"),
    ],
)  # fmt: skip
def test_a_budget_ends_a_run_and_resuming_gives_it_again(place: Place, budget: Budget, steps: int, reason: str) -> None:
    # Each answer takes 8 tokens that are not in the cache, and costs 0.00012.
    settings = Settings(budget=budget, prices=Prices(read=10, cached=5, generated=20))
    script = [[write(f"{i}.txt")] for i in range(9)]
    run, events = place.begin(script, settings=settings)
    assert (ended(events).reason, place.state(run).steps) == (reason, steps)
    assert "is used up" in ended(events).detail
    # What was called before the steps were used up is carried out; nothing is lost in between.
    assert len(list(place.workspace.iterdir())) == (steps if reason == "steps" else steps - 1 if steps else 0)
    events = place.work(place.agent(script), run)
    assert ended(events).reason == reason
    state = place.state(run)
    assert state.steps == 2 * steps
    assert place.journal.runs()[0].status == reason


def test_a_persons_word_is_no_new_budget(place: Place) -> None:
    script = [[write("a")], [write("b")], [write("c")]]
    run, events = place.begin(script, settings=Settings(budget=Budget(steps=2)), policy=Policy())
    for call, reason in (("0.0", "waiting"), ("1.0", "steps")):
        assert ended(events).reason == "waiting"
        yes = {call: Decided(call=call, allowed=True, by="api")}
        events = place.work(place.agent(script, policy=Policy()), run, decisions=yes)
        assert ended(events).reason == reason
    assert place.state(run).steps == 2


def test_going_in_circles_is_told_then_ends_and_can_be_led_out_of(place: Place) -> None:
    client = ScriptedAgent([[SUM]] * 20)
    run, events = place.begin(client)
    assert ended(events).reason == "circle"
    assert place.state(run).steps == CIRCLE_ENDS
    results = [m.text for m in place.state(run).messages if m.role == "tool"]
    assert ["Do something else" in text for text in results] == [i + 1 >= CIRCLE_TOLD for i in range(CIRCLE_ENDS)]
    assert f"{CIRCLE_ENDS} times" in results[-1]
    client.answers = [[SUM]] * CIRCLE_ENDS + [[("calculate", {"expression": "2+2"})], "4"]
    events = place.work(place.agent(client), run, say="add twos")
    assert (ended(events).reason, ended(events).answer) == ("done", "4")


def test_the_same_call_with_other_results_is_no_circle(place: Place) -> None:
    script: list[Answer] = []
    for i in range(6):
        script += [[LIST], [write(f"{i}.txt")]]
    _, events = place.begin([*script, "done"], settings=Settings(budget=Budget(steps=20)))
    assert ended(events).reason == "done"


@pytest.mark.parametrize("error", [ContextLengthError("too long"), UpstreamError("no answer", status=503)])
def test_a_model_that_cannot_be_asked_fails_the_run_and_it_can_go_on(place: Place, error: Exception) -> None:
    client = ScriptedAgent([[SUM], error])
    run, events = place.begin(client)
    assert (ended(events).reason, ended(events).detail) == ("failed", str(error))
    events = place.work(place.agent([[SUM], "2"]), run)
    assert kinds(events) == ["resumed", "answered", "ended"]


def test_a_call_that_is_no_json_is_no_answer(place: Place) -> None:
    class Broken(ScriptedAgent):
        async def chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
            yield CallPiece(0, 0, "x", "calculate", '{"expression": 1')
            yield CallPiece(0, 1, "y", "list_files", "{}")
            yield Finished(0, "tool_calls", Message("assistant", "", tool_calls=(ToolCall("y", "list_files", {}),)))

    _, events = place.begin(Broken([]))
    assert kinds(events) == ["ended"]
    assert ended(events).reason == "failed"
    assert "a call of 'calculate' whose arguments are no JSON object" in ended(events).detail


def test_a_call_that_is_nested_too_deeply_is_not_written_down(place: Place) -> None:
    deep: Any = 1
    for _ in range(600):
        deep = [deep]
    run, events = place.begin([[("calculate", {"expression": deep})], "done"])
    assert kinds(events) == ["ended"]
    assert ended(events).detail == "the model wrote a call of 'calculate' that is nested too deeply"
    assert kinds(place.work(place.agent([[("calculate", {"expression": [[1]]})], "2"]), run))[-1] == "ended"


def test_an_answer_that_was_cut_says_so(place: Place) -> None:
    _, events = place.begin(ScriptedAgent(["and then"], reason="length"), settings=Settings(answer_tokens=7))
    assert (ended(events).reason, ended(events).detail) == ("done", "the answer was cut at 7 tokens")


def test_a_disk_that_is_full_pauses_the_run_and_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    script: list[Answer] = [[write("a")], [write("b")], "ok"]
    agent = place.agent(script)
    run = agent.begin("do it")
    add = place.journal.add

    for fails_at in range(1, 9):

        def full(name: str, number: int, event: Event, fails_at: int = fails_at, **options: Any) -> None:
            if number == fails_at:
                raise StorageError("database or disk is full")
            add(name, number, event, **options)

        monkeypatch.setattr(place.journal, "add", full)

        async def work() -> None:
            async for _ in agent.work(run):
                pass

        with pytest.raises(StorageError):
            asyncio.run(work())
        assert len(place.journal.events(run)) == fails_at
    monkeypatch.undo()
    assert ended(place.work(agent, run)).answer == "ok"
    assert kinds([one.event for one in place.journal.events(run)]) == [
        "began", "answered", "intended", "observed", "answered", "intended", "observed", "answered", "ended"
    ]  # fmt: skip


# What others want of it.


def working(place: Place, agent: Agent, run: str, when_asked: Sequence[tuple[str, str]]) -> list[Event]:
    """Work on a run whose model is held up; once it is asked, leave wishes in the inbox, and let it go at the end."""
    client = agent.client
    assert isinstance(client, ScriptedAgent)

    async def main() -> list[Event]:
        client.hold = asyncio.Event()

        async def others() -> None:
            while not client.asked:
                await asyncio.sleep(0.005)
            for kind, text in when_asked:
                place.journal.ask(run, kind, text)  # type: ignore[arg-type]
            if not any(kind == "cancel" for kind, _ in when_asked):
                assert client.hold is not None
                client.hold.set()

        other = asyncio.create_task(others())
        events = [one.event async for one in agent.work(run)]
        await other
        return events

    return asyncio.run(asyncio.wait_for(main(), 30))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qafila.agent.worker._LOOK", 0.01)


@pytest.mark.usefixtures("quick")
def test_a_run_is_stopped_while_the_model_answers_and_goes_on_later(place: Place) -> None:
    client = ScriptedAgent([[SUM], "2"])
    agent = place.agent(client)
    run = agent.begin("do it")
    events = working(place, agent, run, [("steer", "hurry"), ("cancel", "enough")])
    assert kinds(events) == ["steered", "ended"]
    assert (ended(events).reason, ended(events).detail) == ("cancelled", "enough")
    assert client.cancelled == 1
    assert place.journal.wishes(run) == []
    client.hold = None
    events = place.work(agent, run)
    assert ended(events).reason == "done"
    assert [m.text for m in client.asked[-1].messages if m.role == "user"] == ["do it", "hurry"]


@pytest.mark.usefixtures("quick")
def test_a_run_is_steered_while_the_model_answers(place: Place) -> None:
    client = ScriptedAgent(["all done", "in French: fini"])
    agent = place.agent(client)
    run = agent.begin("do it")
    events = working(place, agent, run, [("steer", "in French, please")])
    assert kinds(events) == ["answered", "steered", "answered", "ended"]
    assert ended(events).answer == "in French: fini"
    assert client.cancelled == 0
    assert [m.text for m in client.asked[1].messages][1:] == ["do it", "all done", "in French, please"]


def test_a_stop_before_work_begins_stops_it_and_one_after_its_end_is_forgotten(place: Place) -> None:
    agent = place.agent(["hello", "again"])
    run = agent.begin("do it")
    place.journal.ask(run, "cancel", "never mind")
    assert kinds(place.work(agent, run)) == ["ended"]
    assert kinds(place.work(agent, run)) == ["resumed", "answered", "ended"]
    place.journal.ask(run, "cancel", "too late")
    assert kinds(place.work(agent, run, say="go on")) == ["resumed", "steered", "answered", "ended"]
    assert place.journal.wishes(run) == []


def test_a_wish_is_not_lost_where_it_cannot_be_written_down(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = place.agent(["hello"])
    run = agent.begin("do it")
    place.journal.ask(run, "steer", "remember")

    def full(*_: object, **__: object) -> None:
        raise StorageError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(place.journal, "add", full)
        with pytest.raises(StorageError):
            place.work(agent, run)
    assert Steered(text="remember") in place.work(agent, run)


def test_two_do_not_work_on_one_run(place: Place) -> None:
    agent = place.agent(["hello"])
    run = agent.begin("do it")
    with place.journal.hold(run), pytest.raises(AgentError, match="another process"):
        place.work(place.agent(["hello"]), run)
    assert ended(place.work(agent, run)).reason == "done"


# Going on.


def test_a_run_that_is_done_goes_on_with_something_new(place: Place) -> None:
    script = ["first answer", [SUM], "second answer"]
    run, _ = place.begin(script)
    assert kinds(place.work(place.agent(script), run)) == ["resumed", "ended"]
    events = place.work(place.agent(script), run, say="now this")
    assert kinds(events) == ["resumed", "steered", "answered", "observed", "answered", "ended"]
    assert [m.role for m in place.state(run).messages] == [
        "system", "user", "assistant", "user", "assistant", "tool", "assistant"
    ]  # fmt: skip


def test_other_tools_another_workspace_or_no_run_are_refused(place: Place, tmp_path: Path) -> None:
    def extra() -> str:
        """Something else."""
        return ""

    def calculate(expression: str, digits: int) -> str:
        """Compute a number from an expression like (3+4)*2."""
        return ""

    run, _ = place.begin(["hello"])
    count = len(place.journal.events(run))
    changed = [tool(calculate, effect="pure") if one.name == "calculate" else one for one in FILES]
    for tools, words in (
        (FILES[1:], "has the tool list_files, which is not among these"),
        ((*FILES, tool(extra, effect="pure")), "other tools"),
        (changed, "other versions"),
    ):
        with pytest.raises(AgentError, match=words):
            place.work(place.agent(["hello"], tools), run)
    elsewhere = Agent(ScriptedAgent([]), Toolbox(FILES), place.journal, workspace=tmp_path, policy=YES)
    with pytest.raises(AgentError, match="belongs to the workspace"):
        place.work(elsewhere, run)
    assert len(place.journal.events(run)) == count

    async def nowhere() -> None:
        async for _ in place.agent([]).work("nowhere"):
            raise AssertionError

    with pytest.raises(AgentError, match="no run 'nowhere'"):
        asyncio.run(nowhere())


def test_every_beginning_of_a_run_ends_like_the_whole(place: Place) -> None:
    """A process that ends after any event leaves a run that goes on as if nothing had been."""
    script: list[Answer] = [[SUM, write("a", "1")], [write("a", "2"), LIST], [write("b")], "ok"]
    run, events = place.begin(script)
    whole = [m.to_dict() for m in place.state(run).messages]
    for after in range(len(events)):
        for path in place.workspace.iterdir():
            path.unlink()
        # The workspace as it was when that event was written down.
        for event in (one.event for one in place.journal.events(run)[: after + 1]):
            if event.kind == "observed" and event.name == "write_file":
                assert place.state(run).done[event.call].edits
                for edit in place.state(run).done[event.call].edits:
                    (place.workspace / edit.path).write_bytes(edit.after or b"")
        fork = place.journal.fork(run, after)
        assert ended(place.work(place.agent(script), fork)).answer == "ok"
        assert [m.to_dict() for m in place.state(fork).messages] == whole
        assert (place.file("a"), place.file("b")) == ("2\n", "x\n")


def test_a_fork_goes_on_by_itself(place: Place) -> None:
    run, events = place.begin([[write("a")], "ok"])
    number = next(i for i, event in enumerate(events, 1) if event.kind == "observed")
    fork = place.journal.fork(run, number)
    events = place.work(place.agent([[write("a")], [write("b")], "other"]), fork)
    assert ended(events).answer == "other"
    assert place.file("b") == "x\n"
    assert place.state(run).ended is not None
    assert len(place.state(run).messages) == 5
    assert len(place.state(fork).messages) == 7


# Tools chosen by likelihood.

LOCAL = Abilities()


def odds(call: float, **tools: float) -> Any:
    def of(request: ChatRequest) -> ToolOdds:
        names = [one.name for one in request.tools if request.tool_names is None or one.name in request.tool_names]
        return ToolOdds(call, tuple((name, tools.get(name, 0.0)) for name in names))

    return of


def test_the_likeliest_tool_is_called_and_why_is_written_down(place: Place) -> None:
    settings = Settings(choosing="likelihood")
    client = ScriptedAgent([[SUM], "2"], abilities=LOCAL, odds=odds(0.8, calculate=0.75, write_file=0.25))
    _, events = place.begin(client, settings=settings)
    first = client.asked[0]
    assert (first.tool_mode, first.tool_names, first.parallel_tool_calls) == ("required", {"calculate"}, False)
    answered = next(event for event in events if isinstance(event, Answered))
    shares = {one.name: one.probability for one in answered.decision.candidates}
    assert list(shares)[:3] == ["calculate", "", "write_file"]
    assert shares["calculate"] == pytest.approx(0.6)
    assert shares[""] == pytest.approx(0.2)
    assert answered.decision.choosing == "likelihood"
    assert answered.decision.arguments_logprob == -0.25
    assert len(answered.decision.prompt_sha256) == 64


def test_habit_is_measured_without_the_goal_and_with_the_beginnings_of_results(place: Place) -> None:
    asked: list[ChatRequest] = []

    def watched(request: ChatRequest) -> ToolOdds:
        asked.append(request)
        return odds(0.8, read_file=1.0)(request)

    place.workspace.joinpath("long.txt").write_text("words " * 150)
    client = ScriptedAgent([[("read_file", {"path": "long.txt"})], "done"], abilities=LOCAL, odds=watched)
    place.begin(client, settings=Settings(choosing="likelihood", thresholds=Thresholds(call=0.5)))
    own = next(one for one in asked if len(one.messages) == 4 and one.messages[1].text != "...")
    neutral = next(one for one in asked if len(one.messages) == 4 and one.messages[1].text == "...")
    assert [one.role for one in own.messages] == [one.role for one in neutral.messages]
    assert len(own.messages[3].text) > 800
    assert neutral.messages[3].text == own.messages[3].text[:60]


def test_words_where_a_call_is_not_likely_enough(place: Place) -> None:
    settings = Settings(choosing="likelihood", thresholds=Thresholds(call=0.7))
    client = ScriptedAgent(["words"], abilities=LOCAL, odds=odds(0.6, calculate=1.0))
    _, events = place.begin(client, settings=settings)
    assert client.asked[0].tool_names == frozenset()
    assert ended(events).answer == "words"


def test_an_unlikely_tool_is_asked_about_and_too_little_hands_over(place: Place) -> None:
    settings = Settings(choosing="likelihood", thresholds=Thresholds(ask=0.5, hand_over=0.3))
    client = ScriptedAgent(
        [[SUM], "2"], abilities=LOCAL, odds=odds(0.9, calculate=0.45, list_files=0.35, write_file=0.2)
    )
    run, events = place.begin(client, settings=settings)
    assert ended(events).reason == "waiting"
    assert "not sure that calculate is the right tool" in ended(events).detail
    client.odds = odds(0.71, calculate=0.25, list_files=0.25, search_files=0.25, write_file=0.25)
    yes = {"0.0": Decided(call="0.0", allowed=True, by="api")}
    events = place.work(place.agent(client), run, decisions=yes)
    assert told(events) == [("ok", "2")]
    assert ended(events).reason == "handed over"
    assert "0.29" in ended(events).detail


def test_a_model_without_likelihoods_chooses_freely(place: Place) -> None:
    client = ScriptedAgent([[SUM], "2"], abilities=REMOTE)
    _, events = place.begin(client, settings=Settings(choosing="likelihood"))
    assert client.asked[0].tool_names is None
    answered = next(event for event in events if isinstance(event, Answered))
    assert answered.decision.choosing == "free"
    assert answered.decision.prompt_sha256 == ""


def test_a_tool_that_hangs_does_not_hold_up_a_run(place: Place) -> None:
    let_go = threading.Event()

    def hang(place: Surroundings) -> str:
        """Hang."""
        let_go.wait(30)
        return ""

    _, events = place.begin([[("hang", {})], "gave up"], [tool(hang, effect="egress", seconds=0.05)],
                            policy=Policy(effects={"egress": "allow"}))  # fmt: skip
    let_go.set()
    assert told(events)[0][0] == "timeout"
    assert ended(events).answer == "gave up"
