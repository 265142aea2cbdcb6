"""Where the values of a call stand in what the model was told, for whoever is asked about the call.

This decides nothing (see `qafila.agent.provenance`): a text that was read is quoted, and people see what it says.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qafila.agent.events import Source
from qafila.agent.provenance import Trusted
from qafila.agent.show import call_line
from qafila.text.messages import Message, ToolCall

# Values that are told of, characters of one (longer ones are texts, and act nowhere), and of a quote on either side.
_MOST, _MOST_VALUE, _AROUND = 8, 200, 60
# Places inside longer words that are passed over in search of one value; a page may be made of nothing else.
_MOST_INSIDE = 1000


@dataclass(frozen=True, slots=True)
class _Told:
    """What the model was told. ``words``: with one space between them; ``small``: those in small letters, as long."""

    call: ToolCall | None
    words: str
    small: str


def sources(
    arguments: Mapping[str, Any], trusted: Trusted, messages: Sequence[Message], declared: Collection[str] = ()
) -> tuple[Source, ...]:
    """Where each value that is not the user's was first read.

    Args:
        arguments: of a call, those that may be somebody else's. trusted: the user's words. messages: what the model was
            told and said before the call. declared: keys of objects that the tool's author named.
    """
    leaves = ((name, leaf) for name, value in arguments.items() for leaf in _leaves(value, declared))
    foreign = (
        (name, str(leaf)) for name, leaf in leaves if 0 < len(str(leaf)) <= _MOST_VALUE and not trusted.holds(leaf)
    )
    wanted = list(itertools.islice(foreign, _MOST))
    if not wanted:
        return ()
    calls = {call.id: call for message in messages for call in message.tool_calls}
    told = []
    for message in messages:
        if message.role != "assistant":
            words = " ".join(message.text.split())
            call = calls.get(message.tool_call_id or "") if message.role == "tool" else None
            told.append(_Told(call, words, _small(words)))
    return tuple(_source(name, leaf, told) for name, leaf in wanted)


def _source(argument: str, value: str, told: Sequence[_Told]) -> Source:
    wanted = _small(" ".join(value.split()))
    left = _MOST_INSIDE
    for one in told if wanted else ():
        # Found as plain text, in a time that no text can make long; a pattern is tried anew at every letter.
        begin = one.small.find(wanted)
        while begin >= 0:
            end = begin + len(wanted)
            if left == 0 or not (_in_word(one.small[begin - 1 : begin]) or _in_word(one.small[end : end + 1])):
                by = call_line(one.call.name, one.call.arguments) if one.call is not None else ""
                return Source(argument=argument, value=value, told_by=by, quote=_quote(one.words, begin, end))
            left -= 1
            begin = one.small.find(wanted, begin + 1)
    return Source(argument=argument, value=value)


def _small(text: str) -> str:
    return text.replace("\u0130", "i").lower()  # the one letter whose small form is two


def _in_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


def _quote(text: str, begin: int, end: int) -> str:
    first, last = max(0, begin - _AROUND), min(len(text), end + _AROUND)
    return f"{'…' if first else ''}{text[first:last].strip()}{'…' if last < len(text) else ''}"


def _leaves(value: Any, declared: Collection[str]) -> Iterator[Any]:
    """The texts and numbers in a value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in declared:
                yield str(key)
            yield from _leaves(inner, declared)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, declared)
    elif value is not None and not isinstance(value, bool):
        yield value
