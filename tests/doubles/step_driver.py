"""Drives a runner by hand, without scheduler: sequences with their own block tables, prompts cut as a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from qafila.engine.runner import BLOCK_TOKENS, Float32, Runner, Step


@dataclass
class Sequence_:
    """Tokens to run, how many of them have been run, and where their keys and values go."""

    ids: Sequence[int]
    blocks: Sequence[int]
    adapter: int = 0
    done: int = 0
    logits: list[Float32] = field(default_factory=list)


def run_step(runner: Runner, parts: Sequence[tuple[Sequence_, int]], *, hidden: bool = False) -> None:
    """One step: the next ``count`` tokens of each sequence; every token's row is appended to its ``logits``."""
    ids: list[int] = []
    positions: list[int] = []
    starts = [0]
    width = max(len(sequence.blocks) for sequence, _ in parts)
    tables = np.full((len(parts), width), -1, np.int32)
    for s, (sequence, count) in enumerate(parts):
        ids += sequence.ids[sequence.done : sequence.done + count]
        positions += range(sequence.done, sequence.done + count)
        starts.append(len(ids))
        used = -(-(sequence.done + count) // BLOCK_TOKENS)
        tables[s, :used] = sequence.blocks[:used]
    step = Step(
        token_ids=np.array(ids, np.int32),
        positions=np.array(positions, np.int32),
        starts=np.array(starts, np.int32),
        blocks=tables,
        adapters=np.array([sequence.adapter for sequence, _ in parts], np.int32),
        wanted=np.arange(len(ids), dtype=np.int32),
    )
    rows = (runner.hidden if hidden else runner.logits)(step).copy()
    for s, (sequence, count) in enumerate(parts):
        sequence.logits += list(rows[starts[s] : starts[s + 1]])
        sequence.done += count


def run_alone(
    runner: Runner, ids: Sequence[int], *, cuts: Sequence[int] = (), first_block: int = 0, adapter: int = 0
) -> Float32:
    """Logits ``[T, V]`` of one sequence, its prompt cut before the tokens ``cuts``."""
    count = -(-len(ids) // BLOCK_TOKENS)
    sequence = Sequence_(ids, range(first_block, first_block + count), adapter)
    edges = [0, *cuts, len(ids)]
    for begin, end in pairwise(edges):
        run_step(runner, [(sequence, end - begin)])
    return np.stack(sequence.logits)
