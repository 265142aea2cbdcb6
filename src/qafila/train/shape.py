"""The shape that a recipe's ``model`` table describes, without opening a model. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.errors import UsageError
from qafila.presets import preset, preset_names
from qafila.train.recipe import ModelSection, Recipe

_TABLES: Final[Mapping[str, type]] = {
    "moe": MixtureOfExperts,
    "rope_scaling": RopeScaling,
    "temperature": AttentionTemperature,
}
_NEEDED: Final = ("dim", "n_layers", "n_heads", "ffn_dim")


def shape_config(shape: Mapping[str, Any], vocab_size: int) -> ModelConfig:
    """The configuration that ``model.shape`` describes; what can be derived may be left out.

    Tables in it (``moe``, ``rope_scaling``, ``temperature``) hold the fields of those classes of `qafila.config`.

    Raises:
        UsageError: a key is unknown or missing, or the vocabulary is not the tokenizer's. ConfigError: a wrong value.
    """
    values: dict[str, Any] = {}
    for key, value in shape.items():
        _known(key, ModelConfig, "model.shape")
        if key in _TABLES and isinstance(value, Mapping):
            for inner in value:
                _known(inner, _TABLES[key], f"model.shape.{key}")
            try:
                value = _TABLES[key](**value)
            except TypeError as error:
                raise UsageError(f"model.shape.{key}: {error}") from None
        values[key] = tuple(value) if isinstance(value, list) else value
    dim, heads = values.get("dim"), values.get("n_heads")
    if isinstance(dim, int) and isinstance(heads, int) and heads > 0:
        values.setdefault("head_dim", dim // heads)
        values.setdefault("n_kv_heads", heads)
    if values.setdefault("vocab_size", vocab_size) != vocab_size:
        raise UsageError(
            f"model.shape.vocab_size: is {values['vocab_size']}, but the tokenizer has {vocab_size} tokens"
        )
    missing = [key for key in _NEEDED if key not in values]
    if missing:
        raise UsageError(f"model.shape: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    return ModelConfig(**values)


def planned_config(recipe: Recipe, vocab_size: int | None = None) -> ModelConfig | None:
    """The shape of a recipe's model as far as it is known without the model.

    Args:
        recipe: what is planned.
        vocab_size: tokens of the tokenizer of a new model; None: a preset's own.

    Returns:
        None for a base that is no published Llama: open it to see.
    """
    model = recipe.model
    config: ModelConfig | None
    if model.shape is not None:
        config = shape_config(model.shape, vocab_size or int(model.shape.get("vocab_size", 32000)))
    elif model.preset is not None:
        config = preset(model.preset)
        changes = {} if vocab_size is None else {"vocab_size": vocab_size, "extra_embeddings": 0}
        config = config.with_changes(vision=None, **changes)
    else:
        config = published_config(model.base or "")
    if config is None:
        return None
    return as_asked(config, model)


def as_asked(config: ModelConfig, model: ModelSection) -> ModelConfig:
    """The shape with the base of the rotary frequencies and the longest context that the recipe asks for."""
    asked = {"rope_theta": model.rope_theta, "context_length": model.context_length}
    return config.with_changes(**{key: value for key, value in asked.items() if value is not None})


def published_config(base: str) -> ModelConfig | None:
    """The shape of a published Llama by the name that it is fetched under (``hf:meta-llama/Llama-2-7b-hf``).

    Returns:
        None where no preset is called so.
    """
    if base == "default":
        return preset("smollm2-135m")
    name = base.removeprefix("hf:").rsplit("/", 1)[-1].lower().removeprefix("meta-").replace("codellama", "code-llama")
    known = [n for n in preset_names() if name == n or name.startswith(f"{n}-")]
    return preset(max(known, key=len)) if known else None


def _known(key: str, owner: type, where: str) -> None:
    names = [field.name for field in fields(owner)]
    if key not in names:
        raise UsageError(f"{where}: unknown key {key}; there are {', '.join(names)}")
