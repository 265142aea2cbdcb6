"""Where values come from: what the user said can be trusted, what tools, pages and files said cannot.

A value that stands in the user's own words is the user's. Everything else that a model writes into a call may have been
put there by a text that it read, so that it is untrusted, whatever the model thinks of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# Letters that show nothing and could make equal values look different, or different ones equal: bidirectional controls,
# zero-width marks, tatweel.
_INVISIBLE = re.compile("[\u00ad\u0640\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_SPACE = re.compile(r"\s+")
#: Shorter values stand in any text by chance; they have to be words of their own there.
_WHOLE_WORD = 40


def plain(text: str) -> str:
    """A text as it is compared: one form of each letter, no case, no invisible letters, single spaces."""
    return _SPACE.sub(" ", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))).strip().casefold()


class Trusted:
    """What the user said, to be searched for values.

    Args:
        texts: of the user: the goal, and what was said since.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(plain(text) for text in texts)

    def holds(self, value: Any) -> bool:
        """Whether a value is the user's: text or a number that stands in the user's words, or parts that all do.

        Truth values and nothing are nobody's: they name neither a recipient nor a place.
        """
        if value is None or isinstance(value, bool):
            return True
        if isinstance(value, int | float):
            return self._stands(str(value)) or (isinstance(value, float) and self._stands(f"{value:g}"))
        if isinstance(value, str):
            wanted = plain(value)
            return not wanted or self._stands(wanted)
        if isinstance(value, Mapping):
            return all(self.holds(inner) for inner in value.values())
        if isinstance(value, Sequence):
            return all(self.holds(inner) for inner in value)
        return False

    def _stands(self, wanted: str) -> bool:
        if len(wanted) >= _WHOLE_WORD:
            return any(wanted in text for text in self._texts)
        # Not a part of a longer word, address, path or number: "a@b.co" does not stand in "a@b.com".
        word = re.compile(rf"(?<![\w@.+/-]){re.escape(wanted)}(?![\w@+/-]|\.\w)")
        return any(word.search(text) for text in self._texts)


def untrusted(
    arguments: Mapping[str, Any], trusted: Trusted, enums: Mapping[str, Sequence[Any]] | None = None
) -> frozenset[str]:
    """The arguments whose values are not the user's.

    Args:
        arguments: of a call. trusted: the user's words. enums: values that may be trusted wherever they came from, by
            argument: a choice among them can do no harm.
    """
    known = enums or {}
    return frozenset(
        name for name, value in arguments.items() if value not in known.get(name, ()) and not trusted.holds(value)
    )
