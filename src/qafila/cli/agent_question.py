"""What a person is asked about calls, and what they answer at the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from qafila.cli import stdin, terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qafila.agent.events import Asked, Intended

_MOST_LINES, _MOST_CHARACTERS = 40, 4000


def preview(intent: Intended) -> str:
    """All that a call will do, for a person: the call itself, and the diff of what it changes.

    Values are whole where nothing but the call says what it does; what shows nothing and could make a text look like
    another one is written out.
    """
    from qafila.agent.show import call_line

    lines = [call_line(intent.name, intent.arguments, whole=not intent.edits)]
    for edit in intent.edits:
        # Calendars, for one, have carriage returns before their line feeds.
        lines += [line.removesuffix("\r") for line in edit.diff().rstrip("\n").split("\n")]
    return terminal.unambiguous("\n".join(lines))


def question(asked: Asked) -> str:
    """All that a person is told of a call before they decide."""
    return f"{preview(asked.intent)}\n{grounds(asked)}"


def grounds(asked: Asked) -> str:
    """Where the values of a call come from that are not the user's, and why it is asked about."""
    from qafila.agent.show import source_line

    return terminal.unambiguous("\n".join([*map(source_line, asked.sources), f"({asked.why})"]))


def shortened(text: str) -> str | None:
    """The beginning of a preview, where it is too long to be read at once; else None."""
    lines = text.split("\n")
    short = "\n".join(lines[:_MOST_LINES])[:_MOST_CHARACTERS]
    if short == text:
        return None
    return f"{short}\n[{len(text) - len(short):,} more characters]"


#: What a person may write, and what it means.
_WORDS = {
    "y": ("y", "yes", "نعم"),
    "n": ("n", "no", "لا"),
    "a": ("a", "all", "الكل"),
    "o": ("o", "one by one", "واحدا واحدا", "واحدًا واحدًا"),
    "l": ("l", "later", "لاحقا", "لاحقًا"),
}
_ANSWERS = {"y": (True, ""), "n": (False, ""), "l": None}


async def ask_at_terminal(asked: Sequence[Asked]) -> Sequence[tuple[bool, str] | None]:
    """Ask the person at the terminal; None where nobody is there, so that the run waits."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return [None] * len(asked)
    wholes = [preview(one.intent) for one in asked]
    shorts = [shortened(whole) for whole in wholes]
    for number, (one, whole, short) in enumerate(zip(asked, wholes, shorts, strict=True), 1):
        which = f"{number} of {len(asked)}: " if len(asked) > 1 else ""
        print(f"\n{which}{short or whole}\n{grounds(one)}", file=sys.stderr)
    if len(asked) > 1:
        more = [whole for whole, short in zip(wholes, shorts, strict=True) if short]
        said = await _said("carry out all of them? [y]es, [n]o, [o]ne by one, [l]ater", "yno", "\n\n".join(more))
        if said != "o":
            return [_ANSWERS[said]] * len(asked)
    found = []
    for number, (whole, short) in enumerate(zip(wholes, shorts, strict=True), 1):
        which = f"number {number}" if len(asked) > 1 else "it"
        said = await _said(f"carry {which} out? [y]es, [n]o, [l]ater", "yn", whole if short else "")
        found.append(_ANSWERS[said])
    return found


async def _said(question: str, letters: str, whole: str) -> str:
    """One of these letters, or "l"; ``whole``: what was shown in part, and can be seen first."""
    rest = ", [a]ll of what is cut" if whole else ""
    while True:
        print(f"{question}{rest}: ", end="", file=sys.stderr, flush=True)
        line = await stdin.typed()
        said = line.strip().lower()
        letter = next((one for one, words in _WORDS.items() if said in words), "") if line else "l"
        if letter == "a" and whole:
            print(whole, file=sys.stderr)
        elif letter and letter in f"{letters}l":
            return letter
