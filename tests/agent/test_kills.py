"""A few agent runs whose process is killed at random moments, as benchmarks/agent_kills.py kills two hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "agent_kills.py"


def test_killed_runs_do_everything_and_nothing_twice() -> None:
    # In a process of its own, which has no threads when it forks.
    command = [sys.executable, str(SCRIPT), "--runs", "10", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)
    assert counts["runs"] == 10
    assert counts["kills"] >= 10
    assert (counts["twice"], counts["lost"], counts["broken"]) == (0, 0, [])
