"""What the commands of `qafila agent` work with."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from qafila.chat.client import ChatClient
from qafila.cli.agent_setup import open_client
from qafila.errors import UpstreamError, UsageError


@contextmanager
def serving(models: Sequence[str]) -> Iterator[tuple[str, list[str | None]]]:
    """A server that lists these models; gives its URL, and what its requests were authorised with."""
    keys: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["Authorization"])
            listed = [{"id": name, "owned_by": "vllm", "max_model_len": 4096} for name in models]
            body = json.dumps({"data": listed}).encode()
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: the terminal is the test's."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", keys
        finally:
            server.shutdown()
            thread.join()


def opened(model: str, endpoint: str | None, key: str | None = None, threads: int | None = None) -> ChatClient:
    client = open_client(model, endpoint=endpoint, key_variable=key, threads=threads, context=None, adapter=None)
    asyncio.run(client.close())
    return client


def test_a_model_elsewhere_is_the_one_that_is_named_or_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret-key")
    with serving(["llama", "نخلة"]) as (url, keys):
        client = opened("نخلة", url, "A_KEY")
        assert (client.name, client.context_length) == ("نخلة", 4096)
        assert keys == ["Bearer secret-key"]
        with pytest.raises(UsageError, match="has no model 'default'; --model names one of llama, نخلة"):
            opened("default", url)
    with serving(["llama"]) as (url, _):
        assert opened("default", url).name == "llama"


def test_what_is_wrong_with_an_endpoint_is_said_before_anything_runs() -> None:
    with serving([]) as (url, _), pytest.raises(UpstreamError, match=f"endpoint {url}: its list of models is empty"):
        opened("default", url)
    with pytest.raises(UpstreamError, match=r"endpoint http://127\.0\.0\.1:9: its server cannot be reached"):
        opened("default", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="NO_SUCH_KEY: not set"):
        opened("default", "http://127.0.0.1:9", "NO_SUCH_KEY")
    with pytest.raises(UsageError, match="--key-env goes with --endpoint"):
        opened("default", None, "A_KEY")
    with pytest.raises(UsageError, match="--threads, --context and --adapter are of a model in this process"):
        opened("default", "http://127.0.0.1:9", threads=2)
    with pytest.raises(UsageError, match="holds a user or password") as caught:
        opened("default", "http://user:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)
    assert "upstream" not in str(caught.value)
    with pytest.raises(UsageError, match="endpoint: 'nowhere' is no URL"):
        opened("default", "nowhere")
