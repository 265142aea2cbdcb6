"""One configuration for every Llama, expanded per layer so that no forward pass ever asks which family it runs.

Dimensions are named here once and used everywhere: B batch, T tokens, D model dim, H query heads, K key/value heads,
N head dim, F feed-forward dim, V vocabulary, E experts, L layers.
"""

from __future__ import annotations

import math
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
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ConfigError(f"rope scaling factor must be a positive number, not {self.factor!r}")
        if self.kind == "llama3":
            if not 0 < self.low_freq_factor <= self.high_freq_factor:
                raise ConfigError(
                    "rope scaling needs 0 < low_freq_factor <= high_freq_factor, "
                    f"not {self.low_freq_factor!r} and {self.high_freq_factor!r}"
                )
            if self.original_context <= 0:
                raise ConfigError(f"rope scaling original_context must be positive, not {self.original_context!r}")

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
        if not 0 < self.n_experts <= 1 << 16:
            raise ConfigError(f"n_experts must be between 1 and 65536, not {self.n_experts!r}")
        if not 0 < self.top_k <= self.n_experts:
            raise ConfigError(f"experts per token must be between 1 and {self.n_experts}, not {self.top_k!r}")
        if not 0 < self.ffn_dim <= _LIMITS["ffn_dim"]:
            raise ConfigError(f"expert ffn_dim must be between 1 and {_LIMITS['ffn_dim']}, not {self.ffn_dim!r}")
        if self.layer_step <= 0:
            raise ConfigError(f"moe layer_step must be positive, not {self.layer_step!r}")


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
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
                raise ConfigError(f"{key} must be an integer between 1 and {limit}, not {value!r}")
        for key in ("norm_eps", "rope_theta"):
            value = getattr(self, key)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ConfigError(f"{key} must be a positive number, not {value!r}")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even, not {self.head_dim}")
        for key in ("no_rope_layers", "cross_attention_layers"):
            indices = getattr(self, key)
            if list(indices) != sorted(set(indices)) or any(not 0 <= i < self.n_layers for i in indices):
                raise ConfigError(f"{key} must be increasing layer numbers below {self.n_layers}, not {indices!r}")
        if self.attention_chunk is not None and self.attention_chunk <= 0:
            raise ConfigError(f"attention_chunk must be positive, not {self.attention_chunk!r}")
        if not 0 <= self.extra_embeddings <= 4096:
            raise ConfigError(f"extra_embeddings must be between 0 and 4096, not {self.extra_embeddings!r}")

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
