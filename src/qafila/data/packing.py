"""Documents into rows of one length, with little padding: best fit over a bounded number of waiting units.

A row takes the longest unit that waits, then again and again the one that leaves the least room, until none fits. Over
all units at once that is first fit decreasing; here it sees those that wait, so memory does not grow with the data.
Rows close one by one, so nothing half full is left lying but the last.

Where no unit is short, as of pairs of answers, that leaves room that another choice would fill. A row whose longest
unit is well under half of it is then given those whose lengths add up to the most (minimum bin slack: Gupta and Ho,
Production Planning & Control 10, 1999). Rows with a longer one are not: it would take the short units that the others
need.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from qafila.errors import DataError

Item = TypeVar("Item")

WAITING_TOKENS: Final = 1 << 22
"""Tokens that wait at most: enough to choose from, 20 MB of memory."""
WAITING_UNITS: Final = 1 << 16
"""Units that wait at most: short ones are many, and each costs some hundred bytes besides its tokens."""
WAITING_ROWS: Final = 32
"""Rows' worth of tokens that may wait in any case, so that there is a choice for very long rows too."""
_SEARCHED: Final = 0.45
"""Rows whose longest unit is at most this share of them are searched for the best filling. Measured on pairs of answers
and on log-normal lengths: with this it is seldom worse than best fit alone, and then by 0.2 %; with 0.6, often."""
_WORTH: Final = 512
"""Room of less than one part in so many of a row is not worth a search."""
_SEARCH_BITS: Final = 1 << 26
"""A search remembers at most so many bits: 8 MB."""


class Packer(Generic[Item]):
    """Puts items into rows of ``sequence`` tokens. The same items in the same order make the same rows.

    Args:
        sequence: tokens of a row.
        waiting_tokens: how many tokens may wait for a row (at least 32 rows of them may).
        waiting_units: how many units may wait.
    """

    def __init__(
        self, sequence: int, *, waiting_tokens: int = WAITING_TOKENS, waiting_units: int = WAITING_UNITS
    ) -> None:
        assert sequence > 0
        self._sequence = sequence
        self._most_tokens = max(waiting_tokens, WAITING_ROWS * sequence)
        self._most_units = waiting_units
        self._lengths: list[int] = []  # those of which something waits, ascending
        self._waiting: dict[int, deque[Item]] = {}
        self._tokens = self._units = 0

    def add(self, item: Item, length: int) -> Iterator[list[Item]]:
        """Let an item of ``length`` tokens wait; gives the rows that had to be closed to make room.

        Raises:
            DataError: the item is longer than a row, or empty.
        """
        if not 0 < length <= self._sequence:
            raise DataError(
                f"a unit of {length} tokens does not fit a row of {self._sequence}: "
                "give a larger sequence, or have over-long examples split, truncated or skipped"
            )
        queue = self._waiting.get(length)
        if queue is None:
            queue = self._waiting[length] = deque()
            insort(self._lengths, length)
        queue.append(item)
        self._tokens += length
        self._units += 1
        while self._tokens > self._most_tokens or self._units > self._most_units:
            yield self._close_row()

    def finish(self) -> Iterator[list[Item]]:
        """The rows of all that still waits."""
        while self._units:
            yield self._close_row()

    def _close_row(self) -> list[Item]:
        longest = self._lengths[-1]
        chosen, room = self._best_fit()
        if room * _WORTH > self._sequence and longest <= _SEARCHED * self._sequence:
            chosen = self._searched(chosen, room)
        row = []
        for length in chosen:
            queue = self._waiting[length]
            row.append(queue.popleft())
            if not queue:
                del self._waiting[length], self._lengths[bisect_right(self._lengths, length) - 1]
        self._units -= len(row)
        self._tokens -= sum(chosen)
        return row

    def _best_fit(self) -> tuple[list[int], int]:
        """Lengths for a row, each the longest that still fits, and the room that is left."""
        lengths, waiting = self._lengths, self._waiting
        chosen: list[int] = []
        room, index = self._sequence, len(lengths)
        while (index := bisect_right(lengths, room, hi=index) - 1) >= 0:
            length = lengths[index]
            times = min(len(waiting[length]), room // length)
            chosen += [length] * times
            room -= times * length
        return chosen, room

    def _searched(self, chosen: list[int], room: int) -> list[int]:
        """Lengths that fill a row better than ``chosen``, which leaves ``room``; ``chosen`` where there are none.

        The longest stays. Bit n of ``sums`` says that n tokens can be had of the units looked at so far.
        """
        free = self._sequence - chosen[0]
        mask, enough = (1 << (free + 1)) - 1, max(0, free - self._sequence // _WORTH)
        sums, before, looked = 1, [], []
        for length in reversed(self._lengths[: bisect_right(self._lengths, free)]):
            there = len(self._waiting[length]) - (length == chosen[0])
            for _ in range(min(there, free // length)):
                before.append(sums)
                looked.append(length)
                sums |= sums << length & mask
            if sums >> enough or len(before) * free > _SEARCH_BITS:
                break
        total = sums.bit_length() - 1
        if total <= free - room:
            return chosen
        found = []
        for length, without in zip(reversed(looked), reversed(before), strict=True):
            if not without >> total & 1:
                found.append(length)
                total -= length
        return [chosen[0], *reversed(found)]
