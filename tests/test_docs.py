"""The commands and the code in the READMEs work as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from qafila.agent.tools.builtin import builtin
from qafila.cli import agent, mcp, memory, serve

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "README.ar.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    return [code for kind, code in BLOCK.findall(text) if kind == language]


def commands(page: str) -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    # `make test` is what is running; `make chat` is tried below, with a question on its pipe.
    return [line for line in lines if line and not line.startswith("make ")]


def shell(command: str, **options) -> subprocess.CompletedProcess[str]:
    command = command.replace(".venv/bin/qafila", f"{sys.executable} -m qafila")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        **{"env": os.environ | {"QAFILA_AGENT_DATABASE": f"sqlite:///{CHECKOUT}/build/agent-docs.sqlite3"}, **options},
    )


def test_the_commands_for_make_are_there():
    wanted = ["make chat", "make test", "make serve", "make train"]
    for page in PAGES:
        assert re.findall(r"^make \w+", "".join(blocks(page, "sh")), re.MULTILINE) == wanted


def test_make_chat_answers_a_question_on_its_pipe():
    if not (CHECKOUT / ".venv" / ".runtime").exists():
        pytest.skip("this checkout was not set up by make, which would install everything first")
    done = shell("make --no-print-directory chat", input="What is the capital of Japan?\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", [c for page in PAGES for c in commands(page)])
def test_a_command_of_the_readme(command, default_gguf):
    (CHECKOUT / "build").mkdir(exist_ok=True)
    done = shell(command, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("page", PAGES)
def test_the_transcript_is_what_comes_out(page, default_gguf):
    (transcript,) = blocks(page, "console")
    command, _, expected = transcript.removeprefix("$ ").partition("\n")
    done = shell(command, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_the_readme(page, default_gguf):
    (code,) = blocks(page, "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Tokyo" in done.stdout


def test_the_python_of_the_guide_to_agents(default_gguf):
    (code,) = blocks("docs/agent.md", "python")
    (CHECKOUT / "build").mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()][-2:] == ["answered", "ended"]


def options_of(command) -> set[str]:
    """The options of a command and of all below it."""
    below = getattr(command, "commands", {}).values()
    return {flag for option in command.params for flag in option.opts}.union(*map(options_of, below))


AGENT_PAGES = ("docs/agent.md", "docs/agent.ar.md", "docs/agent-tools.md", "docs/agent-tools.ar.md")


def test_what_the_guides_to_agents_name_is_there():
    command = typer.main.get_command(agent.command)
    options = options_of(command).union(*(options_of(typer.main.get_command(one.command)) for one in (memory, mcp)))
    served = typer.Typer()
    served.command()(serve.command)
    options |= options_of(typer.main.get_command(served))
    for page in AGENT_PAGES:
        text = (CHECKOUT / page).read_text(encoding="utf-8")
        named = set(re.findall(r"`qafila agent ([a-z]+)", text)) | set(
            re.findall(r"`(resume|approve|say|stop) RUN", text)
        )
        assert named <= set(command.commands), page
        assert set(re.findall(r"(--[a-z][a-z-]+)", text)) - {"--json"} <= options | {"--json"}, page
    tools = re.findall(r"`([a-z]+(?:_[a-z]+)*)`", (CHECKOUT / "docs/agent.md").read_text(encoding="utf-8"))
    assert set(builtin().by_name) <= set(tools)


def test_links_inside_the_repository_lead_somewhere():
    for page in (*PAGES, "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", *AGENT_PAGES):
        for target in re.findall(r"\]\(([^)#:]+)\)", (CHECKOUT / page).read_text(encoding="utf-8")):
            assert ((CHECKOUT / page).parent / target).exists(), f"{page} links to {target}"
