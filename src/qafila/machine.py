"""How much memory this machine, or the container we run in, has to give."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Control groups without a limit say "max" (v2) or a number near 2^63 (v1).
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory in bytes: ``total`` there is, ``available`` now without swapping; ``limited_by`` says what sets it."""

    total: int
    available: int
    limited_by: str


def this_machine(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Machine:
    """Memory of this machine: ``/proc/meminfo`` and the limits of every control group (v1 and v2) above this process.

    What a control group's processes have in the page cache counts as available, since the kernel gives it back.
    """
    found = _meminfo(proc)
    for usage, limit in _cgroup_memory(proc, cgroups):
        available = max(0, min(limit - usage, found.available))
        if limit < found.total or available < found.available:
            found = Machine(min(limit, found.total), available, "container limit")
    return found


def _meminfo(proc: Path) -> Machine:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        values = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)}
        total = values["MemTotal"]
        return Machine(total, values.get("MemAvailable", values.get("MemFree", total)), "physical memory")
    except (OSError, KeyError, ValueError, IndexError):
        # Not Linux: how much of it is free is not known there.
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return Machine(total, total, "physical memory")


def _cgroup_memory(proc: Path, cgroups: Path) -> list[tuple[int, int]]:
    """(bytes in use that cannot be reclaimed, limit) of each control group that has a limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for root in (cgroups, cgroups / "unified"):
                names = ("memory.max", "memory.current", "inactive_file")
                found += [_read_group(group, *names) for group in _lineage(root, path)]
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += [_read_group(group, *names) for group in _lineage(cgroups / "memory", path)]
    return [group for group in found if group is not None]


def _lineage(root: Path, path: str) -> list[Path]:
    """The group's folder and those above it; inside a container the upper ones may be hidden, the root is not."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _read_group(folder: Path, limit_name: str, usage_name: str, cache_key: str) -> tuple[int, int] | None:
    try:
        limit = (folder / limit_name).read_text().strip()
        if not limit.isdigit() or int(limit) >= _NO_LIMIT:
            return None
        usage = int((folder / usage_name).read_text())
    except (OSError, ValueError):
        return None
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == cache_key:
                usage -= int(value)
    except (OSError, ValueError):
        pass
    return max(0, usage), int(limit)


def usable_cores(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup"), cpus: Path = Path("/sys/devices/system/cpu")
) -> int:
    """How many threads are worth computing with: physical cores this process may run on, within its container's share.

    Two hardware threads of one core share the arithmetic units, so they count once.
    """
    everywhere = hasattr(os, "sched_getaffinity")
    allowed = os.sched_getaffinity(0) if everywhere else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpus / f"cpu{cpu}", cpu) for cpu in allowed}
    return max(1, min([len(cores), *(int(share) for share in _cgroup_cpus(proc, cgroups))]))


def _siblings(folder: Path, cpu: int) -> str:
    try:
        return (folder / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cgroup_cpus(proc: Path, cgroups: Path) -> list[float]:
    """Processors that each control group above this process may use on average, where it is limited."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[float] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for root in (cgroups, cgroups / "unified"):
                found += [_share(group, ("cpu.max",)) for group in _lineage(root, path)]
        elif "cpu" in controllers.split(","):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            for root in (cgroups / "cpu", cgroups / controllers):
                found += [_share(group, names) for group in _lineage(root, path)]
    return [share for share in found if share > 0]


def _share(folder: Path, names: tuple[str, ...]) -> float:
    """Quota over period; 0 where there is no limit (v2 says "max", v1 says -1)."""
    try:
        quota, period = " ".join((folder / name).read_text() for name in names).split()
        return max(1.0, int(quota) / int(period)) if int(quota) > 0 else 0.0
    except (OSError, ValueError, ZeroDivisionError):
        return 0.0
