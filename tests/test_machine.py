"""How many threads are worth starting, from made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qafila.machine import usable_cores


def machine(folder: Path, siblings: list[str], groups: dict[str, str], membership: str) -> dict[str, Path]:
    for cpu, text in enumerate(siblings):
        topology = folder / "cpus" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n")
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(membership)
    for name, text in groups.items():
        file = folder / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return {"proc": folder / "proc", "cgroups": folder / "groups", "cpus": folder / "cpus"}


HYPERTHREADS = ["0,4", "1,5", "2,6", "3,7"] * 2


@pytest.mark.parametrize(
    ("groups", "membership", "cores"),
    [
        ({}, "", 4),
        ({"a/cpu.max": "max 100000\n"}, "0::/a\n", 4),
        ({"a/cpu.max": "250000 100000\n"}, "0::/a/b\n", 2),
        ({"cpu.max": "300000 100000\n", "a/cpu.max": "150000 100000\n"}, "0::/a\n", 1),
        ({"a/cpu.max": "20000 100000\n"}, "0::/a\n", 1),
        ({"a/cpu.max": "nonsense\n"}, "0::/a\n", 4),
        ({"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/a\n", 4),
        ({"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/a\n", 2),
    ],
)
def test_cores_are_physical_and_within_the_containers_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: dict[str, str], membership: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores(**machine(tmp_path, HYPERTHREADS, groups, membership)) == cores


def test_affinity_counts_and_a_machine_without_topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5}, raising=False)
    assert usable_cores(**machine(tmp_path / "a", HYPERTHREADS, {}, "")) == 2
    assert usable_cores(**machine(tmp_path / "b", [], {}, "")) == 3
