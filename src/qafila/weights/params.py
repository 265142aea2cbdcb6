"""Meta's ``params.json`` and :class:`ModelConfig`, both ways.

The file says little: the feed-forward width follows from a formula, the context length and (up to Llama 3.3) the RoPE
scaling factor are constants of Meta's code. What a configuration has beyond that is written under two keys of our
own, ``context_length`` and Llama 4's ``rope_scaling_factor`` / ``rope_high_freq_factor``, and only where Meta's own
keys would be read differently. Source: llama-models ``models/llama3/args.py``, ``models/llama3/model.py``,
``models/llama4/args.py``, ``models/llama4/model.py``, ``models/llama4/moe.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.errors import ConfigError, UnsupportedError
from qafila.weights.json_object import Fields, show
from qafila.weights.tensor import LazyTensor

Params = dict[str, Any]

_REQUIRED: Final = frozenset({"dim", "n_layers", "n_heads"})
_COUNTS: Final = (
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "multiple_of",
    "attention_chunk_size",
    "nope_layer_interval",
    "context_length",
    "max_seq_len",
    "max_batch_size",
)
# Before anything is counted out: no published Llama comes near.
_LIMITS: Final = {"n_layers": 1 << 12, "context_length": 1 << 40, "max_seq_len": 1 << 40}
_NUMBERS: Final = (
    "ffn_dim_multiplier",
    "ffn_exp",
    "norm_eps",
    "rope_theta",
    "rope_scaling_factor",
    "rope_high_freq_factor",
    "floor_scale",
    "attn_scale",
)
_FLAGS: Final = ("use_scaled_rope", "use_qk_norm", "attn_temperature_tuning")
_INTEGERS: Final = ("vocab_size", "vision_chunk_size", "vision_max_num_chunks", "vision_num_cross_attention_layers")
# Any of these marks the file as one of Llama 4's, whose rotary pairs Hugging Face keeps side by side as Meta does.
_INTERLEAVED: Final = ("moe_args", "nope_layer_interval", "use_qk_norm", "attention_chunk_size", "vision_args")

# (multiplier, multiple_of) of the published models, in an order in which the first that gives a model's width is its
# own (facts of the models' params.json).
_PUBLISHED: Final[tuple[tuple[float | None, int], ...]] = (
    (None, 256),
    (1.0, 256),
    (1.5, 256),
    (1.3, 4096),
    (1.2, 4096),
    (1.3, 1024),
    (1.2, 2048),
)


def check_params(raw: Mapping[str, Any], path: object) -> Params:
    """The parameters of a ``params.json`` with every key known and every value of its type.

    Raises:
        ConfigError: an unknown key (named), a missing one, or a value of the wrong kind.
        UnsupportedError: a quantised or adapted checkpoint.
    """
    if set(raw) == {"model"} and isinstance(raw["model"], Mapping):
        raw = raw["model"]  # some of Llama 4's files have the parameters one level down
    fields = Fields(raw, path)
    for key in _COUNTS:
        fields.integer(key, least=1, most=_LIMITS.get(key, 1 << 24), required=key in _REQUIRED)
    for key in _INTEGERS:
        fields.integer(key, least=-1, required=False)
    _positive(fields, _NUMBERS)
    for key in _FLAGS:
        fields.boolean(key, False)
    fields.section("vision_args")
    moe = fields.section("moe_args")
    if moe is not None:
        moe.integer("num_experts", least=1)
        for key in ("top_k", "interleave_moe_layer_step"):
            moe.integer(key, 1, least=1)
        moe.boolean("auto_scale_F", True)
        _positive(moe, ("capacity_factor",))
        moe.finish(())
    for key in ("quantization_args", "lora_args"):
        if fields.value(key):
            raise UnsupportedError(path, f"{key}: quantised Meta checkpoints are not handled; take the bf16 release")
    fields.finish(())
    if raw.get("head_dim") is None and raw["dim"] % raw["n_heads"]:
        raise fields.error("dim", f"is {raw['dim']}, not a multiple of n_heads {raw['n_heads']}")
    return dict(raw)


def _positive(fields: Fields, keys: tuple[str, ...]) -> None:
    for key in keys:
        value = fields.number(key, required=False)
        if value is not None and not 0 < value < 1e12:
            raise fields.error(key, f"must be a positive number, not {show(value)}")


def feed_forward_width(dim: int, multiplier: float | None, multiple_of: int) -> int:
    """Meta's rule: two thirds of ``4 * dim``, times the multiplier, rounded up to ``multiple_of``.

    Source: llama-models ``models/llama3/model.py``.
    """
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def expert_width(params: Mapping[str, Any]) -> int:
    """The width of Llama 4's experts (llama-models ``models/llama4/moe.py``, ``auto_scale_F``)."""
    moe = params["moe_args"]
    width = int(2 * int((params.get("ffn_exp") or 4.0) * params["dim"]) / 3)
    width = int((params.get("ffn_dim_multiplier") or 1.0) * width)
    if moe.get("auto_scale_F") is not False:
        width = int(width / ((moe.get("capacity_factor") or 1.0) + 1))
    return width + -width % (params.get("multiple_of") or 256)


def cross_layers(n_layers: int, n_cross: int) -> tuple[int, ...]:
    """Where the cross-attention layers stand among all layers, each before the text layer it belongs to.

    Source: ``_init_fusion_schedule`` in llama-models ``models/llama3/multimodal/model.py``: spread from the last text
    layer backwards.
    """
    if not 0 < n_cross <= n_layers:
        raise ConfigError(f"vision_num_cross_attention_layers must be between 1 and n_layers, not {n_cross}")
    step = math.ceil(n_layers / n_cross)
    before = sorted(range(n_layers - 1, -1, -step)[:n_cross])
    return tuple(layer + order for order, layer in enumerate(before))


def meta_config(
    params: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor] | None = None,
    *,
    path: str | Path = "params.json",
    context_length: int | None = None,
    rope_scale_factor: float | None = None,
) -> ModelConfig:
    """The configuration that a ``params.json`` describes.

    Args:
        params: its content, as :func:`qafila.weights.meta.read_meta` gives it.
        tensors: the checkpoint's tensors under Meta's names: they settle the vocabulary, whether the head is tied, and
            check the feed-forward width. Without them ``vocab_size`` must be in the file and the head is not tied.
        path: for error messages.
        context_length: instead of the published one of the generation that the parameters point to.
        rope_scale_factor: instead of Meta's constant. Llama 3.2's small models (``dim`` up to 3072) get 32 by
            default, as in Hugging Face's configuration, and larger ones 8; Meta's own code has 8 for all.

    Raises:
        ConfigError: the parameters describe no Llama, or not the one the tensors are. UnsupportedError.
    """
    params = check_params(params, path)
    try:
        return _config(params, {} if tensors is None else tensors, context_length, rope_scale_factor)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _config(
    params: Params, tensors: Mapping[str, LazyTensor], context_length: int | None, rope_scale_factor: float | None
) -> ModelConfig:
    prefix = "text_model." if "text_model.norm.weight" in tensors else ""
    dim, n_heads = params["dim"], params["n_heads"]
    n_cross = params.get("vision_num_cross_attention_layers") or 0
    crossing = cross_layers(params["n_layers"], n_cross) if n_cross > 0 else ()
    interleaved = any(key in params for key in _INTERLEAVED)
    n_layers = params["n_layers"] + len(crossing)
    interval = params.get("nope_layer_interval")
    extra = tensors.get("text_model.learnable_embedding.weight")
    return ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=params.get("n_kv_heads") or n_heads,
        head_dim=params.get("head_dim") or dim // n_heads,
        ffn_dim=_dense_width(params, tensors),
        vocab_size=_vocabulary(params, tensors.get(f"{prefix}tok_embeddings.weight")),
        norm_eps=float(params.get("norm_eps") or 1e-5),
        context_length=context_length or params.get("context_length") or _context_length(params),
        rope_theta=float(params.get("rope_theta") or 10_000.0),
        rope_scaling=_rope_scaling(params, interleaved, rope_scale_factor),
        rope_interleaved=interleaved,
        tie_embeddings=bool(tensors) and f"{prefix}output.weight" not in tensors,
        moe=_mixture(params, tensors),
        no_rope_layers=tuple(range(interval - 1, n_layers, interval)) if interval else (),
        attention_chunk=params.get("attention_chunk_size"),
        qk_norm=bool(params.get("use_qk_norm")),
        temperature=_temperature(params),
        cross_attention_layers=crossing,
        extra_embeddings=extra.shape[0] if extra is not None and extra.shape else 8 if crossing else 0,
    )


def _mixture(params: Params, tensors: Mapping[str, LazyTensor]) -> MixtureOfExperts | None:
    moe = params.get("moe_args")
    if not moe:
        return None
    step = moe.get("interleave_moe_layer_step") or 1
    width = expert_width(params)
    name = f"layers.{step - 1}.feed_forward.experts.moe_w_in_eD_F"
    if name in tensors and tensors[name].shape[-1:] != (width,):
        raise ConfigError(f"says that experts are {width} wide, but {name} has the shape {list(tensors[name].shape)}")
    return MixtureOfExperts(moe["num_experts"], moe.get("top_k") or 1, width, step)


def _dense_width(params: Params, tensors: Mapping[str, LazyTensor]) -> int:
    width = feed_forward_width(params["dim"], params.get("ffn_dim_multiplier"), params.get("multiple_of") or 256)
    for name, tensor in tensors.items():
        if name.endswith("layers.0.feed_forward.w1.weight") and tensor.shape[:1] != (width,):
            raise ConfigError(
                f"ffn_dim_multiplier and multiple_of give a feed-forward width of {width}, "
                f"but {name} has the shape {list(tensor.shape)}"
            )
    return width


def _vocabulary(params: Params, embedding: LazyTensor | None) -> int:
    said = params.get("vocab_size") or -1
    if embedding is None:
        return int(said)
    rows = embedding.shape[0] if embedding.shape else 0
    if said not in (-1, rows):
        raise ConfigError(f"vocab_size is {said}, but tok_embeddings.weight has {rows} rows")
    return rows


def _temperature(params: Params) -> AttentionTemperature | None:
    if not params.get("attn_temperature_tuning"):
        return None
    return AttentionTemperature(float(params.get("floor_scale") or 8192.0), float(params.get("attn_scale") or 0.1))


def _rope_scaling(params: Mapping[str, Any], interleaved: bool, override: float | None = None) -> RopeScaling | None:
    if not params.get("use_scaled_rope"):
        return None
    # Constants of Meta's code (Llama 4: args.py; before: apply_scaling), but for Llama 3.2 Hugging Face's 32.
    factor, high = (16.0, 1.0) if interleaved else (32.0 if params["dim"] <= 3072 else 8.0, 4.0)
    factor = override or params.get("rope_scaling_factor") or factor
    high = params.get("rope_high_freq_factor") or high
    return RopeScaling("llama3", factor=float(factor), high_freq_factor=float(high))


def _context_length(params: Mapping[str, Any]) -> int:
    """The published context of the generation that the parameters point to: Meta's files do not carry it."""
    if any(params.get(key) is not None for key in _INTERLEAVED):
        return 10_485_760 if params.get("use_scaled_rope") else 1_048_576
    theta = params.get("rope_theta") or 10_000.0
    if params.get("use_scaled_rope"):
        return 131_072
    if theta != 10_000.0:
        return 16_384 if theta == 1_000_000.0 else 8192
    return 2048 if params.get("norm_eps") == 1e-6 else 4096


def meta_params(config: ModelConfig) -> Params:
    """The ``params.json`` that describes ``config``; :func:`meta_config` gives the configuration back.

    Raises:
        ConfigError: Meta's format cannot express it (the message names the field).
    """
    if config.head_dim * config.n_heads != config.dim:
        raise ConfigError(
            f"Meta's format has no head_dim of its own: {config.n_heads} x {config.head_dim} != {config.dim}"
        )
    n_cross = len(config.cross_attention_layers)
    params: Params = {
        "dim": config.dim,
        "n_layers": config.n_layers - n_cross,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    params |= _width_params(config)
    if config.rope_interleaved:
        params |= _interleaved_params(config)
    elif config.moe or config.no_rope_layers or config.attention_chunk or config.qk_norm or config.temperature:
        raise ConfigError("Meta's format keeps rotary pairs side by side in models with Llama 4's attention or experts")
    if n_cross:
        if config.cross_attention_layers != cross_layers(config.n_layers - n_cross, n_cross):
            raise ConfigError(
                f"Meta's format spreads cross_attention_layers evenly, not as {config.cross_attention_layers}"
            )
        params |= {"vision_chunk_size": config.vision["image_size"] if config.vision else 560}
        params |= {"vision_max_num_chunks": 4, "vision_num_cross_attention_layers": n_cross}
    params |= _scaling_params(config, params)
    if _context_length(params) != config.context_length:
        params["context_length"] = config.context_length
    return params


def _scaling_params(config: ModelConfig, params: Params) -> Params:
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if scaling.kind != "llama3" or scaling.low_freq_factor != 1 or scaling.original_context != 8192:
        raise ConfigError(
            f"Meta's format knows only Llama 3's rope scaling from 8192 positions, not {scaling.kind} from "
            f"{scaling.original_context}"
        )
    usual = _rope_scaling(params | {"use_scaled_rope": True}, config.rope_interleaved)
    assert usual is not None
    own: Params = {"use_scaled_rope": True}
    if scaling.factor != usual.factor:
        own["rope_scaling_factor"] = scaling.factor
    if scaling.high_freq_factor != usual.high_freq_factor:
        own["rope_high_freq_factor"] = scaling.high_freq_factor
    return own


def _interleaved_params(config: ModelConfig) -> Params:
    params: Params = {"use_qk_norm": config.qk_norm, "attention_chunk_size": config.attention_chunk}
    if config.no_rope_layers:
        step = config.no_rope_layers[0] + 1
        if config.no_rope_layers != tuple(range(step - 1, config.n_layers, step)):
            raise ConfigError(f"Meta's format needs no_rope_layers at regular steps, not {config.no_rope_layers}")
        params["nope_layer_interval"] = step
    if config.temperature:
        params |= {
            "attn_temperature_tuning": True,
            "floor_scale": config.temperature.floor_scale,
            "attn_scale": config.temperature.attn_scale,
        }
    return params


def _width_params(config: ModelConfig) -> Params:
    """Values that make Meta's formulas give the widths of ``config``: the published ones where they do."""
    if config.moe is not None:
        return _expert_params(config, config.moe)
    choices = _PUBLISHED
    if config.n_kv_heads != config.n_heads:  # published from Llama 2 34B on with a multiplier, if only 1.0
        choices = (*_PUBLISHED[1:], _PUBLISHED[0])
    for multiplier, multiple_of in choices:
        if feed_forward_width(config.dim, multiplier, multiple_of) == config.ffn_dim:
            scaled = {} if multiplier is None else {"ffn_dim_multiplier": multiplier}
            return scaled | {"multiple_of": multiple_of}
    for multiple_of in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        if feed_forward_width(config.dim, None, multiple_of) == config.ffn_dim:
            return {"multiple_of": multiple_of}
    return {"ffn_dim_multiplier": _exact_multiplier(config), "multiple_of": 1}


def _exact_multiplier(config: ModelConfig) -> float:
    multiplier = (config.ffn_dim + 0.5) / int(2 * (4 * config.dim) / 3)
    assert feed_forward_width(config.dim, multiplier, 1) == config.ffn_dim
    return multiplier


def _expert_params(config: ModelConfig, moe: MixtureOfExperts) -> Params:
    block = {"num_experts": moe.n_experts, "top_k": moe.top_k, "interleave_moe_layer_step": moe.layer_step}
    params: Params = {"dim": config.dim, "ffn_exp": 4.0, "ffn_dim_multiplier": 1.2, "multiple_of": 2048}
    params["moe_args"] = block | {"capacity_factor": 1.0, "auto_scale_F": True}
    dense = feed_forward_width(config.dim, 1.2, 2048)
    if (dense, expert_width(params)) != (config.ffn_dim, moe.ffn_dim):
        # No published choice: an exact multiplier for the dense width, an exact capacity factor for the experts.
        params |= {"ffn_dim_multiplier": _exact_multiplier(config), "multiple_of": 1}
        params["ffn_exp"] = 4.0 * math.ceil((moe.ffn_dim + 1) / config.ffn_dim + 1)
        params["moe_args"]["auto_scale_F"] = False
        whole = expert_width(params)
        params["moe_args"] |= {"auto_scale_F": True, "capacity_factor": whole / (moe.ffn_dim + 0.5) - 1}
        assert expert_width(params) == moe.ffn_dim
    return params
