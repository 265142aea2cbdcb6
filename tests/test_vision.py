"""Image towers against published counts and against transformers' own modules, built without memory."""

from __future__ import annotations

import pytest

from qafila.config import ModelConfig
from qafila.errors import ConfigError
from qafila.presets import preset
from qafila.vision import vision_config, vision_parameters
from qafila.weights.hf_write import config_to_hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_llama_4_parts_are_the_published_ones() -> None:
    for name in ("llama-4-scout", "llama-4-maverick"):
        parts = vision_parameters(preset(name))
        assert parts == {"encoder": 811_115_008, "adapter": 39_845_888, "projection": 20_971_520}


def test_llama_3_2_tower() -> None:
    parts = vision_parameters(preset("llama-3.2-11b-vision"))
    assert parts["projection"] == 7680 * 4096 + 4096
    assert parts["local layers"] == 32 * 19_672_320
    # The paper counts 630M for the encoder of 32 layers and 850M with the eight gated ones.
    assert parts["local layers"] == pytest.approx(630e6, rel=0.01)
    assert sum(parts.values()) - parts["projection"] == pytest.approx(850e6, rel=0.04)


def test_text_models_have_no_tower() -> None:
    assert vision_parameters(preset("llama-3.2-1b")) == {}


def _count(module: object) -> int:
    return sum(p.numel() for p in module.parameters())  # type: ignore[attr-defined]


def _small_text(config: ModelConfig) -> ModelConfig:
    """The same tower on one text layer, so that the module is quick to build."""
    changes: dict[str, object] = {"n_layers": 2, "no_rope_layers": (), "cross_attention_layers": ()}
    if config.cross_attention_layers:
        changes["cross_attention_layers"] = (1,)
    return config.with_changes(**changes)


@pytest.mark.parametrize("name", ["llama-3.2-11b-vision", "llama-4-scout"])
def test_counts_are_those_of_transformers(name: str) -> None:
    config = _small_text(preset(name))
    raw = config_to_hf(config)
    kind = transformers.AutoConfig.for_model(**{k: v for k, v in raw.items() if k != "architectures"})
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(kind)
    tower = _count(model.model.vision_model if hasattr(model, "model") else model.vision_model)
    joint = _count(
        model.model.multi_modal_projector if hasattr(model, "model") else model.multi_modal_projector  # Llama 4
    )
    parts = vision_parameters(config, layout="huggingface")
    assert sum(parts.values()) == tower + joint
    assert parts["projection"] == joint


def test_meta_keeps_smaller_position_tables_than_hugging_face() -> None:
    config = preset("llama-3.2-11b-vision")
    meta, hugging_face = (sum(vision_parameters(config, layout).values()) for layout in ("meta", "huggingface"))
    assert hugging_face - meta == 20 * 1280 * (1601 + 2) == 41_036_800


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="no key 'depth'"):
        vision_config("early_fusion", depth=3)
    for wrong in (0, -1, "14", True, 1 << 30):
        with pytest.raises(ConfigError, match=r"vision_config\.patch_size"):
            vision_config("early_fusion", patch_size=wrong)
    with pytest.raises(ConfigError, match="smaller than one patch"):
        vision_config("early_fusion", image_size=13)
    for ratio in (0, 1e-300, 1e-160, 2.0, 10**400):
        with pytest.raises(ConfigError, match="pixel_shuffle_ratio"):
            vision_config("early_fusion", pixel_shuffle_ratio=ratio)
    for ratios in (5, None, (), "abc"):
        with pytest.raises(ConfigError, match="supported_aspect_ratios"):
            vision_config("cross_attention", supported_aspect_ratios=ratios)
