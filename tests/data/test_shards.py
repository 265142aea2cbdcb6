"""Packs on disk: what was added comes out, damage is found and named, and failure leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_packs import facts, make_pack, random_units

from qafila.data.encode import CHOSEN, REJECTED, Document, Unit
from qafila.data.manifest import MANIFEST, Manifest, SourceFacts, read_manifest
from qafila.data.shards import NO_SOURCE, Pack, PackWriter
from qafila.errors import DataError, FormatError, QafilaError, StorageError

Told = tuple[bytes, bytes, int, float, int]


def added(units: list[Unit]) -> Counter[tuple[Told, ...]]:
    return Counter(
        tuple((d.ids.tobytes(), d.mask.tobytes(), d.kind, d.margin, number % 2) for d in unit)
        for number, unit in enumerate(units)
    )


def found(pack: Pack) -> Counter[tuple[Told, ...]]:
    """Units again: a rejected answer belongs to the chosen one in front of it."""
    units: Counter[tuple[Told, ...]] = Counter()
    for number in range(len(pack)):
        row = pack.row(number)
        assert int(row.lengths.sum()) == pack.manifest.sequence == len(row.ids) == len(row.mask)
        ends = np.cumsum(row.lengths).tolist()
        open_unit: tuple[Told, ...] = ()
        for index, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            ids, mask = row.ids[start:end].astype(np.uint32), row.mask[start:end]
            if row.sources[index] == NO_SOURCE:
                assert index == len(ends) - 1
                assert not mask.any()
                assert (ids == 7).all()
                continue
            told = (ids.tobytes(), mask.tobytes(), int(row.kinds[index]), float(row.margins[index]))
            open_unit += ((*told, int(row.sources[index])),)
            if row.kinds[index] != CHOSEN:
                assert len(open_unit) == (2 if row.kinds[index] == REJECTED else 1)
                units[open_unit] += 1
                open_unit = ()
        assert not open_unit
    return units


@given(
    count=st.integers(1, 60),
    sequence=st.integers(2, 70),
    vocab_size=st.sampled_from([1000, 1 << 16, (1 << 16) + 1, 200_000]),
    shard_bytes=st.sampled_from([1, 500, 1 << 20]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_what_was_added_comes_out(
    tmp_path_factory: pytest.TempPathFactory, count: int, sequence: int, vocab_size: int, shard_bytes: int, seed: int
) -> None:
    units = random_units(count, sequence, vocab_size=vocab_size, seed=seed)
    folder = tmp_path_factory.mktemp("packs") / "pack"
    pack = make_pack(folder, units, facts(sequence, vocab_size=vocab_size), shard_bytes=shard_bytes)
    assert found(pack) == added(units)
    manifest = pack.manifest
    assert manifest.documents == sum(map(len, units))
    assert manifest.tokens == sum(len(d) for unit in units for d in unit)
    assert manifest.targets == sum(d.n_targets for unit in units for d in unit)
    assert manifest.documents == sum(source.documents for source in manifest.sources)
    assert manifest.targets == sum(source.targets for source in manifest.sources)
    assert manifest == read_manifest(folder)
    assert len(Pack.open(folder, verify="hashes")) == manifest.rows
    assert [p.name for p in folder.parent.iterdir()] == ["pack"]


def test_a_first_token_is_never_learned(tmp_path: Path) -> None:
    naughty = Document(np.arange(4, dtype=np.uint32), np.ones(4, np.bool_))
    pack = make_pack(tmp_path / "pack", [(naughty,), (naughty,)], facts(16))
    assert pack.row(0).mask.tolist() == [False, True, True, True] * 2 + [False] * 8
    assert pack.manifest.targets == 6


def test_many_shards_are_not_all_held_open(tmp_path: Path) -> None:
    units = random_units(700, 16)
    pack = make_pack(tmp_path / "pack", units, facts(16), shard_bytes=1)
    assert len(pack.manifest.shards) == len(pack) > 300
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208
    assert found(pack) == added(units)
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 256  # noqa: PTH208


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    return make_pack(tmp_path / "pack", random_units(200, 32), facts(32), shard_bytes=1000)


def test_every_flipped_bit_is_found_and_named(pack: Pack) -> None:
    random = np.random.default_rng(1)
    for shard in pack.manifest.shards[:4]:
        path = pack.folder / shard.name
        whole = path.read_bytes()
        for at in random.integers(0, len(whole), 5).tolist():
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << (at % 8))]) + whole[at + 1 :])
            with pytest.raises(FormatError, match=rf"{shard.name}: is damaged"):
                Pack.open(pack.folder, verify="hashes")
            lazily = Pack.open(pack.folder)
            with pytest.raises(FormatError, match=rf"{shard.name}: is damaged"):
                [lazily.row(number) for number in range(len(lazily))]
        path.write_bytes(whole)
    Pack.open(pack.folder, verify="hashes")


@pytest.mark.parametrize("verify", ["sizes", "use", "hashes"])
def test_truncated_longer_missing_and_other_files(pack: Pack, verify: Any) -> None:
    path = pack.folder / pack.manifest.shards[1].name
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=rf"{path.name}: has [\d,]+ bytes, not the [\d,]+"):
            Pack.open(pack.folder, verify=verify)
    path.unlink()
    with pytest.raises(FormatError, match=rf"{path.name}: cannot be read"):
        Pack.open(pack.folder, verify=verify)
    path.mkdir()
    with pytest.raises(FormatError, match=path.name):
        Pack.open(pack.folder, verify=verify)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_shard_gives_rows_or_an_error(pack: Pack, data: st.DataObject) -> None:
    """Hashes not looked at: whatever the bytes, reading stays inside the row or raises ours."""
    shard = data.draw(st.sampled_from(pack.manifest.shards))
    path = pack.folder / shard.name
    whole = path.read_bytes()
    mutated = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
        mutated[at] = data.draw(st.integers(0, 255))
    path.write_bytes(mutated)
    told = ""
    try:
        opened = Pack.open(pack.folder, verify="sizes")
        for number in range(len(opened)):
            row = opened.row(number)
            assert int(row.lengths.astype(np.int64).sum()) == len(row.ids) == 32
    except QafilaError as error:
        told = str(error)
    finally:
        path.write_bytes(whole)
    assert "\n" not in told


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([-1, 0, 1 << 62, 1 << 64, "../../etc/passwd", "/dev/zero", "a\0b.bin", "00000.bin", "", "0" * 64]),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in _places(part, (*path, key)))]


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_hostile_manifest_gives_a_pack_or_an_error(pack: Pack, data: st.DataObject) -> None:
    path = pack.folder / MANIFEST
    whole = path.read_text()
    raw = json.loads(whole)
    raw["shards"] = raw["shards"][:3]  # so that mutations fall on every field
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([p for p in _places(raw) if p]))
        target = raw
        for key in place[:-1]:
            target = target[key]
        if data.draw(st.booleans()):
            target[place[-1]] = data.draw(_VALUES)
        else:
            del target[place[-1]]
    path.write_text(json.dumps(raw))
    told = ""
    try:
        opened = Pack.open(pack.folder, verify="use")
        for number in range(min(len(opened), 5)):
            opened.row(number)
    except QafilaError as error:
        told = str(error)
    finally:
        path.write_text(whole)
    assert "\n" not in told


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"nul", b"\xff\xfe", b"[" * 100_000, b'{"version": 1e999}', b'{"version":' * 5000, b"1" * 9999],
)
def test_what_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(FormatError, match=MANIFEST):
        Pack.open(tmp_path)


def test_no_pack_and_another_version(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pack"):
        Pack.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no pack"):
        Pack.open(pack.folder / MANIFEST)
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(FormatError, match=MANIFEST):
        Pack.open(tmp_path)
    path = pack.folder / MANIFEST
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(FormatError, match=r"manifest.json: version: .*1; pack the data again"):
        Pack.open(pack.folder)


def test_identity_is_that_of_the_rows(tmp_path: Path) -> None:
    units = random_units(50, 32)
    first = make_pack(tmp_path / "a", units, facts(32)).manifest
    moved = (tmp_path / "a").rename(tmp_path / "moved")
    assert read_manifest(moved).identity == first.identity
    assert make_pack(tmp_path / "b", units, facts(32)).manifest.identity == first.identity
    assert make_pack(tmp_path / "c", units[1:], facts(32)).manifest.identity != first.identity
    other = facts(32, tokenizer="cd" * 32)
    assert make_pack(tmp_path / "d", units, other).manifest.identity != first.identity
    with pytest.raises(DataError, match=r"mine: was made with another tokenizer .* than yours has"):
        first.check_tokenizer(other.tokenizer, 1000, pack="mine", model="yours")


def test_nothing_is_left_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = random_units(20, 32)
    with pytest.raises(KeyError), PackWriter(tmp_path / "pack", facts(32)) as writer:  # noqa: PT012
        writer.add(units[0], 0)
        raise KeyError
    with pytest.raises(DataError, match="nothing to pack"), PackWriter(tmp_path / "pack", facts(32)) as writer:
        writer.finish([])
    outside = Document.of([1, 1000], [False, True])
    with pytest.raises(DataError, match="id 1000, outside the vocabulary of 1000"):
        make_pack(tmp_path / "pack", [(outside,)], facts(32))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="the disk is full"):
            make_pack(tmp_path / "pack", units, facts(32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from qafila.data.staged import stage;"
        "folder, held = stage(Path(sys.argv[1]), 'pack'); (folder / '00000.bin').write_bytes(b'x');"
        "print(folder, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        others = [
            tmp_path / ".other-0123456789ab.partial",  # of another pack
            tmp_path / ".pack-0123456789ab.partial.txt",
            tmp_path / ".pack-mine.partial",
            tmp_path / ".pack-ba9876543210.partial",  # holds what is no pack's
        ]
        for other in others:
            other.mkdir()
        (others[-1] / "notes.txt").write_text("mine")
        make_pack(tmp_path / "pack", random_units(5, 8), facts(8))
        assert left.is_dir()  # the process that writes in it is alive
        process.kill()
        process.wait()
        shutil.rmtree(tmp_path / "pack")
        make_pack(tmp_path / "pack", random_units(5, 8), facts(8))
    finally:
        process.kill()
        process.communicate()
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "pack"])


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    units = random_units(20, 32)
    (tmp_path / "pack").mkdir()
    make_pack(tmp_path / "pack", units, facts(32))  # an empty folder is no obstacle
    with pytest.raises(StorageError, match="is there already"):
        make_pack(tmp_path / "pack", units, facts(32))
    with pytest.raises(StorageError, match="is there already"):
        make_pack(tmp_path / "pack" / MANIFEST, units, facts(32))
    # Two processes that make one pack at once: the second takes what the first made, and refuses another.
    for name, theirs in (("same", units), ("other", units[1:])):
        with PackWriter(tmp_path / name, facts(32)) as writer:
            for number, unit in enumerate(units):
                writer.add(unit, number % 2)
            sources = [SourceFacts(path="a"), SourceFacts(path="b")]
            made: Manifest = make_pack(tmp_path / name, theirs, facts(32)).manifest
            if name == "same":
                assert writer.finish(sources).identity == made.identity
            else:
                with pytest.raises(StorageError, match="other: cannot be written"):
                    writer.finish(sources)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "pack", "same"]
