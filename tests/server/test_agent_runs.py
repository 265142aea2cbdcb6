"""``/v1/agent/runs`` over a scripted model: runs in the background, events, decisions, and what a run can be told."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from agent_server import RUNS, AgentServer, Asking, eventually
from prometheus_client.parser import text_string_to_metric_families
from scripted_agent import ScriptedAgent

from qafila.agent.config import Config
from qafila.agent.events import Steered
from qafila.server.traces import Tracer

READ = [("read_file", {"path": "قافلة.txt"})]
WRITE = [("write_file", {"path": "تقرير.txt", "text": "الدليل سلمى، وعدد الجمال ١٢"})]


@pytest.fixture
def place(tmp_path, serving):
    return AgentServer(tmp_path, serving)


def test_a_run_from_its_goal_to_its_answer(place):
    (place.workspace / "قافلة.txt").write_text("الدليل اسمها سلمى.\n", encoding="utf-8")
    with place.serve([READ, "الدليل هي سلمى."]) as ask:
        goal = "اقرأ قافلة.txt وقل لي من الدليل (reply in Arabic)"
        answer = httpx.post(ask.url + RUNS, json={"goal": goal, "tools": ["read_file"], "budget": {"steps": 3}})
        assert answer.status_code == 201
        begun = answer.json()
        assert (begun["object"], begun["goal"], begun["model"]) == ("agent.run", goal, "scripted")
        events = ask.watch(begun["id"])
        assert [kind for kind, _ in events] == ["began", "answered", "observed", "answered", "ended", "end"]
        assert [data["number"] for _, data in events[:-1]] == [0, 1, 2, 3, 4]
        assert [data["step"] for _, data in events[:-1]] == [0, 1, 1, 2, 2]
        assert events[2][1]["event"]["observation"]["text"] == "الدليل اسمها سلمى."
        call = events[1][1]["event"]["message"]["tool_calls"][0]["function"]
        assert call["name"] == "read_file"
        assert "قافلة.txt" in call["arguments"]
        # The server's folders are its own affair.
        assert events[0][1]["event"]["workspace"] == "workspace"
        assert "policy" not in events[0][1]["event"]
        assert str(place.workspace) not in str(events)
        run = ask.run(begun["id"])
        assert events[-1][1] == run
        expected = {"state": "done", "reason": "done", "answer": "الدليل هي سلمى.", "steps": 2, "events": 5}
        assert {key: run[key] for key in expected} == expected
        assert run["usage"] == {"read": 20, "cached": 8, "generated": 4}
        assert run["pending"] == []


def test_what_the_agent_can_do(place):
    with place.serve([], tools=("calculate", "write_file")) as ask:
        found = ask.get("/v1/agent")
        assert found["enabled"]
        assert found["models"] == ["scripted"]
        assert [(one["name"], one["effect"], one["origin"]) for one in found["tools"]] == [
            ("calculate", "pure", "built-in"),
            ("write_file", "write", "built-in"),
        ]
        assert found["choosing"] is None  # no model is loaded to look
        ask.watch(ask.begin())
        assert ask.get("/v1/agent")["choosing"] == "free"
        error = ask.post(RUNS, {"goal": "x", "tools": ["read_file"]}, status=400)["error"]
        assert (error["param"], error["message"]) == (
            "tools",
            "tools: there is no tool 'read_file' here; there are calculate, write_file",
        )


def test_a_stream_from_the_start(place):
    with place.serve([READ]) as ask, ask.stream("POST", RUNS, json={"goal": "x", "stream": True}) as told:
        events = list(told)
        assert [kind for kind, _, _ in events] == ["run", "began", "answered", "observed", "answered", "ended", "end"]
        assert [number for _, _, number in events] == [None, "0", "1", "2", "3", "4", None]
        assert events[0][1]["id"] == events[-1][1]["id"]


def test_watchers_see_the_same_and_come_and_go(place):
    hold = asyncio.Event()
    client = ScriptedAgent([READ, WRITE, "fine"], delay=0.05, hold=hold)
    with place.serve(client) as ask, ThreadPoolExecutor(4) as pool:
        run = ask.begin()
        watchers = [pool.submit(ask.watch, run) for _ in range(3)]
        with ask.stream("GET", f"{RUNS}/{run}/events") as told:
            assert next(told)[0] == "began"  # and goes away
        hold.set()
        first, *others = (watcher.result(30) for watcher in watchers)
        assert [kind for kind, _ in first][-2:] == ["ended", "end"]
        assert all(other == first for other in others)
        assert client.cancelled == 0
        # Later, and in parts.
        assert ask.watch(run) == first
        assert ask.watch(run, after=2) == first[3:]
        with ask.stream("GET", f"{RUNS}/{run}/events", headers={"Last-Event-ID": "4"}) as told:
            assert [(kind, data) for kind, data, _ in told] == first[5:]
        listed = ask.get(f"{RUNS}/{run}/events?after=2", headers={"Accept": "application/json"})
        assert listed["data"] == [data for _, data in first[3:-1]]


def test_calls_of_one_answer_wait_together(place):
    names = ("أ.txt", "b.txt", "c.txt")
    writes = [("write_file", {"path": name, "text": "x"}) for name in names]
    with place.serve([writes, "done"], free=False) as ask:
        run = ask.begin("write them")
        assert [kind for kind, _ in ask.watch(run)] == ["began", "answered", *["asked"] * 3, "ended", "end"]
        calls = [one["call"] for one in ask.run(run)["pending"]]
        assert calls == ["0.0", "0.1", "0.2"]
        assert [(one["run"], one["call"]) for one in ask.get("/v1/agent/approvals")["data"]] == [
            (run, c) for c in calls
        ]
        some = ask.post(f"{RUNS}/{run}/decide", {"calls": ["0.1"], "allowed": False, "reason": "not b"})
        assert (some["state"], [one["call"] for one in some["pending"]]) == ("waiting", ["0.0", "0.2"])
        for wrong in (["0.1"], ["0.0", "0.1"], ["0.0", "9.9"]):
            error = ask.post(f"{RUNS}/{run}/decide", {"calls": wrong, "allowed": True}, status=409)["error"]
            assert error["message"] == f"call {wrong[-1]!r} of run {run} waits for nobody's word"
        for wrong in ([], ["0.0"] * 1025, "0.0", None):
            assert ask.post(f"{RUNS}/{run}/decide", {"calls": wrong, "allowed": True}, status=400)
        assert not any(map(place.file, names))
        ask.post(f"{RUNS}/{run}/decide", {"calls": ["0.2", "0.0"], "allowed": True})
        kinds = [kind for kind, _ in ask.watch(run, after=5)]
        assert kinds[:4] == ["decided", "resumed", "decided", "decided"]
        assert [place.file(name) for name in names] == ["x\n", None, "x\n"]


def test_words_on_several_calls_may_come_at_once(place):
    writes = [("write_file", {"path": f"{number}.txt", "text": "x"}) for number in range(6)]
    with place.serve([writes, "done"], free=False) as ask:
        run = ask.begin("write them")
        ask.watch(run)

        def decide(number: int) -> int:
            body = {"calls": [f"0.{number}"], "allowed": True}
            return httpx.post(f"{ask.url}{RUNS}/{run}/decide", json=body, timeout=30).status_code

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(decide, range(6))) == [200] * 6
        ask.until(run, "done")
        assert all(place.file(f"{number}.txt") == "x\n" for number in range(6))


def test_what_writes_waits_for_a_word_and_happens_once(place):
    with place.serve([WRITE, "done"], free=False) as ask:
        run = ask.begin("write تقرير.txt")
        kinds = [kind for kind, _ in ask.watch(run)]
        assert kinds == ["began", "answered", "asked", "ended", "end"]
        found = ask.run(run)
        assert (found["state"], found["reason"]) == ("waiting", "waiting")
        (pending,) = found["pending"]
        assert (pending["call"], pending["name"], pending["effect"]) == ("0.0", "write_file", "write")
        assert pending["edits"][0]["path"] == "تقرير.txt"
        assert "+الدليل سلمى، وعدد الجمال ١٢" in pending["edits"][0]["diff"]
        (approval,) = ask.get("/v1/agent/approvals")["data"]
        assert approval.pop("run") == run
        assert approval.pop("goal") == "write تقرير.txt"
        assert approval.pop("at") > 1e9
        assert approval == pending
        assert place.file("تقرير.txt") is None
        (event,) = [data["event"] for kind, data in ask.watch(run) if kind == "asked"]
        assert set(event["intent"]["edits"][0]) == {"path", "diff"}
        wrong = ask.post(f"{RUNS}/{run}/decide", {"calls": ["9.9"], "allowed": True}, status=409)["error"]
        assert wrong["message"] == f"call '9.9' of run {run} waits for nobody's word"

        def decide(_: int) -> int:
            body = {"calls": ["0.0"], "allowed": True}
            return httpx.post(f"{ask.url}{RUNS}/{run}/decide", json=body, timeout=30).status_code

        with ThreadPoolExecutor(6) as pool:
            assert sorted(pool.map(decide, range(6))) == [200, *[409] * 5]
        kinds = [kind for kind, _ in ask.watch(run, after=3)]
        assert kinds == ["resumed", "decided", "intended", "observed", "answered", "ended", "end"]
        assert place.file("تقرير.txt") == WRITE[0][1]["text"] + "\n"
        assert ask.get("/v1/agent/approvals")["data"] == []
        assert decide(0) == 409
        taken = ask.post(f"{RUNS}/{run}/undo", {"all": True})
        assert taken["object"] == "agent.undo"
        assert [edit["path"] for edit in taken["edits"]] == ["تقرير.txt"]
        assert place.file("تقرير.txt") is None
        assert "nothing" in ask.post(f"{RUNS}/{run}/undo", status=409)["error"]["message"]


def test_a_no_with_a_reason(place):
    with place.serve([WRITE, "as you like"], free=False) as ask:
        run = ask.begin()
        ask.watch(run)
        ask.post(f"{RUNS}/{run}/decide", {"calls": ["0.0"], "allowed": False, "reason": "ليس الآن"})
        events = ask.watch(run, after=3)
        (observed,) = [data["event"]["observation"] for kind, data in events if kind == "observed"]
        assert (observed["status"], observed["text"]) == ("refused", "ليس الآن")
        assert events[-1][1]["answer"] == "as you like"
        assert place.file("تقرير.txt") is None


def test_a_decision_the_moment_it_is_asked(place):
    """Whoever sees the question in the stream may answer before the run has come to rest."""
    with place.serve([WRITE, "done"], free=False) as ask:
        run = ask.begin()
        with ask.stream("GET", f"{RUNS}/{run}/events") as told:
            assert any(kind == "asked" for kind, _, _ in told)
            ask.post(f"{RUNS}/{run}/decide", {"calls": ["0.0"], "allowed": True})
        assert ask.until(run, "done")["answer"] == "done"


def test_another_process_works_on_it(place):
    with place.serve([WRITE], free=False) as ask:
        run = ask.begin()
        ask.watch(run)
        journal = place.journal()
        with journal.hold(run):
            for path, body in (("decide", {"calls": ["0.0"], "allowed": True}), ("resume", {}), ("undo", {})):
                error = ask.post(f"{RUNS}/{run}/{path}", body, status=409)["error"]
                assert "is being worked on by another process" in error["message"]
            ask.post(f"{RUNS}/{run}/say", {"text": "قل شيئًا"})
            ask.post(f"{RUNS}/{run}/stop")
        assert [(kind, text) for _, kind, text in journal.wishes(run)] == [
            ("steer", "قل شيئًا"),
            ("cancel", ""),
        ]
        journal.close()
        # Nothing of it went on, and what was said is read when it does.
        assert ask.run(run)["state"] == "waiting"
        ask.post(f"{RUNS}/{run}/decide", {"calls": ["0.0"], "allowed": True})
        assert "قل شيئًا" in str(ask.watch(run, after=3))
        assert place.file("تقرير.txt") is not None


def test_said_stopped_and_resumed(place):
    hold = asyncio.Event()
    client = ScriptedAgent(["first", "second"], hold=hold)
    with place.serve(client) as ask:
        run = ask.begin()
        eventually(lambda: client.asked)
        assert ask.run(run)["state"] == "running"
        assert "is being worked on" in ask.post(f"{RUNS}/{run}/resume", {}, status=409)["error"]["message"]
        ask.post(f"{RUNS}/{run}/stop")
        stopped = ask.until(run, "stopped")
        assert (stopped["reason"], stopped["detail"], stopped["answer"]) == ("cancelled", "stopped by the user", None)
        assert client.cancelled == 1
        assert "nobody works on it" in ask.post(f"{RUNS}/{run}/stop", status=409)["error"]["message"]
        hold.set()
        ask.post(f"{RUNS}/{run}/resume")
        assert ask.until(run, "done")["answer"] == "first"
        ask.post(f"{RUNS}/{run}/say", {"text": "one"})
        ask.post(f"{RUNS}/{run}/resume", {"text": "اثنان"})
        assert ask.watch(run)[-1][1]["answer"] == "second"
        assert [message.text for message in client.asked[-1].messages[-2:]] == ["اثنان", "one"]


def test_a_fork(place):
    with place.serve([READ, "answer"]) as ask:
        run = ask.begin("الهدف")
        whole = ask.watch(run)
        new = ask.post(f"{RUNS}/{run}/fork", {"event": 2})
        assert new["id"] != run
        assert (new["goal"], new["events"], new["state"], new["reason"]) == ("الهدف", 3, "stopped", None)
        assert ask.watch(new["id"])[-1][0] == "end"  # nobody works on it
        ask.post(f"{RUNS}/{new['id']}/resume")
        told = ask.watch(new["id"])
        assert [kind for kind, _ in told] == [kind for kind, _ in whole]
        error = ask.post(f"{RUNS}/{run}/fork", {"event": 99}, status=400)["error"]
        assert error["message"] == f"run {run} has events 0 to 4, not 99"
        assert "exact log-probabilities" in ask.get(f"{RUNS}/{run}/explain/1", status=400)["error"]["message"]


def test_pages_of_runs(place):
    with place.serve([]) as ask:
        runs = [ask.begin(f"هدف {number}") for number in range(5)]
        first = ask.get(f"{RUNS}?limit=2")
        assert [one["id"] for one in first["data"]] == runs[:2:-1]
        assert first["has_more"]
        rest = ask.get(f"{RUNS}?limit=3&after={runs[3]}")
        assert [one["id"] for one in rest["data"]] == runs[2::-1]
        assert not rest["has_more"]
        assert ask.get(f"{RUNS}?after={runs[0]}")["data"] == []
        assert ask.get(f"{RUNS}?after=nonsense", status=400)["error"]["param"] == "after"


@pytest.fixture
def statements():
    """What databases are asked from now on."""
    asked: list[str] = []

    def note(_connection, _cursor, statement, *_):
        if "agent_inbox" not in statement:  # a run that is worked on looks there all the time
            asked.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield asked
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


def test_a_list_of_runs_reads_no_events(place, statements):
    hold = asyncio.Event()
    script = ScriptedAgent([READ, WRITE, "fine"])
    with place.serve(script, free=False) as ask:
        done, waiting = ask.begin("اقرأ", budget={"steps": 1}), ask.begin("اكتب")
        for run in (done, waiting):
            ask.watch(run)
        script.hold = hold
        working = ask.begin("اعمل")
        eventually(lambda: len(script.asked) == 4)
        journal = place.journal()
        began = journal.events(done)[0].event
        journal.begin(began, "a" * 12)  # its process was killed
        for number in range(1, 200):
            journal.add("a" * 12, number, Steered(text="أسرع"))
        journal.close()
        del statements[:]
        rows = ask.get(RUNS)["data"]
        asked = list(statements)
        found = [(one["state"], one["reason"], one["events"]) for one in rows]
        assert found == [
            ("stopped", None, 200),
            ("running", None, 1),
            ("waiting", "waiting", 6),
            ("stopped", "steps", 4),
        ]
        assert [one["id"] for one in rows] == ["a" * 12, working, waiting, done]
        for row in rows:
            whole = ask.run(row["id"])
            assert row == {name: whole[name] for name in row}
        # One question for all, and whether the one without an end is worked on; never what happened in them.
        assert not any("body" in statement for statement in asked)
        assert len([statement for statement in asked if "agent_events" in statement]) == 1
        counts = []
        for more in (0, 5):
            for _ in range(more):
                ended = ask.post(f"{RUNS}/{done}/fork", {"event": 3})["id"]
                assert ask.run(ended)["reason"] == "steps"
            del statements[:]
            ask.get(RUNS)
            counts.append(len(statements))
        assert counts[0] == counts[1]
        hold.set()
        ask.until(working, "waiting")


def test_no_more_at_once_than_the_operator_wants(place):
    hold = asyncio.Event()
    client = ScriptedAgent([], hold=hold)
    with place.serve(client, at_once=2) as ask:
        runs = [ask.begin() for _ in range(4)]
        eventually(lambda: len(client.asked) == 2)
        assert [ask.run(run)["state"] for run in runs] == ["running"] * 4
        ask.post(f"{RUNS}/{runs[3]}/stop")  # before its turn has come
        hold.set()
        assert [ask.watch(run)[-1][1]["state"] for run in runs] == ["done", "done", "done", "stopped"]
        assert len(client.asked) == 3


def test_no_more_in_all_than_there_is_room_for(place, monkeypatch):
    monkeypatch.setattr("qafila.server.agent_runs._MOST_OF_ONE", 2)
    client = ScriptedAgent([], hold=asyncio.Event())
    with place.serve(client, at_once=1) as ask:
        runs = [ask.begin() for _ in range(2)]
        answer = httpx.post(ask.url + RUNS, json={"goal": "x"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
        ask.post(f"{RUNS}/{runs[0]}/stop")
        ask.until(runs[0], "stopped")
        eventually(lambda: httpx.post(ask.url + RUNS, json={"goal": "x"}).status_code == 201)


def test_a_budget_of_cost_where_there_are_prices(place):
    script = [[("calculate", {"expression": f"{number} + 1"})] for number in range(9)]
    prices = {"read": 10, "cached": 5, "generated": 20}
    with place.serve(script, config=Config.model_validate({"prices": prices})) as ask:
        # Each answer: 6 tokens read for 10, 4 out of the cache for 5, 2 written for 20, of a million.
        run = ask.begin(budget={"cost": 0.0002})
        found = ask.watch(run)[-1][1]
        assert (found["reason"], found["steps"]) == ("cost", 2)
        assert found["cost"] == pytest.approx(2 * 0.00012)
        assert found["detail"] == "the budget of 0.0002 cost is used up"
        ask.post(f"{RUNS}/{run}/resume")  # as much again
        assert ask.watch(run)[-1][1]["steps"] == 4
        assert ask.watch(ask.begin(budget={"cost": None, "steps": 1}))[-1][1]["reason"] == "steps"


def test_a_model_that_fails(place):
    from qafila.errors import ChatError

    with place.serve([ChatError("messages: too many")]) as ask:
        run = ask.begin()
        found = ask.watch(run)[-1][1]
        assert (found["state"], found["detail"]) == ("failed", "messages: too many")


def test_what_is_counted(place):
    with place.serve([WRITE], free=False) as ask:
        ask.watch(ask.begin())

        def samples() -> dict[str, Any]:
            text = httpx.get(f"{ask.url}/metrics").text
            found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
            return {"".join([one.name, *one.labels.values()]): one.value for one in found if "agent" in one.name}

        found = samples()
        assert found["qafila_agent_runs_totalwaiting"] == 1
        assert found["qafila_agent_steps_total"] == 1
        assert found["qafila_agent_waiting"] == 1
        (approval,) = ask.get("/v1/agent/approvals")["data"]
        ask.post(f"{RUNS}/{approval['run']}/decide", {"calls": [approval["call"]], "allowed": True})
        ask.watch(approval["run"])
        assert samples()["qafila_agent_waiting"] == 0


def test_each_step_is_a_span(place):
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    with place.serve([READ, "x"], tracer=Tracer(exporter)) as ask:
        run = ask.begin()
        ask.watch(run)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["chat scripted"] * 2
    assert {span.attributes["qafila.request.id"] for span in spans} == {run}
    assert {span.attributes["gen_ai.usage.input_tokens"] for span in spans} == {10}
    assert {span.attributes["http.route"] for span in spans} == {RUNS}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "goal", "goal: Field required"),
        ({"goal": " \n"}, "goal", "goal: is empty; say something"),
        ({"goal": "a\0b"}, "goal", "goal: holds what is no text (NUL, or half a surrogate pair)"),
        ({"goal": "x" * 100_001}, "goal", "at most 100000 characters"),
        ({"goal": "x", "workspace": "/"}, "workspace", "workspace: unknown option"),
        ({"goal": "x", "budget": {"steps": 0}}, "budget.steps", "greater than or equal to 1"),
        ({"goal": "x", "budget": {"tokens": 0}}, "budget.tokens", "greater than or equal to 1"),
        ({"goal": "x", "budget": {"seconds": 0}}, "budget.seconds", "greater than 0"),
        ({"goal": "x", "budget": {"cost": 1}}, "budget.cost", "budget.cost: this server knows no prices ("),
        ({"goal": "x", "budget": {"cost": 0}}, "budget.cost", "budget.cost: Input should be greater than 0"),
        ({"goal": "x", "budget": {"cost": "1"}}, "budget.cost", "budget.cost: Input should be a valid number"),
        ({"goal": "x", "budget": {"hours": 1}}, "budget.hours", "unknown option"),
        ({"goal": "x", "tools": ["اقرأ_ملف"]}, "tools", "there is no tool 'اقرأ_ملف' here"),
        ({"goal": "x", "model": "gpt-9"}, "model", "not served here"),
        ({"goal": "x", "choosing": "guess"}, "choosing", "'free' or 'likelihood'"),
        ({"goal": "x", "choosing": "likelihood"}, "choosing", "scripted gives no exact likelihoods"),
        ({"goal": "x", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"goal": "x", "temperature": 3}, "temperature", "less than or equal to 2"),
        ({"goal": "x", "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ],
)
def test_what_is_no_run(one_server, body, param, message):
    status = 404 if param == "model" else 400
    error = one_server.post(RUNS, body, status=status)["error"]
    assert error["param"] == param
    assert message in error["message"]


def test_wrong_ids_paths_and_cursors(one_server):
    ask = one_server
    run = ask.begin()
    for wrong in ("0123456789ab", "last", "%00", "قافلة", "x" * 200):
        for path in ("", "/events", "/explain/1"):
            assert ask.get(f"{RUNS}/{wrong}{path}", status=404)["error"]["type"] == "not_found_error"
        for path, body in BODIES.items():
            ask.post(f"{RUNS}/{wrong}/{path}", body, status=404)
    for after in ("x", "-2", "1e3", "٣", "9" * 30):
        assert ask.get(f"{RUNS}/{run}/events?after={after}", status=400)["error"]["param"] == "after"
        assert ask.get(f"{RUNS}/{run}/events", status=400, headers={"Last-Event-ID": "x"})["error"]["param"] == "after"
    for limit in ("0", "101", "-1", "many"):
        assert ask.get(f"{RUNS}?limit={limit}", status=400)["error"]["param"] == "limit"
    assert ask.get(f"{RUNS}?order=asc", status=400)["error"]["message"] == "order: unknown option"
    for path, body in BODIES.items():
        error = ask.post(f"{RUNS}/{run}/{path}", {**(body or {}), "force": True}, status=400)["error"]
        assert error["param"] == "force"
    assert ask.post(f"{RUNS}/{run}/say", {"text": " "}, status=400)["error"]["param"] == "text"
    assert ask.post(f"{RUNS}/{run}/fork", {"event": -1}, status=400)["error"]["param"] == "event"


BODIES: dict[str, Any] = {
    "decide": {"calls": ["0.0"], "allowed": True},
    "say": {"text": "hi"},
    "stop": None,
    "resume": None,
    "undo": None,
    "fork": {"event": 0},
}


@pytest.fixture(scope="module")
def one_server(tmp_path_factory, serving):
    with AgentServer(tmp_path_factory.mktemp("agent"), serving).serve([]) as ask:
        yield ask


def test_without_an_agent(scripted_server):
    ask = Asking(scripted_server()[0])
    assert not ask.get("/v1/agent")["enabled"]  # a page asks every server: to browsers a 404 is an error
    paths = ["/runs", "/runs/abc", "/runs/abc/events", "/runs/abc/explain/1", "/approvals"]
    errors = [ask.get(f"/v1/agent{path}", status=404)["error"] for path in paths]
    errors += [ask.post(f"{RUNS}/abc/{path}", body, status=404)["error"] for path, body in BODIES.items()]
    errors.append(ask.post(RUNS, {"goal": "x"}, status=404)["error"])
    assert {(error["message"], error["code"]) for error in errors} == {
        ("no agent works here; `qafila serve --agent FOLDER` gives it a folder to work in", "no_agent")
    }
