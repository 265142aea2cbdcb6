"""An answer with tool calls, taken apart while it is still being written.

Text that was generated under `tool_grammar.call_grammar` goes in, in pieces of any size; prose, and the starts and
arguments of calls come out as soon as it is certain what they are. What may still become a call is not shown as prose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from qafila.text.call_arguments import JSONArguments, PythonArguments
from qafila.text.tool_grammar import CallStyle

_TAGS = {"chatml": "<tool_call>", "function": "<function="}
_QUOTED = re.compile(r'"([^"\\]*)"')
# Longest name that `tools` reads.
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the prose."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of a call.

    Attributes:
        index: which of the answer's calls, from 0.
        id: on the first delta of the call alone.
        name: of the tool, on the first delta alone.
        arguments: more of the arguments as JSON text; all pieces of a call together are one JSON object.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


Delta: TypeAlias = TextDelta | CallDelta


class _Arguments(Protocol):
    def push(self, text: str) -> tuple[str, int]: ...

    @property
    def done(self) -> bool: ...


class _More(Exception):  # noqa: N818 (no error: the text so far fits)
    """What is there is the beginning of a call's head, and no more."""


class _No(Exception):  # noqa: N818
    """What is there is not the head of a call."""


class CallStream:
    """Splits one answer into deltas.

    What comes out does not depend on how the text was cut into pieces, but for where deltas of one kind are cut. An
    answer that ends within a call's arguments gives what there is of them, see `cut`.

    Args:
        style: how the model writes calls.
        call_id: makes the id of a new call.
        names: of the tools there are; a call of another name is prose. None for any name.
    """

    def __init__(self, style: CallStyle, *, call_id: Callable[[], str], names: Collection[str] | None = None) -> None:
        self._style = style
        self._call_id = call_id
        self._names = None if names is None else frozenset(names)
        self._held = ""
        self._calls = 0
        self._arguments: _Arguments | None = None
        self._prose = False

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return self._calls

    @property
    def cut(self) -> bool:
        """Whether the text so far ends within a call: its arguments are not complete."""
        return self._arguments is not None

    def push(self, text: str) -> list[Delta]:
        """Take more of the answer, without special tokens.

        Returns:
            What is certain now.
        """
        self._held += text
        found: list[Delta] = []
        while self._held and self._step(found):
            pass
        return _joined(found)

    def finish(self) -> list[Delta]:
        """The answer is over: what was held back and is no call after all.

        A call that was cut before its arguments is text where nothing but it is there; behind a tag or another call it
        is dropped.
        """
        held, self._held = self._held, ""
        tag = _TAGS.get(self._style)
        if self.cut or not held or self._calls or (tag and held.startswith(tag)):
            return []
        return [TextDelta(held)]

    def _step(self, found: list[Delta]) -> bool:
        """One part of the held text; whether to go on."""
        if self._arguments is not None:
            piece, end = self._arguments.push(self._held)
            self._held = self._held[end:]
            if piece:
                found.append(CallDelta(self._calls - 1, arguments=piece))
            if self._arguments.done:
                self._arguments = None
            return bool(self._held)
        if self._prose:
            return self._text(found, len(self._held))
        tag = _TAGS.get(self._style)
        if tag is not None:
            at = self._held.find(tag)
            if at < 0:
                end = len(self._held) - _overlap(self._held, tag)
                if self._calls:
                    self._held = self._held[end:]
                else:
                    self._text(found, end)
                return False
            if self._calls:
                self._held = self._held[at:]
            else:
                self._text(found, at)
        return self._head(found, tag)

    def _text(self, found: list[Delta], end: int) -> bool:
        if end:
            found.append(TextDelta(self._held[:end]))
            self._held = self._held[end:]
        return bool(self._held)

    def _head(self, found: list[Delta], tag: str | None) -> bool:
        reader = _Reader(self._held, self._names)
        try:
            if self._style == "pythonic":
                name = reader.python(first=not self._calls)
            elif self._style == "function":
                name = reader.function()
            else:
                name = reader.object(tag)
        except _More:
            return False
        except _No:
            if self._calls:  # what stands between and behind calls, such as "; ", is nobody's text
                self._held = self._held[1:]
                return bool(self._held)
            if tag is None:
                self._prose = True
                return True
            return self._text(found, len(tag))
        self._held = self._held[reader.position :]
        found.append(CallDelta(self._calls, self._call_id(), name))
        self._calls += 1
        self._arguments = PythonArguments() if self._style == "pythonic" else JSONArguments()
        return True


class _Reader:
    """Reads the head of a call, up to its arguments."""

    def __init__(self, text: str, names: frozenset[str] | None) -> None:
        self._text = text
        self._names = names
        self.position = 0

    def object(self, tag: str | None) -> str:
        """``{"type": "function", "name": "f", "parameters":``, after a tag where there is one."""
        if tag is None:
            self._space()
        else:
            self._literal(tag)
            self._space()
        self._literal("{")
        self._space()
        key = self._quoted(("type", "name"))
        self._after(":")
        if key == "type":
            self._quoted(("function",))
            self._after(",")
            self._quoted(("name",))
            self._after(":")
        name = self._quoted(self._names)
        self._after(",")
        self._quoted(("parameters", "arguments"))
        self._after(":")
        self._peek("{")
        return name

    def function(self) -> str:
        """``<function=f>``."""
        self._literal("<function=")
        end = self._text.find(">", self.position)
        name = self._text[self.position : end if end >= 0 else None]
        self._known(name, whole=end >= 0)
        self.position = end + 1
        self._space()
        self._peek("{")
        return name

    def python(self, *, first: bool) -> str:
        """``[f(``, or ``f(`` with what stands between two calls before it."""
        self._space(also="" if first else ",")
        if first:
            self._literal("[")
            self._space()
        start = self.position
        while self.position < len(self._text) and (
            self._text[self.position].isalnum() or self._text[self.position] in "_."
        ):
            self.position += 1
        name = self._text[start : self.position]
        self._known(name, whole=self.position < len(self._text))
        self._space()
        self._literal("(")
        return name

    def _known(self, name: str, *, whole: bool) -> None:
        if not whole:
            if self._names is not None and not any(known.startswith(name) for known in self._names):
                raise _No
            raise _More
        if not name or (self._names is not None and name not in self._names):
            raise _No

    def _space(self, also: str = "") -> None:
        while self.position < len(self._text) and (
            self._text[self.position].isspace() or self._text[self.position] in also
        ):
            self.position += 1

    def _after(self, mark: str) -> None:
        self._space()
        self._literal(mark)
        self._space()

    def _peek(self, mark: str) -> None:
        self._literal(mark)
        self.position -= len(mark)

    def _literal(self, expected: str) -> None:
        found = self._text[self.position : self.position + len(expected)]
        if found == expected:
            self.position += len(expected)
        elif expected.startswith(found):
            raise _More
        else:
            raise _No

    def _quoted(self, options: Collection[str] | None) -> str:
        match = _QUOTED.match(self._text, self.position)
        if match is None:
            rest = self._text[self.position :]
            fits = (
                len(rest) <= _MAX_NAME if options is None else any(f'"{option}"'.startswith(rest) for option in options)
            )
            raise _More if fits and '"'.startswith(rest[:1]) and "\\" not in rest else _No
        if options is not None and match.group(1) not in options:
            raise _No
        self.position = match.end()
        return match.group(1)


def _overlap(text: str, tag: str) -> int:
    """How much of the text's end may be the beginning of the tag."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)


def _joined(deltas: Sequence[Delta]) -> list[Delta]:
    """Deltas of the same kind in a row as one."""
    result: list[Delta] = []
    for delta in deltas:
        last = result[-1] if result else None
        if isinstance(delta, TextDelta) and isinstance(last, TextDelta):
            result[-1] = TextDelta(last.text + delta.text)
        elif isinstance(delta, CallDelta) and isinstance(last, CallDelta) and delta.index == last.index:
            result[-1] = CallDelta(last.index, last.id, last.name, last.arguments + delta.arguments)
        else:
            result.append(delta)
    return result
