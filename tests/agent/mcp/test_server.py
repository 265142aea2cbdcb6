"""Our tools as an MCP server: for the library's own client, in process, over stdio, and over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import CallToolResult, ElicitRequestParams, ElicitResult, InputRequiredResult

from qafila.agent.config import Server
from qafila.agent.edits import file_edit
from qafila.agent.events import Intended
from qafila.agent.mcp.asking import question
from qafila.agent.mcp.connection import Connection
from qafila.agent.mcp.definition import reached
from qafila.agent.mcp.pins import PinnedServer
from qafila.agent.mcp.server import Service
from qafila.agent.policy import Policy, Rule, with_writes
from qafila.agent.tool import Toolbox, tool
from qafila.agent.tools import calculate, files
from qafila.errors import AgentError

TOOLS = (*files.tools(), *calculate.tools())


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    (made / "قائمة.txt").write_text("خبز\n", encoding="utf-8")
    return made


def asked(service: Service, *calls: tuple[str, dict[str, Any]]) -> list[tuple[bool, str]]:
    """For each call, whether it went wrong, and the text."""

    async def main() -> list[tuple[bool, str]]:
        found = []
        async with Client(service.server()) as client:
            for name, arguments in calls:
                result = await client.call_tool(name, arguments)
                (block,) = result.content
                assert block.type == "text"
                found.append((result.is_error, block.text))
        return found

    return asyncio.run(asyncio.wait_for(main(), 30))


def test_tools_are_listed_with_what_they_do(workspace: Path) -> None:
    async def main() -> dict[str, Any]:
        async with Client(Service(Toolbox(TOOLS), workspace=workspace).server()) as client:
            return {one.name: one for one in (await client.list_tools()).tools}

    found = asyncio.run(main())
    assert list(found) == [one.name for one in TOOLS]
    assert found["read_file"].input_schema == dict(Toolbox(TOOLS).by_name["read_file"].schema.parameters)
    reads = found["read_file"].annotations.model_dump(exclude_none=True)
    assert reads == {"read_only_hint": True, "open_world_hint": False}
    writes = found["write_file"].annotations.model_dump(exclude_none=True)
    assert writes == {
        "read_only_hint": False,
        "destructive_hint": True,
        "idempotent_hint": False,
        "open_world_hint": False,
    }


def test_what_reads_is_answered_and_what_the_policy_asks_about_is_refused(workspace: Path) -> None:
    service = Service(Toolbox(TOOLS), workspace=workspace)
    read, sum_, write, wrong, outside = asked(
        service,
        ("read_file", {"path": "قائمة.txt"}),
        ("calculate", {"expression": "٦*٧"}),
        ("write_file", {"path": "new.txt", "text": "x"}),
        ("read_file", {"path": 3}),
        ("read_file", {"path": "../secret"}),
    )
    assert read == (False, "خبز")
    assert sum_ == (False, "42")
    assert write[0]
    assert write[1].startswith("refused: needs a person's word, and nobody can be asked here (calls with the effect")
    assert not (workspace / "new.txt").exists()
    assert wrong == (True, "error: wrong arguments: path: Input should be a valid string")
    assert outside == (True, "error: '../secret': leads out of the workspace")


def test_with_yes_files_are_changed_and_the_answer_shows_how(workspace: Path) -> None:
    service = Service(Toolbox(TOOLS), workspace=workspace, policy=with_writes(Policy()))
    (wrote, again) = asked(service, *[("write_file", {"path": "قائمة.txt", "text": "خبز\nتمر\n"})] * 2)
    assert wrote[0] is False
    assert wrote[1].startswith("wrote قائمة.txt\n")
    assert "+تمر" in wrote[1]
    assert again == (False, "قائمة.txt holds this already")
    assert (workspace / "قائمة.txt").read_text(encoding="utf-8") == "خبز\nتمر\n"


def test_changes_of_one_file_at_once_follow_one_another(workspace: Path) -> None:
    service = Service(Toolbox(TOOLS), workspace=workspace, policy=with_writes(Policy()))
    (workspace / "a.txt").write_text("1 2 3 4\n")
    edit = service.toolbox.by_name["edit_file"]

    async def main() -> list[str]:
        calls = ({"path": "a.txt", "old": f"{n}", "new": "٠"} for n in range(1, 5))
        return [found.status for found in await asyncio.gather(*(service.call(edit, call) for call in calls))]

    assert asyncio.run(main()) == ["ok"] * 4
    assert (workspace / "a.txt").read_text(encoding="utf-8") == "٠ ٠ ٠ ٠\n"


@pytest.mark.parametrize("path", ["secret/a", "./secret/a", "/secret/a", "x/../secret/a"])
def test_a_rule_is_of_the_file_however_a_client_spells_it(workspace: Path, path: str) -> None:
    (workspace / "secret").mkdir()
    (workspace / "secret" / "a").write_text("word")
    rules = (Rule(1, "deny", when={"path": "secret/*"}, why="No."),)
    service = Service(Toolbox(TOOLS), workspace=workspace, policy=with_writes(Policy(rules)))
    calls = [("read_file", {"path": path}), ("write_file", {"path": path, "text": "x"})]
    assert [text.partition(": ")[2] for _, text in asked(service, *calls)] == ["No.", "No."]
    assert (workspace / "secret" / "a").read_text() == "word"


def test_a_policy_denies_and_what_cannot_be_undone_is_refused_even_with_yes(workspace: Path) -> None:
    sent: list[str] = []

    def send(to: str) -> str:
        """Send."""
        sent.append(to)
        return "sent"

    service = Service(
        Toolbox((tool(send, effect="egress", controls=("to",)),)), workspace=workspace, policy=with_writes(Policy())
    )
    assert asked(service, ("send", {"to": "x"}))[0][1].startswith("refused: needs a person's word")
    allowed = Service(service.toolbox, workspace=workspace, policy=Policy(effects={"egress": "allow"}))
    # Nobody knows that the recipient is the user's own word.
    assert asked(allowed, ("send", {"to": "x"}))[0][0]
    assert sent == []


ANSWERS: dict[str, ElicitResult] = {
    "yes": ElicitResult(action="accept", content={"allow": True}),
    "no": ElicitResult(action="accept", content={"allow": False}),
    "odd": ElicitResult(action="accept", content={"allow": "true"}),
    "closed": ElicitResult(action="cancel"),
}


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_client_can_ask_its_user(workspace: Path, mode: str, answer: str) -> None:
    service = Service(Toolbox(TOOLS), workspace=workspace, asks=True)
    seen: list[str] = []

    async def user(_: object, params: ElicitRequestParams) -> ElicitResult:
        seen.append(params.message)
        return ANSWERS[answer]

    async def main() -> CallToolResult:
        async with Client(service.server(), mode=mode, elicitation_callback=user) as client:
            return await client.call_tool("write_file", {"path": "new.txt", "text": "تمر\u202e"})

    result = asyncio.run(asyncio.wait_for(main(), 30))
    (question,) = seen
    assert question.startswith('write_file {"path": "new.txt", "text": "تمر"}\n')
    assert "+تمر" in question
    assert question.endswith("\n(calls with the effect write are asked about)")
    assert result.is_error == (answer != "yes")
    assert (workspace / "new.txt").exists() == (answer == "yes")


def test_a_question_that_is_too_long_says_what_it_leaves_out(workspace: Path) -> None:
    edits = file_edit(workspace, "run.sh", b"x\n" * 9000)
    arguments = {"text": "x\n" * 9000, "path": "run.sh"}
    intent = Intended(call="0", name="write_file", arguments=arguments, effect="write", key="k", edits=edits)
    asked = question(intent, "why")
    assert "characters are not shown; it does: created run.sh]\n(why)" in asked
    assert len(asked) < 4200


def test_an_answer_to_another_call_is_none_to_this_one(workspace: Path) -> None:
    service = Service(Toolbox(TOOLS), workspace=workspace, asks=True)

    async def nobody(_: object, __: ElicitRequestParams) -> ElicitResult:
        return ANSWERS["no"]

    async def main() -> None:
        async with Client(service.server(), elicitation_callback=nobody) as client:
            call = client.session.call_tool
            first = await call("write_file", {"path": "a", "text": "a"}, allow_input_required=True)
            assert isinstance(first, InputRequiredResult)
            answers = dict.fromkeys(first.input_requests or {}, ANSWERS["yes"])
            other = {"path": "b", "text": "b"}
            again = await call("write_file", other, input_responses=answers, allow_input_required=True)
            assert isinstance(again, InputRequiredResult)

    asyncio.run(main())
    assert not (workspace / "b").exists()


def test_a_tool_that_is_not_there_is_an_error_of_the_protocol(workspace: Path) -> None:
    async def main() -> None:
        async with Client(Service(Toolbox(TOOLS), workspace=workspace).server()) as client:
            with pytest.raises(MCPError, match="there is no tool 'fly'"):
                await client.call_tool("fly", {})

    asyncio.run(main())


ARGUMENTS = ["-m", "qafila", "mcp", "serve", "--tools", "read_file,calculate"]


def test_it_serves_over_standard_input_and_output(workspace: Path) -> None:
    async def main() -> str:
        there = StdioServerParameters(
            command=sys.executable, args=[*ARGUMENTS, "-w", str(workspace)], env=dict(os.environ)
        )
        async with Client(there) as client:
            result = await client.call_tool("read_file", {"path": "قائمة.txt"})
            return str(getattr(result.content[0], "text", None))

    assert asyncio.run(asyncio.wait_for(main(), 60)) == "خبز"


def test_the_end_of_its_input_ends_it_and_so_does_ctrl_c(workspace: Path) -> None:
    done = subprocess.run(
        [sys.executable, *ARGUMENTS], cwd=workspace, input=b"no json\n", capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in done.stdout.splitlines())
    with subprocess.Popen(
        [sys.executable, *ARGUMENTS],
        cwd=workspace,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        process.stdin.write(
            json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}).encode() + b"\n"
        )
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["result"]["serverInfo"]["name"] == "qafila"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT


class Http:
    """Our server at a port of this machine."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token

    def status(self, **headers: str) -> int:
        """What a request with these headers gets."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
        sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url, body, sent), timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def connection(self, token: str | None = None) -> Connection:
        server = Server(url=self.url, token_env="TOKEN")
        return Connection("ours", server, {"TOKEN": token or self.token})


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "a.txt").write_text("مرحبا\n", encoding="utf-8")
    command = [sys.executable, *ARGUMENTS, "--http", "0", "--token-env", "OUR_TOKEN", "-w", str(folder)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OUR_TOKEN": "t0ken"}
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving http://127.0.0.1:"), line
        yield Http(line.split()[1], "t0ken")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)


def test_http_needs_the_token_and_a_host_and_origin_of_this_machine(http: Http) -> None:
    good = {"Authorization": "Bearer t0ken"}
    assert http.status() == 401
    assert http.status(Authorization="Bearer other") == 401
    assert http.status(**good, Host="evil.example") == 421
    assert http.status(**good, Origin="https://evil.example") == 403
    assert http.status(**good) not in (401, 403, 421)


def with_connection(http: Http, work: Callable[[Connection], Awaitable[Any]], token: str | None = None) -> Any:
    async def main() -> Any:
        connection = http.connection(token)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(asyncio.wait_for(main(), 30))


def test_our_client_speaks_with_our_server_over_http(http: Http) -> None:
    async def work(connection: Connection) -> str:
        definitions = await connection.definitions()
        pins = PinnedServer.of(reached(Server(url=http.url)), connection.server_name, definitions)
        return await connection.call(pins.tools["read_file"], {"path": "a.txt"}, "k", acts=False)

    assert with_connection(http, work) == "مرحبا"


def test_a_wrong_token_is_said_and_not_shown(http: Http) -> None:
    with pytest.raises(AgentError, match=r"^mcp\.ours: cannot be spoken with \(.*\)$") as error:
        with_connection(http, Connection.definitions, "s3cret")
    assert "s3cret" not in str(error.value)
