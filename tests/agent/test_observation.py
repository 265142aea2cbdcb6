"""What a model is told of a call: bounded, printable, and always text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qafila.agent.observation import MOST_KEPT, MOST_SHOWN, Observation, observation


class Awkward:
    def __repr__(self) -> str:
        raise ValueError("no words for it")


class Endless:
    """Something to walk through without end, which nobody should."""

    def __iter__(self) -> Endless:
        return self

    def __next__(self) -> int:
        raise AssertionError("nobody asked for an item")

    def __repr__(self) -> str:
        return "<endless>"


def test_short_text_stays_as_it_is() -> None:
    for text in ("ok", "two\nlines\n", "\ttab", "سطر", "a" * MOST_SHOWN):
        assert observation(text) == Observation(status="ok", text=text)


@pytest.mark.parametrize("value", ["", b"", []])
def test_nothing_is_said_to_be_nothing_or_empty(value: Any) -> None:
    assert observation(value).text == ("[]" if value == [] else "(nothing)")


@pytest.mark.parametrize(
    "value", [{"a": [1, 2.5, None, True], "b": {"س": "ص"}}, [1, "two"], 3, 2.5, True, None, ("a", 1)]
)
def test_json_values_are_json(value: Any) -> None:
    assert json.loads(observation(value).text) == json.loads(json.dumps(value))
    assert "\\u" not in observation(value).text


def test_what_is_no_json_is_shown_somehow() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value, words in (
        ({1, 2}, "{1, 2}"), ({"a": b"b"}, "b'b'"), (object, "object"), (1j, "1j"), (loop, "..."),
        ({(1, 2): 3}, "(1, 2)"), (Endless(), "<endless>"), (Awkward(), "Awkward"), ([Awkward()], "list"),
    ):  # fmt: skip
        assert words in observation(value).text


def test_long_text_shows_its_beginning_and_its_end() -> None:
    text = "BEGIN" + "x" * 50_000 + "END"
    found = observation(text)
    assert found.whole == text
    head, rest = found.text.split("\n[... ")
    count, tail = rest.split(" characters left out ...]\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + len(tail) == MOST_SHOWN
    assert int(count.replace(",", "")) == len(text) - MOST_SHOWN


@pytest.mark.parametrize("as_bytes", [False, True])
def test_of_megabytes_the_end_is_shown_and_a_part_is_kept(as_bytes: bool) -> None:
    text = "BEGIN" + "x" * (5 << 20) + "the last line: exit status 1"
    found = observation(text.encode() if as_bytes else text)
    assert found.text.startswith("BEGIN")
    assert found.text.endswith("the last line: exit status 1")
    assert f"[... {len(text) - MOST_SHOWN:,} characters left out ...]" in found.text
    assert len(found.text) < MOST_SHOWN + 100
    assert found.whole == text[:MOST_KEPT]


def test_controls_and_surrogates_reach_nobody() -> None:
    found = observation("a\x1b[31mb\x00c\rd\x9b\ud800e\udcfff\r\ng\x7f")
    assert found.text == "a\ufffd[31mb\ufffdc\ufffdd\ufffd\ufffde\ufffdf\ng\ufffd"
    assert observation(b"a\xff\xc3\xa9\x00").text == "a\ufffdé\ufffd"
    assert "\ud800" not in observation({"a": "\ud800"}).text


def test_only_what_worked_is_told_without_its_status() -> None:
    assert observation("x").told() == "x"
    assert observation("x", "error").told() == "error: x"
    assert observation("x", "timeout").told() == "timeout: x"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(categories=None)), inner),
)


@given(
    st.one_of(JSON, st.binary(max_size=3000), st.text(st.characters(categories=None), max_size=3000)),
    st.integers(30, 100),
)
def test_any_value_is_an_observation_that_can_be_written_down(value: Any, most: int) -> None:
    found = observation(value, most=most)
    assert Observation.model_validate_json(found.model_dump_json()) == found
    assert 0 < len(found.text) < most + 60
    assert not any(c < " " and c not in "\t\n" for c in found.text)
