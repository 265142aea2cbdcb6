"""Calibration: what is fitted makes probabilities true, on examples that were not fitted to."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from qafila.agent.calibration import (
    Calibration,
    Example,
    calibration_of,
    fit,
    keep_calibration,
    quality,
    read_calibration,
    sigmoid,
)
from qafila.agent.examples import read_choices
from qafila.chat.client import ToolOdds
from qafila.errors import DataError, FormatError, UsageError

TOOLS = ("read", "write", "list")


def examples(count: int, seed: int) -> list[Example]:
    """A model that hardly ever begins a call, likes `list` whatever it is asked, and knows more than it says."""
    draw = random.Random(seed)
    habit = {"read": 0.0, "write": -1.0, "list": 2.5}
    found = []
    for _ in range(count):
        right = draw.choice((None, *TOOLS))
        call = sigmoid(-6 + (1.5 if right else -1.5) + draw.gauss(0, 1.5))
        scores = {name: habit[name] + (2 if name == right else 0) + draw.gauss(0, 1) for name in TOOLS}
        found.append(Example(ToolOdds(call, shares(scores)), ToolOdds(sigmoid(-6), shares(habit)), right))
    return found


def shares(scores: dict[str, float]) -> tuple[tuple[str, float], ...]:
    total = sum(math.exp(value) for value in scores.values())
    return tuple((name, math.exp(value) / total) for name, value in scores.items())


def test_probabilities_become_true_on_examples_that_were_not_fitted_to() -> None:
    fitted = fit(examples(400, 1))
    held_out = examples(400, 2)
    before, after = quality(Calibration(), held_out), quality(fitted, held_out)
    assert before.call_accuracy == pytest.approx(0.25, abs=0.1)  # it never calls: right where words are
    assert after.call_accuracy > 0.8
    assert after.call_error < 0.08 < before.call_error
    assert after.tool_accuracy > before.tool_accuracy + 0.15
    assert after.tool_error < 0.1
    assert after.call_auroc == pytest.approx(before.call_auroc)  # a slope changes no order
    assert fitted.tool_prior > 0.5


def test_without_fitting_odds_stay_what_they_are() -> None:
    odds = ToolOdds(0.2, (("a", 0.25), ("b", 0.75)))
    applied = Calibration().apply(odds, ToolOdds(0.9, (("a", 0.9), ("b", 0.1))))
    assert applied.call == pytest.approx(0.2)
    assert dict(applied.tools) == pytest.approx({"a": 0.25, "b": 0.75})


def test_certain_odds_are_no_error() -> None:
    sure = ToolOdds(1.0, (("a", 1.0), ("b", 0.0)))
    applied = Calibration(tool_prior=1.0, call_slope=3.0).apply(sure, sure)
    assert applied.call == pytest.approx(1.0)
    assert sum(share for _, share in applied.tools) == pytest.approx(1.0)


def test_examples_of_one_kind_cannot_be_fitted() -> None:
    one_kind = [example for example in examples(100, 3) if example.right is not None]
    with pytest.raises(UsageError, match="some must have a right tool and some none"):
        fit(one_kind)


def test_a_calibration_is_found_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAFILA_HOME", str(tmp_path))
    kept = Calibration(call_slope=2.0, fingerprint="0123abcd")
    path = keep_calibration(kept)
    assert calibration_of("0123abcd-avx2-f16") == kept
    assert calibration_of("ffff-avx2-f16") is None
    assert calibration_of(None) is None
    path.write_text('{"call_slope": NaN}', encoding="utf-8")
    with pytest.raises(FormatError, match="is no calibration"):
        calibration_of("0123abcd")
    with pytest.raises(UsageError, match="--to"):
        keep_calibration(Calibration())


def test_the_default_model_brings_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QAFILA_HOME", str(tmp_path))
    (shipped,) = (Path(__file__).parents[2] / "src/qafila/agent/calibrations").glob("*.json")
    assert calibration_of(shipped.stem) == read_calibration(shipped)
    assert read_calibration(shipped).fingerprint == shipped.stem


TOOL = {"type": "function", "function": {"name": "f", "description": "F."}}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is no object with goal, tools and tool"),
        ('{"goal": "x"}', "is no object with goal, tools and tool"),
        (json.dumps({"goal": " ", "tools": [TOOL], "tool": None}), "needs a goal"),
        (json.dumps({"goal": "x", "tools": [], "tool": None}), "at least one tool"),
        (json.dumps({"goal": "x", "tools": [TOOL], "tool": "g"}), "tool 'g' is not among its tools"),
        (json.dumps({"goal": "x", "tools": [{"name": 3}], "tool": None}), "tools\\[0\\]"),
    ],
)
def test_a_bad_line_is_named(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({"goal": "x", "tools": [TOOL], "tool": "f"}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"examples.jsonl:2: .*{words}"):
        read_choices(file)
