"""Claim: ten minutes of twice the load it can bear bring no error but 429, no more memory, and no wrong answer.

First each chat is asked alone: its answer is the reference. Then clients come at random moments, twice as many as the
server was just seen to answer; some hang up, while they wait or at some piece of their answer, by a close or a reset.
Each whole answer must be its reference, each broken one the beginning of it (greedy answers do not depend on what else
is computed). Memory is compared from the end of the warm-up to the end. At last nothing may be running: no processor
time, no open sockets, and the server ends when asked to. All traffic stays on 127.0.0.1, of bounded number, and it
ends by itself.

    python benchmarks/server_soak.py [--minutes 10] [--chats 48] [--vanishing 0.25] [--seed N] [--json]

Ends with status 1 if anything of this does not hold. The chats are those of ../shared/data. Linux (/proc).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from load_client import Reply, chat_request, chats, closed_loop, measured, offers, open_loop, read
from server_process import Server, qafila, running

from qafila.weights.hub import resolve

MAX_TOKENS = 64
FLAT = 0.02
CLIENTS = 16  # of the run that finds the capacity
# More clients at once than the server lets wait: what is held back here never reached it.
MOST = 400
PATIENCE = 30  # seconds after the last request, when all hang up


@dataclass
class Tally:
    """What came back."""

    references: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[dict[str, Any]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def add(self, reply: Reply) -> None:
        """Judge one reply."""
        answer = read(reply)
        reference = self.references[reply.prompt]
        if answer.status == 429:
            self.counts["refused with 429"] += 1
        elif reply.left and answer.status in (0, 200):
            right = reference.startswith(answer.text)
            self._count("left early" if right else "wrong before the client left", reply.prompt, answer.text)
        elif answer.error:
            self._count("errors", reply.prompt, f"{answer.error}: {answer.text}")
        else:
            self._count("right" if answer.text == reference else "wrong", reply.prompt, answer.text)

    def _count(self, what: str, prompt: int, text: str) -> None:
        self.counts[what] += 1
        if what not in ("right", "left early") and len(self.wrong) < 20:
            self.wrong.append({"what": what, "prompt": prompt, "got": text[:300], "due": self.references[prompt][:300]})

    @property
    def failures(self) -> int:
        """Replies that should not have been."""
        return sum(n for what, n in self.counts.items() if what not in ("right", "left early", "refused with 429"))


def texts(replies: list[Reply], count: int) -> list[str]:
    """The answers, by number of prompt."""
    found = [""] * count
    for reply in replies:
        answer = read(reply)
        if answer.error:
            raise SystemExit(f"error: a reference failed: {answer.error}: {answer.text:.300}")
        found[reply.prompt] = answer.text
    return found


def warm(server: Server, name: str, skip: int) -> None:
    """Write to every block of the KV cache, as far as chats go: its memory is taken when it is first used."""
    asked = [chat_request(server.address, name, chat, 4) for chat in chats()[skip:]]
    for first in range(0, min(len(asked), 640), 64):
        closed_loop(server.address, asked[first : first + 64], CLIENTS)
        told = metrics(server)
        share = told["qafila_engine_kv_blocks_cached"] / told["qafila_engine_kv_blocks"]
        print(f"  {share:.0%} of the KV cache written", file=sys.stderr, flush=True)
        if share > 0.95:
            return


# What must be 0 once everybody has gone.
GAUGES = (
    "qafila_requests_running",
    "qafila_queue_depth",
    "qafila_engine_running",
    "qafila_engine_waiting",
    "qafila_engine_kv_blocks_used",
)


def metrics(server: Server) -> dict[str, float]:
    """Sums of the server's own figures over their labels."""
    status, text = server.get("/metrics")
    if status != 200:
        raise SystemExit(f"error: /metrics answers {status}")
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def quiet(server: Server, files: int) -> dict[str, Any]:
    """Whether nothing is left once the last connection is closed: the server's own figures, and what Linux says."""
    give_up = time.monotonic() + 20
    while True:
        before = sum(server.cpu().values())
        time.sleep(2)
        share = (sum(server.cpu().values()) - before) / 2
        left = server.open_files() - files
        told = metrics(server)
        running = {name: told[name] for name in GAUGES}
        nothing = share < 0.05 and left <= 0 and not any(running.values())
        if nothing or time.monotonic() > give_up:
            return {
                "processor": share,
                "files_left_open": left,
                "gauges": running,
                "preemptions": told["qafila_engine_preemptions_total"],
                "nothing_left": nothing,
            }


def soak(options: argparse.Namespace, model: Path, log: Path) -> dict[str, Any]:
    """The whole of it; figures, with ``met``."""
    command, port = qafila(model)
    with running(command, port, "/readyz", log) as server:
        name = json.loads(server.get("/v1/models")[1])["data"][0]["id"]
        asked = chats()[: options.chats]
        requests = [chat_request(server.address, name, chat, MAX_TOKENS) for chat in asked]
        print("references ...", file=sys.stderr, flush=True)
        replies, _ = closed_loop(server.address, requests, 1)
        tally = Tally(texts(replies, len(requests)))
        print("warming up ...", file=sys.stderr, flush=True)
        warm(server, name, options.chats)
        figures, _ = measured(server.address, requests * 2, CLIENTS)
        capacity = 2 * len(requests) / figures.seconds
        time.sleep(1)
        files = server.open_files()
        seconds = options.minutes * 60
        warmed = min(60.0, seconds / 5)

        def tick(now: float) -> None:
            tally.memory.append((now, server.resident()))
            if int(now) % 30 == 0:
                print(
                    f"{now:4.0f} s: {dict(tally.counts)}, {server.resident() / 1e6:.1f} MB", file=sys.stderr, flush=True
                )

        held_back = open_loop(
            server.address,
            requests,
            offers(2 * capacity, seconds, len(requests), options.vanishing, options.seed),
            most=MOST,
            done=tally.add,
            tick=tick,
            drain=PATIENCE,
        )
        # Medians of the first and of the last tenth after the warm-up: one sample is a moment's.
        later = [size for now, size in tally.memory if now > warmed]
        tenth = max(1, len(later) // 10)
        first, last = statistics.median(later[:tenth]), statistics.median(later[-tenth:])
        after = texts(closed_loop(server.address, requests[:8], 1)[0], len(requests))[:8]
        rest = quiet(server, files)
        health = server.get("/healthz")[0]
    growth = last / first - 1
    answered = tally.counts["right"] / seconds
    met = {
        "no error but 429, every answer right": tally.failures == 0,
        "goes on answering": answered >= capacity * (1 - options.vanishing) / 2,
        "right afterwards": after == tally.references[:8],
        "memory flat": growth <= FLAT,
        "nothing left": rest["nothing_left"],
    }
    return {
        "minutes": options.minutes,
        "capacity": capacity,
        "offered": 2 * capacity,
        "answered": answered,
        "counts": dict(tally.counts),
        "held_back": held_back,
        "memory": {"warm": first, "end": last, "growth": growth},
        "rest": rest,
        "healthz": health,
        "failures": tally.wrong,
        "met": met,
    }


def main() -> None:
    """Print what was seen; status 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the overload (at most 60)")
    parser.add_argument("--chats", type=int, default=48, help="different chats")
    parser.add_argument("--vanishing", type=float, default=0.25, help="share of clients that hang up")
    parser.add_argument("--model", default="default", help="the model")
    parser.add_argument("--seed", type=int, default=1, help="of who comes when and who leaves")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not 0 < options.minutes <= 60 or options.chats < 8 or not 0 <= options.vanishing < 1:
        parser.error("--minutes above 0 and up to 60, --chats 8 or more, --vanishing from 0 to below 1")
    with tempfile.TemporaryDirectory(prefix="qafila-soak-") as folder:
        log = Path(folder) / "server.log"
        try:
            found = soak(options, resolve(options.model), log)
        except BaseException:
            if log.is_file():
                sys.stderr.write(log.read_text(errors="replace")[-2000:])
            raise
    shown = sys.stderr if options.json else sys.stdout
    print(f"{found['minutes']:g} minutes at {found['offered']:.1f} requests a second, twice the capacity; "
          f"{found['answered']:.1f} a second answered in whole: {found['counts']}, held back {found['held_back']}",
          file=shown)  # fmt: skip
    memory = found["memory"]
    print(f"memory {memory['warm'] / 1e6:.1f} MB after the warm-up, {memory['end'] / 1e6:.1f} MB at the end "
          f"({memory['growth']:+.2%}); at rest: {found['rest']}", file=shown)  # fmt: skip
    for claim, held in found["met"].items():
        print(f"{claim}: {'met' if held else '**missed**'}", file=shown)
    for failure in found["failures"][:5]:
        print(f"  {failure}", file=shown)
    if options.json:
        print(json.dumps(found))
    sys.exit(0 if all(found["met"].values()) else 1)


if __name__ == "__main__":
    main()
