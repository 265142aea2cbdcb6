"""What is learned, and in which order: the same for any number of ranks, and after any interruption."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_packs import facts, make_pack, random_units

from qafila.data.batch import IGNORED, Batch
from qafila.data.loader import Loader, Source
from qafila.data.order import Order, shuffled
from qafila.data.shards import NO_SOURCE, Pack
from qafila.errors import DataError, UsageError

S = 32


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> list[Pack]:
    folder = tmp_path_factory.mktemp("packs")
    return [
        make_pack(folder / str(n), random_units(count, S, seed=n), facts(S), shard_bytes=2000)
        for n, count in enumerate((60, 25, 90))
    ]


def mixture(
    packs: list[Pack], weights: tuple[float, ...] = (5.0, 1.0, 2.0), epochs: float | None = None
) -> list[Source]:
    return [Source(p, w, f"s{n}", epochs) for n, (p, w) in enumerate(zip(packs, weights, strict=True))]


def order(loader: Loader, steps: int) -> list[tuple[str, int]]:
    return [row for _ in range(steps) for batch in loader.next_step() for row in batch.rows]


@given(n=st.integers(1, 3000), key=st.lists(st.integers(0, 1 << 70), min_size=1, max_size=3))
@settings(max_examples=80, deadline=None)
def test_shuffling_is_a_permutation(n: int, key: list[int]) -> None:
    found = shuffled(np.arange(n, dtype=np.uint64), n, *key)
    assert sorted(found.tolist()) == list(range(n))
    some = np.arange(0, n, 7, dtype=np.uint64)
    assert (shuffled(some, n, *key) == found[::7]).all()


@pytest.mark.parametrize("n", [4, 6])
def test_all_permutations_are_about_as_likely(n: int) -> None:
    places = np.arange(n, dtype=np.uint64)
    kinds = math.factorial(n)
    tries = 5 * kinds
    seen = Counter(tuple(shuffled(places, n, seed, 0).tolist()) for seed in range(tries))
    chi = sum((seen[k] - tries / kinds) ** 2 for k in seen) * kinds / tries + (kinds - len(seen)) * tries / kinds
    assert chi < kinds + 5 * (2 * kinds) ** 0.5


def test_neighbours_are_far_apart() -> None:
    n = 10_000
    found = shuffled(np.arange(n, dtype=np.uint64), n, 3).astype(np.int64)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.03
    assert abs(np.abs(np.diff(found)).mean() / (n / 3) - 1) < 0.03
    far = (1 << 62) - 1
    assert int(shuffled(np.array([far - 1], np.uint64), far, 1)[0]) < far


def test_the_order_of_a_seed_is_for_ever() -> None:
    """A resumed run must find it: these values may never change."""
    assert [Order(10, 0, 0, shuffle=True).row(n) for n in range(20)] == [
        7,
        9,
        1,
        2,
        3,
        5,
        6,
        4,
        0,
        8,
        3,
        6,
        9,
        5,
        7,
        8,
        1,
        0,
        4,
        2,
    ]
    assert [Order(3, 5, 1, shuffle=False).row(n) for n in range(7)] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_once_an_epoch(packs: list[Pack], shuffle: bool) -> None:
    rows = len(packs[0])
    loader = Loader([Source(packs[0], 1.0, "a")], rows=1, micro_rows=1, shuffle=shuffle)
    epochs = [[row for _, row in order(loader, rows)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs)
    assert (epochs[0] != epochs[1]) is shuffle
    assert loader.steps is None
    assert loader.epochs() == {"a": 3.0}


def test_every_document_comes_once_an_epoch(packs: list[Pack]) -> None:
    rows = sum(map(len, packs))
    loader = Loader(mixture(packs, (1.0, 1.0, 1.0), epochs=1.0), rows=rows, micro_rows=5)
    (batches,) = [loader.next_step()]
    with pytest.raises(StopIteration):
        loader.next_step()
    seen: Counter[bytes] = Counter()
    for batch in batches:
        ends = np.cumsum(batch.lengths).tolist()
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            seen[batch.ids[start:end].tobytes()] += 1
    for pack in packs:
        for number in range(len(pack)):
            row = pack.row(number)
            ends = np.cumsum(row.lengths).tolist()
            for start, end in zip([0, *ends[:-1]], ends, strict=True):
                seen[row.ids[start:end].astype(np.int64).tobytes()] -= 1
    assert not any(seen.values())
    assert sum(batch.n_targets for batch in batches) == sum(pack.manifest.targets for pack in packs)


def test_epochs_end_with_a_whole_step(packs: list[Pack]) -> None:
    rows = len(packs[0])
    loader = Loader([Source(packs[0], 1.0, "a", 1.5)], rows=4, micro_rows=4)
    assert loader.steps == round(rows * 1.5) // 4
    order(loader, loader.steps)
    with pytest.raises(StopIteration):
        loader.next_step()
    assert loader.consumed == loader.steps * 4


@pytest.mark.parametrize("epochs", [None, 3.0])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_one_order(packs: list[Pack], world: int, epochs: float | None) -> None:
    alone = Loader(mixture(packs, epochs=epochs), rows=8, micro_rows=3, seed=9)
    ranks = [
        Loader(mixture(packs, epochs=epochs), rows=8, micro_rows=3, seed=9, rank=r, world=world) for r in range(world)
    ]
    for _ in range(15):
        whole = order(alone, 1)
        shares = [order(rank, 1) for rank in ranks]
        assert all(len(share) == 8 // world for share in shares)
        assert [share[i] for i in range(8 // world) for share in shares] == whole
        assert all(rank.state_dict() == alone.state_dict() for rank in ranks)


@given(
    before=st.integers(0, 20),
    after=st.integers(1, 20),
    worlds=st.tuples(*[st.sampled_from([1, 2, 4])] * 2),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_resuming_is_as_if_nothing_had_been(
    packs: list[Pack], before: int, after: int, worlds: tuple[int, int], seed: int
) -> None:
    whole = Loader(mixture(packs), rows=4, micro_rows=2, seed=seed)
    expected = order(whole, before + after)[before * 4 :]
    stopped = Loader(mixture(packs), rows=4, micro_rows=2, seed=seed, rank=worlds[0] - 1, world=worlds[0])
    order(stopped, before)
    state = json.loads(json.dumps(stopped.state_dict()))
    ranks = [Loader(mixture(packs), rows=4, micro_rows=1, seed=seed, rank=r, world=worlds[1]) for r in range(worlds[1])]
    for rank in ranks:
        rank.load_state_dict(state)
    shares = [order(rank, after) for rank in ranks]
    assert [share[i] for i in range(4 * after // worlds[1]) for share in shares] == expected
    wider = Loader(mixture(packs), rows=2, micro_rows=2, seed=seed)  # and with another number of rows a step
    wider.load_state_dict(state)
    assert order(wider, after) == expected[: 2 * after]


@given(weights=st.tuples(*[st.floats(0.1, 10.0)] * 3))
@settings(max_examples=30, deadline=None)
def test_the_mixture_has_the_shares_of_its_weights(packs: list[Pack], weights: tuple[float, ...]) -> None:
    loader = Loader(mixture(packs, weights), rows=4, micro_rows=4)
    taken: Counter[str] = Counter()
    for step in range(1, 60):
        taken.update(name for name, _ in order(loader, 1))
        for number, weight in enumerate(weights):
            assert abs(taken[f"s{number}"] - 4 * step * weight / sum(weights)) < 2


def test_weights_multiply_epochs(packs: list[Pack]) -> None:
    loader = Loader(mixture(packs, (1.0, 3.0, 0.5), epochs=2.0), rows=1, micro_rows=1)
    assert loader.steps is not None
    taken = Counter(name for name, _ in order(loader, loader.steps))
    assert taken == {"s0": 2 * len(packs[0]), "s1": 6 * len(packs[1]), "s2": len(packs[2])}


def test_targets_against_a_loop_over_tokens(packs: list[Pack]) -> None:
    loader = Loader(mixture(packs), rows=24, micro_rows=5)
    batches = loader.next_step()
    assert [len(batch.rows) for batch in batches] == [5, 5, 5, 5, 4]
    for batch in batches:
        assert (batch.ids.dtype, batch.targets.dtype, batch.lengths.dtype) == (np.int64, np.int64, np.int32)
        assert (batch.kinds.dtype, batch.margins.dtype) == (np.uint8, np.float32)
        assert len(batch.kinds) == len(batch.margins) == len(batch.lengths)
        expected, at = [], 0
        for name, number in batch.rows:
            row = packs[int(name[1:])].row(number)
            ids, mask = row.ids.tolist(), row.mask.tolist()
            assert batch.ids[at : at + S].tolist() == ids
            at += S
            end = 0
            for length, source in zip(row.lengths.tolist(), row.sources.tolist(), strict=True):
                start, end = end, end + length
                expected += [
                    ids[t + 1] if t + 1 < end and mask[t + 1] and source != NO_SOURCE else IGNORED
                    for t in range(start, end)
                ]
        assert batch.targets.tolist() == expected
        assert batch.n_targets == sum(t != IGNORED for t in expected)
        assert int(batch.lengths.sum()) == len(batch.ids) == S * len(batch.rows)


def test_a_pack_that_learns_first_tokens_does_not_leak(packs: list[Pack]) -> None:
    row = packs[0].row(0)
    row.mask[:] = True
    batch = Batch.of([row, row], [("a", 0), ("a", 0)])
    assert (batch.targets[np.cumsum(batch.lengths) - 1] == IGNORED).all()


def test_other_data_is_refused_by_name(packs: list[Pack], tmp_path: Path) -> None:
    state = Loader(mixture(packs), rows=4, micro_rows=4).state_dict()

    def resume(sources: list[Source], seed: int = 0) -> None:
        Loader(sources, rows=4, micro_rows=4, seed=seed).load_state_dict(state)

    changed = make_pack(tmp_path / "changed", random_units(25, S, seed=77), facts(S))
    with pytest.raises(DataError, match=r"the pack of s1 .* is not the one that the run began with"):
        resume(mixture([packs[0], changed, packs[2]]))
    with pytest.raises(DataError, match="the data was s0, s1, s2, and is s0, s1"):
        resume(mixture(packs[:2], (5.0, 1.0)))
    with pytest.raises(DataError, match=r"s0 was 62.50% of the mixture, and is 25.00%"):
        resume(mixture(packs, (1.0, 1.0, 2.0)))
    with pytest.raises(DataError, match="seed was 0, and is 3"):
        resume(mixture(packs), seed=3)
    foreign = make_pack(tmp_path / "foreign", random_units(9, S), facts(S, tokenizer="cd" * 32))
    with pytest.raises(DataError, match=r"s1: was made with another tokenizer .* than the pack of s0 has"):
        resume(mixture([packs[0], foreign, packs[2]]))
    longer = make_pack(tmp_path / "longer", random_units(9, S), facts(2 * S))
    with pytest.raises(UsageError, match="s2: has rows of 64 tokens, and s0 of 32"):
        resume(mixture([packs[0], packs[1], longer]))


def test_what_cannot_be_shared_out(packs: list[Pack]) -> None:
    with pytest.raises(UsageError, match=r"train.batch: 6 rows cannot be shared out to 4 processes"):
        Loader(mixture(packs), rows=6, micro_rows=2, world=4)
    with pytest.raises(UsageError, match="all sources"):
        Loader([Source(packs[0], 1.0, "a"), Source(packs[1], 1.0, "b", 1.0)], rows=4, micro_rows=2)
    with pytest.raises(UsageError, match="a: its weight is nan"):
        Loader([Source(packs[0], float("nan"), "a")], rows=4, micro_rows=2)
