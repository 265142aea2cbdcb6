"""One configuration for every Llama, expanded per layer so that no forward pass ever asks which family it runs.

Dimensions are named here once and used everywhere: B batch, T tokens, D model dim, H query heads, K key/value heads,
N head dim, F feed-forward dim, V vocabulary, E experts, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qafila.errors import ConfigError

AttentionKind = Literal["full", "chunked", "cross"]

# No published Llama comes near these; a file that claims more is damaged or hostile.
_LIMITS = {
    "dim": 1 << 20,
    "n_layers": 1 << 12,
    "n_heads": 1 << 14,
    "n_kv_heads": 1 << 14,
    "head_dim": 1 << 14,
    "ffn_dim": 1 << 24,
    "vocab_size": 1 << 24,
    "context_length": 1 << 40,
}

# Beyond this float32 arithmetic would overflow; whole numbers from a file may lie beyond float64, too.
_SANE = 1e30


def _check_number(key: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is a positive number between 1e-30 and 1e30."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 / _SANE <= value <= _SANE:
        raise ConfigError(f"{key} must be a positive number (1e-30 to 1e30), not {value!r:.40}")


def _check_integer(key: str, value: object, least: int, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= limit:
        raise ConfigError(f"{key} must be an integer between {least} and {limit}, not {value!r:.40}")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts beyond the trained one.

    ``linear``: every frequency divided by ``factor`` (Vicuna-16k). ``llama3``: frequencies whose wavelength exceeds
    ``original_context / low_freq_factor`` are divided by ``factor``, those below ``original_context /
    high_freq_factor`` are kept, those between are blended (Llama 3.1, 3.2, Llama 4 Scout; llama-models
    ``apply_scaling``). ``explicit``: every frequency divided by its own entry of ``divisors`` (a GGUF
    ``rope_freqs.weight`` that matches no published rule).
    """

    kind: Literal["linear", "llama3", "explicit"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    divisors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "explicit"):
            raise ConfigError(f"rope scaling must be linear, llama3 or explicit, not {self.kind!r:.40}")
        _check_number("rope scaling factor", self.factor)
        for divisor in self.divisors:
            _check_number("a rope divisor", divisor)
        if self.kind == "llama3":
            _check_number("rope scaling low_freq_factor", self.low_freq_factor)
            _check_number("rope scaling high_freq_factor", self.high_freq_factor)
            if self.low_freq_factor > self.high_freq_factor:
                raise ConfigError(
                    "rope scaling needs 0 < low_freq_factor <= high_freq_factor, "
                    f"not {self.low_freq_factor!r} and {self.high_freq_factor!r}"
                )
            _check_integer("rope scaling original_context", self.original_context, 1, _LIMITS["context_length"])

    def divide(self, frequencies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Apply the scaling to unscaled inverse frequencies ``[N/2]`` (radians per position)."""
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "explicit":
            if len(self.divisors) != len(frequencies):
                raise ConfigError(f"{len(self.divisors)} rope divisors for {len(frequencies)} frequencies")
            return frequencies / np.asarray(self.divisors, dtype=np.float64)
        wavelength = 2 * np.pi / frequencies
        low = self.original_context / self.low_freq_factor
        high = self.original_context / self.high_freq_factor
        scaled = frequencies / self.factor
        if self.high_freq_factor > self.low_freq_factor:
            smooth = (self.original_context / wavelength - self.low_freq_factor) / (
                self.high_freq_factor - self.low_freq_factor
            )
            blended = (1 - smooth) * scaled + smooth * frequencies
        else:  # no band between the two limits, as in Llama 4 Scout
            blended = frequencies
        return np.where(wavelength < high, frequencies, np.where(wavelength > low, scaled, blended))


@dataclass(frozen=True, slots=True)
class AttentionTemperature:
    """Llama 4's query scale on layers without RoPE: ``log(floor((pos + 1) / floor_scale) + 1) * attn_scale + 1``.

    Source: llama-models ``models/llama4/model.py``.
    """

    floor_scale: float = 8192.0
    attn_scale: float = 0.1

    def __post_init__(self) -> None:
        _check_number("attention temperature floor_scale", self.floor_scale)
        if (
            isinstance(self.attn_scale, bool)
            or not isinstance(self.attn_scale, int | float)
            or not (-_SANE <= self.attn_scale <= _SANE)
        ):
            raise ConfigError(f"attention temperature attn_scale must be a number, not {self.attn_scale!r:.40}")

    def query_scale(self, positions: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The factor for queries at ``positions`` (any shape; same shape comes back)."""
        steps = np.floor((np.asarray(positions, dtype=np.float64) + 1.0) / self.floor_scale)
        return (np.log(steps + 1.0) * self.attn_scale + 1.0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """Routed experts with one shared expert beside them, as in Llama 4.

    Layer ``i`` is a mixture when ``(i + 1) % layer_step == 0``. Router logits go through a sigmoid after top-k, and
    the score multiplies the expert's *input* (llama-models ``models/llama4/moe.py``). The shared expert has the
    experts' own ``ffn_dim``.
    """

    n_experts: int
    top_k: int
    ffn_dim: int
    layer_step: int = 1

    def __post_init__(self) -> None:
        _check_integer("n_experts", self.n_experts, 1, 1 << 16)
        _check_integer("experts per token", self.top_k, 1, self.n_experts)
        _check_integer("expert ffn_dim", self.ffn_dim, 1, _LIMITS["ffn_dim"])
        _check_integer("moe layer_step", self.layer_step, 1, _LIMITS["n_layers"])


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """An image tower, described so that its parameters can be counted; it is not run.

    ``kind`` is ``cross_attention`` (Llama 3.2 Vision) or ``early_fusion`` (Llama 4). ``settings`` holds the tower's
    configuration under Hugging Face's ``vision_config`` keys.
    """

    kind: Literal["cross_attention", "early_fusion"]
    settings: tuple[tuple[str, Any], ...]

    def __getitem__(self, key: str) -> Any:
        for name, value in self.settings:
            if name == key:
                return value
        raise ConfigError(f"vision_config has no key {key!r}")


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one layer does; the forward passes read this and nothing else."""

    index: int
    attention: AttentionKind
    rotary: bool
    qk_norm: bool
    temperature: bool
    mixture: bool
    ffn_dim: int


@dataclass(frozen=True)
class ModelConfig:
    """Shape and arithmetic of a Llama.

    ``rope_interleaved`` tells how the rows of the query and key projections are stored: rotary pairs side by side
    (2i, 2i+1: Meta's files, Llama 4 everywhere) or half a head apart (i, i + N/2: Hugging Face's files up to 3.3).
    ``norm_eps`` is RMSNorm's epsilon. ``ffn_dim`` is the width of a dense feed-forward layer. ``extra_embeddings``
    counts embedding rows beyond the vocabulary (Llama 3.2 Vision has 8 for its image token).
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    context_length: int = 2048
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rope_interleaved: bool = False
    tie_embeddings: bool = False
    moe: MixtureOfExperts | None = None
    no_rope_layers: tuple[int, ...] = ()
    attention_chunk: int | None = None
    qk_norm: bool = False
    temperature: AttentionTemperature | None = None
    cross_attention_layers: tuple[int, ...] = ()
    extra_embeddings: int = 0
    vision: VisionConfig | None = None
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for key, limit in _LIMITS.items():
            _check_integer(key, getattr(self, key), 1, limit)
        for key in ("norm_eps", "rope_theta"):
            _check_number(key, getattr(self, key))
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even, not {self.head_dim}")
        for key in ("no_rope_layers", "cross_attention_layers"):
            indices = getattr(self, key)
            fine = all(type(i) is int and 0 <= i < self.n_layers for i in indices)
            if not fine or list(indices) != sorted(set(indices)):
                raise ConfigError(f"{key} must be increasing layer numbers below {self.n_layers}, not {indices!r:.80}")
        if self.attention_chunk is not None:
            _check_integer("attention_chunk", self.attention_chunk, 1, _LIMITS["context_length"])
        _check_integer("extra_embeddings", self.extra_embeddings, 0, 4096)

    @cached_property
    def layers(self) -> tuple[LayerPlan, ...]:
        """The plan of every layer, in order."""
        plans = []
        for i in range(self.n_layers):
            cross = i in self.cross_attention_layers
            rotary = not cross and i not in self.no_rope_layers
            mixture = self.moe is not None and (i + 1) % self.moe.layer_step == 0
            attention: AttentionKind = "full"
            if cross:
                attention = "cross"
            elif rotary and self.attention_chunk is not None:
                attention = "chunked"
            plans.append(
                LayerPlan(
                    index=i,
                    attention=attention,
                    rotary=rotary,
                    qk_norm=self.qk_norm and rotary,
                    temperature=self.temperature is not None and not rotary and not cross,
                    mixture=mixture,
                    ffn_dim=self.moe.ffn_dim if mixture and self.moe else self.ffn_dim,
                )
            )
        return tuple(plans)

    @cached_property
    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """Rotary inverse frequencies ``[N/2]`` in radians per position, scaling applied."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        frequencies = 1.0 / (float(self.rope_theta) ** exponents)
        if self.rope_scaling is not None:
            frequencies = self.rope_scaling.divide(frequencies)
        return frequencies.astype(np.float32)

    def kv_bytes_per_token(self, bytes_per_value: float = 2) -> int:
        """Bytes of keys and values one token adds to the cache (two per value for bf16 and f16).

        Cross-attention layers cache the image, not the text, and add nothing.
        """
        growing = self.n_layers - len(self.cross_attention_layers)
        return int(2 * growing * self.n_kv_heads * self.head_dim * bytes_per_value)

    def with_changes(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed (and checked again)."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What the checkpoint says about generating: stop ids and default sampling; ``None`` where it says nothing."""

    bos_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
