"""Everything about a request that can be wrong is found here, before it meets any other."""

from __future__ import annotations

from qafila.config import ModelConfig
from qafila.engine.request import GrammarSpec, Request
from qafila.errors import ContextLengthError, UsageError
from qafila.generation import check_ids
from qafila.sampling import SamplingParams, check_seed

#: Most answers to one request, and most likeliest tokens given with each token.
MAX_ANSWERS = 128
MAX_TOP_LOGPROBS = 20


def check_request(request: Request, config: ModelConfig, cache_tokens: int) -> int:
    """The most tokens an answer may have: ``max_tokens``, or what the context and the KV cache leave.

    Args:
        request: what is asked.
        config: of the model.
        cache_tokens: tokens that the whole KV cache holds.

    Raises:
        ContextLengthError: the prompt leaves no room for an answer.
        UsageError: a field that makes no sense; the message names it.
    """
    ids = request.prompt_ids
    if len(ids) == 0:
        raise UsageError("the prompt has no tokens; give at least one")
    check_ids(ids, config.vocab_size + config.extra_embeddings)
    if len(ids) >= config.context_length:
        raise ContextLengthError(
            f"the prompt has {len(ids)} tokens, but the model's context holds {config.context_length} with the "
            "answer; shorten the prompt"
        )
    if len(ids) > cache_tokens:
        raise ContextLengthError(
            f"the prompt has {len(ids)} tokens, but the KV cache holds {cache_tokens}; shorten the prompt or give the "
            "engine a larger cache"
        )
    if not isinstance(request.params, SamplingParams):
        raise UsageError(f"params must be SamplingParams, not {request.params!r:.40}")
    request.params.check_vocabulary(config.vocab_size)
    if request.max_tokens is not None:
        _check_whole("max_tokens", request.max_tokens, 1)
    if not all(_is_whole(i) for i in request.stop_ids):
        raise UsageError(f"stop_ids must be token ids, not {request.stop_ids!r:.40}")
    _check_stop_strings(request)
    _check_whole("n", request.n, 1, MAX_ANSWERS)
    _check_whole("sample_index", request.sample_index, 0, (1 << 64) - MAX_ANSWERS)
    _check_whole("top_logprobs", request.top_logprobs, 0, MAX_TOP_LOGPROBS)
    _check_whole("priority", request.priority)
    if request.seed is not None:
        check_seed(request.seed)
    if not isinstance(request.tenant, str):
        raise UsageError(f"tenant must be a name, not {request.tenant!r:.40}")
    if request.grammar is not None and not isinstance(request.grammar, GrammarSpec):
        raise UsageError(f"grammar must be a GrammarSpec, not {request.grammar!r:.40}")
    # The last token is never read, so the cache needs no room for it.
    room = min(config.context_length, cache_tokens + 1) - len(ids)
    return room if request.max_tokens is None else min(request.max_tokens, room)


def _check_stop_strings(request: Request) -> None:
    stops = request.stop_strings
    if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
        raise UsageError(f"stop_strings must be a list of strings that are not empty, not {stops!r:.80}")
    if stops and request.text_stream is None:
        raise UsageError("stop strings need a tokenizer to decode the text")


def _is_whole(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _check_whole(name: str, value: object, least: int | None = None, most: int | None = None) -> None:
    fine = isinstance(value, int) and not isinstance(value, bool)
    if fine and (least is None or least <= value) and (most is None or value <= most):  # type: ignore[operator]
        return
    limits = "" if least is None else f", {least} or more" if most is None else f" between {least} and {most}"
    raise UsageError(f"{name} must be a whole number{limits}, not {value!r:.40}")
