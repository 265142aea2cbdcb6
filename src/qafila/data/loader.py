"""The order in which rows are learned: a weighted mixture, shuffled anew each epoch, the same for any number of ranks.

The order is a function of seed and sources alone. A step is so many rows of it, of which each rank takes its share, so
a run may stop anywhere and go on with another number of ranks as if nothing had been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qafila.data.batch import Batch
from qafila.data.shards import Pack
from qafila.errors import DataError, UsageError


@dataclass(frozen=True)
class Source:
    """A pack in the mixture.

    Attributes:
        pack: its rows.
        weight: without ``epochs`` the source's share of the mixture, relative to the others' weights; with them how
            often it is gone through, relative to the others.
        name: what metrics and errors call it.
        epochs: how often it is gone through (times ``weight``); None: as long as somebody asks.
    """

    pack: Pack
    weight: float
    name: str
    epochs: float | None = None

    @property
    def rows(self) -> int | None:
        """Rows it gives in all; None: without end."""
        return None if self.epochs is None else round(len(self.pack) * self.epochs * self.weight)

    @property
    def share(self) -> float:
        """Its part of the mixture, relative to the others."""
        return self.weight if self.rows is None else float(self.rows)


class Loader:
    """Gives the micro-batches of one rank, step by step.

    Args:
        sources: the mixture; all with ``epochs`` or all without.
        rows: rows of a step, over all ranks.
        micro_rows: rows of a micro-batch, at most.
        rank, world: which rank this is, of how many.
        seed: of the order.
        shuffle: in an order of its own each epoch; without it in the order of the pack.

    Raises:
        UsageError: the rows of a step cannot be shared out. DataError: a source has no rows.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        rows: int,
        micro_rows: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        if rows % world:
            raise UsageError(f"train.batch: {rows} rows cannot be shared out to {world} processes; use a multiple")
        if len({source.epochs is None for source in sources}) != 1:
            raise UsageError("data: either all sources are gone through a number of times, or none is")
        for source in sources:
            if not len(source.pack):
                raise DataError(f"{source.name}: has no rows")
        self._sources = tuple(sources)
        self._rows, self._micro_rows = rows, micro_rows
        self._rank, self._world = rank, world
        self._seed, self._shuffle = seed, shuffle
        total = sum(source.share for source in sources)
        self._shares = [source.share / total for source in sources]
        self._taken = [0] * len(sources)
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    @property
    def steps(self) -> int | None:
        """Whole steps that there are in all; None: without end. What is left over is less than a step."""
        given = [source.rows for source in self._sources]
        return None if None in given else sum(rows or 0 for rows in given) // self._rows

    @property
    def consumed(self) -> int:
        """Rows given so far, over all ranks."""
        return sum(self._taken)

    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through."""
        return {s.name: taken / len(s.pack) for s, taken in zip(self._sources, self._taken, strict=True)}

    def next_step(self) -> list[Batch]:
        """This rank's micro-batches of the next step.

        Raises:
            StopIteration: the sources are used up.
        """
        if (steps := self.steps) is not None and self.consumed + self._rows > steps * self._rows:
            raise StopIteration
        chosen = [self._next_row() for _ in range(self._rows)][self._rank :: self._world]
        batches = []
        for start in range(0, len(chosen), self._micro_rows):
            part = chosen[start : start + self._micro_rows]
            rows = [self._sources[number].pack.row(row) for number, row in part]
            batches.append(Batch.of(rows, [(self._sources[number].name, row) for number, row in part]))
        return batches

    def _next_row(self) -> tuple[int, int]:
        """Number of the source, and row: the source that is furthest behind its share comes next."""
        given = self.consumed + 1
        behind = [share * given - taken for share, taken in zip(self._shares, self._taken, strict=True)]
        for index, source in enumerate(self._sources):
            if source.rows is not None and self._taken[index] >= source.rows:
                behind[index] = -np.inf
        number = max(range(len(behind)), key=behind.__getitem__)
        position = self._taken[number]
        self._taken[number] += 1
        epoch, place = divmod(position, len(self._sources[number].pack))
        return number, int(self._order(number, epoch)[place])

    def _order(self, number: int, epoch: int) -> NDArray[np.int64]:
        known = self._orders.get(number)
        if known is None or known[0] != epoch:
            rows = len(self._sources[number].pack)
            order = np.arange(rows)
            if self._shuffle:
                order = np.random.Generator(np.random.PCG64([self._seed, number, epoch])).permutation(rows)
            known = self._orders[number] = (epoch, order)
        return known[1]

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, and what it reads: plain values."""
        return {
            "taken": list(self._taken),
            "sources": [source.name for source in self._sources],
            "packs": [source.pack.manifest.identity for source in self._sources],
            "seed": self._seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where another loader was, whatever its number of ranks.

        Raises:
            DataError: it read other packs, or in another order.
        """
        mine = self.state_dict()
        if state["sources"] != mine["sources"]:
            raise DataError(f"resume: the data was {', '.join(state['sources'])}, and is {', '.join(mine['sources'])}")
        for name, old, new in zip(mine["sources"], state["packs"], mine["packs"], strict=True):
            if old != new:
                raise DataError(f"resume: the data of {name} is not what the run began with")
        if state["seed"] != self._seed:
            raise DataError(f"resume: the seed of the data was {state['seed']}, and is {self._seed}")
        self._taken = [int(taken) for taken in state["taken"]]
