"""Where values come from: what the user said can be trusted, what tools, pages and files said cannot.

A value that stands in the user's own words is the user's. Everything else that a model writes into a call may have been
put there by a text that it read, so that it is untrusted, whatever the model thinks of it. The same holds of the choice
of a tool: once such a text was read, it is the user's only where the user's own words ask for that tool.

Nothing here looks at the texts that were read: whatever they say, they cannot become the user's words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from qafila.agent.spelling import one_alef, plain, spaced, without_vowels

# A number of its own: no part of a word, date, time, version, range or address. Thousands may be grouped by commas.
_NUMBER = re.compile(r"(?<![\w.,@+/\\:-])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w@+/\\-]|[.,:]\d)")
# A word of a call, not a part of a longer word, address, path or number: "a@b.co" does not stand in "a@b.com".
_BEFORE, _AFTER = r"(?<![\w@.+/\\:=&%#~?-])", r"(?![\w@+/\\-]|[.:?=&%#~]\w)"
# Where the user says what is not to be done, a word may stand for its opposite.
_NOT = re.compile(
    r"(?<!\w)(?:not|never|no|nothing|none|nor|neither|without|cannot|avoid|except|instead|rather than"
    r"|\w+n['’]t|dont|cant"
    r"|[وف]?(?:لا|لم|لن|ليس|بدون|دون|بلا|غير|سوى|الا|ممنوع|تجنب|اياك|بدل|عدم))(?!\w)"
)


def _whole(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """What a pattern finds in a text and no mark or invisible letter joins to more: to patterns those end a word."""
    place = 0
    while found := pattern.search(text, place):
        start, end = found.span()
        around = text[max(0, start - 1) : start] + text[end : end + 1]
        if not any(unicodedata.category(one) in ("Mn", "Mc", "Me", "Cf") for one in around):
            yield found[0]
        place = start + 1


def _verb(text: str) -> str:
    """A text in which words are looked for that ask for a tool, however they are written."""
    return one_alef(without_vowels(plain(text)))


class Trusted:
    """What the user said, to be searched for values and for words that ask for tools.

    Args:
        texts: of the user: the goal, and what was said since.
        read: whether the model has been told anything that is not the user's.
        before: what the user said in other runs: values stand there, but it asks for no tool now.
    """

    def __init__(self, texts: Sequence[str], *, read: bool = False, before: Sequence[str] = ()) -> None:
        self.read = read
        every = (*texts, *before)
        self._texts = tuple(plain(text) for text in every)
        self._written = tuple(spaced(unicodedata.normalize("NFC", text)) for text in every)
        self._numbers = frozenset(
            Decimal(found.replace(",", "")) for text in self._texts for found in _whole(_NUMBER, text)
        )
        # A message with a "not" in it asks for no tool: what it is about cannot be told without understanding it.
        wishes = (_verb(text) for text in texts)
        self._wishes = tuple(text for text in wishes if not _NOT.search(text))

    def holds(self, value: Any, name: str = "", declared: Collection[str] = ()) -> bool:
        """Whether a value is the user's: text or a number that stands in the user's words, or parts that all do.

        Texts are compared without case and spaces, numbers by what they are worth (٣, 3 and 3.00 are one number). A
        truth value is the user's where the name of its parameter stands there; nothing is nobody's.

        Args:
            value: of an argument. name: the parameter's. declared: keys of objects that the tool's author named.
        """
        if value is None:
            return True
        if isinstance(value, bool):
            return bool(name) and self._stands(plain(name.replace("_", " ")), self._texts)
        if isinstance(value, int | float):
            return Decimal(repr(value) if isinstance(value, float) else value) in self._numbers
        if isinstance(value, str):
            return self._holds_text(value)
        if isinstance(value, Mapping):
            return all(
                (key in declared or self.holds(key)) and self.holds(inner, str(key), declared)
                for key, inner in value.items()
            )
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            return all(self.holds(inner, name, declared) for inner in value)
        return False

    def says(self, text: str) -> bool:
        """Whether the user says a text: a whole message of theirs, or a part of one that has no "not" in it."""
        wanted = plain(text)
        affirmed = tuple(one for one in self._texts if one == wanted or not _NOT.search(_verb(one)))
        return bool(wanted) and self._stands(wanted, affirmed) and self._holds_text(text)

    def asks_for(self, words: Collection[str]) -> bool:
        """Whether one of these words, by which a user asks for a tool, stands in what the user said.

        Arabic words may carry "and" before them and a pronoun after them.
        """
        return any(
            re.search(rf"(?<!\w)[وف]?{re.escape(_verb(word))}(?:ه|ها|هم|هما|هن)?(?!\w)", text)
            for word in words
            if _verb(word)
            for text in self._wishes
        )

    def _holds_text(self, value: str) -> bool:
        wanted = spaced(unicodedata.normalize("NFC", value))
        if not wanted or self._stands(wanted, self._written):
            return True
        # What is written otherwise than the user wrote it may look the same and be another file or mailbox: only the
        # user's words are brought into one form for the comparison, the value has to be in it.
        return wanted == plain(value) and self._stands(wanted, self._texts)

    @staticmethod
    def _stands(wanted: str, texts: Sequence[str]) -> bool:
        word = re.compile(_BEFORE + re.escape(wanted) + _AFTER)
        # A pattern is tried anew at every letter, and most texts do not hold the value at all.
        return any(found for text in texts if wanted in text for found in _whole(word, text))


def untrusted(
    arguments: Mapping[str, Any],
    trusted: Trusted,
    enums: Mapping[str, Sequence[Any]] | None = None,
    declared: Collection[str] = (),
) -> frozenset[str]:
    """The arguments whose values are not the user's.

    Args:
        arguments: of a call. trusted: the user's words. enums: values that may be trusted wherever they came from, by
            argument: a choice among them can do no harm. declared: keys of objects that the tool's author named.
    """
    known = enums or {}
    return frozenset(
        name
        for name, value in arguments.items()
        if not _among(value, known.get(name, ())) and not trusted.holds(value, name, declared)
    )


def _among(value: Any, known: Sequence[Any]) -> bool:
    """Whether a value is one of these; true is no 1 here."""
    return any(type(value) is type(one) and value == one for one in known)


def declared_keys(schema: Any) -> Iterator[str]:
    """The names of all properties in a JSON schema of parameters, at any depth."""
    if isinstance(schema, Mapping):
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            yield from properties
        for inner in schema.values():
            yield from declared_keys(inner)
    elif isinstance(schema, Sequence) and not isinstance(schema, str):
        for inner in schema:
            yield from declared_keys(inner)
