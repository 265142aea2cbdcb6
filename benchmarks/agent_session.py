"""Claims: in a session of 20 tool calls nothing is computed twice, and each step's first token comes sooner than from
llama.cpp's `llama-server`, which is told the same tools and gets results of the same length.

    python benchmarks/agent_session.py [--llama-server PATH] [--steps 20] [--rounds 3] [--json]

First an agent's run in this process: at every step the tokens of the step before, prompt and answer, that did not come
out of the cache. Then one conversation with `qafila serve` and one with `llama-server` (one slot, a thread a core, a
template that tells tools as our format does, since the model's own has no place for them), in turns. As `llama-server`
makes this model call nothing, both are told the same calls and results of some 450 characters, whatever they answer.
Timed is from asking until the first piece of an answer arrives. scripts/build_llama_server.sh builds the peer; without
it our side is measured alone.
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
from qafila.chat.client import CallPiece, ChatRequest, Generation, TextPiece, Usage
from qafila.chat.llama import Llama
from qafila.chat.local import LocalClient
from qafila.chat.remote import RemoteClient
from qafila.chat.upstream import Address, Connection, offered
from qafila.text.messages import Message, ToolCall, ToolSchema
from qafila.weights.hub import resolve

PEER = Path(__file__).parents[1] / "build" / "llama-server" / "bin" / "llama-server"
GOAL = "Read every day of the diary and tell me when the caravan arrives."
BLOCK = 16
#: Tokens of each answer.
ANSWER = 48
TEMPLATE = """{%- if tools %}<|im_start|>system
{{ messages[0].content if messages[0].role == 'system' else '' }}

# Tools

You may call one or more functions. Their signatures:
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>

For each call give its name and arguments as JSON within <tool_call></tool_call> tags:
<tool_call>
{"name": NAME, "arguments": ARGUMENTS}
</tool_call><|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' or message.role == 'assistant' and not message.tool_calls %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% elif message.role == 'assistant' %}<|im_start|>assistant
{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""
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
            generation = Generation(max_tokens=ANSWER, temperature=0.0, seed=0)
            request = ChatRequest(tuple(messages), tools, generation=generation)
            started, first, usage = time.perf_counter(), 0.0, Usage(0, 0, 0)
            async for event in client.chat(request):
                if isinstance(event, CallPiece | TextPiece):
                    first = first or time.perf_counter() - started
                elif isinstance(event, Usage):
                    usage = event
            if not first:
                raise SystemExit(f"error: {where}: step {day} gave nothing within {ANSWER} tokens")
            figures.append(StepFigures(usage.prompt, usage.cached, usage.generated, first))
            call = ToolCall(f"call{day:05}", "read_file", {"path": names[day - 1]})
            messages.append(Message("assistant", "", tool_calls=(call,)))
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
            template = log.with_suffix(".jinja")
            template.write_text(TEMPLATE, encoding="utf-8")
            options = ("-c", "8192", "--jinja", "--chat-template-file", str(template))
            command, port = llama_server(binary, model, 1, threads, *options)
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


def recomputed(figures: list[StepFigures], *, answers: bool) -> list[int]:
    """Tokens of the step before that each step computed again: of its prompt, and of its answer where that was kept."""
    return [
        max(0, before.read + before.generated * answers - after.cached) for before, after in itertools.pairwise(figures)
    ]


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
            "computed_again_most": max(recomputed(own, answers=True)),
            "first_ms": [round(1000 * one.first, 1) for one in own],
        },
        "servers": {
            side: {
                "first_ms": [round(1000 * one.first, 1) for one in figures],
                "median_first_ms": round(1000 * median(one.first for one in figures[1:]), 1),
                "last_prompt": figures[-1].read,
                "computed_again_most": max(recomputed(figures, answers=False)),
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
