"""Every published Llama by name: its configuration, and the figures it is published with.

Shapes: LLaMA paper table 2, Llama 2 and Code Llama papers and reference code, Llama 3 paper table 3, llama-models model
cards and reference code, Hugging Face configurations. Three published errors are not repeated here: llama-stack's
``sku_list.py`` gives Llama 2 grouped queries and Llama 3's base frequency; the 405B checkpoint for 16 ranks lists 16
key/value heads because it stores each of the 8 twice; and Meta's reference code scales the frequencies of Llama 3.2 1B
and 3B by 8 where the released configurations say 32.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.errors import ModelNotFoundError
from qafila.vision import vision_config

# The published shapes: dim, layers, query heads, key/value heads, feed-forward dim.
_SHAPES: Mapping[str, tuple[int, int, int, int, int]] = MappingProxyType(
    {
        "135m": (576, 30, 9, 3, 1536),
        "1.1b": (2048, 22, 32, 4, 5632),
        "open-3b": (3200, 26, 32, 32, 8640),
        "7b": (4096, 32, 32, 32, 11008),
        "13b": (5120, 40, 40, 40, 13824),
        "33b": (6656, 60, 52, 52, 17920),
        "34b": (8192, 48, 64, 8, 22016),
        "65b": (8192, 80, 64, 64, 22016),
        "70b": (8192, 80, 64, 8, 28672),
        "1b": (2048, 16, 32, 8, 8192),
        "3b": (3072, 28, 24, 8, 8192),
        "8b": (4096, 32, 32, 8, 14336),
        "405b": (16384, 126, 128, 8, 53248),
        "llama-4": (5120, 48, 40, 8, 16384),
    }
)


@dataclass(frozen=True, slots=True)
class Published:
    """What is published of a model.

    ``parameters``, ``active`` and ``kv`` (bytes per token in bfloat16) are exact counts of the text model;
    ``with_vision`` counts the image tower too. ``card`` is the size the paper or model card prints.
    """

    parameters: int
    kv: int
    card: str
    active: int | None = None
    with_vision: int | None = None


def feed_forward_dim(dim: int, multiple_of: int, multiplier: float | None = None) -> int:
    """The feed-forward width Meta's ``params.json`` implies: two thirds of 4·dim, scaled, rounded up.

    Source: llama-models ``models/llama3/model.py`` (``FeedForward``).
    """
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


def _dense(
    shape: str,
    *,
    vocab: int,
    theta: float,
    context: int,
    eps: float = 1e-5,
    scale: float | None = None,
    tied: bool = False,
) -> ModelConfig:
    """A dense Llama; ``scale`` is the factor of Llama 3.1's frequency scaling."""
    dim, layers, heads, kv_heads, ffn = _SHAPES[shape]
    return ModelConfig(
        dim=dim,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=dim // heads,
        ffn_dim=ffn,
        vocab_size=vocab,
        norm_eps=eps,
        context_length=context,
        rope_theta=theta,
        rope_scaling=None if scale is None else RopeScaling("llama3", factor=scale),
        tie_embeddings=tied,
    )


def _llama_1(shape: str, eps: float = 1e-6) -> ModelConfig:
    return _dense(shape, vocab=32000, theta=1e4, context=2048, eps=eps)


def _llama_2(shape: str) -> ModelConfig:
    return _dense(shape, vocab=32000, theta=1e4, context=4096)


def _code_llama(shape: str, vocab: int = 32016) -> ModelConfig:
    return _dense(shape, vocab=vocab, theta=1e6, context=16384)


def _llama_3(shape: str, context: int = 131072, scale: float | None = 8.0, tied: bool = False) -> ModelConfig:
    return _dense(shape, vocab=128256, theta=5e5, context=context, scale=scale, tied=tied)


def _llama_3_vision(shape: str) -> ModelConfig:
    """Llama 3.1's text model with one cross-attention layer before every fourth of its layers.

    Layers are numbered as Hugging Face does, the added ones among the others: 3, 8, 13, ...
    """
    text = _llama_3(shape)
    layers = text.n_layers + text.n_layers // 4
    return text.with_changes(
        n_layers=layers,
        cross_attention_layers=tuple(range(3, layers, 5)),
        extra_embeddings=8,
        vision=vision_config("cross_attention", image_size=560),
    )


def _llama_4(experts: int, layer_step: int, context: int, scaling: RopeScaling | None, qk_norm: bool) -> ModelConfig:
    dim, layers, heads, kv_heads, ffn = _SHAPES["llama-4"]
    return ModelConfig(
        dim=dim,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=128,
        ffn_dim=ffn,
        vocab_size=202048,
        context_length=context,
        rope_theta=5e5,
        rope_scaling=scaling,
        rope_interleaved=True,
        moe=MixtureOfExperts(n_experts=experts, top_k=1, ffn_dim=8192, layer_step=layer_step),
        no_rope_layers=tuple(range(3, layers, 4)),
        attention_chunk=8192,
        qk_norm=qk_norm,
        temperature=AttentionTemperature(floor_scale=8192, attn_scale=0.1),
        vision=vision_config("early_fusion", hidden_size=1408, image_size=336, vision_output_dim=4096),
    )


def _scout() -> ModelConfig:
    scaling = RopeScaling("llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0)
    return _llama_4(16, 1, 10_485_760, scaling, qk_norm=True)


def _maverick() -> ModelConfig:
    return _llama_4(128, 2, 1_048_576, None, qk_norm=False)


def _smollm2() -> ModelConfig:
    return _dense("135m", vocab=49152, theta=1e5, context=8192, tied=True)


_BUILDERS: Mapping[str, Callable[[], ModelConfig]] = MappingProxyType(
    {
        "smollm2-135m": _smollm2,
        "tinyllama-1.1b": lambda: _llama_1("1.1b", eps=1e-5),
        "open-llama-3b": lambda: _llama_1("open-3b"),
        "llama-7b": lambda: _llama_1("7b"),
        "llama-13b": lambda: _llama_1("13b"),
        "llama-33b": lambda: _llama_1("33b"),
        "llama-65b": lambda: _llama_1("65b", eps=1e-5),
        "llama-2-7b": lambda: _llama_2("7b"),
        "llama-2-13b": lambda: _llama_2("13b"),
        "llama-2-34b": lambda: _llama_2("34b"),
        "llama-2-70b": lambda: _llama_2("70b"),
        "code-llama-7b": lambda: _code_llama("7b"),
        "code-llama-13b": lambda: _code_llama("13b"),
        "code-llama-34b": lambda: _code_llama("34b", vocab=32000),
        "code-llama-70b": lambda: _code_llama("70b"),
        "llama-3-8b": lambda: _llama_3("8b", context=8192, scale=None),
        "llama-3-70b": lambda: _llama_3("70b", context=8192, scale=None),
        "llama-3.1-8b": lambda: _llama_3("8b"),
        "llama-3.1-70b": lambda: _llama_3("70b"),
        "llama-3.1-405b": lambda: _llama_3("405b"),
        "llama-3.2-1b": lambda: _llama_3("1b", scale=32.0, tied=True),
        "llama-3.2-3b": lambda: _llama_3("3b", scale=32.0, tied=True),
        "llama-3.2-11b-vision": lambda: _llama_3_vision("8b"),
        "llama-3.2-90b-vision": lambda: _llama_3_vision("70b"),
        "llama-3.3-70b": lambda: _llama_3("70b"),
        "llama-4-scout": _scout,
        "llama-4-maverick": _maverick,
    }
)

#: Parameter counts and cache sizes every preset is held to (``card``: as the paper or model card prints it).
PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "smollm2-135m": Published(134_515_008, 23_040, "135M"),
        "tinyllama-1.1b": Published(1_100_048_384, 22_528, "1.1B"),
        "open-llama-3b": Published(3_426_473_600, 332_800, "3B"),
        "llama-7b": Published(6_738_415_616, 524_288, "6.7B"),
        "llama-13b": Published(13_015_864_320, 819_200, "13.0B"),
        "llama-33b": Published(32_528_943_616, 1_597_440, "32.5B"),
        "llama-65b": Published(65_285_660_672, 2_621_440, "65.2B"),
        "llama-2-7b": Published(6_738_415_616, 524_288, "7B"),
        "llama-2-13b": Published(13_015_864_320, 819_200, "13B"),
        "llama-2-34b": Published(33_743_970_304, 196_608, "34B"),
        "llama-2-70b": Published(68_976_648_192, 327_680, "70B"),
        "code-llama-7b": Published(6_738_546_688, 524_288, "7B"),
        "code-llama-13b": Published(13_016_028_160, 819_200, "13B"),
        "code-llama-34b": Published(33_743_970_304, 196_608, "34B"),
        "code-llama-70b": Published(68_976_910_336, 327_680, "70B"),
        "llama-3-8b": Published(8_030_261_248, 131_072, "8B"),
        "llama-3-70b": Published(70_553_706_496, 327_680, "70B"),
        "llama-3.1-8b": Published(8_030_261_248, 131_072, "8B"),
        "llama-3.1-70b": Published(70_553_706_496, 327_680, "70B"),
        "llama-3.1-405b": Published(405_853_388_800, 516_096, "405B"),
        "llama-3.2-1b": Published(1_235_814_400, 32_768, "1.23B"),
        "llama-3.2-3b": Published(3_212_749_824, 114_688, "3.21B"),
        "llama-3.2-11b-vision": Published(9_775_192_080, 131_072, "10.6B", with_vision=10_629_184_035),
        "llama-3.2-90b-vision": Published(87_666_865_192, 327_680, "88.8B", with_vision=88_552_318_523),
        "llama-3.3-70b": Published(70_553_706_496, 327_680, "70B"),
        "llama-4-scout": Published(
            107_769_861_120, 196_608, "109B (17B active)", active=17_172_894_720, with_vision=108_641_793_536
        ),
        "llama-4-maverick": Published(
            400_711_848_960, 196_608, "400B (17B active)", active=17_184_691_200, with_vision=401_583_781_376
        ),
    }
)


def preset_names() -> tuple[str, ...]:
    """All names :func:`preset` knows, families in order of publication."""
    return tuple(_BUILDERS)


def preset(name: str) -> ModelConfig:
    """The configuration of a published model, for example ``llama-3.2-1b``.

    Raises:
        ModelNotFoundError: no such preset; the message names the closest ones.
    """
    builder = _BUILDERS.get(name.strip().lower())
    if builder is None:
        close = difflib.get_close_matches(name.strip().lower(), _BUILDERS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"the presets are {', '.join(_BUILDERS)}"
        raise ModelNotFoundError(f"there is no preset {name!r}: {hint}")
    return builder().with_changes(name=name.strip().lower())
