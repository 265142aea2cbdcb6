"""What the model thinks of given text: log-probabilities, the likelihood of each of a set of answers, embeddings.

Everything runs between the engine's steps, in blocks of its KV cache that no answer holds; answers under way wait for
the length of the call and are not changed by it. Never more than a step's rows of logits are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qafila.engine.blocks import chain_keys, root_key
from qafila.engine.engine import Engine
from qafila.engine.runner import BLOCK_TOKENS, Float32, Int32, Step
from qafila.engine.sampler import log_probabilities
from qafila.errors import ContextLengthError, QafilaError, UsageError
from qafila.generation import check_ids
from qafila.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Likelihood:
    """One continuation of a set.

    Attributes:
        ids: its tokens.
        logprob: natural log-probability that the model goes on with exactly these tokens.
        probability: the same as a share of the whole set's.
    """

    ids: tuple[int, ...]
    logprob: float
    probability: float


def score(engine: Engine, ids: Sequence[int], *, adapter: str | None = None) -> list[float]:
    """Natural log-probabilities of ``ids[1:]``, each given the tokens before it.

    Raises:
        UsageError: fewer than two tokens, or some that the model does not have.
        ContextLengthError: they do not fit the context or the KV cache.
    """
    return [scored.logprob for scored in score_beside(engine, ids, 0, adapter=adapter)]


@dataclass(frozen=True, slots=True)
class Scored:
    """One token of a text: its natural log-probability, and the likeliest in its place (id, log-probability)."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def score_beside(engine: Engine, ids: Sequence[int], top: int, *, adapter: str | None = None) -> list[Scored]:
    """`score`, and for each token the ``top`` likeliest in its place, likeliest first.

    Raises:
        UsageError: fewer than two tokens, or some that the model does not have.
        ContextLengthError: they do not fit the context or the KV cache.
    """
    _check(engine, ids, least=2)
    out: list[Scored] = []
    read = ids[:-1]
    with _room(engine, len(read)) as blocks:
        number = _adapter(engine, adapter)[0]
        portion = min(engine.runner.max_tokens, engine.runner.max_rows)
        for start in range(0, len(read), portion):
            part = read[start : start + portion]
            logits_RV = engine.runner.logits(_step([_Part(part, start, blocks)], number, range(len(part))))
            own = log_probabilities(logits_RV, np.array(ids[start + 1 : start + 1 + len(part)], np.int32))
            best_RK = _likeliest(logits_RV, top)
            columns = [log_probabilities(logits_RV, np.ascontiguousarray(best_RK[:, k])) for k in range(top)]
            out += [
                Scored(value, tuple((int(best_RK[r, k]), columns[k][r]) for k in range(top)))
                for r, value in enumerate(own)
            ]
    return out


def _likeliest(logits_RV: Float32, top: int) -> Int32:
    """Ids of the ``top`` highest logits of each row, highest first."""
    if not top:
        return np.empty((len(logits_RV), 0), np.int32)
    some_RK = np.argpartition(-logits_RV, top, axis=1)[:, :top]
    order_RK = np.argsort(-np.take_along_axis(logits_RV, some_RK, 1), axis=1, kind="stable")
    return np.take_along_axis(some_RK, order_RK, 1).astype(np.int32)


def logits(engine: Engine, ids: Sequence[int], *, adapter: str | None = None) -> Float32:
    """Logits after each token, ``[T, V]``: all of them in memory.

    Raises:
        UsageError: no tokens, or some that the model does not have.
        ContextLengthError: they do not fit the context or the KV cache.
    """
    _check(engine, ids, least=1)
    out = []
    with _room(engine, len(ids)) as blocks:
        number = _adapter(engine, adapter)[0]
        portion = min(engine.runner.max_tokens, engine.runner.max_rows)
        for start in range(0, len(ids), portion):
            part = ids[start : start + portion]
            out.append(engine.runner.logits(_step([_Part(part, start, blocks)], number, range(len(part)))).copy())
    return np.concatenate(out)


def likelihood(
    engine: Engine,
    prompt_ids: Sequence[int],
    continuations: Sequence[Sequence[int] | str],
    *,
    tokenizer: Tokenizer | None = None,
    adapter: str | None = None,
    tenant: str = "",
) -> list[Likelihood]:
    """The exact likelihood of each continuation, and the distribution over them.

    The prompt is read once, and not at all as far as it is in the cache.

    Args:
        engine: whose model is asked.
        prompt_ids: at least one token.
        continuations: token ids, or text, which needs ``tokenizer``.
        tokenizer: turns text into tokens that go on from the prompt's.
        adapter: name of an adapter of the engine's.
        tenant: whose cached prompts may be used.

    Raises:
        UsageError: no continuations, an empty one, two equal ones, or tokens that the model does not have.
        ContextLengthError: they do not fit the context or the KV cache.
    """
    tails = [_ids(item, tokenizer) for item in continuations]
    if not tails:
        raise UsageError("likelihood needs at least one continuation")
    for i, tail in enumerate(tails):
        if not tail:
            raise UsageError(f"continuation {i} is empty; every continuation needs at least one token")
        if tail in tails[:i]:
            raise UsageError(f"continuations {tails.index(tail)} and {i} are the same tokens; give each once")
        _check(engine, [*prompt_ids, *tail], least=1)
    _check(engine, prompt_ids, least=1)
    logprobs = [0.0] * len(tails)
    # What all of them need is read first: the prompt without its last token, which goes with every continuation.
    shared = list(prompt_ids[:-1])
    own = [[prompt_ids[-1], *tail[:-1]] for tail in tails]
    portion = min(engine.runner.max_tokens, engine.runner.max_rows)
    most = max(-(-(len(shared) % BLOCK_TOKENS + len(tokens)) // BLOCK_TOKENS) for tokens in own) * BLOCK_TOKENS
    with _room(engine, len(shared) + most) as blocks:
        number, serial = _adapter(engine, adapter)
        full = len(shared) // BLOCK_TOKENS
        keys = chain_keys(root_key(engine.runner.fingerprint, serial, tenant), shared[: full * BLOCK_TOKENS], full)
        found = engine.pool.match(keys)
        try:
            prefix = [*found, *blocks[len(found) : full]]
            base = blocks[full:]
            table = [*prefix, *base]
            for start in range(len(found) * BLOCK_TOKENS, len(shared), engine.runner.max_tokens):
                part = shared[start : start + engine.runner.max_tokens]
                engine.runner.logits(_step([_Part(part, start, table)], number, ()))
            for block, key in zip(prefix[len(found) :], keys[len(found) :], strict=True):
                engine.pool.register(block, key)
            for i, tokens in enumerate(own):
                # Each continuation overwrites what the one before left behind the prompt.
                values: list[float] = []
                for start in range(0, len(tokens), portion):
                    part = tokens[start : start + portion]
                    at = len(shared) + start
                    logits_RV = engine.runner.logits(_step([_Part(part, at, table)], number, range(len(part))))
                    values += log_probabilities(logits_RV, np.array(tails[i][start : start + len(part)], np.int32))
                logprobs[i] = math.fsum(values)
        finally:
            engine.pool.release(found)
    highest = max(logprobs)
    weights = [math.exp(value - highest) for value in logprobs]
    total = math.fsum(weights)
    return [
        Likelihood(tuple(tail), value, weight / total)
        for tail, value, weight in zip(tails, logprobs, weights, strict=True)
    ]


def embed(
    engine: Engine, ids: Sequence[int], *, pooling: Literal["mean", "last"] = "mean", adapter: str | None = None
) -> Float32:
    """The text's embedding ``[D]``: normed last hidden states, their mean or the last one's, of length one.

    Raises:
        UsageError: no tokens, some that the model does not have, or an unknown pooling.
        ContextLengthError: they do not fit the context or the KV cache.
        QafilaError: the hidden states are not numbers.
    """
    if pooling not in ("mean", "last"):
        raise UsageError(f"pooling must be mean or last, not {pooling!r:.40}")
    _check(engine, ids, least=1)
    total = np.zeros(engine.runner.config.dim, np.float64)
    with _room(engine, len(ids)) as blocks:
        number = _adapter(engine, adapter)[0]
        portion = min(engine.runner.max_tokens, engine.runner.max_rows)
        for start in range(0, len(ids), portion):
            part = ids[start : start + portion]
            wanted = range(len(part)) if pooling == "mean" else range(len(part) - 1, len(part))
            states_RD = engine.runner.hidden(_step([_Part(part, start, blocks)], number, wanted))
            total = (
                total + states_RD.sum(axis=0, dtype=np.float64) if pooling == "mean" else states_RD[-1].astype(float)
            )
    length = float(np.sqrt((total * total).sum()))
    if not math.isfinite(length) or length == 0:
        raise QafilaError("the model gave no usable embedding (not a number, or zero): its weights may be damaged")
    return (total / length).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Part:
    ids: Sequence[int]
    start: int
    blocks: Sequence[int]


def _step(parts: list[_Part], adapter: int, wanted: Sequence[int]) -> Step:
    lengths = [len(part.ids) for part in parts]
    positions: list[Int32] = [np.arange(p.start, p.start + len(p.ids), dtype=np.int32) for p in parts]
    return Step(
        np.array([i for part in parts for i in part.ids], np.int32),
        np.concatenate(positions),
        np.cumsum([0, *lengths], dtype=np.int32),
        np.array([part.blocks for part in parts], np.int32),
        np.full(len(parts), adapter, np.int32),
        np.array(wanted, np.int32),
    )


@contextmanager
def _room(engine: Engine, tokens: int) -> Iterator[list[int]]:
    """Blocks for so many tokens while no step runs; answers under way go on first where they hold them all."""
    count = -(-tokens // BLOCK_TOKENS)
    if count > engine.pool.num_blocks:
        raise ContextLengthError(
            f"{tokens} tokens need more than the KV cache's {engine.pool.num_blocks * BLOCK_TOKENS}; shorten the text "
            "or give the engine a larger cache"
        )
    while True:
        with engine.exclusively():
            if engine._closed:
                raise UsageError("the engine is closed")
            blocks = engine.pool.allocate(count)
            if blocks is not None:
                try:
                    yield blocks
                finally:
                    engine.pool.release(blocks)
                return
        if not engine.step():
            raise QafilaError("the KV cache is full although nothing is under way")


def _adapter(engine: Engine, name: str | None) -> tuple[int, int]:
    adapter = engine.adapters.find(name)
    return (adapter.number, adapter.serial) if adapter is not None else (0, 0)


def _ids(item: Sequence[int] | str, tokenizer: Tokenizer | None) -> list[int]:
    if not isinstance(item, str):
        return list(item)
    if tokenizer is None:
        raise UsageError("continuations given as text need a tokenizer")
    return tokenizer.encode_continuation(item)


def _check(engine: Engine, ids: Sequence[int], *, least: int) -> None:
    config = engine.runner.config
    if len(ids) < least:
        raise UsageError(f"the text has {len(ids)} tokens; it needs at least {least}")
    check_ids(ids, config.vocab_size)
    if len(ids) > config.context_length:
        raise ContextLengthError(
            f"the text has {len(ids)} tokens, but the model's context holds {config.context_length}; shorten it"
        )
