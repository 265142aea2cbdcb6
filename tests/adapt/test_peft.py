"""Our adapters against PEFT's on transformers' Llama with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from adapter_models import ALL, CONFIG, MIXED, Options, ours, shake, some_ids, theirs

from qafila.adapt.apply import adapter_of, adapters, apply_adapter, load_adapter
from qafila.adapt.merge import merge_adapter
from qafila.errors import FormatError, UsageError
from qafila.weights.adapter import read_adapter, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

VARIANTS = {
    "LoRA": Options(),
    "rsLoRA": Options(rslora=True, rank=5),
    "DoRA": Options(kind="dora"),
    "two targets": Options(targets=("q_proj", "down_proj"), alpha=3.0),
}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def peft_model(options: Options, **changes: Any) -> Any:
    config = {
        "r": options.rank,
        "lora_alpha": options.alpha,
        "target_modules": list(options.targets),
        "use_rslora": options.rslora,
        "use_dora": options.kind == "dora",
        "task_type": "CAUSAL_LM",
    } | changes
    return peft.get_peft_model(theirs(), peft.LoraConfig(**config))


def shaken_peft(options: Options, **changes: Any) -> Any:
    model = peft_model(options, **changes)
    shake([p for p in model.parameters() if p.requires_grad], size=0.05)
    return model


def loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[0, :-1], ids[0, 1:])


@pytest.mark.parametrize("name", VARIANTS)
def test_results_and_gradients_are_pefts(name: str, tmp_path: Path) -> None:
    options = VARIANTS[name]
    other = shaken_peft(options)
    other.save_pretrained(tmp_path)
    model = ours()
    parameters = load_adapter(model, read_adapter(tmp_path))
    ids = some_ids()
    mine, want = model(ids), other(ids).logits
    torch.testing.assert_close(mine, want, **TOLERANCE)
    loss(mine, ids).backward()
    loss(want, ids).backward()
    assert len(parameters) == sum(p.requires_grad for p in other.parameters())
    for path, layer in adapters(model):
        module = other.base_model.model.get_submodule(path)
        pairs = [(layer.lora_a, module.lora_A["default"].weight), (layer.lora_b, module.lora_B["default"].weight)]
        if layer.lora_magnitude is not None:
            pairs.append((layer.lora_magnitude, module.lora_magnitude_vector["default"].weight))
        for our, their in pairs:
            assert our.grad is not None
            assert our.grad.abs().max() > 1e-4
            torch.testing.assert_close(our.grad, their.grad, **TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_peft_opens_ours_and_merges_it_to_the_same_weights(name: str, tmp_path: Path) -> None:
    options = VARIANTS[name]
    model = ours()
    shake(apply_adapter(model, options), size=0.05)
    write_adapter(tmp_path, adapter_of(model, options), "some/base")
    opened = peft.PeftModel.from_pretrained(theirs(), tmp_path).eval()
    ids = some_ids()
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, model(ids), **TOLERANCE)
        merged = opened.merge_and_unload()
        for key, value in merge_adapter(model).state_dict().items():
            torch.testing.assert_close(value, merged.state_dict()[key], atol=1e-6, rtol=1e-6)


def test_a_new_adapter_has_pefts_shapes_and_names(tmp_path: Path) -> None:
    model, options = ours(), Options(kind="dora")
    apply_adapter(model, options)
    write_adapter(tmp_path / "ours", adapter_of(model, options), "base")
    peft_model(options).save_pretrained(tmp_path / "theirs")
    mine, want = read_adapter(tmp_path / "ours"), read_adapter(tmp_path / "theirs")
    assert {n: (m.a.shape, m.b.shape, m.path) for n, m in mine.modules.items()} == {
        n: (m.a.shape, m.b.shape, m.path) for n, m in want.modules.items()
    }
    assert set(mine.target_modules) == set(want.target_modules)
    assert (mine.rank, mine.alpha, mine.dora) == (want.rank, want.alpha, want.dora)


@pytest.mark.parametrize("tied", [False, True])
def test_whole_modules_are_trained_and_written(tied: bool, tmp_path: Path) -> None:
    config = CONFIG.with_changes(tie_embeddings=tied)
    model = ours(config)
    save = ("embed_tokens",) if tied else ("embed_tokens", "lm_head")
    options = Options(targets=("q_proj",))
    parameters = apply_adapter(model, options, save=save)
    assert sum(p.numel() for p in parameters) == 2 * 2 * 4 * 64 + len(save) * 80 * 64
    shake(parameters, size=0.05)
    ids = some_ids()
    want = model(ids)
    want.sum().backward()
    assert model.model.embed_tokens.weight.grad is not None
    write_adapter(tmp_path, adapter_of(model, options), "base")
    again = ours(config)
    load_adapter(again, read_adapter(tmp_path))
    torch.testing.assert_close(again(ids), want, rtol=0, atol=0)
    opened = peft.PeftModel.from_pretrained(theirs(config), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, want, **TOLERANCE)


def test_adapters_with_patterns_come_back(tmp_path: Path) -> None:
    options = Options(targets=("q_proj", "down_proj"))
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 0.5}}
    shaken_peft(options, **patterns).save_pretrained(tmp_path / "a")
    model = ours()
    load_adapter(model, read_adapter(tmp_path / "a"))
    write_adapter(tmp_path / "b", adapter_of(model), "base")
    opened = peft.PeftModel.from_pretrained(theirs(), tmp_path / "b").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(some_ids()).logits, model(some_ids()), **TOLERANCE)


def test_shared_experts_and_dense_layers_of_mixtures_are_adapted(tmp_path: Path) -> None:
    model, options = ours(MIXED), Options()
    before = model(some_ids())
    shake(apply_adapter(model, options))
    names = {path for path, _ in adapters(model)}
    mixture = next(plan.index for plan in MIXED.layers if plan.mixture)
    assert f"model.layers.{mixture}.mlp.shared_expert.up_proj" in names
    assert f"model.layers.{1 - mixture}.mlp.up_proj" in names
    assert not [name for name in names if "router" in name or ".experts." in name]
    assert not torch.allclose(model(some_ids()), before, atol=1e-2)
    write_adapter(tmp_path, adapter_of(model, options), "base")
    adapter = read_adapter(tmp_path)
    module = adapter.modules[f"model.layers.{mixture}.mlp.shared_expert.up_proj.weight"]
    assert module.path == f"model.layers.{mixture}.feed_forward.shared_expert.up_proj"
    again = ours(MIXED)
    load_adapter(again, adapter)
    assert torch.equal(again(some_ids()), model(some_ids()))


def test_another_models_adapter_is_refused(tmp_path: Path) -> None:
    other = ours(CONFIG.with_changes(ffn_dim=128))
    apply_adapter(other, Options(targets=ALL))
    with pytest.raises(FormatError, match=r"changes model\.layers\.0\.mlp\.gate_proj\.weight as \[128, 64\]"):
        load_adapter(ours(), adapter_of(other))
    deeper = ours(CONFIG.with_changes(n_layers=3))
    apply_adapter(deeper, Options(targets=("q_proj",)))
    with pytest.raises(FormatError, match="is no linear layer of this model"):
        load_adapter(ours(), adapter_of(deeper))
    with pytest.raises(UsageError, match="has no adapter"):
        adapter_of(ours())
