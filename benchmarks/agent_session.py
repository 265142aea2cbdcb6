"""Claims: in a session of 20 tool calls nothing is computed twice, and each step's first token comes sooner than from
llama.cpp's `llama-server`, which is told the same tools and gets results of the same length.

    python benchmarks/agent_session.py [--llama-server PATH] [--steps 20] [--rounds 3] [--json]

First an agent's run in this process: at every step the tokens of the step before, prompt and answer, that did not come
out of the cache. Then one conversation with `qafila serve` and one with `llama-server` (one slot, its own chat
template, the best number of threads of its defaults), in turns: every step must be a call, the result of which is a
file of some 450 characters. Timed is from asking until the first piece of the call arrives.
scripts/build_llama_server.sh builds the peer; without it our side is measured alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from server_process import llama_server, qafila, running

from qafila.agent.events import Answered, Budget, Thresholds
from qafila.agent.journal import Journal
from qafila.agent.loop import Agent, Settings
from qafila.agent.tools.builtin import builtin
from qafila.chat.client import CallPiece, ChatRequest, Finished, Generation, Usage
from qafila.chat.llama import Llama
from qafila.chat.local import LocalClient
from qafila.chat.remote import RemoteClient
from qafila.chat.upstream import Address, Connection, offered
from qafila.text.messages import Message, ToolSchema
from qafila.weights.hub import resolve

PEER = Path(__file__).parents[1] / "build" / "llama-server" / "bin" / "llama-server"
GOAL = "Read every day of the diary and tell me when the caravan arrives."
BLOCK = 16
_PLACES = ("Cairo", "Asyut", "Dakhla", "Kharga", "Selima", "Dongola", "Merowe", "Berber", "Shendi", "Khartoum")


def diary(day: int, salt: str) -> str:
    """Some 450 characters of a day that is like no other."""
    lines = [f"Day {day} of caravan {salt}."]
    for hour in range(6, 13):
        place = _PLACES[(day * 3 + hour) % len(_PLACES)]
        lines.append(f"At {hour}:00 we saw {place}, {day * hour % 97} camels and {hour * 7 % 31} traders on the way.")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One step: tokens of its prompt, those that were in the cache, generated; seconds to the first token."""

    read: int
    cached: int
    generated: int
    first: float


async def own_run(model: Path, steps: int, folder: Path) -> list[StepFigures]:
    """The steps of an agent's run in this process, by the journal."""
    for day in range(1, steps + 1):
        (folder / f"day-{day:02}.txt").write_text(diary(day, "A"), encoding="utf-8")
    journal = Journal(f"sqlite:///{folder.parent}/agent.sqlite3")
    settings = Settings(
        choosing="likelihood", thresholds=Thresholds(call=0.0), budget=Budget(steps=steps), answer_tokens=48
    )
    client = LocalClient(Llama.load(model, context=8192), "default", owns_model=True)
    try:
        agent = Agent(client, builtin(["read_file"]), journal, workspace=folder, settings=settings)
        run = agent.begin(GOAL)
        async for _ in agent.work(run):
            pass
    finally:
        await client.close()
    spent = [one.event.spent for one in journal.events(run) if isinstance(one.event, Answered)]
    return [StepFigures(one.read, one.cached, one.generated, one.first_token_seconds) for one in spent]


async def session(address: tuple[str, int], steps: int, salt: str) -> list[StepFigures]:
    """A conversation of so many calls with a server."""
    where = f"http://{address[0]}:{address[1]}/v1"
    connection = Connection(Address.parse(where), key=None, where=where)
    there = (await offered(connection, where))[0]
    client = RemoteClient(connection, there.name, dialect=there.dialect)
    names = [f"day-{day:02}.txt" for day in range(1, steps + 1)]
    parameters = {"type": "object", "properties": {"path": {"type": "string", "enum": names}}, "required": ["path"]}
    tools = (ToolSchema("read_file", "Read a text file.", parameters),)
    messages = [Message("system", "You carry out the user's task with tools."), Message("user", f"{GOAL} ({salt})")]
    figures = []
    try:
        for day in range(1, steps + 1):
            request = ChatRequest(
                tuple(messages),
                tools,
                tool_mode="required",
                parallel_tool_calls=False,
                generation=Generation(max_tokens=64, temperature=0.0, seed=0),
            )
            started, first, usage = time.perf_counter(), 0.0, Usage(0, 0, 0)
            async for event in client.chat(request):
                if isinstance(event, CallPiece):
                    first = first or time.perf_counter() - started
                elif isinstance(event, Finished):
                    messages.append(event.message)
                elif isinstance(event, Usage):
                    usage = event
            if not first:
                raise SystemExit(f"error: {where}: step {day} was no call")
            figures.append(StepFigures(usage.prompt, usage.cached, usage.generated, first))
            call = messages[-1].tool_calls[0]
            messages.append(Message("tool", diary(day, salt), name=call.name, tool_call_id=call.id))
    finally:
        await client.close()
    return figures


def side_by_side(model: Path, binary: Path | None, steps: int, rounds: int, log: Path) -> dict[str, list[StepFigures]]:
    """Medians of the rounds' steps, of each server."""
    found: dict[str, list[list[StepFigures]]] = {}
    with ExitStack() as stack:
        command, port = qafila(model, "--context", "8192")
        sides = {"ours": stack.enter_context(running(command, port, "/readyz", log)).address}
        if binary is not None:
            threads = len(os.sched_getaffinity(0))
            command, port = llama_server(binary, model, 1, threads, "-c", "8192", "--jinja")
            sides["llama-server"] = stack.enter_context(running(command, port, "/health", log)).address
        for number in range(rounds + 1):
            for side, address in sides.items():
                figures = asyncio.run(session(address, steps if number else 2, f"{number}"))
                if number:  # the first warms
                    found.setdefault(side, []).append(figures)
    return {
        side: [
            StepFigures(
                *(
                    median(values)
                    for values in zip(*((s.read, s.cached, s.generated, s.first) for s in step), strict=True)
                )
            )
            for step in zip(*sessions, strict=True)
        ]
        for side, sessions in found.items()
    }


def recomputed(figures: list[StepFigures]) -> list[int]:
    """Tokens of the step before, prompt and answer, that each step computed again."""
    return [max(0, before.read + before.generated - after.cached) for before, after in itertools.pairwise(figures)]


def main() -> None:
    """Measure, and say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="as for `qafila chat`")
    parser.add_argument("--llama-server", type=Path, default=PEER, metavar="PATH", help="the peer's program")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    binary: Path | None = options.llama_server if options.llama_server.is_file() else None
    if binary is None:
        print(f"no {options.llama_server}: our side alone (scripts/build_llama_server.sh)", file=sys.stderr)
    model = resolve(options.model)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "files").mkdir()
        own = asyncio.run(own_run(model, options.steps, Path(place) / "files"))
        sides = side_by_side(model, binary, options.steps, options.rounds, Path(place) / "log")
    report: dict[str, Any] = {
        "agent": {
            "steps": len(own),
            "last_prompt": own[-1].read,
            "cached_of_read": sum(one.cached for one in own) / sum(one.read for one in own),
            "computed_again_most": max(recomputed(own)),
            "first_ms": [round(1000 * one.first, 1) for one in own],
        },
        "servers": {
            side: {
                "first_ms": [round(1000 * one.first, 1) for one in figures],
                "median_first_ms": round(1000 * median(one.first for one in figures[1:]), 1),
                "last_prompt": figures[-1].read,
                "computed_again_most": max(recomputed(figures)),
            }
            for side, figures in sides.items()
        },
    }
    if len(sides) == 2:
        pairs = zip(sides["ours"], sides["llama-server"], strict=True)
        report["ratio"] = round(median(theirs.first / ours.first for ours, theirs in list(pairs)[1:]), 2)
    if options.json:
        print(json.dumps(report))
        return
    about = report["agent"]
    print(f"agent: {about['steps']} steps, last prompt {about['last_prompt']} tokens")
    print(f"  of all read {about['cached_of_read']:.1%} from the cache")
    print(f"  of a step before computed again: at most {about['computed_again_most']} (a block: {BLOCK})")
    for side, row in report["servers"].items():
        print(f"{side}: first piece after {row['median_first_ms']} ms (median of all steps but the first)")
        print(f"  last prompt {row['last_prompt']}; computed again: at most {row['computed_again_most']}")
        print(f"  {row['first_ms']}")
    if "ratio" in report:
        print(f"llama-server takes {report['ratio']} times as long to the first piece (median of the steps)")


if __name__ == "__main__":
    main()
