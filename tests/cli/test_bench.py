"""`qafila bench`: what its JSON holds, what it refuses, and that the figures are of what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qafila.chat.placement import make_runner
from qafila.cli.main import app
from qafila.engine import bench
from qafila.engine.bench import Workload, measure
from qafila.engine.engine import Engine
from qafila.errors import UsageError
from qafila.weights.load import open_checkpoint

FIGURES = {
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "load_seconds",
    "first_token_seconds",
    "peak_memory_bytes",
}


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


def test_json(default_gguf: Path) -> None:
    size = ("--prompt", "20", "--generate", "4", "--streams", "2", "--depth", "16", "--repeat", "1", "--threads", "1")
    done = run(str(default_gguf), *size, "--json")
    assert done.exception is None, done.exception
    found = json.loads(done.stdout)
    assert set(found) >= FIGURES
    assert all(found[name] > 0 for name in FIGURES)
    assert (found["prompt"], found["generate"], found["streams"], found["depth"]) == (20, 4, 2, 16)
    assert found["threads"] == 1
    assert found["peak_memory_bytes"] > 90_000_000


def test_table(default_gguf: Path) -> None:
    text = run(str(default_gguf), "--prompt", "8", "--generate", "2", "--repeat", "1").stdout
    for part in ("prefill 8", "decode 2", "first token", "peak memory", "tokens/s"):
        assert part in text


def test_what_is_measured_is_computed(default_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workload(prompt=40, generate=5, streams=3, depth=32, repeat=2)
    runner = make_runner(open_checkpoint(default_gguf), context=work.kv_tokens, threads=1)
    steps: list[tuple[int, int]] = []
    logits = runner.logits
    monkeypatch.setattr(
        runner, "logits", lambda step: steps.append((len(step.token_ids), len(step.wanted))) or logits(step)
    )
    seen: list[tuple[int, int]] = []
    with Engine(runner) as engine:
        found = measure(engine, work, lambda done, total: seen.append((done, total)))
        assert engine.stats().preemptions == 0
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert len(found.prefill_all) == len(found.decode_all) == 2
    assert found.prefill_tokens_per_second == np.median(found.prefill_all)
    # Of each repetition: the prompt behind its depth, and steps of all three streams.
    assert steps.count((40, 1)) == 3
    assert steps.count((3, 3)) >= 3 * 3


def test_a_prompt_in_the_cache_does_not_count(default_gguf: Path) -> None:
    work = Workload(prompt=16, generate=2, depth=64, repeat=1)
    with Engine(make_runner(open_checkpoint(default_gguf), context=work.kv_tokens)) as engine:
        _, read = bench._prefill(engine, work, np.random.default_rng(0))
    assert read == 16


def test_what_is_refused(default_gguf: Path) -> None:
    for options in ({"prompt": 0}, {"generate": 1}, {"streams": -1}, {"repeat": 0}, {"depth": True}):
        with pytest.raises(UsageError, match=next(iter(options))):
            Workload(**options)
    done = run(str(default_gguf), "--prompt", "9000")
    assert isinstance(done.exception, UsageError)
    assert "9001 tokens of context, and the model has 8192" in str(done.exception)
    assert run(str(default_gguf), "--streams", "0").exit_code == 2
