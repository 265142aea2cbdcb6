"""What the server's agent works with besides its own tools: helpers that need a word, and MCP servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import mcp_peer_at
import pytest
from agent_server import RUNS, AgentServer
from scripted_agent import Answer, ScriptedAgent

from qafila.agent.config import Config
from qafila.agent.mcp.pins import pins_path, read_pins
from qafila.agent.mcp.tools import offered
from qafila.chat.client import ChatRequest, Event
from qafila.cli.main import main


@pytest.fixture
def place(tmp_path, serving):
    return AgentServer(tmp_path, serving)


class Team(ScriptedAgent):
    """Answers each goal by a script of its own."""

    def __init__(self, scripts: dict[str, list[Answer]]) -> None:
        super().__init__([])
        self.scripts = scripts

    async def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        self.answers = self.scripts[request.messages[1].text]
        async for event in super().chat(request):
            yield event


@pytest.mark.parametrize("allowed", [True, False])
def test_what_a_helper_asks_for_is_decided_on_its_run(place, allowed):
    write: Answer = [("write_file", {"path": "a.txt", "text": "new"})]
    team = Team({"do it": [[("delegate", {"goal": "the part"})], "all done"], "the part": [write, "part done"]})
    with place.serve(team, free=False) as ask:
        run = ask.begin(tools=["delegate", "write_file"])
        ask.watch(run)
        (waits,) = ask.get("/v1/agent/approvals")["data"]
        assert (waits["run"], waits["goal"], waits["name"]) == (run, "do it", "write_file")
        assert waits["edits"][0]["path"] == "a.txt"
        assert ask.run(run)["state"] == "waiting"
        assert [one["call"] for one in ask.run(run)["pending"]] == [waits["call"]]
        assert [one["id"] for one in ask.get(RUNS)["data"]] == [run]  # a part is no run of its own
        assert ask.post(f"{RUNS}/{run}/decide", {"calls": ["0.0"], "allowed": True}, status=409)
        ask.post(f"{RUNS}/{run}/decide", {"calls": [waits["call"]], "allowed": allowed})
    with place.serve(team, free=False) as ask:  # the word is kept, whatever happens to the server
        ask.watch(run)
        assert ask.run(run)["answer"] == "all done"
        assert ask.get("/v1/agent/approvals")["data"] == []
    assert place.file("a.txt") == ("new\n" if allowed else None)


def test_each_run_has_mcp_servers_of_its_own_that_end_with_it(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QAFILA_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    command = json.dumps(list(mcp_peer_at.command("ok")))
    (tmp_path / "home" / "agent.toml").write_text(
        f'[mcp.peer]\ncommand = {command}\neffects = {{ say = "read" }}\n', encoding="utf-8"
    )
    assert main(["mcp", "trust", "peer", "-y"]) == 0
    capsys.readouterr()
    peer = {"command": mcp_peer_at.command("ok"), "effects": {"say": "read"}}
    config = Config.model_validate({"mcp": {"peer": peer}})

    def others():
        return offered(config, read_pins(pins_path())).tools

    script: list[Answer] = [[("peer_say", {"text": "أهلًا"})], "Said."]
    with place.serve(script, config=config, others=others) as ask:
        for _ in range(2):
            events = ask.watch(ask.begin(tools=["peer_say"]))
            (observed,) = [data["event"]["observation"] for kind, data in events if kind == "observed"]
            assert observed == {"status": "ok", "text": "أهلًا", "whole": None, "coded": None}
