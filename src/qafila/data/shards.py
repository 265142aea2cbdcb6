"""Packs: folders of token shards with a manifest; written beside their place, moved there whole, mapped to be read."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qafila.data.encode import PLAIN, Document, Unit
from qafila.data.manifest import MANIFEST, Manifest, PackFacts, ShardFacts, SourceFacts, read_manifest
from qafila.data.packing import Packer
from qafila.data.shard_file import NO_SOURCE, Row, Shard, check_hash, check_size, id_type, shard_pieces
from qafila.data.staged import remove_left, stage
from qafila.errors import DataError, QafilaError, StorageError

__all__ = ["NO_SOURCE", "Pack", "PackWriter", "Row"]

_SHARD_BYTES: Final = 1 << 26
_MOST_OPEN: Final = 256  # mapped shards of one pack: each holds a file open, and a process may have 1,024


class PackWriter:
    """Writes a pack: beside its place, moved there when it is whole. Leaving the block without `finish` leaves nothing.

    In memory are what waits for its row (see `qafila.data.packing`) and one shard.

    Args:
        folder: where the pack is to be; nothing may be there.
        facts: what the tokens are.
        shard_bytes: about how large a file may become.

    Raises:
        StorageError: something is in the way, or the disk is full.
    """

    def __init__(self, folder: Path, facts: PackFacts, *, shard_bytes: int = _SHARD_BYTES) -> None:
        self._folder, self._facts = Path(folder), facts
        self._packer: Packer[tuple[Unit, int]] = Packer(facts.sequence)
        self._shards: list[ShardFacts] = []
        self._counts: dict[int, list[int]] = {}
        self._padding = 0
        itemsize = id_type(facts.vocab_size).itemsize
        self._shard = _OpenShard(facts, max(1, shard_bytes // (facts.sequence * itemsize)))
        parent = self._folder.resolve().parent
        try:
            if self._folder.exists() and (not self._folder.is_dir() or any(self._folder.iterdir())):
                raise StorageError(f"{self._folder}: is there already; name another folder or remove it")
            parent.mkdir(parents=True, exist_ok=True)
            remove_left(parent, self._folder.name)
            self._staged, self._held = stage(parent, self._folder.name)
        except (OSError, ValueError) as error:
            raise StorageError(f"{parent}: cannot be written ({getattr(error, 'strerror', None) or error})") from None

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._staged, ignore_errors=True)
        self._held.close()

    def add(self, unit: Unit, source: int) -> None:
        """Add documents that stay together; ``source`` is the number of their file in what `finish` is given.

        Raises:
            DataError: the unit is empty or longer than a row, or has an id outside the vocabulary.
        """
        counts = self._counts.get(source)
        if counts is None:
            counts = self._counts[source] = [0, 0, 0]
        length = 0
        for document in unit:
            size = len(document.ids)
            if size == 0:
                raise DataError("a document without tokens cannot be packed")
            length += size
            counts[0] += 1
            # The first token of a document is never learned: nothing in its document comes before it.
            counts[2] += int(np.count_nonzero(document.mask)) - bool(document.mask[0])
        counts[1] += length
        for row in self._packer.add((unit, source), length):
            self._add_row(row)

    def finish(self, sources: Sequence[SourceFacts]) -> Manifest:
        """Write what waits, and put the pack into its place.

        Args:
            sources: the files, in the order of the numbers that documents were added with.

        Raises:
            DataError: nothing was added. StorageError: the disk is full, or something came in the way.
        """
        assert not self._counts or max(self._counts) < len(sources)
        for row in self._packer.finish():
            self._add_row(row)
        self._flush()
        if not self._shards:
            raise DataError(f"{self._folder}: there is nothing to pack")
        told = []
        for number, facts in enumerate(sources):
            documents, tokens, targets = self._counts.get(number, (0, 0, 0))
            told.append(facts.model_copy(update={"documents": documents, "tokens": tokens, "targets": targets}))
        documents, tokens, targets = (sum(c[i] for c in self._counts.values()) for i in range(3))
        manifest = Manifest(
            facts=self._facts,
            sources=tuple(told),
            rows=sum(shard.rows for shard in self._shards),
            documents=documents,
            tokens=tokens,
            targets=targets,
            padding=self._padding,
            shards=tuple(self._shards),
        )
        self._write(MANIFEST, [manifest.to_json().encode()])
        try:
            with suppress(FileNotFoundError):
                self._folder.rmdir()  # empty, or it stays and is in the way
            self._staged.rename(self._folder.resolve())
        except OSError as error:
            if self._same_is_there(manifest):
                return manifest
            raise StorageError(f"{self._folder}: cannot be written ({error.strerror or error})") from None
        return manifest

    def _same_is_there(self, manifest: Manifest) -> bool:
        """Whether another process has made the same pack meanwhile."""
        try:
            return read_manifest(self._folder).identity == manifest.identity
        except QafilaError:
            return False

    def _add_row(self, row: list[tuple[Unit, int]]) -> None:
        self._padding += self._shard.add(row)
        if self._shard.full:
            self._flush()

    def _flush(self) -> None:
        if not self._shard.rows:
            return
        name = f"{len(self._shards):05d}.bin"
        parts = self._shard.take()
        sha256, size = self._write(name, shard_pieces(self._facts, parts))
        rows, documents = len(parts["ends"]), len(parts["lengths"])
        self._shards.append(ShardFacts(name=name, sha256=sha256, bytes=size, rows=rows, documents=documents))

    def _write(self, name: str, pieces: Iterable[memoryview | bytes]) -> tuple[str, int]:
        """Write a file; gives its SHA-256 and size."""
        digest, size = hashlib.sha256(), 0
        try:
            with (self._staged / name).open("wb") as file:
                for piece in pieces:
                    digest.update(piece)
                    size += file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(f"{self._folder}: the disk is full; nothing was kept; free some space") from None
            raise StorageError(f"{self._folder}: cannot be written ({error.strerror or error})") from None
        return digest.hexdigest(), size


class _OpenShard:
    """The rows of the shard that is being filled."""

    def __init__(self, facts: PackFacts, capacity: int) -> None:
        self._facts, self._capacity = facts, capacity
        S = facts.sequence
        # Memory is taken as it is filled, not before.
        self._ids = np.empty((capacity, S), id_type(facts.vocab_size))
        self._bits = np.empty((capacity, -(-S // 8)), np.uint8)
        self._clear()

    def _clear(self) -> None:
        self.rows = 0
        self._lengths: list[int] = []
        self._sources: list[int] = []
        self._margins: list[float] = []
        self._kinds: list[int] = []
        self._ends: list[int] = []

    @property
    def full(self) -> bool:
        return self.rows == self._capacity

    def add(self, row: list[tuple[Unit, int]]) -> int:
        """Add a row; gives the number of its unused tokens."""
        S = self._facts.sequence
        documents: list[Document] = []
        for unit, source in row:
            documents += unit
            self._sources += [source] * len(unit)
        lengths = [len(document.ids) for document in documents]
        used = sum(lengths)
        ids, mask = self._ids[self.rows], np.zeros(S, np.bool_)
        joined = np.concatenate([document.ids for document in documents])
        if (largest := int(joined.max())) >= self._facts.vocab_size:
            raise DataError(f"a document has id {largest}, outside the vocabulary of {self._facts.vocab_size}")
        ids[:used] = joined
        ids[used:] = self._facts.pad_id
        np.concatenate([document.mask for document in documents], out=mask[:used])
        mask[[0, *accumulate(lengths[:-1])]] = False
        self._bits[self.rows] = np.packbits(mask, bitorder="little")
        self._lengths += lengths
        self._kinds += [document.kind for document in documents]
        self._margins += [document.margin for document in documents]
        if used < S:
            self._lengths.append(S - used)
            self._kinds.append(PLAIN)
            self._margins.append(0.0)
            self._sources.append(NO_SOURCE)
        self._ends.append(len(self._lengths))
        self.rows += 1
        return S - used

    def take(self) -> dict[str, NDArray[Any]]:
        """The parts of the shard; the next one begins. Ids and mask are valid until a row is added."""
        parts: dict[str, NDArray[Any]] = {
            "ids": self._ids[: self.rows],
            "lengths": np.array(self._lengths, np.uint32),
            "sources": np.array(self._sources, np.uint32),
            "margins": np.array(self._margins, np.float32),
            "kinds": np.array(self._kinds, np.uint8),
            "ends": np.array(self._ends, np.uint32),
            "mask": self._bits[: self.rows],
        }
        self._clear()
        return parts


class Pack:
    """An open pack: ``len(pack)`` rows, and `row`. Make it with `Pack.open`."""

    def __init__(self, folder: Path, manifest: Manifest, *, verify_on_use: bool) -> None:
        self.folder, self.manifest = folder, manifest
        self._unverified = set(range(len(manifest.shards))) if verify_on_use else set()
        self._firsts = [0, *accumulate(shard.rows for shard in manifest.shards)]
        self._open: OrderedDict[int, Shard] = OrderedDict()

    @staticmethod
    def open(folder: str | Path, verify: Literal["sizes", "use", "hashes"] = "use") -> Pack:
        """Open the pack in ``folder``.

        Args:
            folder: where it is.
            verify: what is looked at besides the sizes of all files: nothing; the hash of each file before the first
                row out of it; or all hashes now.

        Raises:
            DataError: there is no pack. FormatError: a file is missing or damaged: names it.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        for shard in manifest.shards:
            check_size(folder / shard.name, manifest.facts, shard)
            if verify == "hashes":
                check_hash(folder / shard.name, shard)
                Shard(folder / shard.name, manifest, shard).check_ids()
        return Pack(folder, manifest, verify_on_use=verify == "use")

    def __len__(self) -> int:
        return self.manifest.rows

    def row(self, number: int) -> Row:
        """One row.

        Raises:
            DataError: there is no such row. FormatError: its file is damaged.
        """
        if not 0 <= number < len(self):
            raise DataError(f"{self.folder}: has no row {number}; rows go from 0 to {len(self) - 1}")
        shard = bisect_right(self._firsts, number) - 1
        return self._shard(shard).row(number - self._firsts[shard])

    def _shard(self, number: int) -> Shard:
        found = self._open.get(number)
        if found is None:
            facts = self.manifest.shards[number]
            path = self.folder / facts.name
            found = Shard(path, self.manifest, facts)
            if number in self._unverified:
                check_hash(path, facts)
                found.check_ids()
                self._unverified.discard(number)
            self._open[number] = found
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        elif len(self.manifest.shards) > _MOST_OPEN:
            self._open.move_to_end(number)
        return found
