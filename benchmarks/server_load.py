"""Claim: `qafila serve` answers many streaming chats at once several times as fast as llama.cpp's `llama-server`.

The same chats (greedy, of varied length, none asked twice) go to both servers over the same model file, from 1, 4, 16
and 64 clients, each of which sends its next request when its last is answered. The servers take turns; figures are
medians of the rounds. Ours runs with its defaults; `llama-server` with as many slots as clients and the best of a few
settings found just before. Then: the processor time of our server's event loop beside that of its engine, and 1,000
idle connections. All traffic stays on 127.0.0.1.

    python benchmarks/server_load.py [--llama-server PATH] [--clients 1,4,16,64] [--rounds N] [--quick] [--json]

scripts/build_llama_server.sh builds the peer; without it our side is measured alone. The chats are those of
../shared/data. Linux (/proc).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from load_client import Figures, chat_request, chats, measured
from server_process import Server, llama_server, qafila, running

from qafila.weights.hub import resolve

PEER = Path(__file__).parents[1] / "build" / "llama-server" / "bin" / "llama-server"
MAX_TOKENS = 64
SPEED_GOAL, CPU_GOAL, GOALS_AT = 3.0, 0.10, 16
FIGURES = ("tokens_per_second", "first_p50", "first_p99", "token_p50", "token_p99")


class Chats:
    """Chats that nobody has asked for yet, the same for both servers."""

    def __init__(self) -> None:
        self._all = chats()
        self._next = 0

    def take(self, count: int) -> list[list[dict[str, str]]]:
        """The next so many (from the beginning again when they run out, long after caches have forgotten them)."""
        taken = [self._all[(self._next + i) % len(self._all)] for i in range(count)]
        self._next += count
        return taken


def run(server: Server, model: str, asked: Sequence[list[dict[str, str]]], clients: int) -> Figures:
    """One run against one server."""
    requests = [chat_request(server.address, model, messages, MAX_TOKENS) for messages in asked]
    figures, answers = measured(server.address, requests, clients)
    for answer in answers:
        if answer.error:
            print(f"error: {answer.error}: {answer.text:.200}", file=sys.stderr)
    return figures


def requests_for(clients: int, quick: bool) -> int:
    """How many requests a run has: some for each client, so that few wait for the last one."""
    return max(3 if quick else 6, clients * (1 if quick else 3 if clients < 64 else 2))


def settings(cores: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Threads and further options of `llama-server` to choose from."""
    for threads in sorted({1, max(1, cores // 2), cores}):
        for options in ((), ("--kv-unified",)):
            yield threads, options


def tune(binary: Path, model: Path, clients: int, source: Chats, log: Path) -> tuple[int, tuple[str, ...]]:
    """The settings with which `llama-server` gives most tokens a second to so many clients."""
    asked = source.take(max(4, clients))
    rates = {}
    for choice in settings(len(os.sched_getaffinity(0))):
        command, port = llama_server(binary, model, clients, choice[0], *choice[1])
        with running(command, port, "/health", log) as server:
            run(server, "default", asked[:2], 1)  # warm
            rates[choice] = run(server, "default", asked, clients).tokens_per_second
    return max(rates, key=rates.__getitem__)


def side_by_side(
    model: Path, binary: Path | None, clients: int, options: argparse.Namespace, source: Chats, log: Path
) -> dict[str, Any]:
    """Both servers under so many clients, in turns, with the processor time of ours."""
    row: dict[str, Any] = {"clients": clients}
    count = requests_for(clients, options.quick)
    found: dict[str, list[Figures]] = {"ours": []}
    with ExitStack() as stack:
        command, port = qafila(model)
        ours = stack.enter_context(running(command, port, "/readyz", log))
        name = json.loads(ours.get("/v1/models")[1])["data"][0]["id"]
        sides: dict[str, tuple[Server, str]] = {"ours": (ours, name)}
        if binary is not None:
            threads, more = tune(binary, model, clients, source, log)
            row["settings"] = {"threads": threads, "options": list(more), "slots": clients}
            command, port = llama_server(binary, model, clients, threads, *more)
            sides["llama-server"] = (stack.enter_context(running(command, port, "/health", log)), "default")
            found["llama-server"] = []
        for server, called in sides.values():
            run(server, called, source.take(clients), clients)  # loads, warms
        before, tokens, client_cpu = ours.cpu(), 0, 0.0
        for _ in range(options.rounds):
            asked = source.take(count)
            for side, (server, called) in sides.items():
                figures = run(server, called, asked, clients)
                found[side].append(figures)
                if side == "ours":
                    tokens += figures.tokens
                    client_cpu += figures.client_cpu
        after = ours.cpu()
    spent = {role: after[role] - before.get(role, 0.0) for role in after}
    engine = spent.get("qafila-engine", 0.0) + spent.get("other", 0.0)
    serving = spent.get("loop", 0.0) + spent.get("qafila-prepare", 0.0)
    row["cpu"] = {"spent": spent, "share": serving / engine if engine else math.nan, "client": client_cpu}
    row["cpu"]["microseconds_per_token"] = {role: 1e6 * s / tokens for role, s in spent.items()} if tokens else {}
    row["all"] = {side: [asdict(figures) for figures in runs] for side, runs in found.items()}
    for side, runs in found.items():
        row[side] = {key: statistics.median(getattr(figures, key) for figures in runs) for key in FIGURES}
        row[side]["errors"] = sum(figures.errors for figures in runs)
    if binary is not None:
        pairs = zip(found["ours"], found["llama-server"], strict=True)
        row["ratio"] = statistics.median(mine.tokens_per_second / other.tokens_per_second for mine, other in pairs)
    return row


def idle(model: Path, options: argparse.Namespace, source: Chats, log: Path) -> dict[str, Any]:
    """Tokens a second of 4 clients with and without idle connections, in turns."""
    rates: dict[str, list[float]] = {"with": [], "without": []}
    alive = []
    command, port = qafila(model)
    with running(command, port, "/readyz", log) as server:
        name = json.loads(server.get("/v1/models")[1])["data"][0]["id"]
        count = requests_for(4, options.quick)
        run(server, name, source.take(8), 4)
        for number in range(options.rounds * 2):
            # The order turns round too, so that a machine that slows down slows both alike.
            if number % 4 in (0, 3):
                rates["without"].append(run(server, name, source.take(count), 4).tokens_per_second)
                continue
            connections = [_kept(server) for _ in range(options.idle)]
            rates["with"].append(run(server, name, source.take(count), 4).tokens_per_second)
            alive.append(sum(map(_open, connections)))
            for connection in connections:
                connection.close()
            time.sleep(0.5)
    ratio = statistics.median(rates["with"]) / statistics.median(rates["without"])
    return {"idle": options.idle, "ratio": ratio, "still_open": alive, "all": rates}


def _kept(server: Server) -> socket.socket:
    """A connection that has asked for something once, and stays."""
    connection = socket.create_connection(server.address, timeout=30)
    connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{server.address[1]}\r\n\r\n".encode())
    connection.recv(1 << 16)
    return connection


def _open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1 << 16))
    except BlockingIOError:
        return True
    except OSError:
        return False


def lines(row: dict[str, Any]) -> Iterator[str]:
    """The rows of the Markdown table."""
    for side in ("ours", "llama-server"):
        if side in row:
            figures = row[side]
            each = [f"{figures[key] * 1000:,.0f}" for key in FIGURES[1:]]
            ratio = f"{row['ratio']:.2f}" if side == "ours" and "ratio" in row else ""
            yield (
                f"| {row['clients']} | {side} | {figures['tokens_per_second']:,.1f} | {ratio} | {' | '.join(each)} | "
                f"{figures['errors']} |"
            )


def main() -> None:
    """Print the table as it grows; with --json it goes to standard error, and the figures follow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-server", type=Path, default=PEER, metavar="PATH", help="the peer's program")
    parser.add_argument("--model", default="default", help="the GGUF file both serve")
    parser.add_argument("--clients", default="1,4,16,64", help="numbers of clients, comma between")
    parser.add_argument("--idle", type=int, default=1000, help="idle connections; 0 leaves that measurement out")
    parser.add_argument("--rounds", type=int, default=None, help="runs of each server (default 5)")
    parser.add_argument("--quick", action="store_true", help="two rounds of fewer requests")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    numbers = [int(number) for number in options.clients.split(",") if number]
    model = resolve(options.model)
    binary: Path | None = options.llama_server if options.llama_server.is_file() else None
    if binary is None:
        print(f"no {options.llama_server}: our side alone (scripts/build_llama_server.sh)", file=sys.stderr)
    shown = sys.stderr if options.json else sys.stdout
    say: Callable[..., None] = lambda text: print(text, file=shown, flush=True)  # noqa: E731
    source = Chats()
    found: dict[str, Any] = {"processors": len(os.sched_getaffinity(0)), "rounds": options.rounds, "rows": []}
    with tempfile.TemporaryDirectory(prefix="qafila-load-") as folder:
        log = Path(folder) / "servers.log"
        say("| clients | server | tokens/s | ratio | first token, ms: p50 | p99 | each token, ms: p50 | p99 | errors |")
        say("|---:|---|---:|---:|---:|---:|---:|---:|---:|")
        try:
            for clients in numbers:
                row = side_by_side(model, binary, clients, options, source, log)
                found["rows"].append(row)
                for line in lines(row):
                    say(line)
            for row in found["rows"]:
                each = ", ".join(f"{k} {v:.0f}" for k, v in row["cpu"]["microseconds_per_token"].items())
                cpu = row["cpu"]
                say(f"\n{row['clients']} clients: processor time outside the engine {cpu['share']:.1%} of the engine's "
                    f"(microseconds a token: {each}); load generator {cpu['client']:.2f} s")  # fmt: skip
            if options.idle:
                found["idle"] = idle(model, options, source, log)
                say(f"\n{options.idle} idle connections (still open after each run: {found['idle']['still_open']}): "
                    f"{found['idle']['ratio']:.3f} of the tokens/s without")  # fmt: skip
        except BaseException:
            if log.is_file():
                sys.stderr.write(log.read_text(errors="replace")[-2000:])
            raise
    at = {row["clients"]: row for row in found["rows"]}.get(GOALS_AT)
    if at is not None:
        if "ratio" in at:
            say(f"\nTokens/s at {GOALS_AT}: {at['ratio']:.2f} of llama-server's (goal {SPEED_GOAL:g}): "
                f"{'met' if at['ratio'] >= SPEED_GOAL else '**missed**'}")  # fmt: skip
        met = at["cpu"]["share"] <= CPU_GOAL
        say(f"Processor time outside the engine at {GOALS_AT}: {at['cpu']['share']:.1%} (goal {CPU_GOAL:.0%}): "
            f"{'met' if met else '**missed**'}")  # fmt: skip
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
