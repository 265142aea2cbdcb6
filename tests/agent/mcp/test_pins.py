"""Trusted tools on disk: kept whole, read strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qafila.agent.mcp.definition import Definition
from qafila.agent.mcp.pins import PinnedServer, Pins, pin, read_pins
from qafila.errors import FormatError

SERVER = PinnedServer.of("how", "who", {"قل": Definition(name="قل", input_schema={"type": "object"})})


def test_what_is_trusted_is_kept_until_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "home" / "mcp_pins.json"
    assert read_pins(path) == Pins()
    pin(path, "one", SERVER)
    pin(path, "two", SERVER)
    assert read_pins(path).servers == {"one": SERVER, "two": SERVER}
    pin(path, "one", None)
    assert read_pins(path).servers == {"two": SERVER}
    assert not list(path.parent.glob(".qafila-*"))


def test_a_file_that_somebody_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mcp_pins.json"
    pin(path, "one", SERVER)
    data = json.loads(path.read_text())
    data["servers"]["one"]["tools"]["قل"]["definition"]["description"] = "Say it."
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError, match=r"mcp_pins\.json: the hash of the tool 'قل' is another; delete it"):
        read_pins(path)
    with pytest.raises(FormatError):
        pin(path, "two", SERVER)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"servers": {"a": {}}}', '{"other": 1}', "\xff"])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mcp_pins.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=r"mcp_pins\.json: holds no trusted tools"):
        read_pins(path)
