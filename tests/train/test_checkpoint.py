"""Checkpoints: whole or none, whatever happens; the state that comes back is the one that went in, bit for bit."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qafila.errors import FormatError, UsageError
from qafila.train import checkpoint_files as files
from qafila.train import checkpoint_state as states
from qafila.train.checkpoint import Checkpoints


class Tiny:
    """A model, AdamW and a loader, that take steps which depend on torch's random numbers too."""

    def __init__(self, width: int = 16) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(width, 32), nn.Dropout(0.2), nn.Linear(32, width)).to(torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.loader: dict[str, Any] = {"consumed": 0, "epochs": {"a": [1, 2]}, "pair": (1, 0.5)}
        self.width = width

    def step(self) -> float:
        x = torch.randn(4, self.width)
        loss = (self.model(x) - x).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loader["consumed"] += 4
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": dict(self.loader),
            "nothing": None,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader = state["loader"]


def restored(checkpoints: Checkpoints, run: Tiny | None = None) -> Tiny:
    found = checkpoints.newest()
    assert found
    run = run or Tiny()
    state = run.state()
    checkpoints.load(state, found)
    run.load(state)
    return run


@pytest.mark.parametrize("background", [False, True])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path, background: bool) -> None:
    run = Tiny()
    with Checkpoints(tmp_path / "c", background=background) as checkpoints:
        for _ in range(3):
            run.step()
        checkpoints.save(3, run.state(), metric=0.5)
        expected = [run.step() for _ in range(5)]  # in the background these change what is being written
        found = checkpoints.wait()
        assert found is not None
        assert (found.step, found.metric) == (3, 0.5)
    torch.manual_seed(99)
    random.seed(99)
    with Checkpoints(tmp_path / "c") as checkpoints:
        other = restored(checkpoints)
    assert other.loader == {"consumed": 12, "epochs": {"a": [1, 2]}, "pair": (1, 0.5)}
    assert [other.step() for _ in range(5)] == expected
    for one, two in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not list((tmp_path / "c").glob(".[!l]*"))


def test_types_come_back_as_they_were(tmp_path: Path) -> None:
    state = {
        "t": {"bf16": torch.randn(3, 5).bfloat16(), "u8": torch.arange(9, dtype=torch.uint8), "0d": torch.tensor(2.5)},
        "odd/%names": {3: torch.ones(2), "": torch.zeros(1)},
        "list": [torch.arange(4), {"x": torch.ones(1)}],
        "plain": {"f": 0.1, "inf": float("inf"), "n": np.int64(3), 4: ("a", None, True)},
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        found = checkpoints.wait()
        assert found is not None
        other: dict[str, Any] = {
            "t": {k: torch.zeros_like(v) for k, v in state["t"].items()},
            "odd/%names": {3: torch.zeros(2), "": torch.ones(1)},
            "list": [torch.zeros(4, dtype=torch.int64), {"x": torch.zeros(1)}],
        }
        checkpoints.load(other, found)
    for name, tensor in state["t"].items():
        assert torch.equal(other["t"][name], tensor)
    assert torch.equal(other["odd/%names"][3], torch.ones(2))
    assert torch.equal(other["list"][0], torch.arange(4))
    assert other["plain"] == {"f": 0.1, "inf": float("inf"), "n": 3, 4: ("a", None, True)}
    with pytest.raises(TypeError, match="x is a object"):
        checkpoints.save(2, {"x": object()})


def test_random_numbers_go_on(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {})
        expected = (torch.rand(3).tolist(), random.random(), np.random.rand())
        found = checkpoints.wait()
        assert found is not None
        checkpoints.load({}, found)
        assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == expected


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, metric in enumerate([3.0, 1.0, 2.0, None, 2.5, float("nan")], 1):
            checkpoints.save(step, {"x": torch.tensor(step)}, metric)
        checkpoints.wait()
        assert [path.name for path in files.listed(tmp_path)] == ["step-00000006", "step-00000005", "step-00000002"]
        best = checkpoints.best()
        assert best is not None
        assert best.step == 2
        state = {"x": torch.tensor(0)}
        checkpoints.load(state, best)
        assert state["x"] == 2


DAMAGE = {
    "a byte": lambda path: flip(path / "__0_0.distcp"),
    "plain values": lambda path: flip(path / files.PLAIN),
    "cut short": lambda path: os.truncate(path / "__0_0.distcp", 100),
    "missing": lambda path: (path / ".metadata").unlink(),
    "no manifest": lambda path: (path / files.MANIFEST).unlink(),
    "a manifest of nonsense": lambda path: (path / files.MANIFEST).write_text('{"version": 1, "files": 3}'),
    "paths that leave": lambda path: redirect(path / files.MANIFEST),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def redirect(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["files"]["../../x"] = manifest["files"].pop(files.PLAIN)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path: Path, damage: str) -> None:
    told: list[str] = []
    with Checkpoints(tmp_path, warn=told.append) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": torch.tensor(step)}, float(step))
        checkpoints.wait()
        DAMAGE[damage](tmp_path / "step-00000002")
        found = checkpoints.newest()
        assert found is not None
        assert found.step == 1
    assert len(told) == 1
    assert "step-00000002/" in told[0]
    assert "instead" in told[0]


def test_a_run_that_goes_back_leaves_its_abandoned_future(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (4, 8):
            checkpoints.save(step, {"x": torch.tensor(step)}, 1.0 / step)
        checkpoints.wait()
        flip(tmp_path / "step-00000008" / files.PLAIN)
        checkpoints.save(6, {"x": torch.tensor(6)})  # what comes after the one before was used
        checkpoints.wait()
        assert [path.name for path in files.listed(tmp_path)] == ["step-00000006"]


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, identity={"model": "a", "tokenizer": "one"}) as checkpoints:
        checkpoints.save(1, {"w": torch.ones(2, 3)})
        checkpoints.wait()
    with Checkpoints(tmp_path, identity={"model": "a", "tokenizer": "two"}) as checkpoints:
        found = checkpoints.newest()
        assert found is not None
        with pytest.raises(UsageError, match="another tokenizer"):
            checkpoints.load({"w": torch.ones(2, 3)}, found)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FormatError, match=r"has w as \[2, 3\], and this run needs \[3\]"):
            checkpoints.load({"w": torch.ones(3)}, found)
        with pytest.raises(FormatError, match=r"no tensor v\.x"):
            checkpoints.load({"w": torch.ones(2, 3), "v": {"x": torch.ones(1)}}, found)


def test_two_runs_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    with Checkpoints(tmp_path), pytest.raises(UsageError, match="another process"):
        Checkpoints(tmp_path)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_said_loudly_and_the_run_goes_on(tmp_path: Path, background: bool) -> None:
    told: list[str] = []
    with Checkpoints(tmp_path, background=background, warn=told.append) as checkpoints:
        checkpoints.save(1, {"x": torch.ones(10)})
        assert checkpoints.wait()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
            checkpoints.save(2, {"x": torch.ones(1 << 18)})
            assert checkpoints.wait() is None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert len(told) == 1
        assert "step 2: the checkpoint was NOT saved: File too large" in told[0]
        assert "the newest is step-00000001" in told[0]
        assert checkpoints.failure
        assert not list(tmp_path.glob(".saving*"))
        checkpoints.save(3, {"x": torch.ones(1 << 18)})
        found = checkpoints.wait()
        assert found is not None
        assert found.step == 3
        assert checkpoints.failure is None


def test_a_disk_that_is_full_while_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with Checkpoints(tmp_path, warn=told.append) as checkpoints:
        checkpoints.save(1, {"x": torch.ones(10)})
        checkpoints.wait()

        def full(path: Path, text: str) -> None:
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr(files, "write_synced", full)
        checkpoints.save(2, {"x": torch.ones(10)})
        assert checkpoints.wait() is None
        assert "No space left on device" in told[0]
        found = checkpoints.newest()
        assert found is not None
        assert found.step == 1


def test_a_half_done_exchange_is_undone(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": torch.ones(1)})
        checkpoints.wait()
    (tmp_path / "step-00000001").rename(tmp_path / ".replaced-step-00000001")
    (tmp_path / ".saving-step-00000001").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest() is not None
        checkpoints.save(1, {"x": torch.zeros(1)})
        found = checkpoints.wait()
        assert found is not None
        state = {"x": torch.ones(1)}
        checkpoints.load(state, found)
        assert state["x"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step-00000001"]


SAVER = textwrap.dedent(
    """
    import sys, torch
    from qafila.train.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], background=sys.argv[2] == "1")
    found = checkpoints.newest()
    step = found.step if found else 0
    state = {"w": torch.zeros(200_000), "n": 0}
    if found:
        checkpoints.load(state, found)
        assert (state["w"] == step).all() and state["n"] == step
    print(step, flush=True)
    while True:
        step += 1
        state["w"].fill_(step)
        state["n"] = step
        checkpoints.save(step, state)
        if checkpoints.wait():
            print(step, flush=True)
    """
)


@pytest.mark.parametrize("background", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_killed_at_any_moment_whole_checkpoints_are_left(tmp_path: Path, background: str) -> None:
    rng = random.Random(int(background))
    folder = tmp_path / "c"
    reached = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(folder), background], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= reached  # it has loaded what was left, and found it right
        if not reached:
            process.stdout.readline()
        time.sleep(rng.random() * 0.3)
        process.kill()
        told = [int(line) for line in process.communicate()[0].split()]
        reached = max([reached, *told])
        whole = files.verify(files.listed(folder)[0])
        assert whole.step >= reached
    assert reached > 3


RANKS = textwrap.dedent(
    """
    import sys, os, torch, torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from qafila.__main__ import leave
    from qafila.train.checkpoint import Checkpoints
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    whole = torch.arange(60.0).reshape(10, 6)
    told = []
    with Checkpoints(sys.argv[1], identity={"model": "m"}, warn=told.append) as checkpoints:
        found = checkpoints.newest()
        state = {"w": distribute_tensor(whole.clone() if not found else whole * 0, mesh, [Shard(0)]), "n": 1}
        torch.manual_seed(rank)
        if found:
            checkpoints.load(state, found)
            assert torch.equal(state["w"].full_tensor(), whole * 2), state["w"]
            assert state["n"] == 7
        state["w"] = state["w"] * 2 if not found else state["w"]
        state["n"] = 7
        checkpoints.save((found.step if found else 0) + world, state, 1.0)
        state["w"].to_local().zero_()
        assert checkpoints.wait(), told
    dist.destroy_process_group()
    leave(0)
    """
)


def launched(script: str, world: int, *arguments: str) -> None:
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    with __import__("socket").socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment["MASTER_PORT"] = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments], env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(world)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()[-3000:]


@pytest.mark.slow
def test_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    launched(RANKS, 2, str(tmp_path))
    launched(RANKS, 3, str(tmp_path))
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.newest()
        assert found is not None
        assert found.step == 5
        state: dict[str, Any] = {"w": torch.zeros(10, 6)}
        checkpoints.load(state, found)
        assert torch.equal(state["w"], torch.arange(60.0).reshape(10, 6) * 2)
        # An optimiser that has taken no step yet has no places for its moments.
        empty: dict[str, Any] = {}
        checkpoints.load(empty, found)
        assert torch.equal(empty["w"], state["w"])
    assert len(list(found.path.glob("__*.distcp"))) == 3


def test_only_what_is_trained_is_stored() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert set(states.model_state(model, trained_only=True)) == {"1.weight", "1.bias"}
    assert len(states.model_state(model)) == 4
