"""Rows of documents: nothing lost, nothing torn apart, little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.data import packing
from qafila.data.packing import Packer
from qafila.errors import DataError


def rows_of(lengths: list[int], sequence: int, **bounds: int) -> list[list[int]]:
    """Rows as the numbers of the units in them."""
    packer: Packer[int] = Packer(sequence, **bounds)
    rows: list[list[int]] = []
    for number, length in enumerate(lengths):
        rows += packer.add(number, length)
    return rows + list(packer.finish())


@given(
    st.integers(1, 64).flatmap(lambda S: st.tuples(st.just(S), st.lists(st.integers(1, S), max_size=300))),
    st.integers(1, 400),
)
@settings(max_examples=200, deadline=None)
def test_every_unit_lies_whole_in_one_row(case: tuple[int, list[int]], waiting: int) -> None:
    sequence, lengths = case
    rows = rows_of(lengths, sequence, waiting_tokens=1, waiting_units=waiting)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[n] for n in row) <= sequence for row in rows)
    assert rows == rows_of(lengths, sequence, waiting_tokens=1, waiting_units=waiting)


@given(st.integers(1, 24).flatmap(lambda least: st.lists(st.integers(least, 40), min_size=1, max_size=120)))
@settings(max_examples=200, deadline=None)
def test_rows_are_those_of_the_rule(lengths: list[int]) -> None:
    """Written here once more, slowly: the longest, then best fit; for short ones the fullest row there is."""
    waiting = sorted(lengths)
    for row in rows_of(lengths, 40):
        taken = [lengths[number] for number in row]
        best_fit = [waiting[-1]]
        for length in reversed(waiting[:-1]):
            if sum(best_fit) + length <= 40:
                best_fit.append(length)
        assert taken[0] == waiting[-1]
        if waiting[-1] > 18 or sum(best_fit) == 40:  # 18 is 0.45 of a row
            assert taken == best_fit
        else:
            sums = {taken[0]}
            for length in waiting[:-1]:
                sums |= {total + length for total in sums if total + length <= 40}
            assert sum(taken) == max(sums)
            assert sum(taken) > sum(best_fit) or taken == best_fit
        for length in taken:
            waiting.remove(length)
    assert not waiting


@pytest.mark.parametrize("sequence", [512, 2048, 8192])
@pytest.mark.parametrize("median", [100, 400, 1200])
def test_under_two_percent_is_padding(sequence: int, median: int) -> None:
    """Log-normal lengths, as those of instructions, chats and web pages are; longer ones come split by the encoder."""
    random = np.random.default_rng(median + sequence)
    whole = np.exp(random.normal(np.log(median), 1.0, 12000)).astype(int) + 2
    lengths = [min(sequence, left) for n in whole for left in range(n, 0, -sequence)]
    rows = rows_of(lengths, sequence, waiting_tokens=1 << 20)
    assert 1 - sum(lengths) / (len(rows) * sequence) < 0.02


# Tokens of hh-rlhf's pairs in a chat format at these shares of all pairs: short ones, and those of at most 512.
SHARES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
SHORT = (81, 107, 149, 198, 266, 328, 420)
MIXED = (81, 114, 174, 263, 365, 474, 512)


def pairs_of_answers(lengths: tuple[int, ...], count: int, seed: int = 1) -> list[int]:
    """Lengths that are spread as those: none is very short, for a pair has two prompts and two answers."""
    return [int(n) for n in np.interp(np.random.default_rng(seed).random(count), SHARES, lengths)]


@pytest.mark.parametrize(("sequence", "most"), [(512, 0.01), (1024, 0.003), (2048, 0.003)])
def test_little_is_padding_between_pairs(sequence: int, most: float) -> None:
    """Best fit alone leaves 1.1 % of the rows of 512 empty, 1.6 % of those of 1,024."""
    lengths = pairs_of_answers(SHORT, 3000)
    rows = rows_of(lengths, sequence)
    assert 1 - sum(lengths) / (len(rows) * sequence) < most


def least_rows(lengths: list[int], sequence: int) -> int:
    """No packing needs fewer: the bound L2 of Martello and Toth (Knapsack Problems, 1990, section 8.3.2)."""
    best = 0
    for small in range(sequence // 2 + 1):
        alone = sum(n > sequence - small for n in lengths)
        large = [n for n in lengths if sequence // 2 < n <= sequence - small]
        rest = sum(n for n in lengths if small <= n <= sequence // 2)
        over = rest - (len(large) * sequence - sum(large))
        best = max(best, alone + len(large) + max(0, -(-over // sequence)))
    return best


def test_where_pairs_are_long_for_their_rows_little_more_is_padding_than_must_be() -> None:
    """Pairs of about half a row leave room that no other fits into: over 2 % here, in whatever order."""
    lengths = pairs_of_answers(MIXED, 3000)
    rows, least = len(rows_of(lengths, 512)), least_rows(lengths, 512)
    assert 1 - sum(lengths) / (least * 512) > 0.02
    assert least <= rows <= 1.0055 * least


def test_a_search_is_bounded_and_never_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = pairs_of_answers(SHORT, 500)
    free = len(rows_of(lengths, 4096))
    monkeypatch.setattr(packing, "_SEARCH_BITS", 4096 * 3)
    assert free <= len(rows_of(lengths, 4096)) <= free + 3
    monkeypatch.setattr(packing, "_SEARCH_BITS", 0)
    rows = rows_of(lengths, 4096)
    assert sorted(n for row in rows for n in row) == list(range(500))


def test_no_more_waits_than_may() -> None:
    packer: Packer[int] = Packer(100, waiting_tokens=1, waiting_units=50)
    held = 0
    for number in range(1000):
        held += 1
        held -= sum(map(len, packer.add(number, 1 + number % 7)))
        assert held <= 50


@pytest.mark.parametrize("length", [0, 9])
def test_what_fits_no_row_is_refused(length: int) -> None:
    with pytest.raises(DataError, match=rf"unit of {length} tokens does not fit a row of 8"):
        list(Packer(8).add("x", length))
