"""config.json both ways: against transformers, against the keys real files have, and against hostile ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.config import AttentionTemperature, GenerationConfig, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.errors import ConfigError, FormatError, ModelNotFoundError, QafilaError, UnsupportedError
from qafila.presets import preset, preset_names
from qafila.vision import vision_config
from qafila.weights.hf_config import config_from_hf
from qafila.weights.hf_generation import generation_from_hf, generation_to_hf
from qafila.weights.hf_write import config_to_hf
from qafila.weights.json_object import read_json

T = TypeVar("T")
SMALL = ModelConfig(dim=64, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, vocab_size=256)
SMALL_4 = SMALL.with_changes(
    rope_theta=5e5,
    rope_interleaved=True,
    moe=MixtureOfExperts(n_experts=4, top_k=2, ffn_dim=32, layer_step=2),
    no_rope_layers=(1, 3),
    attention_chunk=8,
    qk_norm=True,
    temperature=AttentionTemperature(floor_scale=4, attn_scale=0.25),
)
SMALL_VISION = SMALL.with_changes(cross_attention_layers=(1, 3), extra_embeddings=8, norm_eps=1e-6)
VARIANTS = {
    "plain": SMALL,
    "tied": SMALL.with_changes(tie_embeddings=True, norm_eps=1e-6, context_length=77),
    "wide heads": SMALL.with_changes(head_dim=32),
    "linear": SMALL.with_changes(rope_scaling=RopeScaling("linear", factor=4.0)),
    "llama3": SMALL.with_changes(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 512), rope_theta=123456.0),
    "llama4": SMALL_4,
    "llama4, no qk norm, no temperature": SMALL_4.with_changes(qk_norm=False, temperature=None),
    "llama4, unchunked": SMALL_4.with_changes(attention_chunk=None),
    "llama4, all rope": SMALL_4.with_changes(no_rope_layers=()),
    "llama4, dense": SMALL_4.with_changes(moe=None),
    "llama4, mixtures too far apart": SMALL_4.with_changes(moe=MixtureOfExperts(4, 1, 32, layer_step=9)),
    "llama4, pictures": SMALL_4.with_changes(vision=vision_config("early_fusion", num_hidden_layers=2)),
    "mllama": SMALL_VISION,
    "mllama, pictures": SMALL_VISION.with_changes(vision=vision_config("cross_attention", image_size=560)),
    **{name: preset(name) for name in preset_names()},
}


def _json(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip(name: str) -> None:
    config = VARIANTS[name]
    assert config_from_hf(_json(config_to_hf(config)), path="config.json") == config


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_reads_the_same_and_is_read(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = VARIANTS[name]
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    text = theirs.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (
        config.dim,
        config.n_layers,
        config.vocab_size,
    )
    assert text.rope_parameters["rope_theta"] == config.rope_theta
    assert text.rope_parameters["rope_type"] == (config.rope_scaling.kind if config.rope_scaling else "default")
    if config.moe is not None:
        assert text.moe_layers == [plan.index for plan in config.layers if plan.mixture]
    if config.rope_interleaved:
        assert [bool(flag) for flag in text.no_rope_layers] == [plan.rotary for plan in config.layers]
        chunked = [kind == "chunked_attention" for kind in text.layer_types]
        assert chunked == [plan.attention == "chunked" for plan in config.layers]
    # What transformers 5 writes (rope_parameters, layer_types, every default spelt out) says the same to us.
    theirs.save_pretrained(tmp_path)
    assert config_from_hf(read_json(tmp_path / "config.json"), path="saved") == config
    assert config_from_hf(_json(theirs.to_dict() | {"dtype": None}), path="whole") == config


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b", "llama-4-scout", "linear", "llama3"])
def test_rope_tables_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = VARIANTS[name]
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    text = transformers.AutoConfig.from_pretrained(tmp_path).get_text_config()
    theirs, scale = ROPE_INIT_FUNCTIONS[text.rope_parameters["rope_type"]](text, "cpu")
    assert scale == 1
    np.testing.assert_allclose(config.inverse_frequencies, theirs.numpy(), rtol=1e-5)


def test_what_transformers_builds_from_it_has_our_shapes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from qafila.parameters import text_parameters

    for name in ("plain", "tied", "wide heads", "llama4", "llama4, dense", "mllama"):
        (tmp_path / "config.json").write_text(json.dumps(config_to_hf(VARIANTS[name])))
        theirs = transformers.AutoConfig.from_pretrained(tmp_path)
        with torch.device("meta"):
            if name == "mllama":  # AutoModelForCausalLM does not know the text model of Llama 3.2 Vision alone
                model = transformers.MllamaForCausalLM(theirs)
            else:
                model = transformers.AutoModelForCausalLM.from_config(theirs)
        assert sum(p.numel() for p in model.parameters()) == text_parameters(VARIANTS[name]), name


# Keys and values as in released files of transformers 4.
LLAMA_3_1 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA_7B = {
    "architectures": ["LLaMAForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": -1,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.27.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "vocab_size": 49152,
}
# transformers once wrote every default of its base class into nested configurations.
LEGACY = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": False,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": "bfloat16",
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}
LLAMA_3_2_VISION = {
    "architectures": ["MllamaForConditionalGeneration"],
    "image_token_index": 128256,
    "model_type": "mllama",
    "text_config": LEGACY
    | {
        "bos_token_id": 128000,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        "dropout": 0,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "model_type": "mllama_text_model",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "pad_token_id": 128004,
        "rms_norm_eps": 1e-05,
        "rope_scaling": LLAMA_3_1["rope_scaling"],
        "rope_theta": 500000.0,
        "use_cache": True,
        "vocab_size": 128256,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "vision_config": LEGACY
    | {
        "attention_heads": 16,
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "image_size": 560,
        "initializer_range": 0.02,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
        "intermediate_size": 5120,
        "max_num_tiles": 4,
        "model_type": "mllama_vision_model",
        "norm_eps": 1e-05,
        "num_channels": 3,
        "num_global_layers": 8,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        "vision_output_dim": 7680,
    },
}
MAVERICK = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "boi_token_index": 200080,
    "eoi_token_index": 200081,
    "image_token_index": 200092,
    "model_type": "llama4",
    "text_config": {
        "_attn_implementation_autoset": True,
        "attention_bias": False,
        "attention_chunk_size": 8192,
        "attention_dropout": 0.0,
        "attn_scale": 0.1,
        "attn_temperature_tuning": 4,
        "bos_token_id": 200000,
        "cache_implementation": "hybrid",
        "eos_token_id": [200001, 200007, 200008],
        "floor_scale": 8192,
        "for_llm_compressor": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "initializer_range": 0.02,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 1048576,
        "model_type": "llama4_text",
        "moe_layers": list(range(1, 48, 2)),
        "no_rope_layers": [],
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "output_router_logits": False,
        "pad_token_id": 200018,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_qk_norm": False,
        "vocab_size": 202048,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0.dev0",
    "vision_config": {
        "_attn_implementation_autoset": True,
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 1408,
        "image_size": 336,
        "initializer_range": 0.02,
        "intermediate_size": 5632,
        "model_type": "llama4_vision_model",
        "multi_modal_projector_bias": False,
        "norm_eps": 1e-05,
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 34,
        "patch_size": 14,
        "pixel_shuffle_ratio": 0.5,
        "projector_dropout": 0.0,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
        "rope_theta": 10000,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "vision_output_dim": 4096,
    },
}
RELEASED = {
    "llama-3.1-8b": LLAMA_3_1,
    "llama-7b": LLAMA_7B,
    "smollm2-135m": SMOLLM2,
    "llama-3.2-11b-vision": LLAMA_3_2_VISION,
    "llama-4-maverick": MAVERICK,
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_are_the_presets(name: str) -> None:
    assert config_from_hf(RELEASED[name], path="config.json") == preset(name)


def test_the_base_scout_scales_differently_from_the_instruct_one() -> None:
    raw = copy.deepcopy(MAVERICK)
    base = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
    base |= {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
    raw["text_config"]["rope_scaling"] = base  # type: ignore[index]
    assert config_from_hf(raw, path="x").rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


def _with(**changes: Any) -> dict[str, Any]:
    raw = {**LLAMA_3_1, **changes}
    return {key: value for key, value in raw.items() if value is not ...}


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (_with(foo=1), ConfigError, r"dir/config\.json: unknown key foo"),
        (_with(hidden_size=...), ConfigError, r"dir/config\.json: hidden_size is missing"),
        (_with(hidden_size="4096"), ConfigError, "hidden_size must be an integer"),
        (_with(hidden_size=True), ConfigError, "hidden_size must be an integer"),
        (_with(hidden_size=4096.0), ConfigError, "hidden_size must be an integer"),
        (_with(hidden_size=10**400), ConfigError, "hidden_size must be an integer"),
        (_with(hidden_size=1 << 40), ConfigError, r"dir/config\.json: "),
        (_with(num_hidden_layers=1 << 50), ConfigError, "num_hidden_layers must be an integer between 1 and 4096"),
        (_with(num_key_value_heads=5), ConfigError, r"dir/config\.json: n_heads \(32\) must be a multiple"),
        (_with(rms_norm_eps="x"), ConfigError, "rms_norm_eps must be a number"),
        (_with(rms_norm_eps=float("inf")), ConfigError, "rms_norm_eps must be a finite number"),
        (_with(rms_norm_eps=-1.0), ConfigError, "rms_norm_eps must be between 1e-30 and 1"),
        (_with(rope_theta=5e-324), ConfigError, "rope_theta must be between 1 and"),
        (_with(rope_theta=10**400), ConfigError, "rope_theta must be a finite number"),
        (_with(hidden_act="gelu"), ConfigError, "hidden_act is 'gelu'; Qafila computes only 'silu'"),
        (_with(attention_bias=True), ConfigError, "attention_bias is True"),
        (_with(mlp_bias=True), ConfigError, "mlp_bias is True"),
        (_with(rope_interleaved=True), ConfigError, "rope_interleaved is True"),
        (_with(partial_rotary_factor=0.5), ConfigError, r"partial_rotary_factor is 0\.5"),
        (_with(tie_word_embeddings=1), ConfigError, "tie_word_embeddings must be true or false"),
        (_with(sliding_window=4096), UnsupportedError, "sliding_window"),
        (_with(model_type="mistral"), UnsupportedError, "model_type 'mistral' is not a Llama"),
        (_with(model_type=...), ConfigError, "model_type is missing"),
        (_with(architectures=["LlamaForSequenceClassification"]), UnsupportedError, "LlamaForSequenceClassification"),
        (_with(quantization_config={"quant_method": "awq"}), UnsupportedError, "quantised by 'awq'"),
        (_with(rope_scaling={"rope_type": "yarn", "factor": 2.0}), UnsupportedError, "rope_type 'yarn'"),
        (_with(rope_scaling={"type": "linear"}), ConfigError, r"rope_scaling\.factor is missing"),
        (_with(rope_scaling={"type": "linear", "rope_type": "llama3"}), ConfigError, "but type is 'linear'"),
        (_with(rope_scaling={"type": "linear", "factor": -2.0}), ConfigError, r"rope_scaling\.factor must be between"),
        (_with(rope_scaling={**LLAMA_3_1["rope_scaling"], "low_freq_factor": 9.0}), ConfigError,  # type: ignore[dict-item]
         r"rope scaling needs 0 < low_freq_factor <= high_freq_factor"),
        (_with(rope_scaling={"type": "linear", "factor": 2.0, "x": 1}), ConfigError, r"unknown key rope_scaling\.x"),
        (_with(rope_scaling=[1]), ConfigError, "rope_scaling must be an object"),
        (_with(rope_parameters={"rope_type": "default"}), ConfigError, "rope_scaling and rope_parameters disagree"),
        (_with(rope_scaling=None, rope_parameters={"rope_theta": 1.0}), ConfigError, r"rope_theta is 1\.0 but"),
        (_with(vision_config={}), ConfigError, "unknown key vision_config"),
        ({**MAVERICK, "text_config": None}, ConfigError, "text_config is missing"),
        ({**MAVERICK, "vision_config": {"hidden_act": "relu"}}, ConfigError, r"vision_config\.hidden_act is 'relu'"),
        ({**MAVERICK, "vision_config": {"depth": 1}}, ConfigError, r"unknown key vision_config\.depth"),
        ({**MAVERICK, "tie_word_embeddings": True, "text_config": {**MAVERICK["text_config"],  # type: ignore[dict-item]
          "tie_word_embeddings": False}}, ConfigError, "contradicts"),
    ],
)  # fmt: skip
def test_refused_in_one_line(raw: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        config_from_hf(raw, path="dir/config.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).startswith("dir/config.json: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries for 48 layers"),
        ({"no_rope_layers": [2] * 48}, "no_rope_layers must hold integers between 0 and 1"),
        ({"moe_layers": [1, 2, 7]}, "moe_layers at irregular distances"),
        ({"layer_types": ["full_attention"] * 48}, "layer_types that do not follow"),
        ({"floor_scale": 0}, "floor_scale must be between 1 and"),
        ({"attn_temperature_tuning": "yes"}, "attn_temperature_tuning must be true or false"),
        ({"num_experts_per_tok": 129}, "experts per token"),
        ({"no_rope_layer_interval": 0}, "no_rope_layer_interval must be an integer between 1"),
        ({"model_type": "llama"}, r"text_config\.model_type is 'llama'"),
    ],
)
def test_llama_4_keys_are_checked(changes: dict[str, Any], message: str) -> None:
    text: dict[str, Any] = {**MAVERICK["text_config"], **changes}  # type: ignore[dict-item]
    with pytest.raises(QafilaError, match=message):
        config_from_hf({**MAVERICK, "text_config": text}, path="config.json")


def test_moe_layers_give_the_step_when_the_step_is_not_said() -> None:
    text: dict[str, Any] = {**MAVERICK["text_config"]}  # type: ignore[dict-item]
    del text["interleave_moe_layer_step"]
    assert config_from_hf({**MAVERICK, "text_config": text}, path="x") == preset("llama-4-maverick")


def test_what_hugging_face_cannot_say_is_refused() -> None:
    for config, message in (
        (SMALL_4.with_changes(rope_interleaved=False), "side by side"),
        (SMALL_4.with_changes(cross_attention_layers=(1,)), "both cross-attention"),
        (SMALL_VISION.with_changes(extra_embeddings=3), "8 extra embeddings"),
        (SMALL_VISION.with_changes(head_dim=32), "head_dim"),
        (SMALL.with_changes(vision=vision_config("early_fusion")), "no llama model with an image tower"),
        (SMALL.with_changes(rope_scaling=RopeScaling("explicit", divisors=(1.0,) * 8)), "no published rule"),
    ):
        with pytest.raises(ConfigError, match=message):
            config_to_hf(config)


def test_token_ids_are_written_where_transformers_looks() -> None:
    generation = GenerationConfig(bos_id=1, stop_ids=(2, 5), pad_id=7)
    plain = config_to_hf(SMALL, generation, dtype="float16")
    assert (plain["bos_token_id"], plain["eos_token_id"], plain["pad_token_id"]) == (1, [2, 5], 7)
    assert plain["torch_dtype"] == "float16"
    nested = config_to_hf(VARIANTS["mllama, pictures"], generation)
    assert nested["text_config"]["eos_token_id"] == [2, 5]
    for raw in (plain, nested):
        assert generation_from_hf(None, raw) == generation


@pytest.mark.parametrize(
    ("raw", "config", "expected"),
    [
        ({}, LLAMA_3_1, GenerationConfig(bos_id=128000, stop_ids=(128001, 128008, 128009))),
        ({}, LLAMA_7B, GenerationConfig(bos_id=1, stop_ids=(2,))),
        ({"eos_token_id": 5}, LLAMA_3_1, GenerationConfig(bos_id=128000, stop_ids=(5,))),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "transformers_version": "4.40"},
            LLAMA_7B,
            GenerationConfig(bos_id=1, stop_ids=(2,), temperature=0.6, top_p=0.9),
        ),
        ({"do_sample": True}, LLAMA_7B, GenerationConfig(bos_id=1, stop_ids=(2,), temperature=1.0)),
        ({"do_sample": False}, LLAMA_7B, GenerationConfig(bos_id=1, stop_ids=(2,), temperature=0.0)),
        ({}, LLAMA_3_2_VISION, GenerationConfig(bos_id=128000, stop_ids=(128001, 128008, 128009), pad_id=128004)),
        ({"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "num_beams": 1}, {},
         GenerationConfig(top_k=40, min_p=0.05, repetition_penalty=1.1)),
    ],
)  # fmt: skip
def test_generation(raw: dict[str, Any], config: dict[str, Any], expected: GenerationConfig) -> None:
    found = generation_from_hf(raw, config)
    assert found == expected
    assert generation_from_hf(_json(generation_to_hf(found)), {}) == found


def test_generation_is_read_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    generation = GenerationConfig(1, (2, 3), 4, temperature=0.6, top_k=40, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    (tmp_path / "generation_config.json").write_text(json.dumps(generation_to_hf(generation)))
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (theirs.do_sample, theirs.temperature, theirs.eos_token_id) == (True, 0.6, [2, 3])
    theirs.save_pretrained(tmp_path)
    assert generation_from_hf(read_json(tmp_path / "generation_config.json"), {}) == generation
    assert generation_from_hf(_json(theirs.to_dict()), {}) == generation


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"num_beams": 4}, r"generation_config\.json: num_beams is 4"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size is 3"),
        ({"stop_strings": ["x"]}, "stop_strings is"),
        ({"warmth": 1}, "unknown key warmth"),
        ({"temperature": -1}, "temperature must not be negative"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id must hold integers"),
        ({"eos_token_id": -5}, "eos_token_id must be an integer"),
        ({"do_sample": "yes"}, "do_sample must be true or false"),
        ({"repetition_penalty": 0}, "repetition_penalty must be between"),
    ],
)
def test_generation_refuses(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generation_from_hf(raw, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' is given twice"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"[1]", "must hold a JSON object"),
        (b'{"a": ', "is not JSON"),
        (b'{"a": "\xff"}', "is not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"", "is not JSON"),
    ],
)
def test_damaged_json(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(FormatError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_absent_and_oversized_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(FormatError, match="cannot be read"):
        read_json(tmp_path)
    (tmp_path / "config.json").write_text("{}" + " " * 100)
    monkeypatch.setattr("qafila.weights.json_object.MAX_BYTES", 64)
    with pytest.raises(FormatError, match="far more than a configuration needs"):
        read_json(tmp_path / "config.json")


_LEAVES = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=4)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def _mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A good file with a few keys changed, removed or added, at any depth."""
    raw = copy.deepcopy(draw(st.sampled_from([*RELEASED.values(), *map(config_to_hf, VARIANTS.values())])))
    for _ in range(draw(st.integers(1, 3))):
        target: dict[str, Any] = raw
        inner = [value for value in raw.values() if isinstance(value, dict)]
        if inner and draw(st.booleans()):
            target = draw(st.sampled_from(inner))
        key = draw(st.sampled_from(sorted(target)) | st.text(max_size=5)) if target else draw(st.text(max_size=5))
        if draw(st.booleans()):
            target[key] = draw(_VALUES)
        else:
            target.pop(key, None)
    return raw


def _loaded_or_refused(load: Callable[[], T]) -> T | None:
    """What ``load`` gives; ``None`` where it refuses in one short line. Anything else it raises fails the test."""
    refusal = None
    try:
        return load()
    except QafilaError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert 0 < len(refusal) < 400
    return None


@settings(max_examples=400, deadline=None)
@given(raw=_mutated())
def test_mutated_files_load_or_are_refused(raw: dict[str, Any]) -> None:
    config = _loaded_or_refused(lambda: config_from_hf(raw, path="config.json"))
    if config is not None:
        assert config_from_hf(_json(config_to_hf(config)), path="x") == config
        assert np.isfinite(config.inverse_frequencies).all()


@settings(max_examples=300, deadline=None)
@given(
    raw=st.dictionaries(st.sampled_from(["eos_token_id", "bos_token_id", "temperature", "do_sample", "top_k", "top_p",
                                         "num_beams", "x"]), _VALUES),
    config=_mutated(),
)  # fmt: skip
def test_mutated_generation_loads_or_is_refused(raw: dict[str, Any], config: dict[str, Any]) -> None:
    found = _loaded_or_refused(lambda: generation_from_hf(raw, config))
    if found is not None:
        assert generation_from_hf(_json(generation_to_hf(found)), {}) == found


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 2000), noise=st.binary(max_size=8))
def test_cut_and_overwritten_bytes(cut: int, noise: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = json.dumps(MAVERICK).encode()
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(data[:cut] + noise + data[cut + len(noise) :])
    _loaded_or_refused(lambda: config_from_hf(read_json(path), path=path))
