"""What is wrong with records of a data set: counted by kind, the first kept with file and line, refused in bulk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from qafila.errors import DataError

ProblemKind: TypeAlias = Literal["malformed", "order", "refused", "no-target", "empty", "overlong"]

KINDS: Final[Mapping[ProblemKind, str]] = MappingProxyType(
    {
        "malformed": "not readable as a record of its form",
        "order": "roles out of order",
        "refused": "cannot be written for this objective or chat format",
        "no-target": "nothing in it to learn",
        "empty": "empty",
        "overlong": "longer than a row",
    }
)
# An empty record loses nothing, and what happens to an over-long one is the user's choice: the others are mistakes.
_MISTAKES: Final[frozenset[str]] = frozenset(("malformed", "order", "refused", "no-target"))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record is from.

    Attributes:
        path: the file.
        line: its line, or the number of the record in a file without lines; both from 1. 0: the file as a whole.
        unit: what is counted: ``line``, ``record`` or ``row``.
    """

    path: str
    line: int = 0
    unit: str = "line"

    def __str__(self) -> str:
        if not self.line:
            return self.path
        return f"{self.path}:{self.line}" if self.unit == "line" else f"{self.path}: {self.unit} {self.line}"


class ExampleError(DataError):
    """One record that cannot be used.

    Args:
        kind: one of `KINDS`.
        reason: what is wrong with it, in one line.
        origin: where it is, if that is known already.
    """

    def __init__(self, kind: ProblemKind, reason: str, origin: Origin | None = None) -> None:
        # Names of fields are told as they are, and a hostile file may have line ends and terminal commands in them.
        reason = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in reason)
        super().__init__(reason if origin is None else f"{origin}: {reason}")
        self.kind, self.reason, self.origin = kind, reason, origin


@dataclass(frozen=True, slots=True)
class Problem:
    """One record that was left out, and why."""

    kind: ProblemKind
    origin: Origin
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


class Problems:
    """Counts what is wrong, and raises when there is too much of it.

    Args:
        limit: share of the records that may be mistakes (malformed, roles out of order, refused, without a target).
        least: that many are let pass whatever their share.
        keep: how many of each kind are kept to be shown.
    """

    def __init__(self, limit: float = 0.01, *, least: int = 10, keep: int = 5) -> None:
        self.limit, self.least, self.keep = limit, least, keep
        self.seen = 0
        self.counts: Counter[ProblemKind] = Counter()
        self.first: list[Problem] = []

    def add(self, problem: Problem) -> None:
        """Count one, and keep it if it is among the first of its kind."""
        if self.counts[problem.kind] < self.keep:
            self.first.append(problem)
        self.counts[problem.kind] += 1

    def merge(self, other: Problems) -> None:
        """Take over the counts of another, which came later."""
        for problem in other.first:
            if sum(kept.kind == problem.kind for kept in self.first) < self.keep:
                self.first.append(problem)
        self.counts.update(other.counts)
        self.seen += other.seen

    @property
    def mistakes(self) -> int:
        """How many records count toward the limit."""
        return sum(count for kind, count in self.counts.items() if kind in _MISTAKES)

    def check(self, what: str, *, final: bool = True) -> None:
        """Raise if too many records are mistakes.

        Args:
            what: the data set, as the user named it.
            final: all records have been seen; before that only a clear case is refused.

        Raises:
            DataError: names how many, the limit and the first one.
        """
        allowed = max(self.least, int(self.limit * self.seen))
        if not final:
            allowed = max(1000, 10 * allowed)
        if self.mistakes <= allowed:
            return
        first = next(p for p in self.first if p.kind in _MISTAKES)
        raise DataError(
            f"{what}: {self.mistakes:,} of {self.seen:,} records cannot be used, more than the {self.limit:.1%} "
            f"allowed; the first: {PurePath(first.origin.path).name}{str(first)[len(first.origin.path) :]}; "
            "mend the file, or raise the limit of bad lines"
        )

    def lines(self) -> list[str]:
        """For people: one line a kind, and the first of each below it."""
        told = []
        for kind, meaning in KINDS.items():
            if not self.counts[kind]:
                continue
            told.append(f"{self.counts[kind]:,} {kind} ({meaning})")
            shown = [problem for problem in self.first if problem.kind == kind]
            told.extend(f"  {problem}" for problem in shown)
            if self.counts[kind] > len(shown):
                told.append(f"  ... and {self.counts[kind] - len(shown):,} more")
        return told

    def to_dict(self) -> dict[str, object]:
        """For machines: counts by kind and the first ones."""
        return {
            "records": self.seen,
            "counts": {kind: self.counts[kind] for kind in KINDS if self.counts[kind]},
            "first": [
                {"kind": p.kind, "file": p.origin.path, p.origin.unit: p.origin.line, "reason": p.reason}
                for p in self.first
            ],
        }
