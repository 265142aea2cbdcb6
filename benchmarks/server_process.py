"""The servers that benchmarks/server_*.py measure: started on a free port of this machine, watched, and ended."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A server under way."""

    process: subprocess.Popen[bytes]
    address: tuple[str, int]

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time so far: of the ``loop`` (the main thread), of ``qafila-prepare``'s threads, of
        ``qafila-engine`` and of ``other`` threads, which in our server are the engine's team."""
        seconds: dict[str, float] = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has just ended
                stat = (task / "stat").read_text()
                name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
                role = "loop" if int(task.name) == self.process.pid else _role(name)
                seconds[role] = seconds.get(role, 0.0) + (int(fields[11]) + int(fields[12])) / _TICK
        return seconds

    def resident(self) -> int:
        """Bytes of memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def open_files(self) -> int:
        """Files and sockets that are open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of one request."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


def _role(name: str) -> str:
    for known in ("qafila-engine", "qafila-prepare"):
        if name.startswith(known[:15]):
            return known
    return "other"


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


@contextlib.contextmanager
def running(command: Sequence[str], port: int, ready: str, log: Path) -> Iterator[Server]:
    """A server for the length of a block, from when ``GET ready`` answers 200; its output goes to ``log``.

    Raises:
        SystemExit: it does not come up, or does not end within a minute of being asked to.
    """
    # Nothing of the user's: no keys, no stored answers.
    environment = {name: value for name, value in os.environ.items() if name != "QAFILA_API_KEY"}
    environment["QAFILA_DATABASE"] = f"sqlite:///{log.parent}/server.sqlite3"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
    server = Server(process, ("127.0.0.1", port))
    try:
        give_up = time.monotonic() + 120
        while True:
            if process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"error: {' '.join(command)} does not answer; its output is in {log}")
            with contextlib.suppress(OSError):
                if server.get(ready)[0] == 200:
                    break
            time.sleep(0.1)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise SystemExit(f"error: {' '.join(command)} was still there 60 s after SIGTERM") from None


def qafila(model: Path, *options: str) -> tuple[list[str], int]:
    """The command of our server, and its port."""
    port = free_port()
    return [sys.executable, "-m", "qafila", "serve", str(model), "--port", str(port), *options], port


def llama_server(binary: Path, model: Path, slots: int, threads: int, *options: str) -> tuple[list[str], int]:
    """The command of llama.cpp's server with room for 1,024 tokens a slot, and its port."""
    port = free_port()
    command = [str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-np", str(slots)]
    command += ["-c", str(1024 * slots), "-cb", "-fa", "on", "-t", str(threads), "-tb", str(threads)]
    # Not measured: its page, its log of each request, and memory of prompts beyond its slots.
    return [*command, "--no-webui", "--log-disable", *options], port
