"""Passages: pieces of a text file that are small enough to be shown, each with the lines it stands in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

#: Characters of a passage; a longer line is a passage of its own, cut there.
MOST = 500


@dataclass(frozen=True, slots=True)
class Passage:
    """Lines ``first`` to ``last`` of a file, the first line being 1."""

    path: str
    first: int
    last: int
    text: str

    @property
    def span(self) -> str:
        """Where it stands, as it is cited: ``path:first-last``."""
        lines = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.path}:{lines}"


def passages(path: str, text: str) -> Iterator[Passage]:
    """The passages of a text, in order: paragraphs, joined while they are short and cut between lines where long."""
    lines: list[str] = []
    first = 1
    for number, line in enumerate(text.splitlines(), 1):
        size = sum(map(len, lines)) + len(line)
        # A new paragraph begins a new passage once there is enough of one; a heading stays with what follows.
        full = size > MOST or (not line.strip() and size > MOST // 2)
        if full and any(one.strip() for one in lines):
            yield _made(path, first, lines)
            lines = []
        if not lines:
            first = number
        if lines or line.strip():
            lines.append(line[:MOST])
    if any(one.strip() for one in lines):
        yield _made(path, first, lines)


def _made(path: str, first: int, lines: list[str]) -> Passage:
    while not lines[-1].strip():
        lines = lines[:-1]
    return Passage(path, first, first + len(lines) - 1, "\n".join(lines))
