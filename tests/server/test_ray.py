"""Two replicas of the server under Ray Serve, on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

# In a process of its own: Ray starts many, and its threads and warnings are not for those of the other tests.
PROGRAM = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor

import httpx
from qafila.server.ray_app import replicas

path, port = sys.argv[1], int(sys.argv[2])


def build():
    import os

    from fastapi import Response

    from qafila.server.app import create_app
    from qafila.server.local_models import local_entry
    from qafila.server.models import Models
    from qafila.server.service import Service

    app = create_app(Service(Models({"default": local_entry("default", path, {"threads": 1, "context": 1024})})))

    @app.middleware("http")
    async def name(request, call_next):
        response = await call_next(request)
        response.headers["x-process"] = str(os.getpid())
        return response

    return app


ask = {"model": "default", "temperature": 0, "max_tokens": 16,
       "messages": [{"role": "user", "content": "What is the capital of Japan?"}]}
with (
    replicas(build, count=2, port=port, cpus=0.5) as url,
    httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
):
    def chat(_):
        return http.post("/v1/chat/completions", json=ask)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(chat, range(16)))
    texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
    with http.stream("POST", "/v1/chat/completions", json={**ask, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    wrong = http.post("/v1/chat/completions", json={**ask, "model": "other"})
    print(json.dumps({
        "statuses": sorted({answer.status_code for answer in answers}), "texts": sorted(texts),
        "processes": len({answer.headers["x-process"] for answer in answers}),
        "streamed": "".join(json.loads(line[6:])["choices"][0]["delta"].get("content") or "" for line in lines[:-1]),
        "wrong": [wrong.status_code, wrong.json()["error"]["code"]],
    }))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_the_command_serves_a_replica_and_stops(tmp_path, default_gguf):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[serve]'")
    command = [sys.executable, "-m", "qafila", "serve", f"default={default_gguf}", "--context", "1024", "--json"]
    command += ["--ray", "--replicas", "1", "--port", str(free_port())]
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    database = f"sqlite:///{tmp_path / 'server.sqlite3'}"
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**kept, "QAFILA_DATABASE": database, "QAFILA_API_KEY": "a-key-of-the-tests-0123456789"},
    ) as process:
        try:
            assert process.stdout is not None
            told = json.loads(next(line for line in process.stdout if line.startswith("{")))
            ask = {"model": "default", "temperature": 0, "max_tokens": 16,
                   "messages": [{"role": "user", "content": "What is the capital of Japan?"}]}  # fmt: skip
            with httpx.Client(base_url=told["url"], trust_env=False, timeout=60) as http:
                assert http.post("/v1/chat/completions", json=ask).status_code == 401
                headers = {"Authorization": "Bearer a-key-of-the-tests-0123456789"}
                answer = http.post("/v1/chat/completions", json=ask, headers=headers)
            assert "Tokyo" in answer.json()["choices"][0]["message"]["content"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_two_replicas_answer_as_one(default_gguf):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[serve]'")
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(default_gguf), str(port)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env={**kept, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray says things of its own there.
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert found["statuses"] == [200]
    assert len(found["texts"]) == 1
    assert "Tokyo" in found["texts"][0]
    assert found["streamed"] == found["texts"][0]
    assert found["processes"] == 2
    assert found["wrong"] == [404, "model_not_found"]


def test_ray_that_is_missing_says_how_to_get_it(monkeypatch):
    from qafila.errors import UsageError
    from qafila.server.ray_app import replicas

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'ray\[serve\]'"), replicas(object, count=1):
        raise AssertionError
    with pytest.raises(UsageError, match="--replicas"), replicas(object, count=0):
        raise AssertionError
