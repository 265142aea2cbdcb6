"""The order in which rows are learned: a weighted mixture, shuffled anew each epoch, the same for any number of ranks.

The order is a function of seed and sources alone. A step is so many rows of it, of which each rank takes its share, so
a run may stop anywhere and go on with another number of ranks as if nothing had been.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qafila.data.batch import Batch
from qafila.data.order import Order
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

    Every step is whole: with ``epochs``, rows that are left over when they are fewer than a step's are not given.

    Args:
        sources: the mixture; all with ``epochs`` or all without.
        rows: rows of a step, over all ranks.
        micro_rows: rows of a micro-batch, at most.
        rank, world: which rank this is, of how many.
        seed: of the order.
        shuffle: in an order of its own each epoch; without it in the order of the pack.

    Raises:
        UsageError: the rows of a step cannot be shared out, or the sources do not go together.
        DataError: a source has no rows, or is in another tokenizer's ids than the first.
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
        assert rows > 0 < micro_rows
        assert 0 <= rank < world
        if rows % world:
            raise UsageError(f"train.batch: {rows} rows cannot be shared out to {world} processes; use a multiple")
        _check_together(sources)
        self._sources = tuple(sources)
        self._rows, self._micro_rows = rows, micro_rows
        self._rank, self._world = rank, world
        self._seed, self._shuffle = seed, shuffle
        total = sum(source.share for source in sources)
        self._shares = [source.share / total for source in sources]
        self._limits = [math.inf if source.rows is None else source.rows for source in sources]
        self._taken = [0] * len(sources)
        self._orders = [Order(len(s.pack), seed, number, shuffle=shuffle) for number, s in enumerate(sources)]

    @property
    def steps(self) -> int | None:
        """Whole steps that there are in all; None: without end."""
        return None if math.inf in self._limits else int(sum(self._limits)) // self._rows

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
            FormatError: a file of a pack is damaged.
        """
        if self.consumed + self._rows > sum(self._limits):
            raise StopIteration
        chosen = self._choose(self._rows)[self._rank :: self._world]
        batches = []
        for start in range(0, len(chosen), self._micro_rows):
            part = [(self._sources[number], row) for number, row in chosen[start : start + self._micro_rows]]
            batches.append(Batch.of([s.pack.row(row) for s, row in part], [(s.name, row) for s, row in part]))
        return batches

    def _choose(self, count: int) -> list[tuple[int, int]]:
        """Number of the source, and row, of the next rows: the source furthest behind its share comes next."""
        taken, shares, orders, limits = self._taken, self._shares, self._orders, self._limits
        chosen: list[tuple[int, int]] = []
        first = self.consumed + 1
        for given in range(first, first + count):
            number, most = 0, -math.inf
            for index, (share, had, limit) in enumerate(zip(shares, taken, limits, strict=True)):
                if share * given - had > most and had < limit:
                    number, most = index, share * given - had
            chosen.append((number, orders[number].row(taken[number])))
            taken[number] += 1
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, and what it reads: plain values. The same on every rank."""
        return {
            "taken": list(self._taken),
            "sources": [source.name for source in self._sources],
            "packs": [source.pack.manifest.identity for source in self._sources],
            "shares": list(self._shares),
            "seed": self._seed,
            "shuffle": self._shuffle,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where another loader was, whatever its number of ranks and rows of a step.

        Raises:
            DataError: it read other packs, or in another order: names what differs.
        """
        mine = self.state_dict()
        if state["sources"] != mine["sources"]:
            raise DataError(f"resume: the data was {', '.join(state['sources'])}, and is {', '.join(mine['sources'])}")
        for name, old, new in zip(mine["sources"], state["packs"], mine["packs"], strict=True):
            if old != new:
                raise DataError(
                    f"resume: the pack of {name} ({new[:12]}) is not the one that the run began with ({old[:12]}); put "
                    "that one back, or start a new run"
                )
        for name, was, share in zip(mine["sources"], state["shares"], mine["shares"], strict=True):
            if not math.isclose(was, share, rel_tol=1e-9):
                raise DataError(
                    f"resume: {name} was {was:.2%} of the mixture, and is {share:.2%}; set its weight back, or start a "
                    "new run"
                )
        for key in ("seed", "shuffle"):
            if state[key] != mine[key]:
                raise DataError(f"resume: the data's {key} was {state[key]}, and is {mine[key]}; set it back")
        self._taken = [int(taken) for taken in state["taken"]]


def _check_together(sources: Sequence[Source]) -> None:
    if len({source.epochs is None for source in sources}) != 1:
        raise UsageError("data: either all sources are gone through a number of times, or none is")
    for source in sources:
        first, other = sources[0].pack.manifest, source.pack.manifest
        if not len(source.pack):
            raise DataError(f"{source.name}: has no rows")
        if not (source.weight > 0 and math.isfinite(source.weight)):
            raise UsageError(f"{source.name}: its weight is {source.weight}, and must be above 0")
        if other.sequence != first.sequence:
            raise UsageError(
                f"{source.name}: has rows of {other.sequence} tokens, and {sources[0].name} of {first.sequence}; "
                "pack them alike"
            )
        other.check_tokenizer(
            first.facts.tokenizer, first.facts.vocab_size, pack=source.name, model=f"the pack of {sources[0].name}"
        )
