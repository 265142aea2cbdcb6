"""`qafila serve --agent`: what it refuses, and runs of the default model beside chats."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from agent_server import RUNS, Asking

from qafila.cli.main import main
from qafila.server.assemble import assemble
from qafila.server.local_models import local_entry
from qafila.server.models import Models
from qafila.server.settings import AgentSettings, Settings


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAFILA_DATABASE", f"sqlite:///{tmp_path}/server.sqlite3")
    monkeypatch.setenv("QAFILA_AGENT_DATABASE", f"sqlite:///{tmp_path}/agent.sqlite3")
    for name in ("QAFILA_API_KEY", "QAFILA_AGENT_FOLDER", "QAFILA_AGENT_POLICY"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_refused_before_anything_is_opened(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def refused(*arguments: str) -> str:
        assert main(["serve", "--json", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return str(line)

    folder = str(tmp_path)
    assert refused("--agent", f"{folder}/none") == f"error: --agent {folder}/none: is no folder"
    for option in (("--agent-tools", "read_file"), ("--agent-runs", "2"), ("--agent-policy", "x.toml")):
        assert refused(*option) == "error: --agent-...: there is no agent; add --agent FOLDER"
    tools = refused("--agent", folder, "--agent-tools", "read_file,اقرأ")
    assert "there is no tool 'اقرأ'; there are list_files, " in tools
    policy = tmp_path / "policy.toml"
    policy.write_text("[effects]\nwrite = 'maybe'\n", encoding="utf-8")
    assert "effects.write: 'maybe' is none of" in refused("--agent", folder, "--agent-policy", str(policy))
    assert f"{folder}/none.toml" in refused("--agent", folder, "--agent-policy", f"{folder}/none.toml")
    assert "database" in refused("--agent", folder, "--agent-database", "mysql://x")


def test_runs_of_the_default_model_beside_a_chat(tmp_path: Path, default_gguf: Path, serving: Any) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "caravan.txt").write_text("The guide is called سلمى.\n", encoding="utf-8")
    models = Models({"default": local_entry("default", default_gguf, {"threads": 1, "context": 2048})})
    settings = AgentSettings(tmp_path / "folder", database=f"sqlite:///{tmp_path}/agent.sqlite3")
    app = assemble(models, Settings(), agent=settings)
    with serving(app) as url:
        ask = Asking(url)
        goal = "Read caravan.txt and tell me who the guide is."
        runs = [ask.begin(goal, tools=["read_file"], budget={"steps": 3}, max_tokens=40) for _ in range(2)]
        chat = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        ask.post("/v1/chat/completions", chat)
        first, second = (ask.watch(run) for run in runs)
        assert first[-1][1]["state"] == "done"
        answers = [data["event"] for kind, data in first if kind == "answered"]
        assert answers[0]["decision"]["choosing"] == "likelihood"
        assert [one["name"] for one in answers[0]["decision"]["candidates"]] == ["read_file", ""]
        assert "سلمى" in str(first)
        # The same steps, whatever else is computed beside them; and the second time out of the cache.
        assert [event["event"]["message"] for kind, event in second if kind == "answered"] == [
            one["message"] for one in answers
        ]
        again = ask.watch(ask.begin(goal, tools=["read_file"], budget={"steps": 1}, max_tokens=40))
        assert again[-1][1]["usage"]["cached"] > again[-1][1]["usage"]["read"] / 2
        assert ask.get("/v1/agent")["choosing"] == "likelihood"
        explained = ask.get(f"{RUNS}/{runs[0]}/explain/1")
        assert (explained["object"], explained["event"]) == ("agent.explanation", 1)
        assert {cause["what"] for cause in explained["causes"]} >= {"instructions", "goal"}
        changes = [cause["change"] for cause in explained["causes"]]
        assert changes == sorted(changes, reverse=True)
        assert "is no answer of the model" in ask.get(f"{RUNS}/{runs[0]}/explain/0", status=400)["error"]["message"]


def test_it_stops_while_somebody_watches(tmp_path: Path, default_gguf: Path) -> None:
    command = [sys.executable, "-m", "qafila", "serve", f"default={default_gguf}", "--threads", "1", "--port", "0"]
    folder = tmp_path / "folder"
    folder.mkdir()
    with subprocess.Popen(
        [*command, "--json", "--agent", str(folder), "--agent-tools", "calculate"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = httpx.Response(200, text=server.stdout.readline()).json()["url"]
            ask = Asking(url)
            run = ask.begin("Tell me a very long story.", choosing="free", max_tokens=1500)
            with ask.stream("GET", f"{RUNS}/{run}/events") as told:
                assert next(told)[0] == "began"
                began = time.monotonic()
                server.send_signal(signal.SIGTERM)
                assert list(told) == []
            assert server.wait(20) == 0
            assert time.monotonic() - began < 15
        finally:
            server.kill()
    from qafila.agent.journal import Journal

    journal = Journal(f"sqlite:///{tmp_path}/agent.sqlite3")
    assert [line.status for line in journal.runs()] == ["running"]
    journal.close()
