"""MCP's own conformance suite against our client and our server (`@modelcontextprotocol/conformance`, 0.1.16).

It needs Node 22: in a folder of its own, `npm install @modelcontextprotocol/conformance@0.1.16 node@22`, and
`MCP_CONFORMANCE` names that folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.interop

FOLDER = Path(os.environ.get("MCP_CONFORMANCE", "/nowhere"))
SUITE = FOLDER / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
NODE = next((str(one) for one in (FOLDER / "node_modules/.bin/node",) if one.exists()), shutil.which("node"))
PEER = (sys.executable, str(Path(__file__).parents[2] / "doubles" / "mcp_conformance.py"))

#: What our server offers: tools that give text.
SERVER = (
    *("server-initialize", "ping", "tools-list", "tools-call-simple-text", "tools-call-error", "json-schema-2020-12"),
    *("server-sse-multiple-streams", "dns-rebinding-protection"),
)
#: What it does not: these scenarios have nothing to ask it.
NOT_OFFERED = {
    *("logging-set-level", "completion-complete", "tools-call-image", "tools-call-audio", "tools-call-mixed-content"),
    *("tools-call-embedded-resource", "tools-call-with-logging", "tools-call-with-progress", "tools-call-sampling"),
    *("tools-call-elicitation", "elicitation-sep1034-defaults", "elicitation-sep1330-enums", "server-sse-polling"),
    *("resources-list", "resources-read-text", "resources-read-binary", "resources-templates-read"),
    *("resources-subscribe", "resources-unsubscribe", "prompts-list", "prompts-get-simple", "prompts-get-with-args"),
    *("prompts-get-embedded-resource", "prompts-get-with-image"),
}
#: Our client answers no questions of servers, and has tokens but no OAuth.
CLIENT = ("initialize", "tools_call", "sse-retry")
NOT_CLIENT = {"elicitation-sep1034-client-defaults"}


def suite(*arguments: str) -> str:
    if not SUITE.is_file() or NODE is None:
        pytest.skip("MCP_CONFORMANCE names no folder with @modelcontextprotocol/conformance and node@22")
    done = subprocess.run(
        [NODE, str(SUITE), *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=FOLDER
    )
    return done.stdout + done.stderr


def passes(output: str) -> bool:
    """Whether checks were made, and none failed or warned."""
    found = re.search(r"Passed: (\d+)/(\d+), (\d+) failed, (\d+) warnings", output)
    assert found is not None, output[-2000:]
    return 0 < int(found[2]) == int(found[1]) and found[3] == found[4] == "0"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with subprocess.Popen([*PEER, "server"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def test_every_scenario_is_run_or_has_nothing_to_ask() -> None:
    listed = re.findall(r"^  - (\S+)", suite("list"), re.MULTILINE)
    known = {*SERVER, *NOT_OFFERED, *CLIENT, *NOT_CLIENT}
    assert {one for one in listed if not one.startswith("auth/")} == known


@pytest.mark.parametrize("scenario", SERVER)
def test_our_server_conforms(scenario: str, url: str) -> None:
    output = suite("server", "--url", url, "--scenario", scenario)
    assert passes(output), output[-3000:]


@pytest.mark.parametrize("scenario", CLIENT)
def test_our_client_conforms(scenario: str) -> None:
    output = suite("client", "--command", shlex.join([*PEER, "client"]), "--scenario", scenario)
    assert passes(output), output[-3000:]
