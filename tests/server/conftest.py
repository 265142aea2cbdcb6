"""Servers to talk to: one on a real port with the default model, and applications over scripted clients."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from scripted_client import ScriptedClient

from qafila.chat.client import ChatClient
from qafila.server.app import create_app
from qafila.server.local_models import local_entry
from qafila.server.models import Entry, Models
from qafila.server.responses_store import ResponseStore
from qafila.server.service import Service


def entry_of(client: ChatClient, name: str = "scripted") -> Entry:
    """A registered model that is already open."""

    async def load() -> ChatClient:
        return client

    return Entry(name, name, load)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine; its base URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the server did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@pytest.fixture(scope="session")
def base_url(default_gguf, tmp_path_factory) -> Iterator[str]:
    """A server with the default model as ``default``, which keeps responses."""
    store = ResponseStore.open(f"sqlite:///{tmp_path_factory.mktemp('server')}/server.sqlite3")
    models = Models({"default": local_entry("default", default_gguf, {"threads": 1})})
    with serving(create_app(Service(models), responses=store)) as url:
        yield url


@pytest.fixture
def scripted() -> Callable[..., tuple[httpx.AsyncClient, ScriptedClient]]:
    """Makes a client of an application over a `ScriptedClient` called ``scripted``, without a socket between."""

    def make(*args: Any, **kwargs: Any) -> tuple[httpx.AsyncClient, ScriptedClient]:
        client = ScriptedClient(*args, **kwargs)
        app = create_app(Service(Models({"scripted": entry_of(client)})))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1"), client

    return make


@pytest.fixture
def scripted_server() -> Iterator[Callable[..., tuple[str, ScriptedClient]]]:
    """Makes servers on real ports over a `ScriptedClient` called ``scripted``: (base URL, client)."""
    with ExitStack() as servers:

        def make(*args: Any, responses: ResponseStore | None = None, **kwargs: Any) -> tuple[str, ScriptedClient]:
            client = ScriptedClient(*args, **kwargs)
            app = create_app(Service(Models({"scripted": entry_of(client)})), responses=responses)
            return servers.enter_context(serving(app)), client

        yield make


@pytest.fixture(name="serving", scope="session")
def serving_fixture() -> Callable[[Any], Any]:
    """`serving`: a context manager that serves an application on a port."""
    return serving
