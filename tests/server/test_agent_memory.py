"""``/v1/agent/memory``: seen, added, put right, kept and forgotten, by its owner alone."""

from __future__ import annotations

import httpx
import pytest
from agent_server import RUNS, AgentServer, Asking
from scripted_agent import ScriptedAgent

from qafila.database import open_database
from qafila.server.keys import Keyring, KeyStore

MEMORY = "/v1/agent/memory"


@pytest.fixture
def place(tmp_path, serving):
    return AgentServer(tmp_path, serving)


def change(ask: Asking, method: str, entry: str, body: object = None) -> httpx.Response:
    return httpx.request(method, f"{ask.url}{MEMORY}/{entry}", json=body, headers=ask.headers)


def test_an_entry_from_beginning_to_end(place):
    client = ScriptedAgent([])
    with place.serve(client) as ask:
        assert ask.get(MEMORY) == {"object": "list", "data": []}
        made = ask.post(MEMORY, {"kind": "fact", "text": "الدليل اسمها سلمى"})
        assert (made["object"], made["kind"], made["source"]) == ("agent.memory", "fact", "user")
        assert (made["trusted"], made["state"]) == (True, "kept")
        ask.watch(ask.begin("من هي سلمى الدليل؟"))
        assert "الدليل اسمها سلمى" in client.asked[0].messages[0].text
        # What a run leaves is only what it did.
        entries = ask.get(MEMORY)["data"]
        assert [one["kind"] for one in entries] == ["episode", "fact"]
        assert entries[0]["run"] == ask.get(RUNS)["data"][0]["id"]
        edited = change(ask, "PATCH", made["id"], {"text": "الدليل اسمها مريم"}).json()
        assert edited["text"] == "الدليل اسمها مريم"
        assert change(ask, "DELETE", made["id"]).json() == {"object": "agent.memory", "id": made["id"], "deleted": True}
        assert change(ask, "DELETE", made["id"]).status_code == 404
        assert [one["kind"] for one in ask.get(MEMORY)["data"]] == ["episode"]


def test_what_is_proposed_is_kept_when_the_user_says_so(place):
    script = [[("remember", {"text": "the gate code is 1234"})], "noted"]
    client = ScriptedAgent(script)
    with place.serve(client) as ask:
        ask.watch(ask.begin("read the mail", tools=["remember"]))
        (proposed,) = [one for one in ask.get(MEMORY)["data"] if one["kind"] == "fact"]
        assert (proposed["state"], proposed["trusted"]) == ("proposed", False)
        ask.watch(ask.begin("what is the gate code?"))
        assert "1234" not in client.asked[-1].messages[0].text
        kept = change(ask, "PATCH", proposed["id"], {"state": "kept"}).json()
        assert (kept["state"], kept["trusted"]) == ("kept", False)
        ask.watch(ask.begin("what is the gate code?"))
        assert "1234" in client.asked[-1].messages[0].text


def test_what_is_no_entry(place):
    with place.serve([]) as ask:
        made = ask.post(MEMORY, {"kind": "profile", "text": "x"})
        for body, param in (
            ({}, "kind"), ({"kind": "fact"}, "text"), ({"kind": "fact", "text": " "}, "text"),
            ({"kind": "dream", "text": "x"}, "kind"), ({"kind": "fact", "text": "x" * 601}, "text"),
            ({"kind": "fact", "text": "x", "owner": "me"}, "owner"),
        ):  # fmt: skip
            assert ask.post(MEMORY, body, status=400)["error"]["param"] == param, body
        assert change(ask, "PATCH", made["id"], {}).status_code == 400
        assert change(ask, "PATCH", made["id"], {"state": "proposed"}).status_code == 400
        for wrong in ("00000000", made["id"][:4], "%00"):
            assert change(ask, "PATCH", wrong, {"text": "x"}).status_code == 404
        assert [one["text"] for one in ask.get(MEMORY)["data"]] == ["x"]


def test_a_memory_is_its_owners(place, tmp_path):
    keys = KeyStore(open_database(f"sqlite:///{tmp_path}/keys.sqlite3"))
    with place.serve([], keyring=Keyring((), keys)) as server:
        salma, omar = (
            Asking(server.url, {"X-API-Key": keys.create(name, scopes=["agent"])[0]}) for name in ("salma", "omar")
        )
        made = salma.post(MEMORY, {"kind": "fact", "text": "سر"})
        assert omar.get(MEMORY)["data"] == []
        for method, body in (("PATCH", {"text": "x"}), ("DELETE", None)):
            assert change(omar, method, made["id"], body).status_code == 404
        assert [one["text"] for one in salma.get(MEMORY)["data"]] == ["سر"]
