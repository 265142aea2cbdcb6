"""The processes of a run: how this one finds the others, and what they must agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from qafila.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """All processes of a run, of which this is number ``rank``; ``here`` of them share its machine."""

    rank: int = 0
    size: int = 1
    here: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def first_does(self, work: Callable[[], T]) -> T:
        """The first process does it, and all have the result, or its error.

        Raises:
            Exception: what ``work`` raised.
        """
        return work() if self.size == 1 else first_does(work)

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        shared = torch.tensor([number], device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared.item())


def first_does(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Process 0 does it, and all of ``group`` (by default: all) have the result, or its error.

    Raises:
        Exception: what ``work`` raised.
    """
    outcome = [tried(work) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(outcome, src=0, group=group)
    result: T = told(outcome[0])
    return result


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception


def tried(work: Callable[[], Any]) -> Any:
    """The result, or the error as a value: it must reach all processes, or they wait for each other for ever."""
    try:
        return work()
    except Exception as error:
        return _Failure(error)


def told(outcome: Any) -> Any:
    """What `tried` gave, perhaps on another process.

    Raises:
        Exception: what was raised there.
    """
    if isinstance(outcome, _Failure):
        raise outcome.error
    return outcome


def is_first_process() -> bool:
    """Whether this is the process that speaks: before it joins the others, and after it left them."""
    return os.environ.get("RANK", "0") == "0"


def world_size(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes were started for this run (by torchrun or `qafila train --nproc`).

    Raises:
        UsageError: WORLD_SIZE is no number.
    """
    text = environment.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"WORLD_SIZE={text!r}: must be the number of processes; start with torchrun or --nproc")
    return int(text)


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that the environment tells of (as torchrun sets it); without one, this is alone.

    After an error the others are not waited for: whoever started them ends them.
    """
    size = world_size()
    if size == 1:
        yield World()
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if cuda else "gloo")
    yield World(dist.get_rank(), size, here)
    dist.destroy_process_group()
