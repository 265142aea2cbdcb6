"""Documents into rows of one length, with little padding: best fit over a bounded number of waiting units.

A row takes the longest unit that waits, then again and again the one that leaves the least room, until none fits. Over
all units at once that is first fit decreasing; here it sees those that wait, so memory does not grow with the data.
Rows close one by one, so nothing half full is left lying but the last.
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
        room, row = self._sequence, []
        lengths, waiting = self._lengths, self._waiting
        while (index := bisect_right(lengths, room) - 1) >= 0:
            length = lengths[index]
            queue = waiting[length]
            row.append(queue.popleft())
            room -= length
            if not queue:
                del waiting[length], lengths[index]
        self._units -= len(row)
        self._tokens -= self._sequence - room
        return row
