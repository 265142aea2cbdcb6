"""The model card says where a model comes from, and what whoever passes it on owes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qafila.config import GenerationConfig, ModelConfig
from qafila.errors import FormatError, ModelNotFoundError
from qafila.parameters import parameter_shapes
from qafila.quant.dtypes import DType
from qafila.text.tokenizer import Tokenizer
from qafila.weights.load import Checkpoint
from qafila.weights.model_card import llama_licence, model_card
from qafila.weights.run_card import RunBase, RunCard, RunData, read_run_card
from qafila.weights.tensor import LazyTensor, Tensor

CONFIG = ModelConfig(
    dim=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, ffn_dim=32, vocab_size=64, context_length=128
)


def no_tokenizer() -> Tokenizer:
    raise ModelNotFoundError("none")


def checkpoint(**details: object) -> Checkpoint:
    tensors = {
        name: LazyTensor.of(Tensor(DType.F32, shape, np.zeros(int(np.prod(shape)) * 4, np.uint8)))
        for name, shape in parameter_shapes(CONFIG).items()
    }
    return Checkpoint(Path("run"), "hf", CONFIG, GenerationConfig(), tensors, no_tokenizer, details=details)


def run(**changes: Any) -> RunCard:
    recipe = {
        "objective": "sft",
        "adapter": {"kind": "lora", "rank": 16},
        "optimizer": {"lr": 2e-4},
        "description": "A",
    }
    values: dict[str, Any] = {
        "qafila": "0.1.0",
        "recipe": recipe,
        "base": RunBase("default", "SmolLM2", "apache-2.0"),
        "data": (RunData("chats", "chats.jsonl", 401, 120_000, "MIT", "ab" * 32),),
        "result": {"steps": 60, "train_loss": 1.23456, "validation": {"loss": 1.5}},
    }
    return RunCard(**(values | changes))


# Identifiers as model cards on the hub write them.
@pytest.mark.parametrize(
    ("identifier", "page"),
    [
        ("llama2", "https://ai.meta.com/llama/license/"),
        ("llama3", "https://www.llama.com/llama3/license/"),
        ("llama3.1", "https://www.llama.com/llama3_1/license/"),
        ("llama3.2", "https://www.llama.com/llama3_2/license/"),
        ("llama3.3", "https://www.llama.com/llama3_3/license/"),
        ("llama4", "https://www.llama.com/llama4/license/"),
        ("Llama-3.1", "https://www.llama.com/llama3_1/license/"),
    ],
)
def test_llama_licences_bring_their_duties(identifier: str, page: str) -> None:
    card = model_card("x", checkpoint(), run(base=RunBase("hf:meta-llama/X", None, identifier)))
    assert page in card
    assert "Built with" in card
    assert "use-policy" in card
    assert "Copyright © Meta Platforms" in card
    assert 'base_model: "meta-llama/X"' in card


def test_other_licences_do_not() -> None:
    card = model_card("x", checkpoint(), run())
    assert "Apache-2.0" in card
    assert "Built with" not in card
    assert llama_licence("apache-2.0") is None
    assert "not known" in model_card("x", checkpoint(), run(base=RunBase("some/path")))
    assert "Trained from nothing" in model_card("x", checkpoint(), run(base=None))
    assert "Apache-2.0" in model_card("x", checkpoint(**{"general.license": "apache-2.0"}), None)


def test_data_recipe_and_losses_are_told() -> None:
    card = model_card("x", checkpoint(), run())
    assert "| chats (chats.jsonl) | 401 | 120,000 | MIT | `abababababababab` |" in card
    assert "| adapter.rank | 16 |" in card
    assert "| train loss | 1.235 |" in card
    assert "| validation loss | 1.5 |" in card


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (RunData("a", license="CC BY-NC 4.0"), "non-commercial use only"),
        (RunData("b", license="cc-by-nc-sa-4.0"), "non-commercial use only"),
        (RunData("alpaca_4500"), "CC BY-NC 4.0"),
        (RunData("chats"), "not stated: chats"),
    ],
)
def test_terms_of_the_data_are_noted(data: RunData, said: str) -> None:
    assert said in model_card("x", checkpoint(), run(data=(data,)))


def test_names_from_outside_break_nothing() -> None:
    evil = 'a|b\n---\nlicense: mit\n<script>alert(1)</script> ![x](http://x) "q"'
    card = model_card(evil, checkpoint(), run(data=(RunData(evil),), base=RunBase(evil, evil, evil)))
    head = card.split("---\n")[1]
    assert head.count("license:") == 1 + head.count("license: mit")
    assert "\nlicense: mit" not in card
    assert "<script>" not in card.replace("\\<script\\>", "")


def test_what_training_writes_is_read(tmp_path: Path) -> None:
    assert read_run_card(tmp_path) is None
    raw = {
        "qafila": "0.1.0",
        "recipe": {"objective": "sft"},
        "base": {"source": "default", "name": None, "license": "apache-2.0"},
        "data": [{"name": "a", "path": "a.jsonl", "records": 3, "tokens": 9, "sha256": "00", "targets": 4}],
        "result": {"steps": 1},
    }
    (tmp_path / "run.json").write_text(json.dumps(raw))
    card = read_run_card(tmp_path)
    assert card is not None
    assert card.base == RunBase("default", None, "apache-2.0")
    assert card.data[0].tokens == 9
    for damage in ({"data": 3}, {"recipe": [1]}, {"base": "x"}, {"data": [1]}):
        (tmp_path / "run.json").write_text(json.dumps(raw | damage))
        with pytest.raises(FormatError, match=r"run\.json"):
            read_run_card(tmp_path)
