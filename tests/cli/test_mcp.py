"""`qafila mcp`, and MCP servers in `qafila agent`: trusted first, refused when they change."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import mcp_peer_at
import pytest
from scripted_agent import Answer, ScriptedAgent

from qafila.agent.mcp.pins import pins_path
from qafila.cli.main import main


class Shell:
    """The command line, with a home and settings of its own."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.patch, self.capsys = folder, patch, capsys
        patch.setenv("QAFILA_HOME", str(folder))
        patch.chdir(folder)

    def settings(self, mode: str, *files: Path, more: str = "") -> None:
        command = json.dumps(list(mcp_peer_at.command(mode, *files)))
        (self.folder / "agent.toml").write_text(f"[mcp.peer]\ncommand = {command}\n{more}", encoding="utf-8")

    def __call__(self, *args: str, status: int = 0) -> tuple[str, str]:
        found = main([*args])
        told = self.capsys.readouterr()
        assert found == status, told.err
        return told.out, told.err

    def agent(self, script: Sequence[Answer], *args: str, status: int = 0) -> tuple[str, str]:
        self.patch.setattr("qafila.cli.agent.open_client", lambda model, **_: ScriptedAgent(script, name=model))
        return self("agent", *args, status=status)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def test_a_server_is_shown_trusted_listed_and_forgotten(shell: Shell) -> None:
    shell.settings("ok", more='effects = { say = "read" }')
    assert shell("mcp", "list")[0].startswith("peer  not trusted  ")
    out, err = shell("mcp", "trust", "peer", status=2)
    assert "new: say  read  sha256 " in out
    assert "  Say a text.\n" in out
    assert err == "error: there is nobody to ask; --yes trusts what is shown\n"
    assert not pins_path().exists()
    assert shell("mcp", "trust", "peer", "--yes")[0].endswith("peer: trusted, 1 tools\n")
    assert shell("mcp", "trust", "peer")[0] == "peer: trusted, and nothing of it has changed\n"
    (row,) = json.loads(shell("mcp", "list", "--json")[0])
    assert (row["state"], row["tools"][0]["name"], row["tools"][0]["effect"]) == ("trusted", "say", "read")
    assert f"  say  read  sha256 {row['tools'][0]['sha256'][:16]}\n" in shell("mcp", "list")[0]
    assert shell("mcp", "forget", "peer")[0] == "peer: not trusted any more\n"
    assert "not trusted" in shell("mcp", "list")[0]


def test_what_changed_is_shown_before_it_is_trusted(shell: Shell) -> None:
    shell.settings("ok")
    shell("mcp", "trust", "peer", "-y")
    shell.settings("pages")
    assert shell("mcp", "list")[0].startswith("peer  changed  ")
    out, _ = shell("mcp", "trust", "peer", "-y")
    assert "  before: " in out
    assert "new: first  irrevocable" in out
    shell.settings("lies")
    out, _ = shell("mcp", "trust", "peer", "-y")
    assert "changed: say  irrevocable" in out
    assert "  is left out: its schema is no JSON Schema 2020-12: 'sring' is not valid" in out
    assert '  -    "type": "string"' in out
    assert '  +    "type": "sring"' in out
    assert "gone: first" in out
    assert "left out: its schema is no JSON Schema" in shell("mcp", "list")[0]


def test_ctrl_c_twice_in_the_middle_of_a_call_leaves_no_server_behind(shell: Shell) -> None:
    pid = shell.folder / "pid"
    shell.settings("hangs", pid, more='effects = { say = "read" }')
    shell("mcp", "trust", "peer", "-y")

    def press() -> None:
        while not (shell.folder / "called").exists():
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    presser = threading.Thread(target=press)
    presser.start()
    shell.agent([[("peer_say", {"text": "hello"})]], "say hello", "--tools", "peer_say", status=130)
    presser.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_run_has_the_tools_of_trusted_servers(shell: Shell) -> None:
    shell.settings("ok", more='effects = { say = "read" }')
    script: list[Answer] = [[("peer_say", {"text": "أهلًا"})], "Said."]
    _, err = shell.agent(script, "say hello", "--tools", "calculate")
    assert "note: mcp.peer: not trusted yet, so that its tools are not offered; see `qafila mcp trust peer`" in err
    shell("mcp", "trust", "peer", "-y")
    out, err = shell.agent(script, "say hello", "--tools", "calculate,peer_say")
    assert out.strip() == "Said."
    assert "→ أهلًا" in err
    shell.settings("changes", more='effects = { say = "read" }')
    shell("mcp", "trust", "peer", "-y")
    twice: list[Answer] = [[("peer_say", {"text": "one"})], [("peer_say", {"text": "two"})]]
    _, err = shell.agent(twice, "say hello", "--tools", "peer_say")
    assert "peer: its tool say changed (description) since it was trusted, so the call was not made" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["mcp", "trust", "other"], "the settings name no MCP server 'other'; there are peer"),
        (["mcp", "forget", "peer"], "'peer': no server of this name is trusted"),
        (["mcp", "trust", "peer"], "mcp.peer: cannot be spoken with (Connection closed) (cannot start: no license)"),
        (["mcp", "serve", "--token-env", "X"], "--token-env goes with --http"),
        (["mcp", "serve", "--http", "0", "--token-env", "NO_SUCH"], "--token-env: the variable NO_SUCH holds no token"),
        (["mcp", "serve", "--tools", "fly"], "there is no tool 'fly' outside runs"),
        (["mcp", "serve", "--tools", "translate"], "there is no tool 'translate' outside runs; there are list_files"),
        (["mcp", "list", "--config", "none.toml"], "none.toml: cannot be read"),
        (["agent", "hi", "--config", "none.toml"], "none.toml: cannot be read"),
    ],
)
def test_what_a_user_can_cause_is_one_line(shell: Shell, args: list[str], said: str) -> None:
    shell.settings("crashes")
    out, err = shell(*args, status=2)
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"error: {said}")


@pytest.mark.parametrize("args", [["mcp", "list"], ["mcp", "serve"], ["agent", "hi"]])
def test_without_the_library_the_way_to_it_is_said(shell: Shell, args: list[str]) -> None:
    shell.settings("ok")
    shell.patch.setattr("importlib.util.find_spec", lambda name: None)
    _, err = shell(*args, status=2)
    assert err == "error: mcp: the library mcp is missing; `pip install 'qafila[agent]'` brings it\n"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org/mcp", "is not encrypted and not of this machine; use https"),
        ("ftp://example.org/", "is no URL of a server"),
        ("https://salma:pw@example.org/", "its URL holds a user or password"),
        ("http://127.0.0.1:x/", "is no URL"),
        ("http://127.0.0.1:1/mcp", "cannot be spoken with"),
    ],
)
def test_urls_that_may_not_be_used_are_named(shell: Shell, url: str, said: str) -> None:
    (shell.folder / "agent.toml").write_text(f'[mcp.far]\nurl = "{url}"\n')
    _, err = shell("mcp", "trust", "far", status=2)
    assert err.startswith("error: mcp.far: ")
    assert said in err
    assert "pw" not in err


def test_a_variable_without_a_token_is_named(shell: Shell) -> None:
    (shell.folder / "agent.toml").write_text('[mcp.far]\nurl = "http://127.0.0.1:1/"\ntoken_env = "NO_SUCH_TOKEN"\n')
    _, err = shell("mcp", "trust", "far", status=2)
    assert err == "error: mcp.far: the variable NO_SUCH_TOKEN holds no token (one line of printable ASCII)\n"
