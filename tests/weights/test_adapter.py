from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from qafila.errors import FormatError, ModelNotFoundError, QafilaError, UnsupportedError
from qafila.quant.dtypes import DType
from qafila.weights.adapter import Adapter, LoraModule, canonical_name, read_adapter, write_adapter
from qafila.weights.tensor import LazyTensor, Tensor

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def base_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
        )
    ).eval()


def randomise(model: Any) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn_like(parameter) * 0.1 + (1.0 if "magnitude" in name else 0.0)


def saved(folder: Path, **options: Any) -> Any:
    """An adapter that PEFT made and saved, and PEFT's model with it."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | options
    model = peft.get_peft_model(base_model(), peft.LoraConfig(**options))
    randomise(model)
    model.save_pretrained(folder)
    return model.eval()


def values(tensor: LazyTensor) -> torch.Tensor:
    assert tensor.dtype is DType.F32
    return torch.frombuffer(bytearray(tensor.read().data.tobytes()), dtype=torch.float32).reshape(tensor.shape)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank stabilised": {"use_rslora": True, "r": 5},
    "patterns": {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6},
        "alpha_pattern": {r"^model\.layers\.0\..*q_proj": 3, "down_proj": 0.5},
    },
    "one target": {"target_modules": ["v_proj"]},
    "regular expression": {"target_modules": r".*\.(k_proj|o_proj)"},
    "DoRA": {"use_dora": True},
    "saved modules": {"modules_to_save": ["lm_head", "input_layernorm"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_deltas_are_those_that_peft_computes(tmp_path: Path, variant: str) -> None:
    model = saved(tmp_path, **VARIANTS[variant])
    adapter = read_adapter(tmp_path)
    layers = {name: module for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert {f"{name}.weight" for name in layers} == adapter.modules.keys()
    for name, module in layers.items():
        ours = adapter.modules[f"{name}.weight"]
        assert ours.rank == module.r["default"]
        assert ours.scaling == pytest.approx(module.scaling["default"])
        torch.testing.assert_close(ours.scaling * values(ours.b) @ values(ours.a), module.get_delta_weight("default"))
        if variant == "DoRA":
            assert ours.magnitude
            assert torch.equal(values(ours.magnitude), module.lora_magnitude_vector["default"].weight)
        else:
            assert ours.magnitude is None
    assert adapter.dora == (variant == "DoRA")
    if variant == "saved modules":
        assert len(adapter.saved) == 3
        trained = model.base_model.model.lm_head.modules_to_save["default"].weight
        assert torch.equal(values(adapter.saved["lm_head.weight"]), trained)
    else:
        assert not adapter.saved


@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_opens_what_is_written(tmp_path: Path, variant: str) -> None:
    model = saved(tmp_path / "a", **VARIANTS[variant])
    first = read_adapter(tmp_path / "a")
    paths = write_adapter(tmp_path / "b", first, "some/base")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(path.name for path in paths)
    opened = peft.PeftModel.from_pretrained(base_model(), tmp_path / "b").eval()
    assert opened.peft_config["default"].base_model_name_or_path == "some/base"
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        expected, found = model(tokens).logits, opened(tokens).logits
        assert not torch.allclose(base_model()(tokens).logits, expected, atol=1e-3)
    torch.testing.assert_close(found, expected)
    second = read_adapter(tmp_path / "b")
    for name, module in first.modules.items():
        assert (second.modules[name].rank, second.modules[name].alpha) == (module.rank, module.alpha)
        for one, other in ((module.a, second.modules[name].a), (module.b, second.modules[name].b)):
            assert one.read().data.tobytes() == other.read().data.tobytes()


def test_pickled_adapters_are_read(tmp_path: Path) -> None:
    model = saved(tmp_path)
    expected = read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"adapter_model\.safetensors"):
        read_adapter(tmp_path)
    torch.save(peft.get_peft_model_state_dict(model), tmp_path / "adapter_model.bin")
    found = read_adapter(tmp_path)
    assert found.modules.keys() == expected.modules.keys()
    for name, module in expected.modules.items():
        assert torch.equal(values(found.modules[name].a), values(module.a))


def test_an_adapter_of_our_own_is_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def tensor(*shape: int) -> LazyTensor:
        return LazyTensor.of(Tensor(DType.F32, shape, rng.random(shape, dtype=np.float32).reshape(-1).view(np.uint8)))

    name = "model.layers.0.self_attn.q_proj.weight"
    module = LoraModule(rank=3, alpha=6.0, scaling=2.0, a=tensor(3, 32), b=tensor(32, 3))
    adapter = Adapter(rank=3, alpha=6.0, modules={name: module}, target_modules=("q_proj",))
    assert adapter.scaling == 2.0
    write_adapter(tmp_path, adapter)
    found = read_adapter(tmp_path).modules
    assert found.keys() == {name}
    assert torch.equal(values(found[name].b), values(module.b))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("model.layers.3.mlp.up_proj", "model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.layers.3.self_attn.q_proj", "model.layers.3.self_attn.q_proj.weight"),
        ("language_model.model.layers.3.feed_forward.gate_proj", "model.layers.3.mlp.gate_proj.weight"),
    ],
)
def test_modules_have_canonical_names(module: str, name: str) -> None:
    assert canonical_name(module) == name


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    saved(tmp_path)
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type"),
        ({"use_new_trick": True}, "use_new_trick"),
        ({"r": 0}, "r must be"),
        ({"r": 5}, "rank is 4, but adapter_config.json says 5"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"bias": "all"}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"use_dora": True}, "use_dora"),
        ({"target_modules": [1]}, "target_modules"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base model"),
        ({"init_lora_weights": "olora"}, "changes the base model"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "too involved"),
        ({"alpha_pattern": {"(a|a)(a|a)(a|a)x": 2}}, "too involved"),
        ({"alpha_pattern": {"[": 2}}, "no regular expression"),
        ({"rank_pattern": {"q_proj": "many"}}, "rank_pattern.q_proj"),
    ],
)
def test_wrong_configurations_name_their_key(plain: Path, changes: dict[str, Any], message: str) -> None:
    change(plain, **changes)
    with pytest.raises(QafilaError, match=message) as caught:
        read_adapter(plain)
    assert "\n" not in str(caught.value)


def tensors_file(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    (folder / "adapter_model.safetensors").unlink(missing_ok=True)
    torch.save(tensors, folder / "adapter_model.bin")


def test_tensors_that_disagree_are_refused(plain: Path) -> None:
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = torch.ones(4, 32), torch.ones(32, 4)
    good = {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({f"{path}.lora_A.weight": a}, "only one of lora_A and lora_B"),
        ({**good, f"{path}.lora_B.weight": torch.ones(32, 3)}, "do not share a rank"),
        ({**good, f"{path}.lora_B.weight": torch.ones(4)}, "do not share a rank"),
        ({**good, f"{path}.lora_B.weight": torch.ones(32, 4).long()}, "not a floating-point type"),
        ({**good, f"{path}.lora_magnitude_vector": torch.ones(32)}, "use_dora is False"),
        ({**good, f"{path}.lora_A.default.weight": a}, "two names"),
        ({**good, "model.norm.weight": a}, "not named as PEFT"),
        ({**good, "base_model.model.model.norm.weight": a}, "nor in modules_to_save"),
        ({**good, "base_model.model." + "x" * 300 + ".lora_A.weight": a}, "too long"),
        ({}, "holds no adapter"),
    ]
    tensors_file(plain, good)
    assert len(read_adapter(plain).modules) == 1
    for tensors, message in cases:
        tensors_file(plain, tensors)
        with pytest.raises(FormatError, match=message):
            read_adapter(plain)
    tensors_file(plain, {"base_model.model.model.embed_tokens.lora_embedding_A": a})
    with pytest.raises(UnsupportedError, match="embeddings"):
        read_adapter(plain)


def test_no_pattern_takes_long(plain: Path) -> None:
    name = "base_model.model." + "a" * 170
    tensors_file(plain, {f"{name}.lora_A.weight": torch.ones(4, 2), f"{name}.lora_B.weight": torch.ones(2, 4)})
    change(plain, alpha_pattern={"a*.*b": 2, "(a|aa)(a|aa)a*a*b": 3})
    started = time.perf_counter()
    assert read_adapter(plain).modules
    assert time.perf_counter() - started < 5


CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["r", "lora_alpha", "rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "bias"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.lists(st.text(max_size=2), max_size=2)
        | st.dictionaries(
            st.text(alphabet="aq_.*[(|)]\\$^+-0", max_size=8), st.integers(0, 9) | st.floats(0, 9), max_size=2
        ),
    )
)
def test_configurations_at_random_open_or_get_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors_file(tmp_path, {f"{path}.lora_A.weight": torch.ones(4, 2), f"{path}.lora_B.weight": torch.ones(2, 4)})
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | changes))

    def outcome() -> str:
        try:
            read_adapter(tmp_path)
        except QafilaError as error:
            return str(error)
        return ""

    assert "\n" not in outcome()
