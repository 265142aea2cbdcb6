"""Plain generation, one sequence at a time: the oracle that every faster engine is held to."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from qafila.errors import ContextLengthError, UsageError
from qafila.model.cache import KVCache
from qafila.model.llama import LlamaModel
from qafila.model.out_of_memory import memory_told
from qafila.sampling import Logits, SamplingParams, check_seed, sample, uniform

FinishReason = Literal["stop", "stop_string", "length"]

#: Tokens that go through the layers at once; `qafila.memory` counts on it.
PREFILL_TOKENS = 512


class TextStream(Protocol):
    """Turns ids into text as they come, never showing half a character."""

    def push(self, token_id: int) -> str:
        """The text that is certain now that ``token_id`` has come; may be empty."""

    def finish(self) -> str:
        """The text still held back, at the end."""


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One step of a generation.

    ``text`` is what may be shown now: it can lag behind the ids while a character or a stop string may be under way,
    and the last token brings what was held back. ``logprob`` is natural, under the model's distribution before any
    filter. ``finish_reason`` is set on the last token alone: ``stop`` (it is a stop token, which has no text),
    ``stop_string`` or ``length`` (``max_tokens`` or the context's end).
    """

    id: int
    logprob: float
    text: str = ""
    finish_reason: FinishReason | None = None


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
    text = _Text(text_stream, stop_strings)
    return _steps(model, list(prompt_ids), params, limit, frozenset(stop_ids), text, seed, sample_index, cache)


def check_ids(prompt_ids: Sequence[int], rows: int) -> None:
    """Raise :class:`UsageError` unless every id is a whole number below ``rows``, the embedding's."""
    for i in prompt_ids:
        # NumPy's integers will do; a float would be cut off without a word.
        if isinstance(i, bool) or not hasattr(i, "__index__") or not 0 <= i < rows:
            raise UsageError(f"the prompt has token {i!r:.40}, but the model's tokens go from 0 to {rows - 1}")


def _steps(
    model: LlamaModel,
    ids: list[int],
    params: SamplingParams,
    limit: int,
    stop_ids: frozenset[int],
    text: _Text,
    seed: int,
    sample_index: int,
    cache: KVCache,
) -> Iterator[GeneratedToken]:
    counts = Counter(ids)
    for step in range(1, limit + 1):
        logits_V = next_logits(model, ids[cache.length :], cache)
        number = 0.0 if params.greedy else uniform(seed, len(ids), sample_index)
        chosen = sample(logits_V, params, counts, number)
        ids.append(chosen.id)
        counts[chosen.id] += 1
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


class _Text:
    """Decoded text with stop strings taken out: what may be the start of one is held back."""

    def __init__(self, stream: TextStream | None, stop_strings: Sequence[str]) -> None:
        self._stream = stream
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> tuple[str, bool]:
        """Text to show now, and whether a stop string has come."""
        if self._stream is None:
            return "", False
        return self._take(self._stream.push(token_id)), self.stopped

    def finish(self) -> str:
        """The rest of the text; a stop string that the last characters complete is still taken out."""
        if self._stream is None:
            return ""
        shown = self._take(self._stream.finish())
        rest, self._held = self._held, ""
        return shown if self.stopped else shown + rest

    def _take(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop_strings) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
