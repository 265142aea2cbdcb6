"""The image towers of Llama 3.2 Vision and Llama 4, described and counted part by part; they are not run.

Settings carry Hugging Face's ``vision_config`` keys. Shapes follow llama-models ``models/llama3/multimodal/model.py``
and ``models/llama4/vision/`` and, where Hugging Face stores something else, the difference is stated.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Literal

from qafila.config import ModelConfig, VisionConfig
from qafila.errors import ConfigError

VisionKind = Literal["cross_attention", "early_fusion"]
Layout = Literal["meta", "huggingface"]

#: The eight (height, width) tilings of up to four tiles, llama-models ``image_transform.py``.
ASPECT_RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))

#: Every setting that shapes a tower, in order, with the value transformers assumes where a file says nothing.
VISION_DEFAULTS: Mapping[VisionKind, Mapping[str, Any]] = {
    "cross_attention": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_global_layers": 8,
        "attention_heads": 16,
        "num_channels": 3,
        "image_size": 448,
        "patch_size": 14,
        "norm_eps": 1e-5,
        "max_num_tiles": 4,
        "intermediate_layers_indices": (3, 7, 15, 23, 30),
        "supported_aspect_ratios": ASPECT_RATIOS,
        "vision_output_dim": 7680,
    },
    "early_fusion": {
        "hidden_size": 768,
        "intermediate_size": 5632,
        "num_hidden_layers": 34,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 448,
        "patch_size": 14,
        "norm_eps": 1e-5,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
        "vision_output_dim": 7680,
        "rope_theta": 10_000.0,
    },
}


def vision_config(kind: VisionKind, **settings: Any) -> VisionConfig:
    """A tower of ``kind``: the given settings, and :data:`VISION_DEFAULTS` for the others.

    Raises:
        ConfigError: a setting no tower of this kind has, or a size that is not a positive integer.
    """
    values = {**VISION_DEFAULTS[kind], **settings}
    unknown = sorted(set(values) - set(VISION_DEFAULTS[kind]))
    if unknown:
        raise ConfigError(f"vision_config has no key {unknown[0]!r}")
    for key, default in VISION_DEFAULTS[kind].items():
        value = values[key]
        if isinstance(default, int):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 24:
                raise ConfigError(f"vision_config.{key} must be an integer between 1 and {1 << 24}, not {value!r:.40}")
        elif isinstance(default, float):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
                raise ConfigError(f"vision_config.{key} must be a positive number, not {value!r:.40}")
            values[key] = float(value)
        elif not isinstance(value, tuple) or not 0 < len(value) <= 4096:
            raise ConfigError(f"vision_config.{key} must be a tuple of 1 to 4096 entries, not {value!r:.40}")
    if not 1 / 64 <= values.get("pixel_shuffle_ratio", 1) <= 1:
        ratio = values["pixel_shuffle_ratio"]
        raise ConfigError(f"vision_config.pixel_shuffle_ratio must be between 1/64 and 1, not {ratio!r}")
    config = VisionConfig(kind=kind, settings=tuple((key, values[key]) for key in VISION_DEFAULTS[kind]))
    if config["image_size"] < config["patch_size"]:
        raise ConfigError(f"vision_config.image_size {config['image_size']} is smaller than one patch")
    return config


def vision_parameters(config: ModelConfig, layout: Layout = "meta") -> dict[str, int]:
    """Parameters of the image tower and of what joins it to the text model, part by part; empty without a tower.

    ``layout`` matters for Llama 3.2 Vision alone. Meta's checkpoints (and the published totals) keep its tile position
    tables per (rows, columns) of tiles, ``max_num_tiles`` squared; Hugging Face keeps them per aspect ratio, nine
    entries of ``max_num_tiles``, which is 41,036,800 numbers more at 560 px. Cross-attention layers belong to the text
    model and are counted by :mod:`qafila.parameters`.
    """
    if config.vision is None:
        return {}
    if config.vision.kind == "cross_attention":
        return _cross_attention_parameters(config.vision, config.dim, layout)
    return _early_fusion_parameters(config.vision, config.dim)


def _patches(vision: VisionConfig) -> int:
    """Patches of one tile."""
    return int(vision["image_size"] // vision["patch_size"]) ** 2


def _encoder_layer(width: int, hidden: int, attention_bias: bool) -> int:
    """Four square projections, a two-layer perceptron with biases, two LayerNorms with biases."""
    attention = 4 * (width * width + (width if attention_bias else 0))
    perceptron = 2 * width * hidden + hidden + width
    return attention + perceptron + 2 * 2 * width


def _cross_attention_parameters(vision: VisionConfig, text_dim: int, layout: Layout) -> dict[str, int]:
    D, tiles = vision["hidden_size"], vision["max_num_tiles"]
    tokens = _patches(vision) + 1  # and the class token
    rows = tiles * tiles if layout == "meta" else (len(vision["supported_aspect_ratios"]) + 1) * tiles
    layer = _encoder_layer(D, vision["intermediate_size"], attention_bias=False)
    gate = 1
    return {
        "patch embedding": vision["num_channels"] * vision["patch_size"] ** 2 * D,
        "class embedding": D,
        "position embedding": gate + tokens * D + rows * tokens * D,
        "tile embeddings": 2 * (gate + rows * D),
        "norms": 2 * 2 * D,
        "local layers": vision["num_hidden_layers"] * layer,
        "global layers": vision["num_global_layers"] * (layer + 2 * gate),
        "projection": vision["vision_output_dim"] * text_dim + text_dim,
    }


def _early_fusion_parameters(vision: VisionConfig, text_dim: int) -> dict[str, int]:
    D = vision["hidden_size"]
    layer = _encoder_layer(D, vision["intermediate_size"], attention_bias=True)
    shuffled = round(D / vision["pixel_shuffle_ratio"] ** 2)
    middle, out = vision["projector_input_dim"], vision["projector_output_dim"]
    adapter = ((shuffled, middle), (middle, out))
    return {
        "encoder": (
            vision["num_channels"] * vision["patch_size"] ** 2 * D  # patch embedding
            + D  # class embedding
            + (_patches(vision) + 1) * D  # position embedding
            + 2 * 2 * D  # LayerNorm before and after
            + vision["num_hidden_layers"] * layer
        ),
        "adapter": sum(prod(shape) for shape in adapter),
        "projection": vision["vision_output_dim"] * text_dim,
    }
