"""Merged weights are those that PEFT merges, rounded once; a folder with an adapter opens as a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qafila.errors import FormatError, ModelNotFoundError, QafilaError, UnsupportedError
from qafila.model.load import load_model
from qafila.parameters import EMBEDDING, LM_HEAD
from qafila.quant import dequantise, quantise
from qafila.quant.dtypes import DType
from qafila.weights.adapter import LoraModule, read_adapter, write_adapter
from qafila.weights.adapter_model import open_adapter_model, open_for_engine
from qafila.weights.load import open_checkpoint, sniff_format
from qafila.weights.merge import exact_f32, kept_or_f16, merge, merged_weight
from qafila.weights.tensor import LazyTensor, Tensor

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base_model(*, tie: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=tie,
    )
    return LlamaForCausalLM(config).eval()


def adapter(folder: Path, base: LlamaForCausalLM, name: str, *, embeddings: bool = False, **options: Any) -> Any:
    """An adapter made and saved by PEFT, on a base of this name; PEFT's model."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": SEVEN, "task_type": "CAUSAL_LM"} | options
    model = peft.get_peft_model(base, peft.LoraConfig(**options))
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_" in key or "modules_to_save" in key:
            parameter.data = torch.randn_like(parameter) * 0.1 + (1.0 if "magnitude" in key else 0.0)
    model.save_pretrained(folder, save_embedding_layers=embeddings)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": name}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return model.eval()


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 1}},
    "DoRA": {"use_dora": True},
    "whole modules": {"modules_to_save": ["lm_head", "input_layernorm"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_weights_are_those_of_peft(tmp_path: Path, variant: str) -> None:
    base_model().save_pretrained(tmp_path / "base")
    theirs = adapter(tmp_path / "run", base_model(), "../base", **VARIANTS[variant])
    assert sniff_format(tmp_path / "run") == "adapter"
    ours = open_checkpoint(tmp_path / "run")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = load_model(ours.config, ours.tensors)(tokens)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    merged = theirs.merge_and_unload()
    for name, value in merged.state_dict().items():
        read = ours.tensors[name].read()
        mine = dequantise(read.dtype, read.data).reshape(value.shape)
        np.testing.assert_allclose(mine, value.numpy(), atol=3e-6, err_msg=name)
    checkpoint, beside = open_for_engine(tmp_path / "run")
    assert (beside is None) == (variant in ("DoRA", "whole modules"))
    assert checkpoint.path == tmp_path / "run"


@pytest.mark.parametrize("stored", [DType.Q4_1, DType.Q8_0, DType.BF16, DType.F16, DType.F32])
def test_a_merged_weight_is_rounded_once(stored: DType) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((96, 64)).astype(np.float32)
    a, b = (rng.standard_normal(shape).astype("<f4") * 0.1 for shape in ((4, 64), (96, 4)))
    blocks = quantise(stored, weight)
    base = LazyTensor.of(Tensor(stored, (96, 64), blocks.reshape(-1)))
    lazy = [LazyTensor.of(Tensor(DType.F32, v.shape, v.reshape(-1).view(np.uint8))) for v in (a, b)]
    module = LoraModule(4, 8, 2.0, lazy[0], lazy[1])
    exact = dequantise(stored, blocks).reshape(96, 64).astype(np.float64) + 2.0 * b.astype(np.float64) @ a
    for dtype in (kept_or_f16(stored), exact_f32(stored), DType.BF16):
        read = merged_weight(base, module, dtype).read()
        found = dequantise(dtype, read.data).reshape(96, 64)
        # Half a unit in the last place of the type, and float32's own for the sum.
        half = {DType.F32: 2**-23, DType.F16: 2**-11, DType.BF16: 2**-8}[dtype] * np.abs(exact).max()
        assert np.abs(found - exact).max() <= half, dtype
    assert kept_or_f16(stored) is (DType.F16 if stored.quantised else stored)


def test_numbers_that_f16_cannot_hold_are_said() -> None:
    big = np.full((2, 32), 60000.0, "<f4")
    base = LazyTensor.of(Tensor(DType.F32, (2, 32), big.reshape(-1).view(np.uint8)), "w")
    ones = [np.full(shape, 200.0, "<f4") for shape in ((1, 32), (2, 1))]
    a, b = (LazyTensor.of(Tensor(DType.F32, v.shape, v.reshape(-1).view(np.uint8))) for v in ones)
    with pytest.raises(FormatError, match="too large for F16"):
        merged_weight(base, LoraModule(1, 1, 1.0, a, b), DType.F16).read()


def test_a_larger_vocabulary_comes_with_the_adapter(tmp_path: Path) -> None:
    base = base_model(tie=True)
    base.save_pretrained(tmp_path / "base")
    larger = base_model(tie=True)
    larger.resize_token_embeddings(70)
    theirs = adapter(tmp_path / "run", larger, "../base", embeddings=True, target_modules=["q_proj"])
    ours = open_checkpoint(tmp_path / "run")
    assert ours.config.vocab_size == 70
    assert ours.config.tie_embeddings
    assert LM_HEAD not in ours.tensors
    tokens = torch.tensor([[1, 69, 3]])
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(ours.config, ours.tensors)(tokens), theirs(tokens).logits, atol=2e-5, rtol=1e-5
        )


def test_adapters_stack_and_circles_end(tmp_path: Path) -> None:
    base_model().save_pretrained(tmp_path / "base")
    first = adapter(tmp_path / "one", base_model(), "../base")
    merged = first.merge_and_unload()
    second = adapter(tmp_path / "two", merged, str(tmp_path / "one"), target_modules=["v_proj"])
    ours = open_checkpoint(tmp_path / "two")
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(ours.config, ours.tensors)(tokens), second(tokens).logits, atol=2e-5, rtol=1e-5
        )
    write_adapter(tmp_path / "one", read_adapter(tmp_path / "one"), "../two")
    with pytest.raises(FormatError, match="circle"):
        open_checkpoint(tmp_path / "two")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:nobody/nothing", "qafila pull hf:nobody/nothing"),
        ("../gone", "its base is not here: no model or file '../gone'"),
        (".", "is the adapter itself"),
        (None, "names no base"),
        ("a\0b", "no name of a file"),
        ("nobody/nothing", "qafila pull hf:nobody/nothing"),
    ],
)
def test_a_base_that_is_missing_is_one_clear_line(
    tmp_path: Path, name: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAFILA_HOME", str(tmp_path / "home"))
    adapter(tmp_path / "run", base_model(), "x")
    config = tmp_path / "run" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": name}))
    with pytest.raises((ModelNotFoundError, FormatError)) as caught:
        open_checkpoint(tmp_path / "run")
    assert said in str(caught.value)
    assert str(tmp_path / "run") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    other = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
        )
    )
    other.save_pretrained(tmp_path / "base")
    adapter(tmp_path / "run", base_model(), "../base")
    with pytest.raises(FormatError, match="its base has"):
        open_checkpoint(tmp_path / "run")
    base_model(tie=True).save_pretrained(tmp_path / "tied")
    adapter(tmp_path / "head", base_model(), "../tied", target_modules=["lm_head"])
    with pytest.raises(UnsupportedError, match="lm_head"):
        open_checkpoint(tmp_path / "head")


def test_what_the_folder_has_is_its_own(tmp_path: Path) -> None:
    base_model().save_pretrained(tmp_path / "base")
    adapter(tmp_path / "run", base_model(), "../base")
    (tmp_path / "run" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "run" / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    model = open_adapter_model(tmp_path / "run")
    assert model.base.chat_template == "{{ messages }}"
    assert model.base.generation.stop_ids == (5, 6)
    merged = merge(model.base, model.adapter)
    assert merged.details["general.name"] == "run"
    assert merged.tensors[EMBEDDING].dtype is DType.F32


def test_a_run_without_a_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(QafilaError, match="left no model yet"):
        open_checkpoint(tmp_path)
