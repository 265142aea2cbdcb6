"""Verifying an audit log offline: out of its lines and a public key alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qafila.agent.audit_log import Leaf, commit
from qafila.agent.merkle import root
from qafila.agent.signing import ORIGIN, Checkpoint, public_key, read_note
from qafila.errors import DataError

#: How many problems are named; the rest are counted.
MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found.

    Attributes:
        events: leaves. runs: how many they are of. erased: events whose content is gone, while the log still proves
            that they were there.
        signed: leaves that a good checkpoint covers. problems: what is wrong; none where the log is as it was written.
        key: that was verified with.
    """

    events: int
    runs: int
    erased: int
    signed: int
    problems: tuple[str, ...]
    key: str

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(lines: Iterable[str], *, key: str | None = None, kept: Sequence[str] = ()) -> Verdict:
    """Verify an exported log.

    Args:
        lines: of the export. key: the public key that is trusted; without one the log's own is taken, which proves
            nothing against somebody who could write the whole log anew. kept: checkpoints that were kept elsewhere:
            only they show that the end of a log is missing.

    Raises:
        DataError: the lines are no export. UsageError: a key that is none.
    """
    head, leaves, notes, unlogged = _read(lines)
    named = key if key is not None else str(head.get("key"))
    trusted = public_key(named)
    problems = [f"event {number} of run {run}: was put in beside the log" for run, number in unlogged]
    for expected, leaf in enumerate(leaves):
        if leaf.place != expected:
            problems.append(f"event {expected} of the log: missing or out of order (there is {leaf.place})")
            break
    for leaf in leaves:
        where = f"event {leaf.place} of the log (run {leaf.run}, event {leaf.number})"
        if leaf.salt is None:
            continue
        if leaf.at is None or leaf.body is None:
            problems.append(f"{where}: its content is gone, and it was not erased")
        elif commit(leaf.salt, leaf.at, leaf.body) != leaf.commitment:
            problems.append(f"{where}: its content or its time was changed")
    hashes = [leaf.hash() for leaf in leaves]
    signed = 0
    if not notes and leaves:
        problems.append("the log has no checkpoint: nothing in it is signed")
    for note in (*notes, *kept):
        found = read_note(note, trusted)
        if isinstance(found, str):
            problems.append(found)
        elif (problem := _against(found, hashes)) is not None:
            problems.append(problem)
        else:
            signed = max(signed, found.size)
    runs = len({leaf.run for leaf in leaves})
    erased = sum(leaf.salt is None for leaf in leaves)
    return Verdict(len(leaves), runs, erased, signed, tuple(problems), named)


def _against(checkpoint: Checkpoint, hashes: Sequence[bytes]) -> str | None:
    if checkpoint.size > len(hashes):
        return f"a checkpoint covers {checkpoint.size} events, and the log has {len(hashes)}: its end is missing"
    if root(hashes[: checkpoint.size]) != checkpoint.root:
        return f"the first {checkpoint.size} events are not the ones that were signed"
    return None


def _read(lines: Iterable[str]) -> tuple[dict[str, Any], list[Leaf], list[str], list[tuple[str, int]]]:
    head: dict[str, Any] | None = None
    leaves: list[Leaf] = []
    notes: list[str] = []
    unlogged: list[tuple[str, int]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if head is None:
                if row["audit"] != ORIGIN or row["version"] != 2:
                    raise ValueError("another kind or version")
                head = row
            elif "checkpoint" in row:
                notes.append(str(row["checkpoint"]))
            elif "unlogged" in row:
                unlogged.append((str(row["run"]), int(row["number"])))
            else:
                leaves.append(_leaf(row))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"line {number}: is no line of an audit log ({error})") from None
    if head is None:
        raise DataError("the audit log is empty")
    return head, leaves, notes, unlogged


def _leaf(row: dict[str, Any]) -> Leaf:
    place, run, number, commitment = row["place"], row["run"], row["number"], row["commitment"]
    salt, at, body = row["salt"], row["at"], row["body"]
    whole = type(place) is int and type(number) is int and all(isinstance(text, str) for text in (run, commitment))
    timed = at is None or (isinstance(at, int | float) and not isinstance(at, bool))
    if not whole or not timed or not all(text is None or isinstance(text, str) for text in (salt, body)):
        raise ValueError("a field of the wrong type")
    if salt is not None:
        bytes.fromhex(salt)
    return Leaf(place, run, number, commitment, salt, None if at is None else float(at), body)
