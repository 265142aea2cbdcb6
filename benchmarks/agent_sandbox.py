"""Claim: a command in the sandbox starts within 100 ms, behind either kind of walls.

    python benchmarks/agent_sandbox.py [--times 30] [--json]

`true` and `python3 -c pass`, in a workspace of one small file, from asking until its outcome is known: the copy of the
workspace, the walls, the command, and what it changed. Walls that do not stand on this machine are left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Literal, get_args

from qafila.agent.sandbox.sandbox import Jail, Limits
from qafila.errors import SandboxError

GOAL_MS = 100
Walls = Literal["bubblewrap", "landlock"]
COMMANDS = {"true": ["true"], "python3": ["python3", "-I", "-c", "pass"]}


def milliseconds(jail: Jail, argv: list[str], folder: Path, times: int) -> float:
    """The median of so many starts, after one that warms."""
    taken = []
    for _ in range(times + 1):
        started = time.perf_counter()
        outcome = jail.run(argv, workspace=folder, limits=Limits())
        taken.append(1000 * (time.perf_counter() - started))
        if outcome.status != 0:
            raise SystemExit(f"error: {argv} ended with {outcome.status}: {outcome.output}")
    return median(taken[1:])


def main() -> None:
    """Measure, and say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "notes.txt").write_text("one\n", encoding="utf-8")
        for walls in get_args(Walls):
            try:
                found[walls] = {
                    name: round(milliseconds(Jail(walls), argv, Path(place), options.times), 1)
                    for name, argv in COMMANDS.items()
                }
            except SandboxError as error:
                print(f"{walls}: {error}")
    if options.json:
        print(json.dumps(found))
        return
    for walls, row in found.items():
        print(f"{walls}: " + ", ".join(f"{name} {taken} ms" for name, taken in row.items()) + f" (goal {GOAL_MS} ms)")


if __name__ == "__main__":
    main()
