"""A batch of answers as the arrays a runner reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qafila.engine.runner import Step
from qafila.engine.scheduler import Answer


class StepArrays:
    """Turns a batch into a `Step`; while the same answers decode, the same arrays are filled again."""

    def __init__(self) -> None:
        self._batch: Sequence[Answer] = ()
        self._tables: list[list[int]] = []
        self._filled: list[int] = []
        self._decode: Step | None = None

    def build(self, batch: Sequence[Answer]) -> Step:
        """The step for answers with ``count``, ``rows`` and ``guesses`` set; good until the next call."""
        step = self._decode
        if step is not None and batch == self._batch:
            token_ids, positions, blocks = step.token_ids, step.positions, step.blocks
            width = blocks.shape[1]
            for i, answer in enumerate(batch):
                table = answer.blocks
                if answer.count != 1 or len(table) > width or table is not self._tables[i]:
                    break
                token_ids[i] = answer.ids[-1]
                positions[i] = answer.computed
                filled = self._filled[i]
                if filled < len(table):
                    blocks[i, filled : len(table)] = table[filled:]
                    self._filled[i] = len(table)
            else:
                return step
        return self._fresh(batch)

    def _fresh(self, batch: Sequence[Answer]) -> Step:
        ids: list[int] = []
        starts = np.zeros(len(batch) + 1, np.int32)
        positions = []
        wanted: list[int] = []
        width = max(len(answer.blocks) for answer in batch)
        # Some room to grow, so that the arrays stay the same for many steps.
        blocks = np.full((len(batch), max(8, 1 << width.bit_length())), -1, np.int32)
        adapters = np.zeros(len(batch), np.int32)
        for i, answer in enumerate(batch):
            first = answer.computed
            last = first + answer.count - len(answer.guesses)
            ids += answer.ids[first:last]
            ids += answer.guesses
            positions.append(np.arange(first, first + answer.count, dtype=np.int32))
            wanted += range(len(ids) - answer.rows, len(ids))
            starts[i + 1] = len(ids)
            blocks[i, : len(answer.blocks)] = answer.blocks
            adapters[i] = answer.adapter
        step = Step(
            np.array(ids, np.int32), np.concatenate(positions), starts, blocks, adapters, np.array(wanted, np.int32)
        )
        plain = all(answer.count == 1 and answer.rows == 1 for answer in batch)
        self._decode = step if plain else None
        self._batch = batch if plain else ()
        self._tables = [answer.blocks for answer in batch]
        self._filled = [len(answer.blocks) for answer in batch]
        return step
