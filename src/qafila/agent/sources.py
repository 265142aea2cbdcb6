"""Where the values of a call stand in what the model was told, for whoever is asked about the call.

This decides nothing (see `qafila.agent.provenance`): a text that was read is quoted, and people see what it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qafila.agent.events import Source
from qafila.agent.provenance import Trusted
from qafila.agent.show import call_line
from qafila.text.messages import Message

# Values that are told of, characters of one (longer ones are texts, and act nowhere), and of a quote on either side.
_MOST, _MOST_VALUE, _AROUND = 8, 200, 60


def sources(arguments: Mapping[str, Any], trusted: Trusted, messages: Sequence[Message]) -> tuple[Source, ...]:
    """Where each value that is not the user's was first read.

    Args:
        arguments: of a call, those that may be somebody else's. trusted: the user's words. messages: what the model was
            told and said before the call.
    """
    calls = {call.id: call for message in messages for call in message.tool_calls}
    told = []
    for message in messages:
        call = calls.get(message.tool_call_id or "") if message.role == "tool" else None
        if message.role != "assistant":
            told.append((call_line(call.name, call.arguments) if call is not None else "", message.text))
    found: list[Source] = []
    for name, value in arguments.items():
        for leaf in _leaves(value):
            if len(found) < _MOST and 0 < len(leaf) <= _MOST_VALUE and not trusted.holds(leaf):
                found.append(_source(name, leaf, told))
    return tuple(found)


def _source(argument: str, value: str, told: Sequence[tuple[str, str]]) -> Source:
    words = r"\s+".join(map(re.escape, value.split()))
    wanted = re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
    for by, text in told:
        if words and (stands := wanted.search(text)):
            return Source(argument=argument, value=value, told_by=by, quote=_quote(text, *stands.span()))
    return Source(argument=argument, value=value)


def _quote(text: str, begin: int, end: int) -> str:
    first, last = max(0, begin - _AROUND), min(len(text), end + _AROUND)
    quoted = " ".join(text[first:last].split())
    return f"{'…' if first else ''}{quoted}{'…' if last < len(text) else ''}"


def _leaves(value: Any) -> Iterator[str]:
    """The texts and numbers in a value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
