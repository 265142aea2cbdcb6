"""What `benchmarks/train_results.py` counts, on the default model and a few prompts."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from qafila.chat.llama import Llama
from qafila.data.encode import EncoderSettings, make_encoder
from qafila.data.forms import example
from qafila.data.problems import Origin
from qafila.model.load import load_model

RECORDS = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Translate into French.", "input": "Good morning", "output": "Bonjour"},
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "train_results.py"
    spec = importlib.util.spec_from_file_location("train_results", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_results"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def llama(default_gguf: Path) -> Iterator[Llama]:
    with Llama.load(default_gguf, threads=1) as loaded:
        yield loaded


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return path


def test_a_model_is_asked_with_the_very_tokens_it_was_trained_on(
    script: ModuleType, llama: Llama, prompts: Path
) -> None:
    encoder = make_encoder(EncoderSettings("sft", 512), llama.tokenizer, llama.format)
    for record, messages in zip(RECORDS, script.conversations(llama, prompts, 2), strict=True):
        ((document,),) = encoder.units(example(record, Origin("a.jsonl", 1)))
        asked = list(llama.format.render(messages).ids)
        assert document.ids[: document.mask.argmax()].tolist() == asked


def test_answers_that_are_cut_did_not_stop(script: ModuleType, llama: Llama, prompts: Path) -> None:
    cut = script.stops(llama, prompts, 2, 1)
    assert (cut.answers, cut.stopped, cut.median, cut.longest) == (2, 0, 1, 0)
    assert cut.unstopped == ["Name a colour.", "Translate into French.\n\nGood morning"]
    whole = script.stops(llama, prompts, 2, 200)
    assert whole.stopped == 2
    assert whole.unstopped == []


def test_bits_are_those_of_torch_over_windows_that_do_not_see_each_other(
    script: ModuleType, llama: Llama, tmp_path: Path
) -> None:
    texts = ["The caravan crosses the desert at night. مرحبا " * 50, "And a short one."]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    found = script.bits(llama, path)
    model = load_model(llama.config, llama.checkpoint.tensors)
    expected, count = 0.0, 0
    for text in texts:
        ids = llama.tokenizer.encode(text)
        count += len(ids)
        for start in range(0, len(ids), 511):
            window = torch.tensor([[llama.tokenizer.bos_id, *ids[start : start + 511]]])
            with torch.inference_mode():
                logits = model(window)[0, :-1].float()
            expected += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item() / math.log(2)
    assert count > 511
    assert found.tokens == count
    assert found.bytes == sum(len(text.encode()) for text in texts)
    # Ours multiplies in 8 bits: 0.7% off with AVX2, 1.0% with AVX-512, 1.1% portably.
    assert found.bits == pytest.approx(expected, rel=0.015)


def test_differences_are_placed_and_told_from_ties(script: ModuleType) -> None:
    reference = [script.Greedy([1, 2, 3], [5.0, 0.05, 0.3]) for _ in range(4)]
    side = script.compare("x", reference, [[1, 2, 3], [1, 9, 3], [1, 2, 9], [1, 2]])
    assert [(d.prompt, d.at, d.reference, d.token, d.gap) for d in side.differences] == [
        (1, 1, 2, 9, 0.05),
        (2, 2, 3, 9, 0.3),
        (3, 2, 3, None, None),
    ]
    assert [d.prompt for d in side.ties] == [1]
