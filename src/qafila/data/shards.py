"""Token shards: rows of one length in files that are mapped, not read.

A shard holds, one after the other, each padded to eight bytes: ids (uint16, or uint32 for larger vocabularies) of its
rows; lengths (uint32), sources (uint32), margins (float32) and kinds (uint8) of its documents; the number of documents
before the end of each row (uint32); and the mask, a bit a token, each row starting on a byte. Little-endian throughout.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qafila.data.encode import PLAIN, Unit
from qafila.data.manifest import MANIFEST, Manifest, PackFacts, ShardFacts, SourceFacts, read_manifest
from qafila.data.packing import Packer
from qafila.errors import DataError, FormatError, StorageError

NO_SOURCE: Final = 0xFFFF_FFFF
"""Source of the unused end of a row."""
_SHARD_BYTES: Final = 1 << 26
_ALIGN: Final = 8


@dataclass(frozen=True, eq=False)
class Row:
    """One row: ids [S] (uint16 or uint32), mask bool [S], and lengths, kinds, margins and sources of its documents."""

    ids: NDArray[Any]
    mask: NDArray[np.bool_]
    lengths: NDArray[np.uint32]
    kinds: NDArray[np.uint8]
    margins: NDArray[np.float32]
    sources: NDArray[np.uint32]


def _dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def _sections(facts: PackFacts, rows: int, documents: int) -> list[tuple[str, np.dtype[Any], int]]:
    """Name, type and number of the values of each part of a shard, in order."""
    return [
        ("ids", _dtype(facts.vocab_size), rows * facts.sequence),
        ("lengths", np.dtype("<u4"), documents),
        ("sources", np.dtype("<u4"), documents),
        ("margins", np.dtype("<f4"), documents),
        ("kinds", np.dtype("u1"), documents),
        ("ends", np.dtype("<u4"), rows),
        ("mask", np.dtype("u1"), rows * -(-facts.sequence // 8)),
    ]


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN


class PackWriter:
    """Writes a pack: beside its place, moved there when it is whole. Leaving the block without `finish` leaves nothing.

    Args:
        folder: where the pack is to be; nothing may be there.
        facts: what the tokens are.

    Raises:
        StorageError: something is in the way, or the disk is full.
    """

    def __init__(self, folder: Path, facts: PackFacts) -> None:
        self._folder, self._facts = Path(folder), facts
        self._dtype = _dtype(facts.vocab_size)
        self._packer: Packer[tuple[Unit, int]] = Packer(facts.sequence)
        self._rows: list[list[tuple[Unit, int]]] = []
        self._shards: list[ShardFacts] = []
        self._counts: dict[int, list[int]] = {}
        self._padding = 0
        self._per_shard = max(1, _SHARD_BYTES // (facts.sequence * self._dtype.itemsize))
        if self._folder.exists() and (not self._folder.is_dir() or any(self._folder.iterdir())):
            raise StorageError(f"{self._folder}: is there already; name another folder or remove it")
        parent = self._folder.resolve().parent
        self._staged = parent / f".{self._folder.name}-{secrets.token_hex(6)}.partial"
        try:
            self._staged.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"{parent}: cannot be written ({error.strerror or error})") from None

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._staged, ignore_errors=True)

    def add(self, unit: Unit, source: int) -> None:
        """Add documents that stay together; ``source`` is the number of their file in what `finish` is given.

        Raises:
            DataError: the unit is empty or longer than a row, or has an id outside the vocabulary.
        """
        counts = self._counts.setdefault(source, [0, 0, 0])
        for document in unit:
            if len(document) and int(document.ids.max()) >= self._facts.vocab_size:
                raise DataError(
                    f"a document has id {int(document.ids.max())}, outside the vocabulary of {self._facts.vocab_size}"
                )
            counts[0] += 1
            counts[1] += len(document)
            counts[2] += document.n_targets
        for row in self._packer.add((unit, source), sum(map(len, unit))):
            self._add_row(row)

    def finish(self, sources: Sequence[SourceFacts]) -> Manifest:
        """Write what waits, and put the pack into its place.

        Args:
            sources: the files, in the order of the numbers that documents were added with.

        Raises:
            DataError: nothing was added. StorageError: the disk is full.
        """
        for row in self._packer.finish():
            self._add_row(row)
        self._flush()
        if not self._shards:
            raise DataError(f"{self._folder}: there is nothing to pack")
        told = []
        for number, facts in enumerate(sources):
            documents, tokens, targets = self._counts.get(number, (0, 0, 0))
            told.append(facts.model_copy(update={"documents": documents, "tokens": tokens, "targets": targets}))
        rows = sum(shard.rows for shard in self._shards)
        manifest = Manifest(
            facts=self._facts,
            sources=tuple(told),
            rows=rows,
            documents=sum(c[0] for c in self._counts.values()),
            tokens=sum(c[1] for c in self._counts.values()),
            targets=sum(c[2] for c in self._counts.values()),
            padding=self._padding,
            shards=tuple(self._shards),
        )
        self._write(MANIFEST, manifest.to_json().encode())
        try:
            if self._folder.is_dir():
                self._folder.rmdir()
            self._staged.replace(self._folder.resolve())
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot be written ({error.strerror or error})") from None
        return manifest

    def _add_row(self, row: list[tuple[Unit, int]]) -> None:
        self._rows.append(row)
        if len(self._rows) >= self._per_shard:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        S = self._facts.sequence
        ids = np.full((len(self._rows), S), self._facts.pad_id, dtype=self._dtype)
        mask = np.zeros((len(self._rows), S), dtype=np.bool_)
        lengths: list[int] = []
        sources: list[int] = []
        margins: list[float] = []
        kinds: list[int] = []
        ends: list[int] = []
        for number, row in enumerate(self._rows):
            at = 0
            for unit, source in row:
                for document in unit:
                    end = at + len(document)
                    ids[number, at:end] = document.ids
                    mask[number, at:end] = document.mask
                    mask[number, at] = False  # nothing in its document comes before it
                    lengths.append(len(document))
                    sources.append(source)
                    margins.append(document.margin)
                    kinds.append(document.kind)
                    at = end
            if at < S:
                lengths.append(S - at)
                sources.append(NO_SOURCE)
                margins.append(0.0)
                kinds.append(PLAIN)
                self._padding += S - at
            ends.append(len(lengths))
        parts = {
            "ids": ids.reshape(-1),
            "lengths": np.array(lengths),
            "sources": np.array(sources),
            "margins": np.array(margins),
            "kinds": np.array(kinds),
            "ends": np.array(ends),
            "mask": np.packbits(mask, axis=1, bitorder="little").reshape(-1),
        }
        pieces = []
        for name, dtype, count in _sections(self._facts, len(self._rows), len(lengths)):
            data = parts[name].astype(dtype, copy=False).tobytes()
            assert len(data) == count * dtype.itemsize, name
            pieces.append(data + bytes(_padded(len(data)) - len(data)))
        content = b"".join(pieces)
        name = f"{len(self._shards):05d}.bin"
        self._write(name, content)
        digest = hashlib.sha256(content).hexdigest()
        facts = ShardFacts(name=name, sha256=digest, bytes=len(content), rows=len(self._rows), documents=len(lengths))
        self._shards.append(facts)
        self._rows = []

    def _write(self, name: str, content: bytes) -> None:
        try:
            with (self._staged / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(f"{self._folder}: the disk is full; nothing was kept") from None
            raise StorageError(f"{self._folder}: cannot be written ({error.strerror or error})") from None


class _Shard:
    """One mapped file."""

    def __init__(self, path: Path, facts: PackFacts, shard: ShardFacts) -> None:
        self._sequence = facts.sequence
        data = np.memmap(path, dtype=np.uint8, mode="r")
        views: dict[str, NDArray[Any]] = {}
        at = 0
        for name, dtype, count in _sections(facts, shard.rows, shard.documents):
            views[name] = data[at : at + count * dtype.itemsize].view(dtype)
            at += _padded(count * dtype.itemsize)
        self._ids = views["ids"].reshape(shard.rows, facts.sequence)
        self._mask = views["mask"].reshape(shard.rows, -1)
        # Small beside the tokens, and read for every row: copies spare each access a look into the mapping.
        self._lengths, self._sources = np.array(views["lengths"]), np.array(views["sources"])
        self._margins, self._kinds = np.array(views["margins"]), np.array(views["kinds"])
        self._starts = np.concatenate(([0], views["ends"])).astype(np.int64)
        self._check(path, shard)

    def _check(self, path: Path, shard: ShardFacts) -> None:
        rising = bool((np.diff(self._starts) > 0).all()) and int(self._starts[-1]) == shard.documents
        sums = np.add.reduceat(self._lengths.astype(np.int64), self._starts[:-1]) if rising else np.zeros(1)
        if not rising or not bool((sums == self._sequence).all()) or not bool((self._lengths > 0).all()):
            raise FormatError(path, "is damaged: its documents do not fill its rows; pack the data again")

    def row(self, number: int) -> Row:
        first, last = self._starts[number], self._starts[number + 1]
        mask = np.unpackbits(self._mask[number], count=self._sequence, bitorder="little").view(np.bool_)
        return Row(
            ids=self._ids[number],
            mask=mask,
            lengths=self._lengths[first:last],
            kinds=self._kinds[first:last],
            margins=self._margins[first:last],
            sources=self._sources[first:last],
        )


class Pack:
    """An open pack: ``len(pack)`` rows, and `row`."""

    def __init__(self, folder: Path, manifest: Manifest, shards: Sequence[_Shard]) -> None:
        self.folder, self.manifest = folder, manifest
        self._shards = list(shards)
        self._firsts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])

    @staticmethod
    def open(folder: str | Path, verify: Literal["sizes", "hashes"] = "sizes") -> Pack:
        """Open the pack in ``folder``.

        Args:
            folder: where it is.
            verify: look at the sizes of the files, or read them whole and compare hashes.

        Raises:
            DataError: there is no pack. FormatError: a file is missing or damaged: names it.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        shards = []
        for facts in manifest.shards:
            path = folder / facts.name
            sections = _sections(manifest.facts, facts.rows, facts.documents)
            expected = sum(_padded(count * dtype.itemsize) for _, dtype, count in sections)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise FormatError(path, f"cannot be read: {error.strerror or error}") from None
            if not path.is_file() or size != facts.bytes or size != expected:
                raise FormatError(path, f"has {size:,} bytes, not the {expected:,} that it should; pack the data again")
            if verify == "hashes":
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest != facts.sha256:
                    raise FormatError(path, "is damaged (its hash differs from the manifest's); pack the data again")
            shards.append(_Shard(path, manifest.facts, facts))
        return Pack(folder, manifest, shards)

    def __len__(self) -> int:
        return self.manifest.rows

    def row(self, number: int) -> Row:
        """One row."""
        if not 0 <= number < len(self):
            raise DataError(f"{self.folder}: has no row {number}; rows go from 0 to {len(self) - 1}")
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return self._shards[shard].row(number - int(self._firsts[shard]))
