"""Checkpoints of a run: whole or not at all, written while training goes on, checked before they are believed.

torch.distributed.checkpoint writes the tensors, each process its own shards, so that a run may go on with another
number of processes. What is around it (staging, hashes, renaming, which to keep) is in `checkpoint_files`; how a state
becomes tensors and plain values in `checkpoint_state`. Like all of torch's files, a checkpoint is for those who trust
where it comes from: torch reads its index with pickle.
"""

from __future__ import annotations

import json
import math
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from qafila import __version__
from qafila.errors import FormatError, StorageError, UsageError
from qafila.train import checkpoint_files as files
from qafila.train import checkpoint_state as states
from qafila.train.checkpoint_files import Found
from qafila.train.parallel.world import first_does, told, tried

Warn = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What is written, and nothing of it changes meanwhile."""

    step: int
    metric: float | None
    tensors: dict[str, Tensor]
    plain: dict[str, Any]


class Checkpoints:
    """The checkpoints in one folder. Every process of a run makes one, with the same arguments, at the same time.

    A save that fails (a full disk) is told to ``warn``, loudly, and training goes on with the earlier checkpoints kept.

    Args:
        folder: made when it is not there; no other run may use it meanwhile.
        keep: how many of the newest stay; the one with the best metric stays besides.
        best: whether the lowest or the highest metric is the best.
        background: write a copy of the state in a thread while training goes on (costs the copy's memory).
        identity: what the checkpoints are of: names (``model``, ``tokenizer``, ``recipe``) to hashes or descriptions.
        warn: called with each problem, one line, in process 0 only; perhaps from another thread.

    Raises:
        UsageError: another process trains here. StorageError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        best: Literal["lowest", "highest"] = "lowest",
        background: bool = True,
        identity: Mapping[str, str] | None = None,
        warn: Warn = lambda message: None,
    ) -> None:
        assert keep >= 1, keep
        self.folder = Path(folder)
        self.keep, self.background = keep, background
        self.identity = dict(identity or {})
        self._lowest = best == "lowest"
        self._warn = warn
        self._distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self._distributed else 0
        self.world = dist.get_world_size() if self._distributed else 1
        # A group of its own: what the thread sends must not mix with what training sends.
        self._group = dist.new_group(backend="gloo") if self._distributed else None
        self._thread: threading.Thread | None = None
        self._saved: Found | None = None
        self._failed: str | None = None
        self._lock = FileLock(self.folder / ".lock")
        self._together(self._open)

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"{self.folder}: another process is training there; wait for it, or stop it") from None
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be used ({error.strerror or error})") from None
        files.tidy(self.folder)

    # Saving.

    def save(self, step: int, state: Mapping[str, Any], metric: float | None = None) -> None:
        """Save a state; in the background this returns once it is copied. At most one save is under way.

        Args:
            step: optimiser steps done; a checkpoint of the same step is replaced.
            state: nested dicts and lists of tensors and plain values. Random number generators are added.
            metric: what was measured at this step, to keep the best by.

        Raises:
            TypeError: something in ``state`` is neither a tensor nor a plain value.
        """
        tensors, plain = states.split(state)
        plain[f"random/{self.rank}"] = states.encode(states.random_state())
        if metric is not None and math.isnan(metric):
            metric = None  # no measure, and JSON has no such number
        self.wait()
        self._failed = None
        if not self.background:
            self._write(_Snapshot(step, metric, tensors, plain))
            return
        snapshot = _Snapshot(step, metric, states.copied(tensors), plain)
        # Not a daemon: the interpreter waits for it at exit.
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="qafila-checkpoint")
        self._thread.start()

    def wait(self) -> Found | None:
        """Wait for the save under way; the last checkpoint that was saved whole, None where the last save failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return None if self._failed else self._saved

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failure(self) -> str | None:
        """Why the last save failed; None where it did not."""
        return self._failed

    def close(self) -> Found | None:
        """Wait, and let the folder go; as `wait`."""
        found = self.wait()
        self._lock.release()
        return found

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, snapshot: _Snapshot) -> None:
        try:
            self._saved = self._write_whole(snapshot)
        except Exception as error:
            self._failed = f"step {snapshot.step}: the checkpoint was NOT saved: {_reason(error)}"
            if self.rank == 0:
                files.remove(self.folder / files.staging_name(snapshot.step))
                left = files.listed(self.folder)
                kept = f"the newest is {left[0].name}" if left else "there is none yet"
                self._warn(f"{self.folder}: {self._failed}; training goes on, {kept}")

    def _write_whole(self, snapshot: _Snapshot) -> Found:
        staged = self.folder / files.staging_name(snapshot.step)

        def begin() -> None:
            files.remove(staged)
            staged.mkdir()

        self._together(begin)
        plains = self._gathered(snapshot.plain)
        writer = FileSystemWriter(staged)
        if self._group is None:
            _save_alone(snapshot.tensors, writer)
        else:
            dcp_save(snapshot.tensors, storage_writer=writer, process_group=self._group)

        def hashes() -> dict[str, Any]:
            mine = {path.name: files.hash_file(path) for path in sorted(staged.glob(f"__{self.rank}_*"))}
            if self.rank == 0:
                # The same value of several processes is written once, the first one's.
                merged = {key: value for plain in reversed(plains) for key, value in plain.items()}
                files.write_synced(staged / files.PLAIN, json.dumps(merged, separators=(",", ":")))
                for name in (files.PLAIN, ".metadata"):
                    mine[name] = files.hash_file(staged / name)
            return mine

        entries = {name: entry for each in self._gathered(tried(hashes)) for name, entry in told(each).items()}
        found = Found(staged, snapshot.step, snapshot.metric, self.identity)
        facts = {"qafila": __version__, "torch": str(torch.__version__), "processes": self.world}

        def end() -> None:
            files.commit(self.folder, found, entries, facts)
            for path in files.superseded(self.folder, snapshot.step, self.keep, lower_is_better=self._lowest):
                files.remove(path)

        self._together(end)
        return Found(self.folder / files.folder_name(snapshot.step), snapshot.step, snapshot.metric, self.identity)

    # Loading.

    def newest(self) -> Found | None:
        """The newest checkpoint that is whole, by its hashes; each damaged one is told to ``warn``."""
        return self._first_whole(files.listed(self.folder) if self.rank == 0 else [])

    def best(self) -> Found | None:
        """The checkpoint with the best metric, if it is whole."""

        def value(found: Found) -> tuple[float, int]:
            assert found.metric is not None
            return (found.metric if self._lowest else -found.metric, -found.step)

        known: list[Found] = []
        for path in files.listed(self.folder) if self.rank == 0 else ():
            try:
                known.append(files.describe(path)[0])
            except FormatError as error:
                self._warn(f"{error}; it is passed over")
        measured = sorted((found for found in known if found.metric is not None), key=value)
        return self._first_whole([found.path for found in measured])

    def _first_whole(self, paths: list[Path]) -> Found | None:
        def look() -> Found | None:
            for path in paths:
                try:
                    return files.verify(path)
                except FormatError as error:
                    self._warn(f"{error}; the checkpoint before {path.name} is used instead")
            return None

        return self._together(look)

    def load(self, state: dict[str, Any], found: Found) -> None:
        """Fill ``state`` with a checkpoint: tensors in place, bit for bit, plain values replaced.

        Its parts then go to the ``load_state_dict`` of what they came from. The number of processes need not be that of
        the save.

        A tensor that ``state`` has no place for (of an optimiser that has taken no step) is added, whole. Random number
        generators of this process are set where the checkpoint has its own.

        Raises:
            UsageError: the checkpoint is of another model, tokenizer or recipe: names which.
            FormatError: it lacks a tensor, or has it in another shape; or its files are damaged.
        """
        for name, mine in self.identity.items():
            theirs = found.identity.get(name)
            if theirs is not None and theirs != mine:
                raise UsageError(
                    f"{found.path}: is of another {name} ({theirs:.80}, and this run's is {mine:.80}); resume with the "
                    f"{name} it was made with, or start another run"
                )
        tensors, _ = states.split(state)
        reader = FileSystemReader(found.path)
        try:
            stored = reader.read_metadata().state_dict_metadata
            plain = json.loads((found.path / files.PLAIN).read_text(encoding="utf-8"))
        except Exception as error:
            raise FormatError(found.path, f"cannot be read: {_reason(error)}") from None
        for name, tensor in tensors.items():
            there = stored.get(name)
            if not isinstance(there, TensorStorageMetadata):
                raise FormatError(found.path, f"has no tensor {_shown(name)}")
            if tuple(there.size) != tuple(tensor.shape):
                shapes = f"as {list(there.size)}, and this run needs {list(tensor.shape)}"
                raise FormatError(found.path, f"has {_shown(name)} {shapes}")
        for name, there in stored.items():
            if name not in tensors and isinstance(there, TensorStorageMetadata):
                tensors[name] = torch.empty(there.size, dtype=there.properties.dtype)
                states.put_tensor(state, name, tensors[name])
        try:
            with warnings.catch_warnings():
                if self._group is None:
                    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
                dcp_load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        except CheckpointException as error:
            raise FormatError(found.path, f"cannot be read: {_reason(error)}") from None
        generators = {key: value for key, value in plain.items() if key.startswith("random/")}
        states.put_plain(state, {key: value for key, value in plain.items() if key not in generators})
        own = generators.get(f"random/{self.rank}")
        if own is not None:
            states.set_random_state(states.decode(own))

    # Between processes.

    def _together(self, work: Callable[[], T]) -> T:
        """Process 0 does it, all have the result, or its error."""
        return work() if self._group is None else first_does(work, self._group)

    def _gathered(self, value: Any) -> list[Any]:
        """Every process's value, in every process."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values


def _save_alone(tensors: dict[str, Tensor], writer: FileSystemWriter) -> None:
    """torch's ``save`` for one process, which warns of that: filters of warnings are not a thread's to change."""
    planner = DefaultSavePlanner()
    planner.set_up_planner(tensors, None, is_coordinator=True)
    writer.reset()
    writer.set_up_storage_writer(True)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])


def _shown(name: str) -> str:
    return name.replace("/", ".")[:120]


def _reason(error: BaseException) -> str:
    """One line of why; of several processes' errors the first, and the system's own reason where there is one."""
    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(error, OSError):
        # torch's writer of archives complains of positions where the disk was full.
        if isinstance(cause, OSError):
            return _reason(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, CheckpointException):
        rank, (first, _) = next(iter(sorted(error.failures.items())))
        return _reason(first) + (f" (process {rank})" if rank else "")
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    return " ".join(str(error).split())[:300] or type(error).__name__
