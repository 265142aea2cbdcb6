"""Agent runs whose process is killed again and again: nothing is done twice, nothing is lost, the journal stays whole.

    python benchmarks/agent_kills.py [--runs 200] [--seed 0] [--json]

A run writes files, adds lines to one, and sends messages that no one can take back, and has a sub-run that does the
same. Its process is killed (SIGKILL) at random moments and started again until the run is done; then everything that it
should have done is compared with what is there, and taken back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from qafila.agent.edits import file_edit
from qafila.agent.events import Budget, Ended, Intended, Observed
from qafila.agent.journal import Journal
from qafila.agent.loop import Agent, Settings
from qafila.agent.policy import Policy, Rule, with_writes
from qafila.agent.state import State
from qafila.agent.subrun import key_of
from qafila.agent.tool import Draft, Surroundings, Tool, Toolbox, tool
from qafila.agent.tools import delegate, files
from qafila.agent.undo import undo
from qafila.chat.client import ChatRequest
from qafila.chat.client import Event as ChatEvent

#: Steps that each write a file, add a line to another, and send a message: of a run, and then of its sub-run.
STEPS, PART_STEPS = 4, 2
ANSWER = "all done"


@dataclass
class Counts:
    """What happened, and what should not have.

    Attributes:
        runs: that were done in the end. kills: of their processes. events: in their journals.
        unknown: messages of which nobody knows whether they were sent, as the run says. of_them_sent: those that were.
        twice: effects that happened more than once. lost: that did not happen although the run says so.
        broken: anything else that was not as it should be, in words.
    """

    runs: int = 0
    kills: int = 0
    events: int = 0
    unknown: int = 0
    of_them_sent: int = 0
    twice: int = 0
    lost: int = 0
    broken: tuple[str, ...] = ()


class Scene:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.sent = folder / "workspace", folder / "sent"
        self.url = f"sqlite:///{folder}/agent.sqlite3"
        self.workspace.mkdir(parents=True)
        self.sent.touch()

    def tools(self) -> tuple[Tool, ...]:
        """Files, an edit that may not be done twice, and a message that may not be sent twice."""

        def add_line(place: Surroundings, path: str, line: str) -> Draft:
            """Add a line to a file."""
            there = place.workspace / path
            old = there.read_bytes() if there.exists() else b""
            return Draft("added", file_edit(place.workspace, path, old + line.encode() + b"\n"))

        def send(place: Surroundings, text: str) -> str:
            """Send a message."""
            descriptor = os.open(self.sent, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, f"{place.key}\n".encode())
            os.close(descriptor)
            return "sent"

        return (*files.tools(), *delegate.tools(), tool(add_line, effect="write"), tool(send, effect="egress"))

    def agent(self, journal: Journal) -> Agent:
        """An agent that follows the script."""
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "doubles"))
        from scripted_agent import Answer, ScriptedAgent

        every: list[list[tuple[str, dict[str, str]]]] = [
            [
                ("write_file", {"path": f"deep/{i}/a.txt", "text": f"text {i}"}),
                ("add_line", {"path": "lines.txt", "line": f"line {i}"}),
                ("send", {"text": f"message {i}"}),
                ("list_files", {}),
            ]
            for i in range(STEPS + PART_STEPS)
        ]
        scripts: dict[str, list[Answer]] = {
            "do it": [*every[:STEPS], [("delegate", {"goal": "do the rest"})], ANSWER],
            "do the rest": [*every[STEPS:], "the rest is done"],
        }

        class Team(ScriptedAgent):
            """Answers each goal by a script of its own."""

            async def chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
                self.answers = scripts[request.messages[1].text]
                async for event in super().chat(request):
                    yield event

        settings = Settings(budget=Budget(steps=None))
        sending = Rule(0, "allow", tool="send", untrusted=True)
        policy = with_writes(Policy((sending,), {"pure": "allow", "read": "allow", "egress": "allow"}))
        client = Team([], delay=0.002)
        return Agent(client, Toolbox(self.tools()), journal, workspace=self.workspace, policy=policy, settings=settings)

    def begin(self) -> str:
        """Write down a new run; gives its id."""
        journal = Journal(self.url)
        run = self.agent(journal).begin("do it")
        journal.close()
        return run

    def start(self, run: str) -> int:
        """A process that carries the run on to its end; gives its id. Forked, so that it starts at once."""
        process = os.fork()
        if process:
            return process
        status = 3
        try:
            journal = Journal(self.url)

            async def work() -> None:
                async for _ in self.agent(journal).work(run):
                    pass

            asyncio.run(work())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def check(self, run: str, counts: Counts) -> None:
        """Compare what the run says with what is there."""
        journal = Journal(self.url)
        parts = journal.parts(run)
        whole = [journal.events(one) for one in (run, *parts)]
        events = [event for recorded in whole for event in (one.event for one in recorded)]
        counts.runs += 1
        counts.events += len(events)
        broken = [] if len(parts) == 1 else [f"parts {parts}"]
        # Killed after its end was written down, it is resumed and ends once more.
        for recorded, answer in zip(whole, (ANSWER, "the rest is done"), strict=False):
            ended = [one.event for one in recorded if isinstance(one.event, Ended)]
            if {(event.reason, event.answer) for event in ended} != {("done", answer)}:
                broken.append(f"ended {ended}")
            if [one.number for one in recorded] != list(range(len(recorded))):
                broken.append("numbers of events")
            if State.of(recorded).pending:
                broken.append("calls under way")
        intended = Counter(event.key for event in events if isinstance(event, Intended))
        observed = Counter(event.name for event in events if isinstance(event, Observed))
        calls = dict.fromkeys(("write_file", "add_line", "send", "list_files"), STEPS + PART_STEPS) | {"delegate": 1}
        if observed != calls or set(intended.values()) != {1} or len(intended) != 3 * (STEPS + PART_STEPS) + 1:
            broken.append(f"calls {intended} {observed}")
        results = {
            key_of(one, event.call): event.observation.status
            for one, recorded in zip((run, *parts), whole, strict=True)
            for event in (one.event for one in recorded)
            if isinstance(event, Observed)
        }
        keys = {event.key for event in events if isinstance(event, Intended) and event.name == "send"}
        sent = Counter(self.sent.read_text().split())
        counts.twice += sum(times > 1 for times in sent.values())
        counts.lost += sum(results[key] == "ok" and key not in sent for key in keys)
        unknown = {key for key in keys if results[key] == "unknown"}
        counts.unknown += len(unknown)
        counts.of_them_sent += len(unknown & set(sent))
        if not set(sent) <= keys:
            broken.append("sent, and not intended")
        if others := {key: status for key, status in results.items() if status != "ok" and key not in keys}:
            broken.append(f"results {others}")
        lines = (self.workspace / "lines.txt").read_text().splitlines()
        counts.twice += len(lines) - len(set(lines))
        counts.lost += sum(f"line {i}" not in lines for i in range(STEPS + PART_STEPS))
        wanted = {"lines.txt": "".join(f"line {i}\n" for i in range(STEPS + PART_STEPS))}
        wanted |= {f"deep/{i}/a.txt": f"text {i}\n" for i in range(STEPS + PART_STEPS)}
        there = {
            str(path.relative_to(self.workspace)): path.read_text()
            for path in self.workspace.rglob("*")
            if path.is_file()
        }
        counts.lost += len(set(wanted) - set(there))
        if there != wanted:
            broken.append(f"files {sorted(there)}")
        undo(journal, run, everything=True)
        if left := list(self.workspace.iterdir()):
            broken.append(f"after undo: {left}")
        journal.close()
        counts.broken += tuple(broken)


def kill_and_restart(folder: Path, runs: int, seed: int) -> Counts:
    """So many runs, each with at least one kill, in folders of their own."""
    counts = Counts()
    choose = random.Random(seed)
    first = Scene(folder / "whole")
    run = first.begin()
    started = time.monotonic()
    _, status = os.waitpid(first.start(run), 0)
    longest = time.monotonic() - started
    assert status == 0
    first.check(run, whole := Counts())
    assert (whole.twice, whole.lost, whole.unknown, whole.broken) == (0, 0, 0, ())
    for number in range(runs):
        scene = Scene(folder / str(number))
        run = scene.begin()
        kills = 0
        while True:
            process = scene.start(run)
            # What is left of a run grows shorter, until it comes to its end before it is killed.
            time.sleep(choose.uniform(0, longest / 2))
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            if os.WIFSIGNALED(status):
                kills += 1
            elif os.waitstatus_to_exitcode(status):
                counts.broken += (f"run {number}: exit status {os.waitstatus_to_exitcode(status)}",)
                return counts
            else:
                break
        counts.kills += kills
        scene.check(run, counts)
    return counts


def main() -> int:
    """Print the counts; status 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_and_restart(Path(folder), given.runs, given.seed)
    if given.json:
        print(json.dumps(asdict(counts)))
    else:
        print(f"{counts.runs} runs done, {counts.kills} kills, {counts.events} events")
        print(f"done twice: {counts.twice}; lost: {counts.lost}")
        print(f"messages of which the run says that nobody knows: {counts.unknown} ({counts.of_them_sent} were sent)")
        for line in counts.broken:
            print(f"broken: {line}")
    return 1 if counts.twice or counts.lost or counts.broken else 0


if __name__ == "__main__":
    sys.exit(main())
