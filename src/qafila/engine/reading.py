"""Reading a text without continuing it: logits of every token, log-probabilities, hidden states.

Other requests wait meanwhile; what they hold of the KV cache is taken from them only where the text needs it, and is
computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from qafila.engine.blocks import chain_keys, root_key
from qafila.engine.engine import Engine
from qafila.engine.runner import BLOCK_TOKENS, Float32, Step
from qafila.errors import ContextLengthError, UsageError
from qafila.generation import check_ids

Float64 = npt.NDArray[np.float64]


def read(
    engine: Engine,
    token_ids: Sequence[int],
    take: Callable[[int, Float32], None],
    *,
    first: int = 0,
    hidden: bool = False,
    adapter: str | None = None,
    tenant: str = "",
) -> None:
    """Compute the tokens from place ``first`` on.

    Args:
        engine: whose model reads; what it has cached of the text before ``first`` is not computed again.
        token_ids: the whole text.
        take: called in order with a place in the text and the rows from there on, which it may not keep: logits after
            each token ``[R, V]``, or normed hidden states ``[R, D]``.
        first: place of the first row that is wanted.
        hidden: hidden states are wanted, not logits.
        adapter: name of an adapter.
        tenant: whose cached prefixes may be used.

    Raises:
        ContextLengthError: it does not fit the context or the KV cache. UsageError: an id that is no token.
    """
    ids = list(token_ids)
    runner = engine.runner
    most = min(runner.config.context_length, runner.num_blocks * BLOCK_TOKENS)
    if not 0 < len(ids) <= most:
        raise ContextLengthError(f"{len(ids)} tokens; the context (or its KV cache) holds 1 to {most}")
    check_ids(ids, runner.config.vocab_size + runner.config.extra_embeddings)
    assert 0 <= first < len(ids)
    with engine._alone():
        if engine._closed:
            raise UsageError("the engine is closed")
        found = engine._adapter(adapter)
        root = root_key(runner.fingerprint, found.serial if found else 0, tenant)
        keys = chain_keys(root, ids, len(ids) // BLOCK_TOKENS)
        blocks = engine.pool.match(keys[: first // BLOCK_TOKENS])
        try:
            start = len(blocks) * BLOCK_TOKENS
            blocks += _blocks(engine, -(-len(ids) // BLOCK_TOKENS) - len(blocks))
            while start < len(ids):
                end = min(start + runner.max_tokens, max(first, start) + runner.max_rows, len(ids))
                wanted = np.arange(max(first - start, 0), end - start, dtype=np.int32)
                step = Step(
                    token_ids=np.array(ids[start:end], dtype=np.int32),
                    positions=np.arange(start, end, dtype=np.int32),
                    starts=np.array([0, end - start], dtype=np.int32),
                    blocks=np.array([blocks], dtype=np.int32),
                    adapters=np.array([found.number if found else 0], dtype=np.int32),
                    wanted=wanted,
                )
                rows = runner.hidden(step) if hidden else runner.logits(step)
                for block in range(start // BLOCK_TOKENS, end // BLOCK_TOKENS):
                    engine.pool.register(blocks[block], keys[block])
                if len(wanted):
                    take(max(first, start), rows)
                start = end
        finally:
            engine.pool.release(blocks)


def _blocks(engine: Engine, count: int) -> list[int]:
    """So many blocks of the pool; answers under way give theirs back, the last one first, where there are too few."""
    scheduler = engine._scheduler
    while (blocks := engine.pool.allocate(count)) is None:
        scheduler._preempt(scheduler.running[-1])
    return blocks


def log_probabilities(
    engine: Engine, token_ids: Sequence[int], *, first: int = 1, adapter: str | None = None
) -> Float64:
    """Natural log-probabilities of the tokens from place ``first`` (1 or more) on, each given all before it.

    Raises:
        ContextLengthError: the text does not fit. UsageError: an id that is no token.
    """
    assert first >= 1
    ids = list(token_ids)
    check_ids(ids, engine.runner.config.vocab_size + engine.runner.config.extra_embeddings)
    found = np.zeros(max(0, len(ids) - first))

    def take(place: int, logits_RV: Float32) -> None:
        for row, logits_V in enumerate(logits_RV[: len(ids) - 1 - place]):
            at = place + row + 1
            scores = logits_V.astype(np.float64)
            top = scores.max()
            found[at - first] = scores[ids[at]] - top - np.log(np.exp(scores - top).sum())

    if len(found):
        read(engine, ids, take, first=first - 1, adapter=adapter)
    return found


def all_logits(engine: Engine, token_ids: Sequence[int], *, adapter: str | None = None) -> Float32:
    """Logits after each token, ``[T, V]``."""
    found: list[Float32] = []
    read(engine, token_ids, lambda place, rows: found.append(rows.copy()), adapter=adapter)
    return np.concatenate(found)


def hidden_states(engine: Engine, token_ids: Sequence[int], *, adapter: str | None = None) -> Float32:
    """Normed last hidden states of each token, ``[T, D]``."""
    found: list[Float32] = []
    read(engine, token_ids, lambda place, rows: found.append(rows.copy()), hidden=True, adapter=adapter)
    return np.concatenate(found)
