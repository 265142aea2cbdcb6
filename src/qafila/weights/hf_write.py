"""The Hugging Face ``config.json`` of a configuration, written so that transformers 4 (from 4.45) and 5 read the same.

The rotary keys are the older ``rope_theta`` and ``rope_scaling``, which transformers 5 turns into its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qafila.config import AttentionTemperature, GenerationConfig, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.errors import ConfigError
from qafila.vision import VisionKind

MLLAMA_EXTRA_EMBEDDINGS = 8  # modeling_mllama.py: nn.Embedding(vocab_size + 8, ...)

#: Model types with a text and an image part: the tower's kind, and the model type of the text part.
COMPOSITE: Mapping[str, tuple[VisionKind, str]] = {
    "llama4": ("early_fusion", "llama4_text"),
    "mllama": ("cross_attention", "mllama_text_model"),
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "mllama_text_model": "MllamaForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
}


def config_to_hf(
    config: ModelConfig, generation: GenerationConfig | None = None, *, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """The ``config.json`` of ``config``, as transformers 4 (from 4.45) and 5 read it.

    ``generation`` gives the token ids that transformers keeps there too; ``dtype`` is the type of the weights, in
    torch's words. With an image tower the file is the composite one (``llama4``, ``mllama``).

    Raises:
        ConfigError: transformers has no model that computes this.
    """
    kind = _model_type(config)
    text = _common(config, generation, dtype) | _WRITERS[kind](config)
    text["model_type"] = kind
    if config.vision is None:
        return {"architectures": [_ARCHITECTURES[kind]], **text}
    composite = "llama4" if config.vision.kind == "early_fusion" else "mllama"
    if COMPOSITE[composite][1] != kind:
        raise ConfigError(f"Hugging Face has no {kind} model with an image tower of kind {config.vision.kind}")
    image = {"image_token_index": config.vocab_size}
    if composite == "llama4":
        image = {"boi_token_index": 200080, "eoi_token_index": 200081, "image_token_index": 200092}
    return {
        "architectures": [_ARCHITECTURES[composite]],
        "model_type": composite,
        **image,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "text_config": text,
        "vision_config": {"model_type": f"{composite}_vision_model", "hidden_act": "gelu"}
        | {key: _listed(value) for key, value in config.vision.settings},
    }


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _model_type(config: ModelConfig) -> str:
    """The Hugging Face model type that computes ``config``."""
    crossed = bool(config.cross_attention_layers or config.extra_embeddings)
    fourth = bool(
        config.moe or config.no_rope_layers or config.attention_chunk or config.qk_norm or config.temperature
    ) or (config.rope_interleaved)
    if crossed and fourth:
        raise ConfigError("Hugging Face has no model with both cross-attention layers and Llama 4's attention")
    if crossed and config.extra_embeddings != MLLAMA_EXTRA_EMBEDDINGS:
        raise ConfigError(f"Hugging Face's mllama has {MLLAMA_EXTRA_EMBEDDINGS} extra embeddings, not "
                          f"{config.extra_embeddings}")  # fmt: skip
    if crossed and config.head_dim * config.n_heads != config.dim:
        raise ConfigError("Hugging Face's mllama cannot have a head_dim other than dim / n_heads")
    if fourth and not config.rope_interleaved:
        raise ConfigError("Hugging Face's llama4 stores rotary pairs side by side; rope_interleaved must be true")
    if crossed:
        return "mllama_text_model"
    return "llama4_text" if fourth else "llama"


def _common(config: ModelConfig, generation: GenerationConfig | None, dtype: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "initializer_range": 0.02,
        "rms_norm_eps": float(config.norm_eps),
        "use_cache": True,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": float(config.rope_theta),
        "rope_scaling": _rope_to_hf(config.rope_scaling),
        "torch_dtype": dtype,
        "pad_token_id": generation.pad_id if generation else None,
    }
    if generation is not None and generation.bos_id is not None:
        values["bos_token_id"] = generation.bos_id
    if generation is not None and generation.stop_ids:
        stops = generation.stop_ids
        values["eos_token_id"] = stops[0] if len(stops) == 1 else list(stops)
    return values


def _rope_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.kind == "explicit":
        raise ConfigError("config.json cannot hold rope divisors that follow no published rule; convert to GGUF")
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": float(scaling.factor)}
    return {
        "rope_type": "llama3",
        "factor": float(scaling.factor),
        "low_freq_factor": float(scaling.low_freq_factor),
        "high_freq_factor": float(scaling.high_freq_factor),
        "original_max_position_embeddings": scaling.original_context,
    }


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {"head_dim": config.head_dim, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False}


def _write_mllama(config: ModelConfig) -> dict[str, Any]:
    return {"cross_attention_layers": list(config.cross_attention_layers), "dropout": 0.0}


def _write_llama4(config: ModelConfig) -> dict[str, Any]:
    # Without experts every layer is dense; transformers still wants their numbers.
    moe = config.moe or MixtureOfExperts(n_experts=1, top_k=1, ffn_dim=config.ffn_dim)
    temperature = config.temperature or AttentionTemperature()
    floor = temperature.floor_scale
    step = moe.layer_step
    return {
        "head_dim": config.head_dim,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "intermediate_size": moe.ffn_dim,
        "intermediate_size_mlp": config.ffn_dim,
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "interleave_moe_layer_step": step,
        "moe_layers": list(range(step - 1, config.n_layers, step)) if config.moe else [],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "no_rope_layers": [int(i not in config.no_rope_layers) for i in range(config.n_layers)],
        "attention_chunk_size": config.attention_chunk,
        "use_qk_norm": config.qk_norm,
        "attn_temperature_tuning": config.temperature is not None,
        "floor_scale": int(floor) if float(floor).is_integer() else floor,
        "attn_scale": float(temperature.attn_scale),
    }


_WRITERS = {"llama": _write_llama, "llama4_text": _write_llama4, "mllama_text_model": _write_mllama}
