"""Names of events and tasks: short ones for models to write, and titles in one line for models to read."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from qafila.agent.agenda.ics import Component, Ics, escaped
from qafila.agent.agenda.occurrences import Series, series
from qafila.agent.agenda.reminders import is_done
from qafila.agent.agenda.store import Store
from qafila.agent.observation import whole_letters
from qafila.agent.tool import Surroundings, ToolError
from qafila.errors import QafilaError

#: Names that can be chosen from, and letters of a title.
MOST_LIVE, MOST_TITLE = 200, 200
_DIGITS, _MOST_DIGITS, _MOST_SLUG = 4, 12, 24
_NO_TITLE: Final = "(no title)"


def ids(found: Mapping[str, Series]) -> dict[str, Series]:
    """Events or tasks by short names for models: words of the title, and digits that stand for the UID.

    The digits alone say which one is meant, so that a name holds when the title changes.
    """
    length = _DIGITS
    while length < _MOST_DIGITS and len({_digits(uid)[:length] for uid in found}) < len(found):
        length += _DIGITS
    return {f"{_slug(one)}{_digits(uid)[:length]}": one for uid, one in found.items()}


def named(found: Mapping[str, Series], name: str) -> Series:
    """The event or task of a name that `ids` gave, now or when there were others.

    Raises:
        ToolError: there is none, or more than one.
    """
    digits = name.strip().rpartition("-")[2]
    chosen = [one for uid, one in found.items() if len(digits) >= _DIGITS and _digits(uid).startswith(digits)]
    if len(chosen) != 1:
        raise ToolError(f"id: there is no {name!r:.60} (any more); list them to see which there are")
    return chosen[0]


def _digits(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()


def _slug(one: Series) -> str:
    title = one.items[0].text("SUMMARY")
    # Vowel marks would split words.
    bare = "".join(sign for sign in unicodedata.normalize("NFC", title) if unicodedata.category(sign) != "Mn")
    slug = "-".join(re.findall(r"\w+", bare.replace("\u0640", "").casefold()))[:_MOST_SLUG].strip("-_")
    return f"{slug}-" if slug else ""


def existing(store: Store, place: Surroundings, component: str) -> Mapping[str, dict[str, Any]] | None:
    """What an ``id`` can be now: see `still_open`; anything where they cannot be read, or are too many."""
    try:
        names = [name for stored in store.read(place) for name in ids(still_open(stored.ics, component))]
    except (QafilaError, ToolError):
        return {}  # the call itself says what is wrong
    if len(names) > MOST_LIVE:
        return {}
    return {"id": {"type": "string", "enum": names}} if names else None


def still_open(ics: Ics, component: str) -> dict[str, Series]:
    """Events that are not cancelled, or tasks that are not done, by UID."""
    return {uid: one for uid, one in series(ics, component).items() if not is_done(one.items[0])}


def title_of(item: Component) -> str:
    """The title of an event or a task, in one line."""
    return one_line(item.text("SUMMARY")) or _NO_TITLE


def summary(title: str) -> str:
    """The property that holds a title.

    Raises:
        ToolError: it says nothing, or too much.
    """
    if not title.strip() or len(title) > MOST_TITLE:
        raise ToolError(f"title: give it one of 1 to {MOST_TITLE} letters")
    return f"SUMMARY:{escaped(one_line(title))}"


def one_line(text: str) -> str:
    """A text in one line, cut where it is long."""
    return whole_letters(" ".join(text.split()))[:MOST_TITLE]
