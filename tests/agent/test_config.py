"""The agent's settings file: what stands in it, and what a wrong one gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from qafila.agent.config import Config, read_config
from qafila.agent.events import Prices
from qafila.errors import FormatError


def written(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_that_the_description_names_can_be_set(tmp_path: Path) -> None:
    text = """
timezone = "Africa/Cairo"
[web]
allow = ["example.org", "*.example.org"]
[calendar]
caldav = "https://cal.example.org/salma/"
user = "salma"
password_env = "CALDAV_PASSWORD"
[schedules]
quiet = "22:00-07:00"
[prices]
read = 0.1
generated = 4
[mcp.files]
command = ["my-mcp-server", "--root", "."]
env = ["HOME"]
effects = { read = "read" }
"""
    config = read_config(written(tmp_path, text))
    assert str(config.zone) == "Africa/Cairo"
    assert config.web.allow == ("example.org", "*.example.org")
    assert config.mcp["files"].effects == {"read": "read"}
    assert config.token_prices == Prices(read=0.1, cached=0.1, generated=4)
    assert read_config(written(tmp_path, "")) == Config()
    assert Config().token_prices == Prices()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("timezone = 'Africa/Cario'", "timezone: 'Africa/Cario' is no time zone"),
        ("timezone = '../../etc/passwd'", "is no time zone"),
        ("[web]\nalow = []", "web.alow: there is no such setting"),
        (
            "[schedules]\nquiet = '25:00-07:00'",
            "quiet: '25:00-07:00' are no hours; write them as 22:00-07:00",
        ),
        ("[web]\nallow = 'example.org'", "web.allow: is no list"),
        ("[mcp.x]\n", "mcp.x: give it a command or a url"),
        ("[mcp.x]\ncommand = ['a']\nurl = 'http://127.0.0.1'", "mcp.x: give it a command or a url"),
        ("[mcp.x]\ncommand = ['a']\ntoken_env = 'T'", "mcp.x: token_env goes with a url, and env with a command"),
        ("[mcp.x]\nurl = 'http://127.0.0.1'\nenv = ['T']", "mcp.x: token_env goes with a url, and env with a command"),
        ("[mcp.x]\ncommand = ['a']\neffects = { a = 'harmless' }", "mcp.x.effects.a: "),
        (
            "[mcp.x]\ncommand = ['a']\neffects = { a = 'write' }",
            "mcp.x: effects: what a server writes cannot be taken back",
        ),
        ("[mcp.'Ünname']\ncommand = ['a']", "mcp.Ünname"),
        ("[prices]\nread = 1", "prices.generated: is missing"),
        ("[prices]\nread = '1'\ngenerated = 1", "prices.read: is no number"),
        ("[prices]\nread = inf\ngenerated = 1", "prices.read: "),
        ("[prices]\nread = -1\ngenerated = 1", "prices.read: "),
        ("[prices]\nread = 0\ngenerated = 0", "prices: all are 0; leave the table out where nothing costs"),
        ("a = [", "is no TOML"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FormatError, match=r"agent\.toml: ") as error:
        read_config(written(tmp_path, text))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
