"""Packs of random documents, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qafila.data.encode import CHOSEN, REJECTED, Document, Unit
from qafila.data.manifest import PackFacts, SourceFacts
from qafila.data.shards import Pack, PackWriter


def random_units(count: int, sequence: int, *, vocab_size: int = 1000, seed: int = 0) -> list[Unit]:
    """Documents with random ids and masks, and pairs of them."""
    random = np.random.default_rng(seed)

    def document(most: int, kind: int = 0, margin: float = 0.0) -> Document:
        length = int(random.integers(1, most + 1))
        ids = random.integers(0, vocab_size, length).tolist()
        return Document.of(ids, (random.random(length) < 0.6).tolist(), kind, margin)

    units: list[Unit] = []
    for _ in range(count):
        if random.random() < 0.2:
            margin = float(random.integers(0, 4))
            units.append((document(sequence // 2, CHOSEN, margin), document(sequence // 2, REJECTED, margin)))
        else:
            units.append((document(sequence),))
    return units


def facts(sequence: int, *, vocab_size: int = 1000, tokenizer: str = "ab" * 32) -> PackFacts:
    """What such packs say of themselves."""
    return PackFacts(sequence=sequence, vocab_size=vocab_size, tokenizer=tokenizer, objective="pretrain", pad_id=7)


def make_pack(folder: Path, units: Sequence[Unit], about: PackFacts, *, shard_bytes: int = 1 << 26) -> Pack:
    """Write and open a pack; its units are of two files in turn."""
    with PackWriter(folder, about, shard_bytes=shard_bytes) as writer:
        for number, unit in enumerate(units):
            writer.add(unit, number % 2)
        writer.finish([SourceFacts(path="even.jsonl"), SourceFacts(path="odd.jsonl")])
    return Pack.open(folder)
