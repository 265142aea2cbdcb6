"""GGUF metadata ↔ configuration, for llama.cpp's architectures ``llama`` and ``llama4``.

Sources: llama.cpp ``src/models/llama.cpp``, ``src/models/llama4.cpp`` (what is read, and what is fixed there) and
``conversion/llama.py`` (what is written). llama.cpp fixes several numbers of Llama 4 in its code: chunks of 8192, every
fourth layer without RoPE, temperature 8192 / 0.1, QK norm unless there are 128 experts. A configuration that differs
cannot be written as GGUF, because llama.cpp would compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.errors import FormatError, UnsupportedError
from qafila.weights.storage import quoted
from qafila.weights.tensor import LazyTensor

ROPE_FACTORS = "rope_freqs.weight"
_CHUNK = 8192
_NOPE_INTERVAL = 4
# (low, high, original context) of the published llama3 scalings; the factor itself is the largest divisor.
_PUBLISHED_BANDS = ((1.0, 4.0, 8192), (1.0, 1.0, 8192))


class _Keys:
    """Checked access to metadata values under one architecture's prefix."""

    def __init__(self, metadata: Mapping[str, object], path: Path, architecture: str) -> None:
        self.metadata, self.path, self.architecture = metadata, path, architecture

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if isinstance(value, list | tuple):  # per-layer arrays: fine when every layer has the same
            if not all(type(v) is int for v in value):
                raise FormatError(self.path, f"{self._name(key)} must be integers, not {shown(value)}")
            if len(set(value)) != 1:
                raise UnsupportedError(self.path, f"{self._name(key)} differs from layer to layer")
            value = value[0]
        if type(value) is not int:
            raise FormatError(self.path, f"{self._name(key)} must be an integer, not {shown(value)}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FormatError(self.path, f"{self._name(key)} must be a number, not {shown(value)}")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A positive number, as the shortest decimal that its float32 stands for."""
        value = decimal(self.number(key, default))
        if not 0 < value < math.inf:
            raise FormatError(self.path, f"{self._name(key)} must be a positive number, not {value!r}")
        return value

    def _name(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def _value(self, key: str, default: object) -> object:
        value = self.metadata.get(self._name(key), default)
        if value is None:
            raise FormatError(self.path, f"metadata key {self._name(key)!r} is missing")
        return value


def decimal(value: float) -> float:
    """The shortest decimal that a float32 stands for: 1e-05, not 9.999999747378752e-06."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def shown(value: object) -> str:
    """A value out of a file as it may stand in a message: escaped, and short however long it is."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return quoted(value) if isinstance(value, str) else repr(value)


def config_from_gguf(metadata: Mapping[str, object], tensors: Mapping[str, LazyTensor], path: Path) -> ModelConfig:
    """The configuration a GGUF file describes.

    Args:
        metadata: key to plain Python value.
        tensors: the file's tensors; no ``output.weight`` means a tied head, ``rope_freqs.weight`` is RoPE scaling.
        path: the file, for error messages.

    Raises:
        FormatError: a key is missing or of the wrong type. UnsupportedError: another architecture, or an option of
        this one that no Llama uses. ConfigError: the numbers describe no Llama.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ("llama", "llama4"):
        raise UnsupportedError(
            path, f"architecture {shown(architecture)} is not a Llama (expected 'llama' or 'llama4')"
        )
    keys = _Keys(metadata, path, str(architecture))
    dim, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    if heads <= 0:
        raise FormatError(path, f"{architecture}.attention.head_count must be positive, not {heads}")
    head_dim = keys.integer("attention.key_length", keys.integer("rope.dimension_count", dim // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(key, head_dim) != head_dim:
            raise UnsupportedError(path, f"{architecture}.{key} differs from the head dimension {head_dim}")
    layers = keys.integer("block_count")
    is_4 = architecture == "llama4"
    experts = keys.integer("expert_count", 0)
    if experts and not is_4:
        raise UnsupportedError(path, f"{architecture}.expert_count {experts}: mixtures of this kind are not Llamas")
    moe = None
    if is_4:
        moe = MixtureOfExperts(
            n_experts=experts,
            top_k=keys.integer("expert_used_count"),
            ffn_dim=keys.integer("expert_feed_forward_length"),
            layer_step=keys.integer("interleave_moe_layer_step"),
        )
        if keys.integer("attention.sliding_window", _CHUNK) != _CHUNK:
            raise UnsupportedError(path, f"llama4.attention.sliding_window other than {_CHUNK}")
    return ModelConfig(
        dim=dim,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_dim=keys.integer("feed_forward_length"),
        vocab_size=_vocabulary(keys, tensors),
        norm_eps=keys.positive("attention.layer_norm_rms_epsilon"),
        context_length=keys.integer("context_length"),
        rope_theta=keys.positive("rope.freq_base", 10_000.0),
        rope_scaling=_rope_scaling(keys, tensors, head_dim),
        rope_interleaved=is_4,
        tie_embeddings="output.weight" not in tensors,
        moe=moe,
        no_rope_layers=tuple(range(_NOPE_INTERVAL - 1, layers, _NOPE_INTERVAL)) if is_4 and layers <= 4096 else (),
        attention_chunk=_CHUNK if is_4 else None,
        qk_norm=is_4 and experts != 128,
        temperature=AttentionTemperature() if is_4 else None,
        name=name if isinstance(name := metadata.get("general.name"), str) else "",
    )


def _vocabulary(keys: _Keys, tensors: Mapping[str, LazyTensor]) -> int:
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(keys.path, "tensor 'token_embd.weight' is missing or not a matrix")
    stated = keys.integer("vocab_size", embedding.shape[0])
    if stated != embedding.shape[0]:
        raise FormatError(keys.path, f"vocab_size is {stated} but token_embd.weight has {embedding.shape[0]} rows")
    return stated


def _rope_scaling(keys: _Keys, tensors: Mapping[str, LazyTensor], head_dim: int) -> RopeScaling | None:
    factors = tensors.get(ROPE_FACTORS)
    if factors is not None:
        if factors.dtype.name != "F32" or factors.shape != (head_dim // 2,):
            raise FormatError(keys.path, f"{ROPE_FACTORS} must be {head_dim // 2} float32 values")
        return _named_scaling(factors.read().data.view("<f4"), _linear_factor(keys), keys)
    factor = _linear_factor(keys)
    return RopeScaling("linear", factor=factor) if factor != 1 else None


def _linear_factor(keys: _Keys) -> float:
    """What every frequency is divided by besides ``rope_freqs.weight``, 1 where nothing is said.

    As llama.cpp reads it: scaling is linear unless another kind is named, early files have the factor under
    ``rope.scale_linear``, and a factor of 0 is none.
    """
    kind = keys.metadata.get(f"{keys.architecture}.rope.scaling.type", "linear")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise UnsupportedError(keys.path, f"rope scaling {shown(kind)} is not one a Llama uses")
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        if f"{keys.architecture}.{key}" in keys.metadata:
            return keys.positive(key) if keys.number(key) != 0 else 1.0
    return 1.0


def _named_scaling(divisors: npt.NDArray[np.float32], factor: float, keys: _Keys) -> RopeScaling | None:
    """The scaling that ``divisors``, and ``factor`` on top of them, amount to."""
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise FormatError(keys.path, f"{ROPE_FACTORS} has values that are not positive numbers")
    if (divisors == 1).all():
        return RopeScaling("linear", factor=factor) if factor != 1 else None
    if factor != 1:
        return RopeScaling("explicit", divisors=tuple(float(d) * factor for d in divisors))
    theta = keys.positive("rope.freq_base", 10_000.0)
    for low, high, original in _PUBLISHED_BANDS:
        named = RopeScaling("llama3", float(divisors.max()), low, high, original)
        if np.allclose(rope_divisors(named, theta, 2 * len(divisors)), divisors, rtol=1e-4):
            return named
    return RopeScaling("explicit", divisors=tuple(float(d) for d in divisors))


def rope_divisors(scaling: RopeScaling, theta: float, head_dim: int) -> npt.NDArray[np.float32]:
    """What each inverse frequency is divided by, ``[N/2]``: the content of ``rope_freqs.weight``."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return (frequencies / scaling.divide(frequencies)).astype(np.float32)


def gguf_keys(config: ModelConfig, path: Path) -> dict[str, object]:
    """The architecture's metadata for ``config`` (plain Python values; the tokenizer's keys are not here).

    Raises:
        UnsupportedError: GGUF, as llama.cpp reads it, cannot express the configuration.
    """
    _check_expressible(config, path)
    arch = "llama4" if config.moe is not None else "llama"
    values: dict[str, object] = {
        "block_count": config.n_layers,
        "context_length": min(config.context_length, 2**32 - 1),
        "embedding_length": config.dim,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": config.head_dim,
    }
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_scaling.factor)}
    if config.moe is not None:
        values |= {
            "expert_count": config.moe.n_experts,
            "expert_used_count": config.moe.top_k,
            "expert_feed_forward_length": config.moe.ffn_dim,
            "interleave_moe_layer_step": config.moe.layer_step,
        }
    return {"general.architecture": arch, "general.type": "model"} | {f"{arch}.{key}": v for key, v in values.items()}


def _check_expressible(config: ModelConfig, path: Path) -> None:
    def refuse(what: str) -> None:
        raise UnsupportedError(path, f"GGUF cannot express {what}; convert to 'hf' instead")

    if config.cross_attention_layers:
        refuse("cross-attention layers (Llama 3.2 Vision)")
    if config.moe is None:
        if config.no_rope_layers or config.attention_chunk or config.qk_norm or config.temperature:
            refuse("layers without RoPE, chunked attention, QK norm or attention temperature without experts")
        return
    fixed = {
        "attention chunks other than 8192": config.attention_chunk == _CHUNK,
        "layers without RoPE other than every fourth": config.no_rope_layers
        == tuple(range(_NOPE_INTERVAL - 1, config.n_layers, _NOPE_INTERVAL)),
        "an attention temperature other than 8192 / 0.1": config.temperature == AttentionTemperature(),
        "this combination of QK norm and expert count": config.qk_norm == (config.moe.n_experts != 128),
    }
    for what, fine in fixed.items():
        if not fine:
            refuse(what)
