"""Hugging Face ``generation_config.json`` ↔ :class:`GenerationConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qafila.config import GenerationConfig
from qafila.weights.json_object import Fields

_MAX_TOKEN_ID = (1 << 31) - 1

# Limits, caching and what is returned: theirs to say in the request, not the checkpoint's.
_INERT = frozenset(
    """
    transformers_version max_length max_new_tokens min_length min_new_tokens max_time use_cache cache_implementation
    cache_config max_cache_len return_legacy_cache num_return_sequences output_attentions output_hidden_states
    output_scores output_logits return_dict_in_generate decoder_start_token_id prefill_chunk_size compile_config
    disable_compile continuous_batching_config low_memory is_assistant num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size
    assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight speculation_type use_mtp
    trust_remote_code chat_format encoder_repetition_penalty encoder_no_repeat_ngram_size early_stopping
    length_penalty remove_invalid_values renormalize_logits
    """.split()  # noqa: SIM905
)

# Ways of choosing tokens that Qafila does not have: fine while they are off, an error while they are on.
_OFF: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0, 0),
    "typical_p": (1.0, 1),
    "top_h": (0.0, 0),
    "epsilon_cutoff": (0.0, 0),
    "eta_cutoff": (0.0, 0),
    "penalty_alpha": (0.0, 0),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": (),
    "token_healing": (False,),
    "guidance_scale": (1.0, 1),
    "watermarking_config": (),
    "dola_layers": (),
    "stop_strings": (),
}


def generation_from_hf(
    generation: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    *,
    path: object = "generation_config.json",
    config_path: object = "config.json",
) -> GenerationConfig:
    """Stop ids and default sampling, from ``generation_config.json`` and, for ids it lacks, from ``config.json``.

    Sampling defaults in ``config.json`` are not read: old versions of transformers wrote them all there, at values that
    mean nothing. ``do_sample: false`` is temperature 0.

    Raises:
        ConfigError: an unknown key, a wrong type, or a way of choosing tokens that Qafila does not have.
    """
    fields = Fields(generation or {}, path)
    nested = config.get("text_config")
    fallbacks = [Fields(config, config_path)]
    if isinstance(nested, Mapping):
        fallbacks.append(Fields(nested, config_path, "text_config."))
    ids = {key: _ids(fields, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for other in fallbacks:
        for key, found in ids.items():
            ids[key] = found or _ids(other, key)
    sampled = fields.value("do_sample")
    temperature = fields.number("temperature", required=False)
    if sampled is not None and not fields.boolean("do_sample", True):
        temperature = 0.0
    elif sampled and temperature is None:
        temperature = 1.0  # what transformers samples with
    if temperature is not None and temperature < 0:
        raise fields.error("temperature", f"must not be negative, not {temperature!r}")
    result = GenerationConfig(
        bos_id=next(iter(ids["bos_token_id"]), None),
        stop_ids=ids["eos_token_id"],
        pad_id=next(iter(ids["pad_token_id"]), None),
        temperature=temperature,
        top_k=fields.integer("top_k", required=False, most=_MAX_TOKEN_ID),
        top_p=_share(fields, "top_p"),
        min_p=_share(fields, "min_p"),
        repetition_penalty=_penalty(fields),
    )
    fields.fixed({key: allowed or (None,) for key, allowed in _OFF.items()})
    fields.finish(_INERT)
    return result


def generation_to_hf(generation: GenerationConfig) -> dict[str, Any]:
    """The ``generation_config.json`` that says what ``generation`` says, and nothing else."""
    stops = generation.stop_ids
    values: dict[str, Any] = {
        "bos_token_id": generation.bos_id,
        "eos_token_id": stops[0] if len(stops) == 1 else list(stops) or None,
        "pad_token_id": generation.pad_id,
        "top_k": generation.top_k,
        "top_p": generation.top_p,
        "min_p": generation.min_p,
        "repetition_penalty": generation.repetition_penalty,
    }
    if generation.temperature is not None:
        values["do_sample"] = generation.temperature > 0
        values["temperature"] = generation.temperature or None
    return {key: value for key, value in values.items() if value is not None}


def _ids(fields: Fields, key: str) -> tuple[int, ...]:
    """One token id or several; -1 and null say that there is none (LLaMA's first conversions have a pad of -1)."""
    value = fields.value(key)
    if isinstance(value, list | tuple):
        found = fields.integers(key, most=_MAX_TOKEN_ID) or ()
        return tuple(dict.fromkeys(found))
    if type(value) is int and value == -1:
        return ()
    found_one = fields.integer(key, required=False, most=_MAX_TOKEN_ID)
    return () if found_one is None else (found_one,)


def _share(fields: Fields, key: str) -> float | None:
    value: float | None = fields.number(key, required=False)
    if value is not None and not 0 <= value <= 1:
        raise fields.error(key, f"must be between 0 and 1, not {value!r}")
    return value


def _penalty(fields: Fields) -> float | None:
    value: float | None = fields.number("repetition_penalty", required=False)
    if value is not None and not 1e-3 <= value <= 1e3:
        raise fields.error("repetition_penalty", f"must be between 0.001 and 1000, not {value!r}")
    return value
