"""Tools of MCP servers in runs: offered once they are trusted, called under the policy, refused once they change."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import mcp_peer_at
import pytest
from agent_place import Place, ended, told

from qafila.agent.config import Config
from qafila.agent.mcp.connection import Connection
from qafila.agent.mcp.definition import Definition, reached
from qafila.agent.mcp.pins import PinnedServer, Pins
from qafila.agent.mcp.tools import Offered, offered
from qafila.agent.policy import Policy, Rule
from qafila.errors import UsageError

ALLOW = Policy(rules=(Rule(1, "allow", tool="peer_*", untrusted=True),))


def config(mode: str, *files: Path, **more: Any) -> Config:
    return Config.model_validate({"mcp": {"peer": {"command": mcp_peer_at.command(mode, *files), **more}}})


def trusted(settings: Config) -> Pins:
    """All servers as they are now."""

    async def pinned(name: str) -> PinnedServer:
        connection = Connection(name, settings.mcp[name])
        try:
            found = await connection.definitions()
            return PinnedServer.of(reached(settings.mcp[name]), connection.server_name, found)
        finally:
            await connection.close()

    return Pins(servers={name: asyncio.run(pinned(name)) for name in settings.mcp})


def pinned_as(settings: Config, *definitions: Definition) -> Pins:
    known = {one.name: one for one in definitions}
    return Pins(servers={"peer": PinnedServer.of(reached(settings.mcp["peer"]), "peer", known)})


def peer(mode: str, *files: Path, **more: Any) -> Offered:
    settings = config(mode, *files, **more)
    return offered(settings, trusted(settings), os.environ)


def run(place: Place, made: Offered, *texts: str, **options: Any) -> list[Any]:
    """What a model gets that calls the tool with these texts, one after another."""
    script = [[("peer_say", {"text": text})] for text in texts]
    agent = place.agent(script, made.tools, **{"policy": ALLOW, **options})
    begun = agent.begin("do it")

    async def main() -> None:
        async for _ in agent.work(begun):
            pass
        await agent.toolbox.close()

    asyncio.run(asyncio.wait_for(main(), 60))
    return [one.event for one in place.journal.events(begun)]


def test_a_trusted_tool_is_one_of_the_run(place: Place) -> None:
    made = peer("ok", effects={"say": "read"})
    (tool,) = made.tools
    assert (tool.name, tool.effect, tool.origin) == ("peer_say", "read", "peer")
    assert tool.schema.description == "Say a text."
    assert tool.schema.parameters == {
        "type": "object",
        "properties": {"text": {"type": "string", "description": "What to say."}},
        "required": ["text"],
    }
    assert told(run(place, made, "السلام عليكم", "١٢٣")) == [("ok", "السلام عليكم"), ("ok", "١٢٣")]


def test_names_and_arguments_are_arabic_as_well(place: Place) -> None:
    made = peer("arabic", effects={"موعد": "read"})
    (tool,) = made.tools
    assert tool.schema.description == "يحدّد موعدًا."
    assert tool.schema.parameters["properties"] == {"الوقت": {"description": "متى", "enum": ["صباحًا", "مساءً"]}}
    calls: list[Any] = [[(tool.name, {"الوقت": when})] for when in ("صباحًا", "ظهرًا")]
    agent = place.agent(calls, made.tools, policy=ALLOW)
    assert told(place.work(agent, agent.begin("حدّد موعدًا ٣ مساءً"))) == [
        ("ok", "{'الوقت': 'صباحًا'}"),
        ("error", "wrong arguments: الوقت: 'ظهرًا' is not one of ['صباحًا', 'مساءً']"),
    ]


def test_a_tool_of_which_nothing_is_said_is_asked_about(place: Place) -> None:
    events = run(place, peer("ok"), "hello", policy=Policy())
    assert ended(events).reason == "waiting"
    assert next(event for event in events if event.kind == "asked").intent.effect == "irrevocable"


def test_a_call_that_was_lost_is_unknown_and_the_run_goes_on(place: Place, tmp_path: Path) -> None:
    settings = config("dies_once", tmp_path / "started")
    pins = trusted(settings)
    (tmp_path / "started").unlink()
    events = run(place, offered(settings, pins), "one", "two")
    (first, second) = told(events)
    assert first == ("unknown", "peer ended in the middle of the call (حظ سيئ); nobody knows whether it was done")
    assert second == ("ok", "two")
    assert ended(events).reason == "done"


def test_a_tool_that_changes_in_the_middle_of_a_run_is_refused(place: Place) -> None:
    (first, second) = told(run(place, peer("changes"), "one", "two"))
    assert first == ("ok", "one")
    assert second[0] == "error"
    assert second[1].startswith("peer: its tool say changed (description) since it was trusted")


def test_a_tool_that_is_another_than_was_trusted_is_told_as_it_was_and_refused(place: Place) -> None:
    settings = config("ok", effects={"say": "read"})
    was = Definition(name="say", description="Say.", input_schema={"type": "object"})
    made = offered(settings, pinned_as(settings, was, Definition(name="fly", input_schema={"type": "object"})))
    assert [one.schema.description for one in made.tools] == ["Say.", "fly"]
    agent = place.agent(
        [[("peer_say", {}), ("peer_fly", {})]],
        made.tools,
        policy=Policy(effects={"read": "allow", "irrevocable": "allow"}),
    )
    assert [text.partition(" since")[0] for _, text in told(place.work(agent, agent.begin("do it")))] == [
        "peer: its tool say changed (description, input schema)",
        "peer: its tool fly is gone",
    ]


def test_wrong_arguments_never_reach_the_server(place: Place) -> None:
    made = peer("dies")
    agent = place.agent([[("peer_say", {"text": 5})], [("peer_say", {"text": "a", "b": 1})]], made.tools, policy=ALLOW)
    assert told(place.work(agent, agent.begin("do it"))) == [
        ("error", "wrong arguments: text: 5 is not of type 'string'"),
        ("error", "wrong arguments: arguments: Additional properties are not allowed ('b' was unexpected)"),
    ]


def test_what_is_not_trusted_or_reached_otherwise_is_not_offered() -> None:
    settings = config("ok")
    assert offered(settings, Pins()) == Offered(
        (), ("mcp.peer: not trusted yet, so that its tools are not offered; see `qafila mcp trust peer`",)
    )
    found = offered(config("dies"), pinned_as(settings, Definition(name="say", input_schema={"type": "object"})))
    assert found.tools == ()
    assert found.notes[0].startswith("mcp.peer: its command or URL is another than when it was trusted")


def test_a_schema_that_is_none_leaves_its_tool_out_and_not_the_others() -> None:
    settings = config("ok")
    bad = Definition(name="bad\u202e", input_schema={"type": "object", "properties": {"a": {"type": "sring"}}})
    good = Definition(name="good", input_schema={"type": "object"})
    made = offered(settings, pinned_as(settings, bad, good))
    assert [one.name for one in made.tools] == ["peer_good"]
    assert made.notes[0].startswith("mcp.peer: its tool bad is left out: its schema is no JSON Schema 2020-12: 'sring'")
    lying = peer("lies")
    assert (lying.tools, len(lying.notes)) == ((), 1)


def test_an_effect_of_a_tool_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^mcp\.peer\.effects: the server has no tool 'sya'; it has say$"):
        peer("ok", effects={"sya": "read"})
