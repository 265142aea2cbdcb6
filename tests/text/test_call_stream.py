"""Deltas do not depend on how the text was cut, say what `parse_tool_calls` says, and show no call as prose."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.text.call_stream import CallDelta, CallStream, Delta, TextDelta
from qafila.text.messages import ToolCall
from qafila.text.tool_grammar import STYLES, CallStyle
from qafila.text.tools import parse_tool_calls, render_tool_calls


def streamed(
    style: CallStyle, pieces: Sequence[str], names: Sequence[str] | None = None
) -> tuple[list[Any], str, bool]:
    """Name, id and argument text of all calls; the prose; whether it was cut within a call."""
    ids = itertools.count()
    stream = CallStream(style, call_id=lambda: f"id_{next(ids)}", names=names)
    calls: list[list[str]] = []
    prose = ""
    deltas: list[Delta] = [delta for piece in pieces for delta in stream.push(piece)]
    for delta in [*deltas, *stream.finish()]:
        if isinstance(delta, TextDelta):
            assert delta.text
            prose += delta.text
        elif delta.name is not None:
            assert delta.index == len(calls)
            assert delta.id is not None
            calls.append([delta.name, delta.id, delta.arguments])
        else:
            assert delta.id is None
            assert delta.arguments
            calls[delta.index][2] += delta.arguments
    assert stream.calls == len(calls)
    return calls, prose, stream.cut


def written(calls: Sequence[tuple[str, dict[str, Any]]], style: CallStyle) -> str:
    if style == "chatml":
        bodies = (json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) for name, arguments in calls)
        return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
    return render_tool_calls([ToolCall("", name, arguments) for name, arguments in calls], style)


def cut(text: str, places: Sequence[int]) -> list[str]:
    marks = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(marks)]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["</tool_call>", "# Title\n----------", ")]", "(" * 40])
    | st.text("\"'\\{}[](),=: \n\x00\x7f<>é😀", max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["f", "get_weather", "get", "بحث", "ns.tool"])
arguments = st.dictionaries(st.sampled_from(["city", "a", "x1", "سؤال"]), json_values, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(STYLES),
    st.lists(st.tuples(names, arguments), min_size=1, max_size=3),
    st.sampled_from(["", "I'll look.\n", "a < b <tool <func "]),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_calls_come_out_as_the_parser_reads_them(
    style: CallStyle, calls: list[tuple[str, dict[str, Any]]], before: str, places: list[int]
) -> None:
    before = before if style in ("chatml", "function") else ""
    text = before + written(calls, style)
    found, prose, ended_within = streamed(style, cut(text, places))
    assert prose == before
    assert not ended_within
    assert [(name, json.loads(arguments)) for name, _, arguments in found] == calls
    assert [call_id for _, call_id, _ in found] == [f"id_{i}" for i in range(len(calls))]
    # An argument that itself spells a call is one for the parser, which looks for tags first.
    if "<function=" not in json.dumps(calls):
        parsed = parse_tool_calls(text)
        assert parsed is not None
        assert [(call.name, dict(call.arguments)) for call in parsed] == calls


PIECES = [
    *(
        '{"name": "get"',
        ', "parameters": {',
        '"a": 1',
        "}",
        "; ",
        '{"type": "function", ',
        "[get(",
        "a='",
        '"',
        ")",
        "]",
        ", ",
    ),
    *(
        "<tool_call>",
        "\n",
        "<function=get>",
        "</function>",
        "</tool_call>",
        '{"name": "get", "arguments": {}}',
        "x",
        "\\",
        "<",
        "]",
    ),
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(STYLES), st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8), st.booleans())
def test_any_text_gives_the_same_however_it_is_cut(style: CallStyle, parts: list[str], known: bool) -> None:
    text = "".join(parts)
    whole = streamed(style, [text], ["get"] if known else None)
    assert streamed(style, list(text), ["get"] if known else None) == whole
    assert streamed(style, parts, ["get"] if known else None) == whole
    if not whole[0] and not any(tag in text for tag in ("<tool_call>", "<function=")):
        assert whole[1] == text


@pytest.mark.parametrize("style", STYLES)
def test_no_piece_of_a_call_is_shown_as_prose(style: CallStyle) -> None:
    text = written([("get", {"a": "x"}), ("get", {})], style)
    stream = CallStream(style, call_id=lambda: "id")
    for character in text:
        assert all(isinstance(delta, CallDelta) for delta in stream.push(character))
    assert stream.finish() == []


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("json", '{"name": "Ada", "born": 1815}'),
        ("json", '{"name": "unknown", "parameters": {}}'),
        ("json", '{"na'),
        ("json", '{"name": "' + 300 * "f" + '", "parameters": {}}'),
        ("json", " \n{"),
        ("pythonic", "[1, 2]"),
        ("pythonic", "[link](https://example.org)"),
        ("pythonic", "[get"),
        ("pythonic", "[ge]"),
        ("chatml", "a <tool_"),
        ("chatml", "a <tool_call"),
        ("function", "1 <func, 2 <function"),
        ("function", "<"),
    ],
)
def test_what_turns_out_to_be_prose_is_given_back(style: CallStyle, text: str) -> None:
    assert streamed(style, list(text), ["get"]) == ([], text, False)


def test_prose_is_not_held_longer_than_it_must() -> None:
    stream = CallStream("chatml", call_id=lambda: "id")
    assert stream.push("Hello <") == [TextDelta("Hello ")]
    assert stream.push("b> <tool_") == [TextDelta("<b> ")]
    assert stream.push("call") == []
    assert stream.push("s>") == [TextDelta("<tool_calls>")]


def test_arguments_are_not_held_longer_than_they_must() -> None:
    stream = CallStream("pythonic", call_id=lambda: "id")
    assert stream.push("[get(city='Par") == [CallDelta(0, "id", "get", '{"city": "Par')]
    assert stream.push("is\\n") == [CallDelta(0, arguments="is\\n")]
    assert stream.push("', days=1") == [CallDelta(0, arguments='", "days": ')]
    assert stream.push("2, ok=True)") == [CallDelta(0, arguments='12, "ok": true}')]
    assert not stream.cut
    assert stream.push("]") == []


@pytest.mark.parametrize(
    ("style", "text", "name", "arguments"),
    [
        ("json", '{"name": "f", "parameters": {"a": [1, "x', "f", '{"a": [1, "x'),
        ("function", '<function=f>{"a": "}', "f", '{"a": "}'),
        ("pythonic", "[f(a={'b': [True, 'x\\", "f", '{"a": {"b": [true, "x'),
        ("chatml", '<tool_call>\n{"name": "f", "arguments": {', "f", "{"),
    ],
)
def test_a_call_that_was_cut_gives_what_there_is(style: CallStyle, text: str, name: str, arguments: str) -> None:
    assert streamed(style, list(text)) == ([[name, "id_0", arguments]], "", True)


def test_a_call_that_was_cut_before_its_arguments_is_dropped_behind_its_tag() -> None:
    assert streamed("chatml", ["Yes.", '<tool_call>\n{"name": "f'], ["f"]) == ([], "Yes.", False)
