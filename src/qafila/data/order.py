"""Shuffling without a list: where each place of an order leads, computed when it is asked for.

A generalised Feistel network on a times b >= n values, walked until it lands below n (Black and Rogaway, "Ciphers with
arbitrary finite domains", 2002), with the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) as round function. It
needs no memory for any number of rows and does not change with NumPy's version, as its generators' permutations may:
a run is resumed in the very order that it began with.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

_ROUNDS: Final = 24  # enough for a handful of rows too: with 8, the orders of six were not equally likely
_BLOCK: Final = 4096  # places computed at once: the cost of a call is spread over many rows
_GOLDEN: Final = 0x9E3779B97F4A7C15
_ALL: Final = (1 << 64) - 1


def _scramble(value: int) -> int:
    """SplitMix64's finaliser on one number."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _ALL
    return value ^ (value >> 31)


def _scramble_all(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same on many."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def shuffled(places: NDArray[np.uint64], n: int, *key: int) -> NDArray[np.uint64]:
    """The values at ``places`` of a permutation of 0 .. n - 1 that ``key`` chooses.

    Args:
        places: uint64 [any], each below ``n``.
        n: how many there are, at most 2**62.
        key: whole numbers, not negative.
    """
    assert 0 < n <= 1 << 62
    state = 0
    for part in key:
        state = _scramble((state + part + _GOLDEN) & _ALL)
    rounds = [np.uint64(_scramble((state + number * _GOLDEN) & _ALL)) for number in range(1, _ROUNDS + 1)]
    high = math.isqrt(n - 1) + 1
    a, b = np.uint64(high), np.uint64(-(-n // high))
    found = places.copy()
    outside = np.arange(len(found))
    while len(outside):
        left, right = np.divmod(found[outside], b)
        for number, own in enumerate(rounds):
            if number % 2:
                right = (right + _scramble_all(left ^ own) % b) % b
            else:
                left = (left + _scramble_all(right ^ own) % a) % a
        values = left * b + right
        found[outside] = values
        outside = outside[values >= np.uint64(n)]
    return found


class Order:
    """The rows of one source in the order in which they are learned, epoch after epoch.

    Args:
        rows: how many there are.
        seed, number: of the run, and of the source in it.
        shuffle: an order of its own each epoch; else as they lie.
    """

    def __init__(self, rows: int, seed: int, number: int, *, shuffle: bool) -> None:
        self._rows, self._key, self._shuffle = rows, (seed, number), shuffle
        self._at = (-1, -1)
        self._block: list[int] = []

    def row(self, position: int) -> int:
        """The row at a position counted through all epochs."""
        epoch, place = divmod(position, self._rows)
        if not self._shuffle:
            return place
        block, offset = divmod(place, _BLOCK)
        if self._at != (epoch, block):
            first = block * _BLOCK
            places = np.arange(first, min(first + _BLOCK, self._rows), dtype=np.uint64)
            self._block = shuffled(places, self._rows, *self._key, epoch).tolist()
            self._at = (epoch, block)
        return self._block[offset]
