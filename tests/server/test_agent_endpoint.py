"""An agent whose model is behind an OpenAI-compatible endpoint, here a server of ours: a whole task over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_agent import ScriptedAgent

from qafila.cli.main import main
from qafila.server.app import create_app
from qafila.server.models import Entry, Models
from qafila.server.service import Service

GOAL = "Read caravan.txt and tell me who the guide is."


def test_the_readmes_task_is_done_through_an_endpoint(
    serving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QAFILA_AGENT_DATABASE", f"sqlite:///{tmp_path}/agent.sqlite3")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "caravan.txt").write_text("The guide is called سلمى.\n")
    model = ScriptedAgent([[("read_file", {"path": "caravan.txt"})], "Her name is سلمى."])

    async def load() -> ScriptedAgent:
        return model

    command = ["agent", GOAL, "--workspace", f"{tmp_path}/files", "--tools", "read_file"]
    with serving(create_app(Service(Models({"scripted": Entry("scripted", "scripted", load)})))) as url:
        assert main([*command, "--endpoint", f"{url}/v1"]) == 0
        told = capsys.readouterr()
        assert told.out.strip() == "Her name is سلمى."
        assert "gives no likelihoods: no probabilities, replay or explanations" in told.err
        assert "→ The guide is called سلمى." in told.err
        # What the model read is what the tool gave, over HTTP.
        assert model.asked[-1].messages[-1].text == "The guide is called سلمى."
        assert [tool.name for tool in model.asked[0].tools] == ["read_file"]
        assert main([*command, "--endpoint", f"{url}/v1", "--choose", "likelihood"]) == 2
        assert "gives no exact likelihoods" in capsys.readouterr().err
    assert main(["agent", "show", "last", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "done"
