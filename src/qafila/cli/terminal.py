"""What a terminal is told: text a model wrote, and which way it runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# A model may be made to write escape sequences, and a terminal obeys them: it can be made to retitle its window, to
# answer as if the user had typed, or to hide text. C0 and C1 controls but tab and newline, and DEL.
# Overrides make letters run against their direction: no writing needs them, and with them one text looks like another.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202d\u202e]")
# Letters that show nothing: marks and ends of direction, which Arabic text may hold, zero widths, tags, soft hyphens;
# separators of lines and paragraphs, at which some terminals begin a line.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)

# "BiDi in Terminal Emulators" (freedesktop): let the terminal take each paragraph's direction from its text. Terminals
# that do not know the mode ignore it.
_DIRECTION_FROM_TEXT = "\x1b[?2501h"
_DIRECTION_AS_BEFORE = "\x1b[?2501l"


def printable(text: str) -> str:
    """``text`` without anything that a terminal would obey."""
    return _CONTROLS.sub("\ufffd", text)


def unambiguous(text: str) -> str:
    """``text`` as a person has to see it who decides by it: as `printable`, and what cannot be seen is written out."""
    return printable(_UNSEEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", text))


def show(text: str) -> None:
    """Print a piece of a model's text at once; on a terminal its control characters are shown as U+FFFD."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


@contextmanager
def direction_from_text() -> Iterator[None]:
    """Right-to-left paragraphs run from the right while the block lasts, on terminals that can."""
    if not sys.stdout.isatty():
        yield
        return
    sys.stdout.write(_DIRECTION_FROM_TEXT)
    try:
        yield
    finally:
        sys.stdout.write(_DIRECTION_AS_BEFORE)
        sys.stdout.flush()
