"""Rows of documents: nothing lost, nothing torn apart, little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@given(st.lists(st.integers(1, 40), min_size=1, max_size=120))
@settings(max_examples=100, deadline=None)
def test_with_all_waiting_it_is_first_fit_decreasing(lengths: list[int]) -> None:
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        for bin_, free in enumerate(room):
            if free >= length:
                room[bin_] -= length
                break
        else:
            room.append(40 - length)
    rows = rows_of(lengths, 40)
    assert [40 - sum(lengths[n] for n in row) for row in rows] == room


@pytest.mark.parametrize("sequence", [512, 2048, 8192])
@pytest.mark.parametrize("median", [100, 400, 1200])
def test_under_two_percent_is_padding(sequence: int, median: int) -> None:
    """Log-normal lengths, as those of instructions, chats and web pages are; longer ones come split by the encoder."""
    random = np.random.default_rng(median + sequence)
    whole = np.exp(random.normal(np.log(median), 1.0, 12000)).astype(int) + 2
    lengths = [min(sequence, left) for n in whole for left in range(n, 0, -sequence)]
    rows = rows_of(lengths, sequence, waiting_tokens=1 << 20)
    assert 1 - sum(lengths) / (len(rows) * sequence) < 0.02


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
