"""What is asked of the engine, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from qafila.generation import TextStream
from qafila.sampling import SamplingParams

EndReason = Literal["stop", "stop_string", "length", "cancelled", "error"]
GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an answer must match: a JSON schema (as JSON text), any JSON object, a regex or a Lark grammar."""

    kind: GrammarKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to continue it.

    Attributes:
        prompt_ids: at least one token; none is added.
        params: how tokens are chosen.
        max_tokens: most tokens to generate; None up to the context's end.
        stop_ids: tokens that end the answer; the one that does is given, without text.
        stop_strings: strings that end the answer; they need ``text_stream``.
        text_stream: makes a decoder for one answer; without it tokens come without text.
        seed: of the random numbers; None for a fresh one.
        n: how many answers; they share one reading of the prompt, and answer ``i`` is the same as that of
            ``sample_index=i`` alone.
        sample_index: number of the first answer.
        top_logprobs: give the log-probabilities of this many likeliest tokens with each token (0 to 20).
        grammar: what every answer must match; its end ends the answer.
        speculate: guess tokens ahead where it pays; the tokens are the same.
        priority: higher goes first.
        adapter: name of an adapter added with `Engine.add_adapter`.
        tenant: cached prompts are shared within a tenant only.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    text_stream: Callable[[], TextStream] | None = None
    seed: int | None = None
    n: int = 1
    sample_index: int = 0
    top_logprobs: int = 0
    grammar: GrammarSpec | None = None
    speculate: bool = True
    priority: int = 0
    adapter: str | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token of one answer.

    Attributes:
        id: its id.
        logprob: natural log-probability under the model's own distribution, before any filter, penalty or grammar.
        text: what may be shown now (see `qafila.generation.GeneratedToken`).
        top: the likeliest tokens with their log-probabilities, likeliest first, as many as were asked for.
        answer: which of the request's n answers it belongs to, from 0.
        finish_reason: on the answer's last token alone.
    """

    id: int
    logprob: float
    text: str = ""
    top: tuple[tuple[int, float], ...] = ()
    answer: int = 0
    finish_reason: EndReason | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request: the prompt's, those of them that came from the cache, and the generated ones."""

    prompt: int
    cached: int
    generated: int
