"""A server with an agent that follows a script, and requests to it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from scripted_agent import Answer, ScriptedAgent

from qafila.agent.journal import Journal
from qafila.chat.client import ChatClient
from qafila.server.assemble import assemble
from qafila.server.keys import Keyring
from qafila.server.models import Entry, Models
from qafila.server.settings import AgentSettings, Settings
from qafila.server.traces import Tracer

RUNS = "/v1/agent/runs"


@dataclass
class Asking:
    """Requests to one server, with one key."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, **options: Any) -> Any:
        return self._whole("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return self._whole("POST", path, json=body, **options)

    def _whole(self, method: str, path: str, *, status: int | None = None, **options: Any) -> Any:
        headers = {**self.headers, **options.pop("headers", {})}
        answer = httpx.request(method, self.url + path, headers=headers, timeout=30, verify=False, **options)
        if status is None:
            assert answer.status_code in (200, 201), answer.text
        else:
            assert answer.status_code == status, answer.text
        return answer.json()

    def begin(self, goal: str = "do it", **options: Any) -> str:
        return str(self.post(RUNS, {"goal": goal, **options})["id"])

    def run(self, run: str) -> Any:
        return self.get(f"{RUNS}/{run}")

    def watch(self, run: str, after: int = -1) -> list[tuple[str, Any]]:
        """(kind, data) of all events until the end, which is among them."""
        with self.stream("GET", f"{RUNS}/{run}/events?after={after}") as told:
            return [(kind, data) for kind, data, _ in told]

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[Iterator[tuple[str, Any, str | None]]]:
        """(kind, data, id) of server-sent events, as they come."""
        headers = {**self.headers, **options.pop("headers", {})}
        with httpx.stream(method, self.url + path, headers=headers, timeout=30, verify=False, **options) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
            yield told(answer.iter_lines())

    def until(self, run: str, state: str) -> Any:
        """The run, once it is in that state."""
        return eventually(lambda: found if (found := self.run(run))["state"] == state else None)


def told(lines: Iterator[str]) -> Iterator[tuple[str, Any, str | None]]:
    """The events of a stream's lines."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields["event"], json.loads(fields["data"]), fields.get("id")
            fields = {}


def eventually(look: Callable[[], Any], seconds: float = 20) -> Any:
    """What ``look`` gives, once it is something."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)
    return found


class AgentServer:
    """Where servers with an agent may run, one after another, over one journal and one workspace.

    Args:
        folder: for its files. serving: serves an application on a port.
    """

    def __init__(self, folder: Path, serving: Callable[[Any], AbstractContextManager[str]]) -> None:
        self.database = f"sqlite:///{folder}/agent.sqlite3"
        self.workspace = folder / "workspace"
        self.workspace.mkdir()
        self.policy = folder / "policy.toml"
        self.policy.write_text('[[rule]]\neffect = "write"\nfrom = "untrusted"\nthen = "allow"\n', encoding="utf-8")
        self._serving = serving

    @contextmanager
    def serve(
        self,
        script: Sequence[Answer] | ChatClient,
        *,
        free: bool = True,
        loads: float = 0.0,
        keyring: Keyring | None = None,
        settings: Settings | None = None,
        tracer: Tracer | None = None,
        **agent: Any,
    ) -> Iterator[Asking]:
        """A server whose model follows a script.

        Args:
            free: it may change files without asking. loads: seconds that the model takes to be loaded.
        """
        client: ChatClient = ScriptedAgent(script) if isinstance(script, Sequence) else script

        async def load() -> ChatClient:
            await asyncio.sleep(loads)
            return client

        policy = self.policy if free else None
        options = AgentSettings(self.workspace, policy=policy, database=self.database, **agent)
        models = Models({"scripted": Entry("scripted", "scripted", load)})
        app = assemble(models, settings or Settings(), keyring=keyring, agent=options, tracer=tracer)
        with self._serving(app) as url:
            self.app = app
            yield Asking(url)

    def journal(self) -> Journal:
        return Journal(self.database)

    def file(self, name: str) -> str | None:
        path = self.workspace / name
        return path.read_text(encoding="utf-8") if path.exists() else None
