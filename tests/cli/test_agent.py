"""`qafila agent`, as a user calls it: by a script, and with the default model."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted_agent import Answer, ScriptedAgent

from qafila.agent.events import Asked, Intended
from qafila.agent.journal import Journal
from qafila.cli.agent_question import ask_at_terminal
from qafila.cli.main import main

WRITE: Answer = [("write_file", {"path": "a.txt", "text": "new"})]


class Shell:
    """Calls the command line in a folder of its own, with a model that follows a script."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.workspace, self.patch, self.capsys = folder / "files", patch, capsys
        self.workspace.mkdir()
        self.url = f"sqlite:///{folder}/agent.sqlite3"
        patch.setenv("QAFILA_AGENT_DATABASE", self.url)
        patch.chdir(self.workspace)
        self.opened: list[tuple[str, dict[str, Any]]] = []
        self.clients: list[ScriptedAgent] = []

    def script(self, answers: Sequence[Answer], **options: Any) -> None:
        def open_client(model: str, **given: Any) -> ScriptedAgent:
            self.opened.append((model, given))
            self.clients.append(ScriptedAgent(answers, name=model, **options))
            return self.clients[-1]

        self.patch.setattr("qafila.cli.agent.open_client", open_client)

    def __call__(self, *args: str, status: int = 0) -> tuple[str, str]:
        found = main(["agent", *args])
        told = self.capsys.readouterr()
        assert found == status, told.err
        return told.out, told.err

    def error(self, *args: str) -> str:
        out, err = self(*args, status=2)
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return line

    def file(self, name: str) -> str | None:
        path = self.workspace / name
        return path.read_text() if path.exists() else None

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self("runs", "--json")[0])
        return found


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    made = Shell(tmp_path, monkeypatch, capsys)
    made.script([[("calculate", {"expression": "6*7"})], "It is 42."])
    yield made
    assert all(client.closed for client in made.clients if client.asked)


def test_the_answer_is_on_standard_output_and_the_steps_beside_it(shell: Shell) -> None:
    out, err = shell("What is 6 times 7?")
    assert out.strip() == "It is 42."
    assert 'calculate(expression="6*7")' in err
    assert "→ 42" in err
    assert "done; 2 steps, 20 tokens read (40% reused), 4 written" in err
    (run,) = shell.runs()
    assert (run["status"], run["goal"], run["events"]) == ("done", "What is 6 times 7?", 5)
    assert f"run {run['id']}" in err
    assert shell.opened[0][0] == "default"


def test_json_is_one_object_and_nothing_else(shell: Shell) -> None:
    out, err = shell("What is 6 times 7?", "--json", "-m", "other")
    assert err == ""
    found = json.loads(out)
    assert (found["status"], found["answer"], found["steps"], found["model"]) == ("done", "It is 42.", 2, "other")
    assert found["usage"]["prompt_tokens"] == 20
    assert [event["kind"] for event in found["events"]] == ["began", "answered", "observed", "answered", "ended"]
    assert json.loads(shell("show", found["id"], "--json")[0])["events"] == found["events"]


def test_the_goal_comes_from_standard_input(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("احسب\n6*7".encode())))
    shell("-")
    assert shell.runs()[0]["goal"] == "احسب\n6*7"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert "not UTF-8" in shell.error("-")


def test_options_reach_the_run(shell: Shell) -> None:
    shell("go", "--tools", "calculate, read_file", "--seed", "7", "-t", "0.5", "-n", "9", "-s", "Be brief.", "--json")
    (asked, *_) = shell.clients[0].asked
    assert [one.name for one in asked.tools] == ["calculate", "read_file"]
    assert (asked.generation.seed, asked.generation.temperature, asked.generation.max_tokens) == (7, 0.5, 9)
    assert asked.messages[0].text.endswith("\nBe brief.")
    shell.script(["no tools"])
    shell("go", "--tools", "none")
    assert shell.clients[-1].asked[0].tools == ()


def test_ten_tools_are_told_and_the_others_are_found(shell: Shell) -> None:
    shell.script([[("find_tools", {"words": "a helper for a part of the task"})], "found"])
    shell("go", "--steps", "1", status=1)
    asked = shell.clients[-1].asked
    assert len(asked[0].tools) == 10
    assert asked[0].tools[-1].name == "find_tools"
    shell("resume", "last")
    (asked_again,) = shell.clients[-1].asked
    assert asked_again.tools == asked[0].tools
    assert "delegate" in [one.name for one in asked_again.untold]
    shell.script(["none"])
    shell("go", "--tools", "calculate,find_tools", "--json")
    shell("resume", "last", "and now?")
    assert [one.name for one in shell.clients[-1].asked[0].tools] == ["calculate", "find_tools"]
    assert "there is no tool 'find'; there are list_files, " in shell.error("go", "--tools", "find")


PRICES = ("--price-read", "10", "--price-generated", "20")


def test_a_run_has_a_budget_of_cost_and_again_where_it_is_resumed(shell: Shell) -> None:
    # Each answer costs (6 read + 4 cached) * 10 and 2 written * 20 of a million.
    shell.script([[("calculate", {"expression": f"1+{i}"})] for i in range(9)])
    _, err = shell("go", *PRICES, "--cost", "0.00028", status=1)
    assert "stopped: cost (the budget of 0.00028 cost is used up)" in err
    assert "done" not in err
    assert "2 steps" in err
    assert "cost 0.00028" in err
    found = json.loads(shell("resume", "last", "--json", status=1)[0])
    assert (found["status"], found["steps"]) == ("cost", 4)
    assert found["usage"]["cost"] == pytest.approx(0.00056)
    shell("go", *PRICES, "--price-cached", "1", "--steps", "1", status=1)
    assert json.loads(shell("show", "last", "--json")[0])["usage"]["cost"] == pytest.approx(104e-6)


def test_prices_may_stand_in_the_settings(shell: Shell, tmp_path: Path) -> None:
    settings = tmp_path / "agent.toml"
    settings.write_text("[prices]\nread = 10\ngenerated = 20\ncached = 1\n", encoding="utf-8")
    given = ("--config", str(settings), "--steps", "1", "--cost", "1")
    shell.script([[("calculate", {"expression": "1+1"})]])
    shell("go", *given, status=1)
    assert json.loads(shell("show", "last", "--json")[0])["usage"]["cost"] == pytest.approx(104e-6)
    shell("go", *given, *PRICES, status=1)  # what the command line says is all that counts
    assert json.loads(shell("show", "last", "--json")[0])["usage"]["cost"] == pytest.approx(140e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cost", "1"], "--cost: needs what tokens cost"), (["--price-read", "1"], "--price-generated is missing"),
        (["--price-generated", "1"], "--price-read is missing"), (["--price-cached", "1"], "--price-read is missing"),
        ([*PRICES, "--cost", "0"], "--cost 0: nothing can be done"), ([*PRICES, "--cost", "nan"], "--cost nan"),
        (["--price-read", "-1", "--price-generated", "1"], "--price-read -1"),
        ([*PRICES, "--cost", "inf"], "--cost inf"),
        (["--price-read", "0", "--price-generated", "0", "--cost", "1"], "--cost: can never be reached"),
    ],
)  # fmt: skip
def test_costs_that_make_no_sense_are_refused(shell: Shell, options: list[str], words: str) -> None:
    assert words in shell.error("go", *options)
    assert shell.clients == []


def test_a_helper_waits_is_shown_approved_and_counted(shell: Shell) -> None:
    # The run and its part follow one script; the part has too few steps to have a part of its own.
    delegated: Answer = [("delegate", {"goal": "write it", "steps": 2})]
    shell.script([delegated, WRITE, "written"])
    _, err = shell("go", "--tools", "delegate,write_file", "--steps", "30")
    assert "stopped: waiting (delegate: in its part " in err
    whole = next(run for run in shell.runs() if run["parent"] is None)
    (part,) = (run for run in shell.runs() if run["parent"] is not None)
    assert (part["parent"], part["forked_at"]) == (whole["id"], None)
    listed, _ = shell("runs")
    assert f"(part of {whole['id']}) write it" in listed
    shown, _ = shell("show", whole["id"])
    assert "has a part: run " in shown
    assert "waits for a word on (in its part " in shown
    assert "+new" in shown
    assert f"part of run {whole['id']}, call 0.0" in shell("show", part["id"])[0]
    told = json.loads(shell("show", whole["id"], "--json")[0])
    (waits,) = told["waits_for"]
    assert (told["parts"], waits["run"], waits["name"]) == ([part["id"]], part["id"], "write_file")
    assert waits["edits"][0]["path"] == "a.txt"
    assert "go on with that one" in shell("resume", part["id"], status=2)[1]
    assert f"is a part of run {whole['id']}; approve that one" in shell("approve", part["id"], status=2)[1]
    _, err = shell("approve", whole["id"])
    while "stopped: waiting" in err:
        _, err = shell("approve", "last")
    assert shell.file("a.txt") == "new\n"
    found = json.loads(shell("show", "last", "--json")[0])
    assert (found["id"], found["part_of"], found["status"]) == (whole["id"], None, "done")
    assert found["delegated_steps"] > 0
    assert found["usage"]["prompt_tokens"] == 10 * (found["steps"] + found["delegated_steps"])
    assert f"{found['steps']} steps and {found['delegated_steps']} in its parts" in err


def test_files_are_changed_in_the_workspace_where_yes_is_said(shell: Shell, tmp_path: Path) -> None:
    shell.script([WRITE, "written"])
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    _, err = shell("write it", "-w", str(folder), "--yes")
    assert (folder / "a.txt").read_text() == "new\n"
    assert shell.file("a.txt") is None
    assert "created a.txt" in err


THREE: Answer = [("write_file", {"path": f"{name}.txt", "text": name}) for name in ("a", "ب", "c")]


def test_several_calls_are_approved_together_or_by_their_numbers(shell: Shell) -> None:
    shell.script([THREE, "done"])
    _, err = shell("go", "--tools", "write_file")
    assert "stopped: waiting (write_file: calls with the effect write are asked about (and 2 more))" in err
    shown, _ = shell("show", "last")
    for number, name in enumerate(("a", "ب", "c"), 1):
        assert f'waits for a word on {number} of 3:\nwrite_file(path="{name}.txt", text="{name}")' in shown
    assert "waits for a word on 3; see `show" in shell.error("approve", "last", "--only", "4")
    _, err = shell("approve", "last", "--only", "2", "--deny")
    assert ("ب.txt" in err, "a.txt" in err.split("not allowed")[0]) == (True, False)
    assert shell.file("a.txt") is None
    waits = json.loads(shell("show", "last", "--json")[0])["waits_for"]
    assert [one["call"] for one in waits] == ["0.0", "0.2"]
    out, _ = shell("approve", "last")
    assert out == "done\n"
    assert [shell.file(f"{name}.txt") for name in ("a", "ب", "c")] == ["a\n", None, "c\n"]


@pytest.fixture
def typed_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes a terminal of standard input, at which somebody types this (``\x04`` is Ctrl-D)."""
    keyboard, terminal = pty.openpty()

    def typed(text: str) -> None:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        os.write(keyboard, text.encode("utf-8", "surrogateescape"))

    with os.fdopen(terminal, encoding="utf-8") as stdin:
        yield typed
    os.close(keyboard)


@pytest.mark.parametrize(
    ("typed", "files", "status"),
    [
        ("y\n", "a ب c", "done"), ("what?\nنعم\n", "a ب c", "done"), ("n\n", "", "done"), ("l\n", "", "waiting"),
        ("", "", "waiting"), ("o\ny\nn\nنعم\n", "a c", "done"), ("o\ny\nlater\nn\n", "", "waiting"),
        ("o\no\ny\ny\ny\n", "a ب c", "done"),
    ],
)  # fmt: skip
def test_who_sits_at_the_terminal_is_asked_once(
    shell: Shell, typed_at: Callable[[str], None], typed: str, files: str, status: str
) -> None:
    shell.script([THREE, "done"])
    typed_at(f"{typed}\x04")
    _, err = shell("go", "--tools", "write_file")
    assert err.count("carry out all of them? [y]es, [n]o, [o]ne by one, [l]ater: ") == 1 + ("what" in typed)
    assert '2 of 3: write_file(path="ب.txt", text="ب")' in err
    assert [name for name in ("a", "ب", "c") if shell.file(f"{name}.txt")] == files.split()
    assert shell.runs()[0]["status"] == status


def test_ctrl_c_at_a_question_ends_it_and_the_run_waits(shell: Shell, typed_at: Callable[[str], None]) -> None:
    shell.script([WRITE, "written"])

    def interrupt() -> None:
        try:
            journal = Journal(shell.url)
            while not any(one.event.kind == "asked" for run in journal.runs() for one in journal.events(run.id)):
                time.sleep(0.02)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    typed_at("")
    other = threading.Thread(target=interrupt)
    other.start()
    out, err = shell("write it")
    other.join()
    assert out == ""
    assert "(stopping; Ctrl-C again leaves at once)" in err
    assert "stopped: waiting" in err
    assert shell("approve", "last")[0].strip() == "written"


def test_a_run_waits_is_shown_approved_and_undone(shell: Shell) -> None:
    shell.script([WRITE, "written"])
    out, err = shell("write it")
    assert out == ""
    assert "stopped: waiting" in err
    assert "qafila agent approve" in err
    assert shell.file("a.txt") is None
    (run,) = shell.runs()
    assert run["status"] == "waiting"
    shown, _ = shell("show", run["id"][:6])
    assert "waits for a word on:" in shown
    assert "+new" in shown
    out, err = shell("approve", "last")
    assert out.strip() == "written"
    assert "+new" in err
    assert shell.file("a.txt") == "new\n"
    assert "waits for nobody's word" in shell.error("approve", "last")
    out, _ = shell("undo", "last")
    assert "-new" in out
    assert shell.file("a.txt") is None
    assert "changed nothing that is still there" in shell.error("undo", "last", "--all")


def test_a_rule_about_a_tool_that_there_is_not_is_told(shell: Shell, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\ntool = "wirte_file"\nthen = "deny"\n[[rule]]\ntool = "mail_*"\nthen = "deny"\n')
    _, err = shell("go", "--policy", str(policy), "--tools", "calculate")
    notes = [line for line in err.splitlines() if line.startswith("note: policy")]
    assert notes == ["note: policy.toml, line 1: there is no tool 'wirte_file' here, so that this rule does nothing"]


def test_a_run_that_is_gone_on_with_keeps_its_policy(shell: Shell, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\ntool = "write_file"\nwhen = { path = "secret/*" }\nthen = "deny"\n')
    secret: Answer = [("write_file", {"path": "secret/b.txt", "text": "new"})]
    shell.script([WRITE, secret, "done", secret, "no", secret, "no"])
    shell("write a.txt and secret/b.txt", "--policy", os.path.relpath(policy))
    # The program itself says how to go on: without an option, what was denied stays denied.
    shell("approve", "last", "--yes")
    shell("resume", "last", "once more", "--yes")
    assert shell.file("a.txt") == "new\n"
    assert shell.file("secret/b.txt") is None
    # A variable is no option: it is for runs that began with no policy.
    (tmp_path / "lax.toml").write_text('[effects]\nwrite = "allow"\n')
    shell.patch.setenv("QAFILA_AGENT_POLICY", str(tmp_path / "lax.toml"))
    shell("resume", "last", "once more: write secret/b.txt", "--yes")
    assert shell.file("secret/b.txt") is None
    shell.patch.delenv("QAFILA_AGENT_POLICY")
    policy.unlink()
    assert f"policy {policy}: no such file; --policy names another" in shell.error("resume", "last", "again")


def test_what_waits_is_shown_whole_and_nothing_in_it_is_unseen(shell: Shell) -> None:
    lines = "\n".join(f"line {number}" for number in range(100))
    shell.script([[("write_file", {"path": "a.txt", "text": f"{lines}\nlast \u202egnp.exe\u2066"})], "written"])
    shell("write it")
    shown, _ = shell("show", "last")
    assert "+line 99\n+last <U+202E>gnp.exe<U+2066>" in shown
    _, err = shell("approve", "last")
    assert "+line 99\n+last <U+202E>gnp.exe<U+2066>" in err


@pytest.mark.parametrize("long", [True, False])
def test_a_person_who_is_asked_can_see_all_of_it_first(
    long: bool, typed_at: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed_at("a\n\udcff\ny\n")
    address = "https://example.org/" + ("a" * 5000 if long else "a" * 500) + "/end"
    intent = Intended(call="0.0", name="send", arguments={"to": address}, effect="irrevocable", key="k")
    assert asyncio.run(ask_at_terminal([Asked(intent=intent, why="why\x1b[2J")])) == [(True, "")]
    err = capsys.readouterr().err
    # Where nothing but the call says what it does, no value of it is cut.
    assert err.count("/end") == 1
    assert ("[a]ll of what is cut" in err) == long
    assert "\x1b" not in err


def test_no_with_a_reason_is_told_to_the_model(shell: Shell) -> None:
    shell.script([WRITE, "as you like"])
    shell("write it")
    out, err = shell("approve", "last", "--deny", "--reason", "not here")
    assert out.strip() == "as you like"
    assert "refused: not here" in err
    assert shell.file("a.txt") is None


def test_a_run_goes_on_with_a_new_budget_or_something_new(shell: Shell) -> None:
    shell.script([[("calculate", {"expression": "1"})], [("calculate", {"expression": "2"})], "first", "second"])
    _, err = shell("count", "--steps", "1", "--tools", "calculate", status=1)
    assert "stopped: steps (the budget of 1 steps is used up)" in err
    shell("resume", "last", status=1)
    assert shell("resume", "last")[0].strip() == "first"
    assert shell("resume", "last", "and now?")[0].strip() == "second"
    found = json.loads(shell("resume", "last", "again", "--json")[0])
    assert (found["answer"], found["steps"]) == ("done", 5)
    assert [one.name for one in shell.clients[-1].asked[0].tools] == ["calculate"]


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_budget_that_ends_a_run_is_status_one(shell: Shell, json_too: list[str]) -> None:
    out, _ = shell("go", "--tokens", "1", *json_too, status=1)
    if json_too:
        assert json.loads(out)["status"] == "tokens"
    assert shell.runs()[0]["status"] == "tokens"


def test_a_model_that_fails_is_status_one_and_says_why(shell: Shell) -> None:
    from qafila.errors import ContextLengthError

    shell.script([ContextLengthError("the prompt has too many tokens")])
    _, err = shell("go", status=1)
    assert "stopped: failed (the prompt has too many tokens)" in err


def test_stop_and_say_reach_a_run_that_is_worked_on(shell: Shell) -> None:
    shell.script([[("calculate", {"expression": "1"})], "never said"], delay=0.2)
    journal = Journal(shell.url)

    def others() -> None:
        while not (runs := journal.runs()) or not shell.clients or not shell.clients[0].asked:
            time.sleep(0.01)
        assert main(["agent", "say", runs[0].id, "hurry"]) == 0
        assert main(["agent", "stop", runs[0].id]) == 0

    other = threading.Thread(target=others)
    other.start()
    out, err = shell("go", status=1)
    other.join()
    assert f"run {journal.runs()[0].id} stops at its next chance" in out
    assert "you: hurry" in err
    assert "stopped: cancelled" in err
    journal.close()
    assert "nobody works on it" in shell.error("stop", "last")
    assert "TEXT is empty" in shell.error("say", "last", " ")


def test_what_is_said_to_a_run_that_is_not_worked_on_is_read_when_it_is_resumed(shell: Shell) -> None:
    shell("go")
    assert "(or when it is resumed)" in shell("say", "last", "one more thing")[0]
    shell("resume", "last")
    assert [m.text for m in shell.clients[-1].asked[0].messages][-1] == "one more thing"


def test_ctrl_c_stops_a_run_which_can_go_on(shell: Shell) -> None:
    shell.script(["slow answer"], delay=0.4)

    def press() -> None:
        while not shell.clients or not shell.clients[0].asked:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=press)
    other.start()
    out, err = shell("go", status=1)
    other.join()
    assert out == ""
    assert "(stopping; Ctrl-C again leaves at once)" in err
    assert "stopped: cancelled (Ctrl-C)" in err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    shell.script(["answer"])
    assert shell("resume", "last")[0].strip() == "answer"


def test_a_fork_is_a_run_of_its_own(shell: Shell) -> None:
    shell("go")
    new = shell("fork", "last", "2")[0].strip()
    first, second = shell.runs()
    assert (first["id"], first["parent"], first["forked_at"], first["events"]) == (new, second["id"], 2, 3)
    # Nobody works on it: it is not running, and its steps are counted on.
    assert first["status"] == json.loads(shell("show", new, "--json")[0])["status"] == "interrupted"
    shell.script(["", "Another answer."])
    out, err = shell("resume", new)
    assert out.strip() == "Another answer."
    assert "  2  answers " in err
    assert "has events 0 to 4, not 99" in shell.error("fork", second["id"], "99")


def test_a_result_can_be_made_another(shell: Shell) -> None:
    shell("go")
    out, err = shell("replay", "last", "--what-if", "2", "it is 43")
    assert f"qafila agent resume {out.strip()}" in err
    shell("resume", out.strip())
    assert [m.text for m in shell.clients[-1].asked[0].messages][-1] == "it is 43"
    assert "event 1 of run" in shell.error("replay", out.strip(), "--what-if", "1", "x")
    # What comes of it did not happen: only the run itself is remembered.
    (first, second) = shell.runs()
    assert first["parent"] == second["id"]
    assert [one.run for one in Journal(shell.url).memory.list("", kind="episode")] == [second["id"]]
    told = json.loads(shell("replay", second["id"], "--what-if", "2", "it is 44", "--json")[0])
    assert told == {"run": shell.runs()[0]["id"], "parent": second["id"]}
    assert "go with --verify" in shell.error("replay", second["id"], "--what-if", "2", "x", "--threads", "2")


def test_lists_are_short_and_of_this_database(shell: Shell) -> None:
    out, err = shell("runs")
    assert (out, err) == ("", 'no runs yet; `qafila agent "goal"` makes one\n')
    for goal in ("first", "second\nline \x1b[31m"):
        shell(goal)
    lines = shell("runs")[0].splitlines()
    assert len(lines) == 2
    assert "second line" in lines[0]
    assert "\x1b" not in lines[0]
    assert shell("runs", "-n", "1")[0].splitlines() == lines[:1]


def test_of_many_changed_files_a_few_are_named(shell: Shell) -> None:
    shell.script([[("run_command", {"command": "touch $(seq 30)"})], "done"])
    _, err = shell("touch thirty files, run it", "--yes")
    assert "created 1, created 10, created 11," in err
    assert " and 22 more\n" in err


def test_a_hostile_run_cannot_paint_the_terminal(shell: Shell) -> None:
    (shell.workspace / "a\x1b[2J.txt").write_text("x\x1b]0;title\x07")
    shell.script([[("list_files", {})], "bye\x1b[2J"])
    out, err = shell("go \x1b[2J")
    # What goes to a pipe is the answer as it is; what people read holds nothing that a terminal obeys.
    assert out.strip() == "bye\x1b[2J"
    assert "\x1b" not in err + "".join(shell("show", "last"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["show", "last"], "there are no runs yet"), (["resume", "abc"], "there is no run that begins with 'abc'"),
        (["approve", "abc"], "no run"), (["undo", "abc"], "no run"), (["fork", "abc", "1"], "no run"),
        (["stop", "abc"], "no run"), (["say", "abc", "x"], "no run"), (["replay", "abc", "--verify"], "no run"),
        (["replay", "abc"], "--verify"), ([""], "the goal is empty"), (["  \n"], "the goal is empty"),
        (["go", "-w", "/no/such/folder"], "--workspace /no/such/folder: is no folder"),
        (["go", "--tools", "calculate,fly"], "there is no tool 'fly'"), (["go", "--fly"], "--fly"),
        (["go", "--steps", "0"], "--steps"), (["go", "--seed", "-1"], "--seed"), (["go", "too", "many"], "many"),
        (["go", "--choose", "dice"], "dice"), (["go", "--calibration", "/none.json"], "none.json"),
        (["go", "--database", "mysql://x/y"], "database"), (["go", "--database", "x"], "database"),
        (["go\udcff"], "no text"), (["shwo", "last"], "did you mean 'show'"), (["undoo"], "qafila agent begin 'undoo'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_no_run(shell: Shell, args: list[str], words: str) -> None:
    assert words in shell.error(*args)
    assert shell.runs() == []
    # No model is loaded for a mistake.
    assert shell.opened == []


def test_a_goal_may_be_one_word(shell: Shell) -> None:
    for goal in ("احسب", "calculate", "summarise"):
        assert shell(goal)[0].strip() == "It is 42."
    assert shell("begin", "undoo")[0].strip() == "It is 42."
    assert shell("help")[0] == shell("--help")[0]


def test_help_names_every_command(shell: Shell) -> None:
    out, _ = shell("--help")
    for name in ("resume", "approve", "runs", "show", "stop", "say", "undo", "fork", "replay", "calibrate"):
        assert f"  {name} " in out


def test_the_workspace_of_a_run_must_still_be_there(shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    shell("go", "-w", str(folder))
    folder.rmdir()
    assert "is no folder" in shell.error("resume", "last")


def test_the_default_model_works_on_a_goal(
    default_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QAFILA_AGENT_DATABASE", f"sqlite:///{tmp_path}/agent.sqlite3")
    options = ["-m", str(default_gguf), "-w", str(tmp_path), "--tools", "calculate", "--context", "2048", "-n", "48"]
    status = main(["agent", "Compute 1234 * 77.", *options, "--threads", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == (0 if found["status"] == "done" else 1)
    answers = [event for event in found["events"] if event["kind"] == "answered"]
    assert answers
    assert all(event["message"]["ids"] for event in answers)
    assert main(["agent", "replay", "last", "--verify", "--context", "2048", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["same"]
    assert len(verified["answers"]) == len(answers)


def test_a_bad_policy_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("QAFILA_AGENT_DATABASE", f"sqlite:///{tmp_path}/agent.sqlite3")
    policy = tmp_path / "policy.toml"
    policy.write_text("[[rule]]\nthen = 'maybe'\n", encoding="utf-8")
    assert main(["agent", "hi", "--policy", str(policy), "--workspace", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {policy}: line 1: then: 'maybe' is none of allow, ask, deny\n"


def test_what_a_model_elsewhere_cannot_do_is_said_or_refused(shell: Shell) -> None:
    _, err = shell("what is 6*7?")
    assert "note: default gives no likelihoods: no probabilities, replay or explanations" in err.splitlines()
    assert "--choose likelihood: default gives no exact likelihoods" in shell.error("hi", "--choose", "likelihood")
