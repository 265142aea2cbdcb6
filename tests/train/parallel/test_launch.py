"""`qafila train` in several processes: the losses of one, stopping, going on with another number, and errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qafila import Llama
from qafila.errors import TrainingError
from qafila.text.text_sources import TextSource
from qafila.text.train_tokenizer import train_tokenizer
from qafila.train.parallel.launch import launch
from qafila.train.recipe import read_recipe
from qafila.train.run import train as train_here

SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "context_length": 256}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its data and tokenizer."""
    folder = tmp_path_factory.mktemp("recipe")
    texts = [f"{i} the caravan walks to the well, سارت القافلة إلى البئر" * (1 + i % 3) for i in range(80)]
    train_tokenizer([TextSource("lines", lambda: iter(texts))], 300, specials="chatml").save(folder / "tokenizer")
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text(lines, encoding="utf-8")
    (folder / "tiny.yaml").write_text(
        json.dumps(
            {
                "name": "tiny",
                "objective": "pretrain",
                "model": {"shape": SHAPE, "tokenizer": "tokenizer"},
                "data": {"train": [{"path": "texts.jsonl"}], "sequence": 64, "validation_share": 0.1, "workers": 1},
                "optimizer": {"lr": 5e-3},
                "train": {"steps": 6, "batch": 4, "micro_batch": 1, "threads": 1},
                "checkpoint": {"every": 2},
            }
        ),
        encoding="utf-8",
    )
    return folder / "tiny.yaml"


def qafila(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "qafila", *map(str, arguments)]


def train(recipe: Path, out: Path, *more: object) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(
        output_of(qafila("train", recipe, *more, "--to", out, "--json")).splitlines()[-1]
    )
    return report


def output_of(command: list[str]) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


Alone = Callable[..., Path]


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "tiny" / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def validation(out: Path) -> float:
    lines = [json.loads(line) for line in (out / "tiny" / "metrics.jsonl").read_text("utf-8").splitlines()]
    last: float = [line["validation"]["loss"] for line in lines if "validation" in line][-1]
    return last


def test_two_processes_learn_what_one_does(recipe: Path, alone: Alone, tmp_path: Path) -> None:
    train(recipe, tmp_path, "--nproc", 2)
    assert losses(tmp_path) == pytest.approx(losses(alone()), abs=1e-4)
    assert validation(tmp_path) == pytest.approx(validation(alone()), abs=1e-4)
    with Llama.load(tmp_path / "tiny", threads=1) as llama:
        assert llama.complete("the caravan", max_tokens=3, temperature=0).ids


@pytest.mark.slow
def test_another_number_of_processes_goes_on(recipe: Path, alone: Alone, tmp_path: Path) -> None:
    train(recipe, tmp_path / "two", "--nproc", 2)
    # The newest checkpoint is the last step's: the one before it is gone on from.
    for newest in (tmp_path / "two" / "tiny" / "checkpoints").glob("step-*6"):
        for file in newest.glob("*.distcp"):
            file.write_bytes(b"damaged")
    train(recipe, tmp_path / "two", "--resume")
    assert losses(tmp_path / "two") == pytest.approx(losses(alone()), abs=1e-4)


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Folders of runs in one process, each made once for the keys it is asked with."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*keys: str) -> Path:
        if keys not in made:
            out = tmp_path_factory.mktemp("alone")
            train_here(read_recipe(recipe, keys), beside=recipe.parent, out=out)
            made[keys] = out
        return made[keys]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("parallel.tensor=2",),
        ("parallel.context=2",),
        ("parallel.pipeline=2",),
        ("parallel.replicate=2",),
        ("parallel.tensor=2", "train.checkpoint_activations=true", "optimizer.name=muon"),
        ("parallel.data=2", "optimizer.name=adamw8bit"),
    ],
)
def test_every_layout_learns_the_same(recipe: Path, alone: Alone, tmp_path: Path, layout: tuple[str, ...]) -> None:
    one = alone(*(key for key in layout if not key.startswith("parallel")))
    train(recipe, tmp_path, *layout, "--nproc", 2)
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-4)
    assert validation(tmp_path) == pytest.approx(validation(one), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [('adapter.save=["embed_tokens"]',), ("adapter.kind=dora",), ("adapter.base=nf4",)],
    ids=["lora", "dora", "nf4"],
)
def test_an_adapter_is_shared_out_too_and_opens(
    recipe: Path, alone: Alone, tmp_path: Path, kind: tuple[str, ...]
) -> None:
    adapter = (f"model.base={alone() / 'tiny'}", "adapter.rank=4", "optimizer.lr=1e-2", *kind)
    one = alone(*adapter)
    train(recipe, tmp_path, *adapter, "--nproc", 2)
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-4)
    answers = []
    for out in (one, tmp_path):
        with Llama.load(out / "tiny", threads=1) as llama:
            answers.append(llama.complete("the caravan", max_tokens=3, temperature=0).ids)
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_torchrun_starts_a_run_as_well(recipe: Path, alone: Alone, tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "qafila", "train"]
    output_of([sys.executable, *words, str(recipe), "--to", str(tmp_path)])
    assert losses(tmp_path) == pytest.approx(losses(alone()), abs=1e-4)


@pytest.mark.slow
def test_sigterm_stops_all_after_the_same_step(recipe: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        qafila("train", recipe, "train.steps=4000", "checkpoint.every=4000", "--to", tmp_path, "--nproc", 2),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = tmp_path / "tiny" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.is_file() and metrics.read_text("utf-8").count('"lr"') > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told, warned = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, warned
    assert "go on with --resume" in told
    assert list((tmp_path / "tiny" / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_errors_are_one_line(recipe: Path, tmp_path: Path) -> None:
    for words, told in (
        (("--nproc", 2, "parallel.tensor=4"), "does not divide the 2 processes"),
        (("--nproc", 2, "parallel.pipeline=2", "train.micro_batch=4"), "do not fill 2 stages"),
        (("parallel.data=4",), "there are 1 processes"),
    ):
        done = subprocess.run(
            qafila("train", recipe, *words, "--to", tmp_path), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: parallel")
        assert told in line


def test_one_failing_process_ends_all() -> None:
    code = (
        "import os, sys, time\n"
        "if os.environ['RANK'] == '1':\n"
        "    print('error: no memory left', file=sys.stderr); sys.exit(3)\n"
        "time.sleep(60)"
    )
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"^process 1 of 3 failed with status 3: no memory left$"):
        launch([sys.executable, "-c", code], 3)
    assert time.monotonic() - started < 30
    assert launch([sys.executable, "-c", "import os; assert os.environ['WORLD_SIZE'] == '2'"], 2) == 0
