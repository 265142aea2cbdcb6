"""Every preset against the published tables; the figures are written out here, not taken from the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from qafila.errors import ModelNotFoundError
from qafila.parameters import active_parameters, parameter_shapes, text_parameters
from qafila.presets import PUBLISHED, feed_forward_dim, preset, preset_names
from qafila.vision import vision_parameters

CHECKOUT = Path(__file__).resolve().parents[1]

# name: parameters of the text model, KV bytes per token in bf16 (published, or computed by others from the shapes)
COUNTS = {
    "llama-7b": (6_738_415_616, 524_288),
    "llama-13b": (13_015_864_320, 819_200),
    "llama-33b": (32_528_943_616, 1_597_440),
    "llama-65b": (65_285_660_672, 2_621_440),
    "llama-2-7b": (6_738_415_616, 524_288),
    "llama-2-13b": (13_015_864_320, 819_200),
    "llama-2-34b": (33_743_970_304, 196_608),
    "llama-2-70b": (68_976_648_192, 327_680),
    "code-llama-7b": (6_738_546_688, 524_288),
    "code-llama-13b": (13_016_028_160, 819_200),
    "code-llama-34b": (33_743_970_304, 196_608),
    "code-llama-70b": (68_976_910_336, 327_680),
    "llama-3-8b": (8_030_261_248, 131_072),
    "llama-3-70b": (70_553_706_496, 327_680),
    "llama-3.1-8b": (8_030_261_248, 131_072),
    "llama-3.1-70b": (70_553_706_496, 327_680),
    "llama-3.1-405b": (405_853_388_800, 516_096),
    "llama-3.2-1b": (1_235_814_400, 32_768),
    "llama-3.2-3b": (3_212_749_824, 114_688),
    "llama-3.3-70b": (70_553_706_496, 327_680),
    "llama-4-scout": (107_769_861_120, 196_608),
    "llama-4-maverick": (400_711_848_960, 196_608),
    "smollm2-135m": (134_515_008, 23_040),
}
WITH_VISION = {
    "llama-3.2-11b-vision": 10_629_184_035,
    "llama-3.2-90b-vision": 88_552_318_523,
    "llama-4-scout": 108_641_793_536,
    "llama-4-maverick": 401_583_781_376,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_cache_are_the_published_ones(name: str) -> None:
    config = preset(name)
    assert (text_parameters(config), config.kv_bytes_per_token()) == COUNTS[name]


@pytest.mark.parametrize("name", WITH_VISION)
def test_totals_with_the_image_tower_are_the_published_ones(name: str) -> None:
    config = preset(name)
    assert text_parameters(config) + sum(vision_parameters(config).values()) == WITH_VISION[name]


def test_active_parameters_of_mixtures() -> None:
    assert active_parameters(preset("llama-4-scout")) == 17_172_894_720
    assert active_parameters(preset("llama-4-maverick")) == 17_184_691_200
    dense = preset("llama-3-8b")
    assert active_parameters(dense) == text_parameters(dense)


def test_the_packages_own_table_agrees_with_the_shapes() -> None:
    assert set(PUBLISHED) == set(preset_names())
    for name, published in PUBLISHED.items():
        config = preset(name)
        parameters, tower = text_parameters(config), sum(vision_parameters(config).values())
        assert (parameters, config.kv_bytes_per_token()) == (published.parameters, published.kv), name
        assert active_parameters(config) == (published.active or parameters), name
        assert (parameters + tower if tower else None) == published.with_vision, name


@pytest.mark.parametrize("name", preset_names())
def test_card_sizes_agree_with_the_counts(name: str) -> None:
    published = PUBLISHED[name]
    stated, unit = float(published.card.split()[0][:-1]), published.card.split()[0][-1]
    count = (published.with_vision or published.parameters) / {"B": 1e9, "M": 1e6}[unit]
    # Names such as 7B and 3B are rounded by their authors; cards with decimals are exact to about their last place.
    tolerance = 0.006 if "." in published.card else 0.15
    assert count == pytest.approx(stated, rel=tolerance)


@pytest.mark.parametrize(
    ("names", "multiple_of", "multiplier"),
    [
        (["llama-7b", "llama-13b", "llama-33b", "llama-65b", "llama-2-7b", "llama-2-13b", "code-llama-7b"], 256, None),
        (["llama-2-34b", "code-llama-34b"], 256, 1.0),
        (["llama-2-70b", "llama-3-70b", "llama-3.1-70b", "llama-3.3-70b", "llama-3.2-90b-vision"], 4096, 1.3),
        (["llama-3-8b", "llama-3.1-8b", "llama-3.2-11b-vision"], 1024, 1.3),
        (["llama-3.1-405b"], 4096, 1.2),
        (["llama-3.2-1b"], 256, 1.5),
        (["llama-3.2-3b"], 256, 1.0),
    ],
)
def test_feed_forward_rule(names: list[str], multiple_of: int, multiplier: float | None) -> None:
    for name in names:
        config = preset(name)
        assert feed_forward_dim(config.dim, multiple_of, multiplier) == config.ffn_dim, name


def test_llama_2_has_no_grouped_queries_below_34b() -> None:
    for name in ("llama-2-7b", "llama-2-13b"):
        config = preset(name)
        assert config.n_kv_heads == config.n_heads
        assert config.rope_theta == 1e4
    assert preset("llama-2-70b").n_kv_heads == preset("llama-2-34b").n_kv_heads == 8


def test_405b_has_eight_kv_heads() -> None:
    assert preset("llama-3.1-405b").n_kv_heads == 8


def test_small_llama_3_2_ties_its_head_and_scales_by_32() -> None:
    for name, untied in (("llama-3.2-1b", 1_498_482_688), ("llama-3.2-3b", 3_606_752_256)):
        config = preset(name)
        assert config.rope_scaling is not None
        assert config.rope_scaling.factor == 32
        assert text_parameters(config.with_changes(tie_embeddings=False)) == untied


def test_code_llama_vocabularies_and_frequency() -> None:
    vocabularies = [preset(f"code-llama-{size}").vocab_size for size in ("7b", "13b", "34b", "70b")]
    assert vocabularies == [32016, 32016, 32000, 32016]
    assert {preset(f"code-llama-{size}").rope_theta for size in ("7b", "13b", "34b", "70b")} == {1e6}


def test_llama_3_1_scaling_keeps_high_and_divides_low_frequencies() -> None:
    plain, scaled = preset("llama-3-8b").inverse_frequencies, preset("llama-3.1-8b").inverse_frequencies
    wavelength = 2 * np.pi / plain.astype(np.float64)
    ratio = plain / scaled
    np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[wavelength > 8192], 8, rtol=1e-6)
    assert ((ratio[(wavelength > 8192 / 4) & (wavelength < 8192)] - 1) * (8 - ratio[0])).min() > 0


def test_llama_4_layers() -> None:
    scout, maverick = preset("llama-4-scout"), preset("llama-4-maverick")
    for config in (scout, maverick):
        assert [plan.index for plan in config.layers if not plan.rotary] == list(range(3, 48, 4))
        assert all(plan.attention == ("chunked" if plan.rotary else "full") for plan in config.layers)
        assert all(plan.temperature is not plan.rotary for plan in config.layers)
    assert all(plan.mixture for plan in scout.layers)
    assert [plan.index for plan in maverick.layers if plan.mixture] == list(range(1, 48, 2))
    assert {plan.ffn_dim for plan in maverick.layers if not plan.mixture} == {16384}
    assert all(plan.qk_norm is plan.rotary for plan in scout.layers)
    assert not any(plan.qk_norm for plan in maverick.layers)
    # One layer in two being a mixture is what makes Maverick 400B and not 784B.
    every = maverick.with_changes(moe=scout.moe.__class__(128, 1, 8192, 1))  # type: ignore[union-attr]
    assert text_parameters(every) > 770e9


def test_llama_3_2_vision_numbers_cross_attention_layers_as_hugging_face() -> None:
    small, large = preset("llama-3.2-11b-vision"), preset("llama-3.2-90b-vision")
    assert small.cross_attention_layers == (3, 8, 13, 18, 23, 28, 33, 38)
    assert (small.n_layers, large.n_layers, len(large.cross_attention_layers)) == (40, 100, 20)
    assert large.cross_attention_layers == tuple(range(3, 100, 5))
    assert parameter_shapes(small)["model.embed_tokens.weight"] == (128264, 4096)
    assert small.kv_bytes_per_token() == preset("llama-3.1-8b").kv_bytes_per_token()


def test_unknown_name_gets_close_ones() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no preset 'llama-3\.2-2b': did you mean .*llama-3\.2-3b"):
        preset("llama-3.2-2b")
    with pytest.raises(ModelNotFoundError, match=r"the presets are .*llama-65b"):
        preset("zzz")


def test_names_are_found_in_any_case_and_carried() -> None:
    assert preset(" Llama-3.2-1B ").name == "llama-3.2-1b"
    assert len(preset_names()) == 27


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("models_table", CHECKOUT / "scripts" / "models_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documented_table_is_current() -> None:
    written = (CHECKOUT / "docs" / "models.md").read_text(encoding="utf-8")
    assert written == _script().page(), "docs/models.md is stale: run make docs"
