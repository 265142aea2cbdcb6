"""`qafila serve` as a process: what it refuses, what it says, and how it stops."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qafila.cli.main import main

KEY = "a-key-of-the-tests-0123456789"
BODY = {"model": "default", "messages": [{"role": "user", "content": "Count to one hundred."}], "max_tokens": 60}
CHAT = "/v1/chat/completions"


class Running:
    """A server process that says in JSON where it listens."""

    def __init__(self, tmp_path: Path, *arguments: str, **environment: str) -> None:
        self.errors = tmp_path / "errors"
        command = [sys.executable, "-m", "qafila", "serve", "--port", "0", "--json", *arguments]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env=surroundings(tmp_path, **environment), text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log()
        self.told = json.loads(line)
        self.url: str = self.told["url"]

    def log(self) -> str:
        return self.errors.read_text(encoding="utf-8")

    def end(self, sig: int, timeout: float = 20) -> int:
        self.process.send_signal(sig)
        return self.process.wait(timeout)


def surroundings(tmp_path: Path, **environment: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("QAFILA_") or k == "QAFILA_HOME"}
    return {
        **kept,
        "QAFILA_DATABASE": f"sqlite:///{tmp_path / 'server.sqlite3'}",
        "OMP_NUM_THREADS": "1",
        **environment,
    }


@pytest.fixture
def start(tmp_path: Path, default_gguf: Path) -> Iterator[Any]:
    started: list[Running] = []

    def make(*arguments: str, **environment: str) -> Running:
        model = () if any(a.startswith("default=") for a in arguments) else (f"default={default_gguf}",)
        started.append(Running(tmp_path, *model, "--threads", "1", *arguments, **environment))
        return started[-1]

    yield make
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
        running.process.stdout.close()  # type: ignore[union-attr]


def fails(tmp_path: Path, *arguments: str, **environment: str) -> str:
    """The one line of a server that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "qafila", "serve", "--json", *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=surroundings(tmp_path, **environment),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_what_is_refused_in_one_line_before_anything_is_opened(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("QAFILA_DATABASE", f"sqlite:///{tmp_path / 'server.sqlite3'}")
    monkeypatch.delenv("QAFILA_API_KEY", raising=False)

    def refused(*arguments: str) -> str:
        assert main(["serve", "--json", *arguments]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        (line,) = told.err.splitlines()
        return line

    public = refused("--host", "0.0.0.0")
    assert public.startswith("error: --host 0.0.0.0: others can reach that address, and there is no API key yet")
    assert "--max-body: 'much' is no size" in refused("--max-body", "much")
    assert "--log-format: must be human or json" in refused("--log-format", "xml")
    assert "--api-key-file: key 1 must be 16" in refused("--api-key-file", str(write(tmp_path, "short\n")))
    assert "holds no key" in refused("--api-key-file", str(write(tmp_path, "# none\n")))
    assert "no such file" in refused("--api-key-file", str(tmp_path / "none"))
    assert "two models are called 'a'" in refused("a=default", "a=default")
    assert "--adapter: 'x' is neither" in refused("--adapter", "x")
    assert "are for exactly one --upstream" in refused("--upstream-model", "a=b")
    assert "--keep-responses: 'long' is no length of time" in refused("--keep-responses", "long")
    assert "--otlp-endpoint: 'localhost' is no URL" in refused("--otlp-endpoint", "localhost")
    monkeypatch.setenv("QAFILA_API_KEY", "hunter2")
    secret = refused()
    assert "QAFILA_API_KEY: key 1 must be 16" in secret
    assert "hunter2" not in secret


def test_a_model_that_is_not_there_and_a_port_that_is_taken(tmp_path: Path) -> None:
    assert "'nothere'" in fails(tmp_path, "nothere", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: address already in use; choose another" in fails(tmp_path, "--port", str(port))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    return path


def test_it_serves_and_sigterm_lets_a_stream_finish(start: Any) -> None:
    server = start("--log-format", "json")
    assert server.told["models"] == ["default"]
    assert httpx.get(server.url + "/readyz").json() == {"status": "ready"}
    assert "<!doctype html>" in httpx.get(server.url + "/").text
    with httpx.stream("POST", server.url + CHAT, json={**BODY, "stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with contextlib.suppress(httpx.TransportError):  # nobody new gets in
            assert httpx.get(server.url + "/readyz", timeout=2).status_code == 503
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("stop", "length")
    assert server.process.wait(20) == 0
    logged = [json.loads(line) for line in server.log().splitlines()]
    (line,) = [line for line in logged if line.get("path") == CHAT]
    assert (line["status"], line["key"], line["model"]) == (200, "anonymous", "default")
    assert "hundred" not in server.log()


def test_what_outlasts_the_grace_is_cut_off_and_the_log_stays_quiet(start: Any) -> None:
    server = start("--grace", "0.3")
    endless = {**BODY, "stream": True, "max_tokens": 4000, "logit_bias": {"2": -100, "0": -100}}
    with httpx.stream("POST", server.url + CHAT, json=endless, timeout=60) as answer:
        pieces = answer.iter_lines()
        next(pieces)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx.TransportError):
            assert "data: [DONE]" not in list(pieces)
    assert server.process.wait(20) == 0
    assert time.monotonic() - began < 10
    assert "Traceback" not in server.log()


def test_ctrl_c_ends_with_130_and_a_second_one_at_once(start: Any) -> None:
    assert start().end(signal.SIGINT) == 130
    server = start("--grace", "60")
    endless = {**BODY, "max_tokens": 4000, "logit_bias": {"2": -100, "0": -100}}

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(server.url + CHAT, json=endless, timeout=60)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert server.process.poll() is None
    began = time.monotonic()
    assert server.end(signal.SIGINT) == 130
    assert time.monotonic() - began < 2
    asking.join()


def test_a_public_address_with_a_key(start: Any, tmp_path: Path) -> None:
    server = start("--host", "0.0.0.0", "--api-key-file", str(write(tmp_path, f"# ours\n{KEY}\n")), "--lazy")
    assert server.url.startswith("http://127.0.0.1:")
    assert httpx.get(server.url + "/v1/models").status_code == 401
    assert httpx.get(server.url + "/").status_code == 200
    models = httpx.get(server.url + "/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert [each["id"] for each in models["data"]] == ["default"]
    # A key that is made and revoked while it runs.
    environment = surroundings(tmp_path)
    keys = [sys.executable, "-m", "qafila", "keys"]
    made = subprocess.run([*keys, "create", "ann"], capture_output=True, text=True, check=True, env=environment)
    headers = {"x-api-key": made.stdout.strip()}
    assert httpx.get(server.url + "/v1/models", headers=headers).status_code == 200
    subprocess.run([*keys, "revoke", "ann"], capture_output=True, check=True, env=environment)
    end = time.monotonic() + 5
    while httpx.get(server.url + "/v1/models", headers=headers).status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert KEY not in server.log()
    assert server.end(signal.SIGTERM) == 0


def test_it_is_alive_but_not_ready_while_it_loads(tmp_path: Path) -> None:
    """A stop in that time is a stop at once."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time\n"
        "from qafila.chat.llama import Llama\n"
        "Llama.load = classmethod(lambda cls, *a, **k: time.sleep(60))\n"
        "from qafila.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(slow), "serve", "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings(tmp_path)
    ) as server:
        try:
            end = time.monotonic() + 30
            alive = None
            while alive is None:
                assert time.monotonic() < end
                with contextlib.suppress(httpx.TransportError):
                    alive = httpx.get(f"http://127.0.0.1:{port}/healthz")
                time.sleep(0.05)
            assert alive.status_code == 200
            ready = httpx.get(f"http://127.0.0.1:{port}/readyz")
            assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
            server.send_signal(signal.SIGINT)
            assert server.wait(5) == 130
        finally:
            server.kill()


def test_systemd_is_told_when_it_is_ready(start: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        server = start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert manager.recv(100) == b"READY=1"
        assert server.end(signal.SIGTERM) == 0


def test_the_commands_and_options_of_the_documentation(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for name in [name for name in os.environ if name not in surroundings(tmp_path)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QAFILA_DATABASE", f"sqlite:///{tmp_path / 'server.sqlite3'}")
    for line in block.splitlines():
        words = line.split()
        assert words[0] == ".venv/bin/qafila"
        status, told = main(words[1:]), capsys.readouterr()
        assert status == 0, told.err
        assert told.out.strip()
    for command in (["serve"], ["keys", "create"]):
        assert main([*command, "--help"]) == 0
    known = capsys.readouterr().out
    for option in set(re.findall(r"`(--[a-z-]+)", text)):
        assert option in known, option
