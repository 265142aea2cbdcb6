"""Configurations that describe no Llama are refused with a line, however absurd their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.errors import ConfigError

CONFIG = ModelConfig(dim=8, n_layers=4, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=8, vocab_size=9)
# A whole number of a JSON file may be larger than any float.
BEYOND_FLOAT = 10**400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0),
        ("dim", True),
        ("dim", 8.0),
        ("n_layers", 1 << 20),
        ("vocab_size", BEYOND_FLOAT),
        ("n_kv_heads", 3),
        ("head_dim", 3),
        ("norm_eps", 0),
        ("norm_eps", float("nan")),
        ("norm_eps", BEYOND_FLOAT),
        ("rope_theta", BEYOND_FLOAT),
        ("rope_theta", "1e4"),
        ("rope_theta", 1e-300),  # frequencies beyond float32
        ("no_rope_layers", (1, 1)),
        ("no_rope_layers", (4,)),
        ("no_rope_layers", (0.5,)),
        ("cross_attention_layers", (2, 1)),
        ("attention_chunk", 0),
        ("attention_chunk", "8"),
        ("extra_embeddings", -1),
        ("extra_embeddings", 1.5),
    ],
)
def test_fields_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field) as caught:
        CONFIG.with_changes(**{field: value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "yarn"},
        {"kind": "linear", "factor": 0},
        {"kind": "linear", "factor": BEYOND_FLOAT},
        {"kind": "linear", "factor": "4"},
        {"kind": "llama3", "low_freq_factor": 0.0},
        {"kind": "llama3", "low_freq_factor": 5.0},
        {"kind": "llama3", "high_freq_factor": BEYOND_FLOAT},
        {"kind": "llama3", "original_context": 0},
        {"kind": "llama3", "original_context": BEYOND_FLOAT},
        {"kind": "explicit", "divisors": (1.0, 0.0)},
        {"kind": "explicit", "divisors": (1.0, float("nan"))},
    ],
)
def test_rope_scalings_that_make_no_sense(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="rope"):
        RopeScaling(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"floor_scale": 0}, {"floor_scale": -1.0}, {"floor_scale": float("nan")},
                                    {"attn_scale": float("inf")}, {"attn_scale": "0.1"}])  # fmt: skip
def test_attention_temperatures_that_make_no_sense(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="attention temperature"):
        AttentionTemperature(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"n_experts": True}, {"n_experts": 1 << 40}, {"top_k": 5}, {"top_k": 1.0},
                                    {"ffn_dim": 1.5}, {"layer_step": 0}])  # fmt: skip
def test_mixtures_that_make_no_sense(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="must be an integer"):
        MixtureOfExperts(**{"n_experts": 4, "top_k": 1, "ffn_dim": 8} | fields)  # type: ignore[arg-type]


def test_divisors_divide_and_must_be_as_many_as_frequencies() -> None:
    plain = CONFIG.inverse_frequencies
    scaled = CONFIG.with_changes(rope_scaling=RopeScaling("explicit", divisors=(1.0, 4.0))).inverse_frequencies
    np.testing.assert_allclose(scaled, plain / np.array([1.0, 4.0]))
    short = CONFIG.with_changes(rope_scaling=RopeScaling("explicit", divisors=(1.0,)))
    with pytest.raises(ConfigError, match="1 rope divisors for 2"):
        _ = short.inverse_frequencies
