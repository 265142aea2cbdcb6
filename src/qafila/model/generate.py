"""Plain generation, one sequence at a time: the oracle that every faster engine is held to."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence

import torch

from qafila.errors import ContextLengthError, UsageError
from qafila.generation import GeneratedToken, StoppingText, TextStream, check_ids
from qafila.model.cache import KVCache
from qafila.model.llama import LlamaModel
from qafila.model.out_of_memory import memory_told
from qafila.sampling import Logits, Occurrences, SamplingParams, check_seed, sample, uniform

#: Tokens that go through the layers at once; `qafila.memory` counts on it.
PREFILL_TOKENS = 512


def generate(
    model: LlamaModel,
    prompt_ids: Sequence[int],
    *,
    params: SamplingParams | None = None,
    max_tokens: int | None = None,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    text_stream: TextStream | None = None,
    seed: int | None = None,
    sample_index: int = 0,
    cache: KVCache | None = None,
) -> Iterator[GeneratedToken]:
    """Continue ``prompt_ids``, one token at a time; arguments are checked before the first is asked for.

    The same model, prompt, parameters and seed give the same tokens. The prompt is read in portions of
    :data:`PREFILL_TOKENS`, so that a long one needs room for its cache and not for all its activations at once.

    Args:
        model: the model.
        prompt_ids: at least one token; none is added.
        params: how tokens are chosen; by default plain sampling at temperature 1.
        max_tokens: most tokens to generate; by default up to the context's end.
        stop_ids: tokens that end the answer; the one that does is yielded, without text.
        stop_strings: strings that end the answer; neither they nor what follows them is in the text.
        text_stream: decodes the text; without it ``text`` stays empty, and stop strings are refused.
        seed: of the random numbers, 0 to 2**64 - 1; by default a fresh one.
        sample_index: number of the answer where one prompt gets several with the same seed.
        cache: keys and values of the prompt's first tokens, kept from an earlier turn; grows with this one.

    Raises:
        ContextLengthError: the prompt leaves no room for an answer.
        UsageError: an argument that makes no sense.
    """
    config = model.config
    params = params or SamplingParams()
    if not prompt_ids:
        raise UsageError("the prompt has no tokens; give at least one")
    rows = config.vocab_size + config.extra_embeddings
    check_ids(prompt_ids, rows)
    if len(prompt_ids) >= config.context_length:
        raise ContextLengthError(
            f"the prompt has {len(prompt_ids)} tokens, but the model's context holds {config.context_length} with the "
            "answer; shorten the prompt"
        )
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise UsageError(f"max_tokens must be a whole number, 1 or more, not {max_tokens!r}")
    if stop_strings and text_stream is None:
        raise UsageError("stop strings need a tokenizer to decode the text")
    if isinstance(stop_strings, str) or not all(isinstance(stop, str) and stop for stop in stop_strings):
        raise UsageError(f"stop_strings must be a list of strings that are not empty, not {stop_strings!r}")
    if seed is None:
        seed = secrets.randbits(64)
    check_seed(seed)
    room = config.context_length - len(prompt_ids)
    limit = room if max_tokens is None else min(max_tokens, room)
    if cache is None:
        cache = model.new_cache()
    # The last prompt token is read again in any case: its logits are wanted.
    cache.truncate(min(cache.length, len(prompt_ids) - 1))
    text = StoppingText(text_stream, stop_strings)
    return _steps(model, list(prompt_ids), params, limit, frozenset(stop_ids), text, seed, sample_index, cache)


def _steps(
    model: LlamaModel,
    ids: list[int],
    params: SamplingParams,
    limit: int,
    stop_ids: frozenset[int],
    text: StoppingText,
    seed: int,
    sample_index: int,
    cache: KVCache,
) -> Iterator[GeneratedToken]:
    occurrences = Occurrences(ids)
    for step in range(1, limit + 1):
        logits_V = next_logits(model, ids[cache.length :], cache)
        number = 0.0 if params.greedy else uniform(seed, len(ids), sample_index)
        chosen = sample(logits_V, params, occurrences, number)
        ids.append(chosen.id)
        occurrences.add(chosen.id)
        if chosen.id in stop_ids:
            yield GeneratedToken(chosen.id, chosen.logprob, text.finish(), "stop")
            return
        piece, stopped = text.push(chosen.id)
        if not stopped and step == limit:
            # The end can complete a character, and that character a stop string.
            piece += text.finish()
            stopped = text.stopped
        if stopped:
            yield GeneratedToken(chosen.id, chosen.logprob, piece, "stop_string")
            return
        yield GeneratedToken(chosen.id, chosen.logprob, piece, "length" if step == limit else None)


def next_logits(model: LlamaModel, new_ids: Sequence[int], cache: KVCache) -> Logits:
    """Read ``new_ids`` after what ``cache`` has seen; logits ``[V]`` of the token that follows, on the CPU.

    Raises:
        QafilaError: the memory does not suffice.
    """
    with torch.inference_mode(), memory_told(f"{cache.length + len(new_ids)} tokens of context"):
        ids_BT = torch.tensor([list(new_ids)], dtype=torch.int64, device=model.device)
        for start in range(0, len(new_ids), PREFILL_TOKENS):
            last_B1V = model(ids_BT[:, start : start + PREFILL_TOKENS], cache=cache, last_only=True)
        logits: Logits = last_B1V[0, -1].cpu().numpy()
        return logits
