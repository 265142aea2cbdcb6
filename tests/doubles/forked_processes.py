"""Processes of a process group that need not import torch each: they are forked from a server that has."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import start_processes

#: Not the test process itself, which has threads: a child of that could wait for a lock that nobody gives back.
METHOD = "forkserver"
PRELOADED = ["torch.distributed.tensor", "qafila.train.parallel.executor", "qafila.train.preference"]


def run_forked(work: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Run ``work(rank, *arguments)`` in so many processes; raises what the first that fails raises."""
    multiprocessing.get_context(METHOD).set_forkserver_preload(PRELOADED)
    start_processes(work, arguments, processes, start_method=METHOD)  # type: ignore[no-untyped-call]
