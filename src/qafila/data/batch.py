"""What a model is fed: rows of a pack, back to back, with the target of each position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qafila.data.shard_file import Row

IGNORED: Final = -100
"""The target of a position that is not learned from."""


@dataclass(frozen=True, eq=False)
class Batch:
    """T tokens of whole rows.

    Attributes:
        ids: int64 [T], the tokens.
        targets: int64 [T]: at position t the id of token t + 1, where that is of the same document and to be learned;
            else -100.
        lengths: int32 [n], tokens of each document in order; they add up to T. The unused end of a row is a document
            of its own without targets.
        kinds: uint8 [n], see `qafila.data.encode`. margins: float32 [n].
        rows: name of the source and number of the row in it, for each row.
    """

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    lengths: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    margins: NDArray[np.float32]
    rows: tuple[tuple[str, int], ...]

    @cached_property
    def n_targets(self) -> int:
        """Positions that have a target."""
        return int(np.count_nonzero(self.targets != IGNORED))

    @staticmethod
    def of(rows: Sequence[Row], names: Sequence[tuple[str, int]]) -> Batch:
        """Rows as one batch."""
        ids = np.concatenate([row.ids for row in rows], dtype=np.int64)
        mask = np.concatenate([row.mask for row in rows])
        lengths = np.concatenate([row.lengths for row in rows], dtype=np.int32, casting="same_kind")
        targets = np.full(len(ids), IGNORED, dtype=np.int64)
        np.copyto(targets[:-1], ids[1:], where=mask[1:])
        # Packs are written so that no document's first token is learned; a batch does not take that on trust.
        targets[np.cumsum(lengths) - 1] = IGNORED
        return Batch(
            ids=ids,
            targets=targets,
            lengths=lengths,
            kinds=np.concatenate([row.kinds for row in rows]),
            margins=np.concatenate([row.margins for row in rows]),
            rows=tuple(names),
        )
