"""One file of a pack: rows of one length, mapped rather than read.

A shard holds, one after the other, each padded to eight bytes: ids (uint16, or uint32 for larger vocabularies) of its
rows; lengths (uint32), sources (uint32), margins (float32) and kinds (uint8) of its documents; the number of documents
before the end of each row (uint32); and the mask, a bit a token, each row starting on a byte. Little-endian throughout.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qafila.data.encode import REJECTED
from qafila.data.manifest import Manifest, PackFacts, ShardFacts
from qafila.errors import FormatError

NO_SOURCE: Final = 0xFFFF_FFFF
"""Source of the unused end of a row."""
_ALIGN: Final = 8
_AGAIN: Final = "copy the pack again from where it is whole, or pack the data again"


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One row: ids [S] (uint16 or uint32), mask bool [S], and lengths, kinds, margins and sources of its documents."""

    ids: NDArray[Any]
    mask: NDArray[np.bool_]
    lengths: NDArray[np.uint32]
    kinds: NDArray[np.uint8]
    margins: NDArray[np.float32]
    sources: NDArray[np.uint32]


def id_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds all ids."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def _sections(facts: PackFacts, rows: int, documents: int) -> list[tuple[str, np.dtype[Any], int]]:
    """Name, type and number of the values of each part of a shard, in order."""
    return [
        ("ids", id_type(facts.vocab_size), rows * facts.sequence),
        ("lengths", np.dtype("<u4"), documents),
        ("sources", np.dtype("<u4"), documents),
        ("margins", np.dtype("<f4"), documents),
        ("kinds", np.dtype("u1"), documents),
        ("ends", np.dtype("<u4"), rows),
        ("mask", np.dtype("u1"), rows * -(-facts.sequence // 8)),
    ]


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN


def shard_bytes(facts: PackFacts, rows: int, documents: int) -> int:
    """Size of the file."""
    return sum(_padded(count * dtype.itemsize) for _, dtype, count in _sections(facts, rows, documents))


def shard_pieces(facts: PackFacts, parts: Mapping[str, NDArray[Any]]) -> Iterator[memoryview | bytes]:
    """The bytes of a shard, piece by piece, from the values of its parts."""
    for name, dtype, count in _sections(facts, len(parts["ends"]), len(parts["lengths"])):
        data = np.ascontiguousarray(parts[name], dtype=dtype).reshape(-1)
        assert len(data) == count, name
        yield data.view(np.uint8).data
        yield bytes(_padded(data.nbytes) - data.nbytes)


def check_size(path: Path, facts: PackFacts, shard: ShardFacts) -> None:
    """See that the file has the size that it must have.

    Raises:
        FormatError: it is missing, no file, cut short, or not what the manifest says.
    """
    expected = shard_bytes(facts, shard.rows, shard.documents)
    if shard.bytes != expected:
        raise FormatError(path, f"has {expected:,} bytes by its rows and {shard.bytes:,} by the manifest; {_AGAIN}")
    try:
        status = path.stat()
    except OSError as error:
        raise FormatError(path, f"cannot be read: {error.strerror or error}; {_AGAIN}") from None
    if not stat.S_ISREG(status.st_mode) or status.st_size != expected:
        raise FormatError(path, f"has {status.st_size:,} bytes, not the {expected:,} that it should; {_AGAIN}")


def check_hash(path: Path, shard: ShardFacts) -> None:
    """Read the file and compare its hash with the manifest's.

    Raises:
        FormatError: it is not the file that was written.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FormatError(path, f"cannot be read: {error.strerror or error}; {_AGAIN}") from None
    if digest != shard.sha256:
        raise FormatError(path, f"is damaged (its hash differs from the manifest's); {_AGAIN}")


class Shard:
    """A mapped file.

    Args:
        path: the file.
        manifest, shard: what is known of it.

    Raises:
        FormatError: it cannot be mapped, or what it says of its documents makes no sense.
    """

    def __init__(self, path: Path, manifest: Manifest, shard: ShardFacts) -> None:
        facts = manifest.facts
        check_size(path, facts, shard)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = mmap.mmap(descriptor, shard.bytes, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise FormatError(path, f"cannot be mapped: {getattr(error, 'strerror', None) or error}") from None
        views: dict[str, NDArray[Any]] = {}
        at = 0
        for name, dtype, count in _sections(facts, shard.rows, shard.documents):
            views[name] = np.frombuffer(data, dtype, count, at)
            at += _padded(count * dtype.itemsize)
        self._path, self._facts, self._sequence = path, facts, facts.sequence
        self.ids = views["ids"].reshape(shard.rows, facts.sequence)
        self.bits = views["mask"].reshape(shard.rows, -1)
        self.lengths, self.sources = views["lengths"], views["sources"]
        self.margins, self.kinds = views["margins"], views["kinds"]
        ends = views["ends"].astype(np.int64)
        self._check(ends, shard.documents, len(manifest.sources))
        self.starts: list[int] = [0, *ends.tolist()]

    def _check(self, ends: NDArray[np.int64], documents: int, sources: int) -> None:
        starts = np.concatenate(([0], ends))
        rising = bool((np.diff(starts) > 0).all()) and int(starts[-1]) == documents
        sums = np.add.reduceat(self.lengths.astype(np.int64), starts[:-1]) if rising else np.zeros(1)
        if not rising or not bool((sums == self._sequence).all()) or not bool((self.lengths > 0).all()):
            raise FormatError(self._path, f"is damaged: its documents do not fill its rows; {_AGAIN}")
        if int(self.kinds.max()) > REJECTED or not bool(np.isfinite(self.margins).all()):
            raise FormatError(self._path, f"is damaged: its documents are of no known kind; {_AGAIN}")
        if bool(((self.sources >= sources) & (self.sources != NO_SOURCE)).any()):
            raise FormatError(self._path, f"is damaged: its documents are from no known source; {_AGAIN}")

    def check_ids(self) -> None:
        """See that all ids are of the vocabulary; reads all of them.

        Raises:
            FormatError: one is not.
        """
        if (largest := int(self.ids.max())) >= self._facts.vocab_size:
            told = f"has id {largest}, outside the vocabulary of {self._facts.vocab_size}"
            raise FormatError(self._path, f"is damaged: it {told}; {_AGAIN}")

    def row(self, number: int) -> Row:
        """One row."""
        own = slice(self.starts[number], self.starts[number + 1])
        return Row(
            ids=self.ids[number],
            mask=np.unpackbits(self.bits[number], count=self._sequence, bitorder="little").view(np.bool_),
            lengths=self.lengths[own],
            kinds=self.kinds[own],
            margins=self.margins[own],
            sources=self.sources[own],
        )
