"""What `Llama`'s calls may ask for: sampling, limits and grammars, from keyword arguments to a request's fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from qafila.config import GenerationConfig
from qafila.engine.request import GrammarSpec
from qafila.errors import UsageError
from qafila.sampling import SamplingParams

# Llama 2's reference chat (facebookresearch/llama, example_chat_completion.py); used where a checkpoint states nothing.
DEFAULT_TEMPERATURE = 0.6
DEFAULT_TOP_P = 0.9

_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)


class Options(TypedDict, total=False):
    """How to generate. What is left out (or None) follows the checkpoint, then temperature 0.6 and top-p 0.9.

    ``max_tokens``: most tokens to generate (default: up to the context's end). ``stop``: a string, or several, that end
    the answer. ``seed``: of the random numbers (default: a fresh one). ``top_logprobs``: name so many of the likeliest
    tokens with each token. At most one of ``json_schema`` (a schema, as a dictionary or JSON text, or True for any JSON
    object), ``regex`` and ``grammar`` (Lark): what the answer must match. ``adapter``: a loaded adapter's name; ""
    for none. The rest is `qafila.sampling.SamplingParams`.
    """

    max_tokens: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    top_logprobs: int | None
    json_schema: Mapping[str, Any] | str | bool | None
    regex: str | None
    grammar: str | None
    adapter: str | None


def check_names(options: Options) -> None:
    """Raise UsageError for an option that there is not."""
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise UsageError(f"unknown option {unknown[0]!r} (there are {', '.join(Options.__annotations__)})")


def sampling(options: Options, stated: GenerationConfig) -> SamplingParams:
    """How tokens are chosen: what the options say, then what the checkpoint states."""
    values: dict[str, Any] = {"temperature": DEFAULT_TEMPERATURE, "top_p": DEFAULT_TOP_P}
    for source in ({name: getattr(stated, name, None) for name in _SAMPLING}, options):
        values |= {name: source[name] for name in _SAMPLING if source.get(name) is not None}  # type: ignore[literal-required]
    return SamplingParams(**values)


def stop_strings(options: Options) -> tuple[str, ...]:
    """The option ``stop`` as strings."""
    stop = options.get("stop") or ()
    if not isinstance(stop, str | Sequence):
        raise UsageError(f"stop must be a string or a list of strings, not {stop!r:.40}")
    return (stop,) if isinstance(stop, str) else tuple(stop)


def grammar(options: Options) -> GrammarSpec | None:
    """What the answer must match, if it is asked to match anything."""
    schema, regex, lark = options.get("json_schema"), options.get("regex"), options.get("grammar")
    given = [name for name in ("json_schema", "regex", "grammar") if options.get(name) not in (None, False)]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} do not go together; give one")
    for name, text in (("regex", regex), ("grammar", lark)):
        if text is not None and not isinstance(text, str):
            raise UsageError(f"{name} must be a text, not {text!r:.40}")
    if regex is not None:
        return GrammarSpec("regex", regex)
    if lark is not None:
        return GrammarSpec("lark", lark)
    if schema is None or schema is False:
        return None
    if schema is True:
        return GrammarSpec("json_object")
    if isinstance(schema, Mapping):
        try:
            return GrammarSpec("json_schema", json.dumps(schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"json_schema: is no JSON ({error})") from None
    if isinstance(schema, str):
        return GrammarSpec("json_schema", schema)
    raise UsageError(f"json_schema must be a schema or its JSON text, not {schema!r:.40}")
