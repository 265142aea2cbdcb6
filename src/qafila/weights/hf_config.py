"""Hugging Face ``config.json`` ↔ :class:`ModelConfig`, for every model type a Llama has there.

Read strictly: a key is understood, or known to change nothing, or has the one value that means what Qafila computes;
anything else is an error that names it. Defaults of absent keys are transformers' own (``configuration_llama.py``,
``configuration_llama4.py``, ``configuration_mllama.py``). The writer is :mod:`qafila.weights.hf_write`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig, RopeScaling, VisionConfig
from qafila.errors import ConfigError, UnsupportedError
from qafila.vision import VISION_DEFAULTS, VisionKind, vision_config
from qafila.weights.hf_write import COMPOSITE, MLLAMA_EXTRA_EMBEDDINGS
from qafila.weights.json_object import Fields, show

_MAX_LAYERS = 4096
# Beyond these no float32 table can be computed; a file that says otherwise is damaged.
_SANE = (1e-6, 1e6)
_THETA = (1.0, 1e15)
_ARCHITECTURE_ENDINGS = ("ForCausalLM", "ForConditionalGeneration", "Model")

# Keys that change nothing in what the model computes: training, bookkeeping, and token ids and sampling, which
# ``generation_from_hf`` reads or which transformers itself ignores in this file.
_INERT = frozenset(
    """
    architectures model_type transformers_version torch_dtype dtype use_cache initializer_range attention_dropout
    dropout pretraining_tp bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    tokenizer_class id2label label2id problem_type finetuning_task task_specific_params prefix name_or_path
    output_attentions output_hidden_states return_dict torchscript use_bfloat16 tf_legacy_loss gradient_checkpointing
    is_decoder cross_attention_hidden_size cache_implementation for_llm_compressor is_llama_config auto_map
    max_sequence_length transformers.js_config unsloth_fixed unsloth_version neftune_noise_alpha
    output_router_logits router_aux_loss_coef router_jitter_noise no_rope_layer_interval
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """.split()  # noqa: SIM905
)

# Keys with the value(s) that mean what the forward passes compute; the first is the one named in the error.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1.0, 1),
    "use_sliding_window": (False,),
    "qk_layer_norms": (False,),
}
_VISION_FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "vision_feature_layer": (-1,),
    "vision_feature_select_strategy": ("default",),
    "multi_modal_projector_bias": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({},),
}
_VISION_INERT = _INERT | {"projector_dropout", "tie_word_embeddings"}
_IMAGE_TOKENS = (
    "image_token_index",
    "image_token_id",
    "boi_token_index",
    "boi_token_id",
    "eoi_token_index",
    "eoi_token_id",
)


def config_from_hf(raw: Mapping[str, Any], *, path: object) -> ModelConfig:
    """The configuration a ``config.json`` describes; ``path`` is named in errors.

    Raises:
        ConfigError: a key is missing, unknown, of the wrong type, or describes no Llama. UnsupportedError: another kind
        of model, quantised weights, or a RoPE scaling that no Llama uses.
    """
    fields = Fields(raw, path)
    for key in ("quantization_config", "compression_config", "quantization"):
        method = fields.value(key)
        if method is not None:
            name = method.get("quant_method", "unknown") if isinstance(method, Mapping) else method
            raise UnsupportedError(
                path, f"weights are quantised by {show(name)} ({key}); use the unquantised model or a GGUF file"
            )
    architectures = fields.value("architectures")
    for name in architectures if isinstance(architectures, list | tuple) else ():
        if not (isinstance(name, str) and name.endswith(_ARCHITECTURE_ENDINGS)):
            raise UnsupportedError(path, f"architecture {show(name)} is not a language model")
    kind = fields.text("model_type")
    if kind is None:
        raise fields.error("model_type", "is missing")
    try:
        if kind in COMPOSITE:
            return _composite(fields, kind)
        if kind in _READERS:
            return _text(fields, kind)
    except ConfigError as error:  # the shape itself makes no sense: say in which file
        message = str(error)
        raise ConfigError(message if message.startswith(f"{path}: ") else f"{path}: {message}") from error
    known = ", ".join((*_READERS, *COMPOSITE))
    raise UnsupportedError(path, f"model_type {show(kind)} is not a Llama (expected one of {known})")


def _composite(fields: Fields, kind: str) -> ModelConfig:
    """A file with ``text_config`` and ``vision_config``."""
    vision_kind, text_kind = COMPOSITE[kind]
    text = fields.section("text_config")
    if text is None:
        raise fields.error("text_config", "is missing")
    if text.text("model_type") not in (None, text_kind):
        raise text.error("model_type", f"is {show(text.raw['model_type'])} where {kind} has {text_kind!r}")
    for key in ("quantization_config", "compression_config"):
        if text.value(key) is not None:
            raise UnsupportedError(fields.path, f"weights are quantised ({text.prefix}{key})")
    tied = fields.boolean("tie_word_embeddings", text.boolean("tie_word_embeddings", False))
    if tied != text.boolean("tie_word_embeddings", tied):
        raise fields.error("tie_word_embeddings", "contradicts text_config.tie_word_embeddings")
    for key in _IMAGE_TOKENS:
        fields.integer(key, required=False)
    section = fields.section("vision_config")
    fields.fixed({key: _FIXED[key] for key in ("is_encoder_decoder", "tie_encoder_decoder", "chunk_size_feed_forward")})
    fields.finish(_INERT)
    config = _text(text, text_kind).with_changes(tie_embeddings=tied)
    return config if section is None else config.with_changes(vision=_vision(section, vision_kind))


def _text(fields: Fields, kind: str) -> ModelConfig:
    """What all text models share, then the family's own keys."""
    dim, heads = fields.integer("hidden_size", least=1), fields.integer("num_attention_heads", least=1)
    # transformers' defaults differ from family to family: for a missing epsilon, base frequency and context length.
    eps, theta, context_default = (1e-6, 1e4, 2048) if kind == "llama" else (1e-5, 5e5, 131072)
    context = fields.integer("max_position_embeddings", context_default, least=1)
    theta, scaling = _rope(fields, theta, context)
    shape: dict[str, Any] = {
        "dim": dim,
        "n_layers": fields.integer("num_hidden_layers", least=1, most=_MAX_LAYERS),
        "n_heads": heads,
        "n_kv_heads": fields.integer("num_key_value_heads", heads if kind == "llama" else 8, least=1),
        "vocab_size": fields.integer("vocab_size", least=1),
        "norm_eps": fields.number("rms_norm_eps", eps, within=(1e-30, 1)),
        "context_length": context,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_embeddings": fields.boolean("tie_word_embeddings", False),
    }
    shape |= _READERS[kind](fields, shape)
    fields.fixed(_FIXED)
    fields.finish(_INERT)
    return ModelConfig(**shape)


def _head_dim(fields: Fields, shape: Mapping[str, Any]) -> int:
    if shape["dim"] % shape["n_heads"]:
        raise fields.error(
            "hidden_size", f"({shape['dim']}) is no multiple of num_attention_heads ({shape['n_heads']})"
        )
    return int(shape["dim"] // shape["n_heads"])


def _read_llama(fields: Fields, shape: Mapping[str, Any]) -> dict[str, Any]:
    head_dim = fields.integer("head_dim", least=1, required=False)
    kinds = fields.value("layer_types")
    if kinds is not None and kinds != ["full_attention"] * shape["n_layers"]:
        raise UnsupportedError(fields.path, f"{fields.prefix}layer_types other than full_attention")
    if fields.value("sliding_window") is not None:
        raise UnsupportedError(fields.path, f"{fields.prefix}sliding_window: no Llama has sliding-window attention")
    return {
        "ffn_dim": fields.integer("intermediate_size", least=1),
        "head_dim": head_dim if head_dim is not None else _head_dim(fields, shape),
    }


def _read_mllama(fields: Fields, shape: Mapping[str, Any]) -> dict[str, Any]:
    layers = fields.integers("cross_attention_layers", most=_MAX_LAYERS)
    return {
        "ffn_dim": fields.integer("intermediate_size", least=1),
        "head_dim": _head_dim(fields, shape),
        "cross_attention_layers": layers if layers is not None else (3, 8, 13, 18, 23, 28, 33, 38),
        "extra_embeddings": MLLAMA_EXTRA_EMBEDDINGS,
    }


def _read_llama4(fields: Fields, shape: Mapping[str, Any]) -> dict[str, Any]:
    count = shape["n_layers"]
    interval = fields.integer("no_rope_layer_interval", 4, least=1)
    # 1 says that a layer has RoPE; absent or empty says every ``interval``-th has none.
    rope_flags = fields.integers("no_rope_layers", most=1) or tuple(int((i + 1) % interval != 0) for i in range(count))
    if len(rope_flags) != count:
        raise fields.error("no_rope_layers", f"has {len(rope_flags)} entries for {count} layers")
    chunk = fields.integer("attention_chunk_size", 8192 if "attention_chunk_size" not in fields.raw else None,
                           least=1, required=False)  # fmt: skip
    tuning = fields.value("attn_temperature_tuning")  # true, or a number: Scout's file says 4
    if tuning is not None and not isinstance(tuning, bool | int):
        raise fields.error("attn_temperature_tuning", f"must be true or false, not {show(tuning)}")
    temperature = AttentionTemperature(
        floor_scale=fields.number("floor_scale", 8192.0, within=(1, 1e15)),
        attn_scale=fields.number("attn_scale", 0.1, within=_SANE),
    )
    kinds = fields.value("layer_types")
    chunked = ["chunked_attention" if flag and chunk is not None else "full_attention" for flag in rope_flags]
    if kinds is not None and kinds != chunked:
        raise UnsupportedError(fields.path, f"{fields.prefix}layer_types that do not follow no_rope_layers")
    return {
        "ffn_dim": fields.integer("intermediate_size_mlp", 16384, least=1),
        "head_dim": fields.integer("head_dim", 128, least=1),
        "rope_interleaved": True,
        "moe": _mixture(fields, count),
        "no_rope_layers": tuple(i for i, flag in enumerate(rope_flags) if not flag),
        "attention_chunk": chunk,
        "qk_norm": fields.boolean("use_qk_norm", True),
        "temperature": temperature if tuning is None or tuning else None,
    }


def _mixture(fields: Fields, layers: int) -> MixtureOfExperts | None:
    step = fields.integer("interleave_moe_layer_step", 1, least=1)
    listed = fields.integers("moe_layers", most=_MAX_LAYERS)
    experts = MixtureOfExperts(
        n_experts=fields.integer("num_local_experts", 16, least=1),
        top_k=fields.integer("num_experts_per_tok", 1, least=1),
        ffn_dim=fields.integer("intermediate_size", least=1),
        layer_step=step,
    )
    if listed is None or listed == tuple(range(step - 1, layers, step)):
        return experts
    if not listed:
        return None
    step = listed[0] + 1
    if listed != tuple(range(step - 1, layers, step)):
        raise UnsupportedError(fields.path, f"{fields.prefix}moe_layers at irregular distances")
    return MixtureOfExperts(experts.n_experts, experts.top_k, experts.ffn_dim, step)


_READERS = {"llama": _read_llama, "llama4_text": _read_llama4, "mllama_text_model": _read_mllama}


def _rope(fields: Fields, default_theta: float, context: int) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling, from transformers 5's ``rope_parameters`` or the older two keys, or both alike."""
    theta = fields.number("rope_theta", within=_THETA, required=False)
    found = []
    for key in ("rope_scaling", "rope_parameters"):
        section = fields.section(key)
        if section is not None:
            own_theta, scaling = _rope_section(section, context)
            if theta is not None and own_theta not in (None, theta):
                raise section.error("rope_theta", f"is {own_theta!r} but rope_theta is {theta!r}")
            found.append((own_theta if own_theta is not None else theta, scaling))
    if len(found) == 2 and found[0] != found[1]:
        raise fields.error("rope_scaling", "and rope_parameters disagree")
    theta, scaling = found[0] if found else (theta, None)
    return (default_theta if theta is None else theta), scaling


def _rope_section(section: Fields, context: int) -> tuple[float | None, RopeScaling | None]:
    kind, older = section.text("rope_type"), section.text("type")
    if kind is not None and older is not None and kind != older:
        raise section.error("rope_type", f"is {show(kind)} but type is {show(older)}")
    kind = kind or older or "default"
    scaling = None
    if kind == "linear":
        scaling = RopeScaling("linear", factor=section.number("factor", within=_SANE))
    elif kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            factor=section.number("factor", within=_SANE),
            low_freq_factor=section.number("low_freq_factor", within=_SANE),
            high_freq_factor=section.number("high_freq_factor", within=_SANE),
            original_context=section.integer("original_max_position_embeddings", context, least=1),
        )
    elif kind != "default":
        raise UnsupportedError(section.path, f"{section.prefix}rope_type {show(kind)}: no Llama uses this scaling")
    theta = section.number("rope_theta", within=_THETA, required=False)
    section.fixed({"partial_rotary_factor": (1.0, 1)})
    section.finish(())
    return theta, scaling


def _vision(section: Fields, kind: VisionKind) -> VisionConfig:
    settings: dict[str, Any] = {}
    for key, default in VISION_DEFAULTS[kind].items():
        if isinstance(default, tuple) and isinstance(default[0], tuple):
            settings[key] = _pairs(section, key, default)
        elif isinstance(default, tuple):
            found = section.integers(key, most=_MAX_LAYERS)
            settings[key] = default if found is None else found
        elif isinstance(default, int):
            settings[key] = section.integer(key, default, least=1)
        else:
            settings[key] = section.number(key, default)
    if kind == "early_fusion":
        rope = section.section("rope_parameters")
        if rope is not None:
            theta, _ = _rope_section(rope, 1)
            settings["rope_theta"] = theta if theta is not None else settings["rope_theta"]
    else:  # transformers knows this one by both names
        settings["attention_heads"] = section.integer("num_attention_heads", settings["attention_heads"], least=1)
    section.text("model_type")
    section.fixed(_VISION_FIXED)
    section.finish(_VISION_INERT)
    return vision_config(kind, **settings)


def _pairs(section: Fields, key: str, default: Any) -> tuple[tuple[int, int], ...]:
    value = section.value(key)
    if value is None:
        return tuple(default)
    pairs = [tuple(pair) for pair in value if isinstance(pair, list | tuple)] if isinstance(value, list | tuple) else []
    if not pairs or len(pairs) != len(value) or any(
        len(pair) != 2 or not all(type(n) is int and 0 < n <= 64 for n in pair) for pair in pairs
    ):  # fmt: skip
        raise section.error(key, f"must be a list of pairs of small integers, not {show(value)}")
    return tuple((pair[0], pair[1]) for pair in pairs)
