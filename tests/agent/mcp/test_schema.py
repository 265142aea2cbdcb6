"""Schemas from elsewhere: what is taken and refused, what a model is told, what arguments are held against."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.agent.mcp.schema import MOST_ARGUMENTS, argument_check, told, whole
from qafila.agent.tool import ArgumentsError
from qafila.errors import UsageError


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


TEXT = {"type": "string"}


def wrong(schema: dict[str, Any], arguments: Any) -> str:
    with pytest.raises(ArgumentsError) as error:
        argument_check(whole(schema))(arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(schema: Any) -> str:
    with pytest.raises(UsageError) as error:
        told("x_tool", "", whole(schema))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_references_are_replaced_by_what_they_point_to() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {
            "city": {"type": "string", "enum": ["القاهرة", "Riyadh"]},
            "trip": {"$ref": "#/$defs/leg"},
            "leg": {},
        },
        **an_object(city={"$ref": "#/$defs/city", "description": "Where."}, trip={"$ref": "#/$defs/trip"}),
    }
    made = whole(schema)
    assert made["properties"]["city"] == {"type": "string", "enum": ["القاهرة", "Riyadh"], "description": "Where."}
    assert "$defs" not in made
    assert "$schema" not in made
    assert argument_check(made)({"city": "القاهرة"}) == {"city": "القاهرة"}
    assert wrong(schema, {"city": "Paris"}).startswith("city: 'Paris' is not one of ['القاهرة', 'Riyadh']")


def test_a_reference_beside_other_keywords_holds_with_them() -> None:
    schema = {"$defs": {"short": {"maxLength": 3}}, **an_object(text={"$ref": "#/$defs/short", "type": "string"})}
    assert argument_check(whole(schema))({"text": "abc"})
    assert wrong(schema, {"text": "abcd"}) == "text: 'abcd' is too long"
    assert wrong(schema, {"text": 3}) == "text: 3 is not of type 'string'"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({}, 'must have the type "object"'),
        ({"type": "string"}, 'must have the type "object"'),
        (an_object(a={"type": "sring"}), "is no JSON Schema 2020-12: 'sring' is not valid"),
        (an_object(a={"type": "string", "minLength": "3"}), "is no JSON Schema 2020-12"),
        (an_object(a={"$ref": "https://evil.example/schema.json"}), "leads out of it"),
        (an_object(a={"$ref": "file:///etc/passwd"}), "leads out of it"),
        (an_object(a={"$ref": "#/$defs/none"}), "leads nowhere"),
        (an_object(a={"$ref": "#"}), "refers to itself"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, **an_object(a={"$ref": "#/$defs/a"})},
            "itself",
        ),
        (an_object(a={"$ref": 3}), "leads out of it"),
        (an_object(a={"$dynamicRef": "#x"}), "keyword $dynamicRef"),
        ({**an_object(), "patternProperties": {"(a+)+$": TEXT}}, "keyword patternProperties"),
        (an_object(a={"type": "string", "pattern": "(?=x)y"}), "pattern '(?=x)y', which is not supported"),
        (an_object(a={"type": "string", "pattern": "("}), "which is not supported"),
        ({**an_object(**{"two words": TEXT}), "required": ["two words"]}, "has a name that calls cannot have"),
        ({**an_object(), "properties": []}, "is no JSON Schema 2020-12"),
    ],
)
def test_what_is_no_schema_or_cannot_be_checked_is_refused(schema: Any, message: str) -> None:
    assert message in refused(schema)


def test_depth_and_size_are_bounded() -> None:
    deep: dict[str, Any] = TEXT
    for _ in range(40):
        deep = an_object(a=deep)
    assert "nested more than 24 levels deep" in refused(deep)
    bomb = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 5} for i in range(7)} | {"d7": TEXT}
    started = time.monotonic()
    assert "more than 2000 parts" in refused({"$defs": bomb, **an_object(a={"$ref": "#/$defs/d0"})})
    assert time.monotonic() - started < 2
    assert "they are longer than" in wrong(an_object(a=TEXT), {"a": "x" * MOST_ARGUMENTS})


def test_a_pattern_costs_linear_time() -> None:
    schema = an_object(a={"type": "string", "pattern": "^(a+)+$"})
    started = time.monotonic()
    assert wrong(schema, {"a": "a" * 50_000 + "!"}) == "a: does not match '^(a+)+$'"
    assert time.monotonic() - started < 2
    assert argument_check(whole(schema))({"a": "aaa"})


@pytest.mark.parametrize(
    ("schema", "arguments", "message"),
    [
        ({**an_object(a=TEXT), "required": ["a"]}, {}, "arguments: 'a' is a required property"),
        (
            an_object(a={"type": "array", "items": {"type": "integer"}}),
            {"a": [1, "٢"]},
            "a.1: '٢' is not of type 'integer'",
        ),
        (an_object(a={"type": "integer", "minimum": 3}), {"a": 2}, "a: 2 is less than the minimum of 3"),
        (an_object(a=TEXT), {"b": "x"}, "arguments: Additional properties are not allowed ('b' was unexpected)"),
        (
            an_object(a={"multipleOf": 1e-300}),
            {"a": 10**400},
            "they are nested too deeply, or hold a number that is too",
        ),
        (an_object(a=TEXT), {"a": True}, "a: True is not of type 'string'"),
        (an_object(الاسم=TEXT), {"الاسم": 3}, "الاسم: 3 is not of type 'string'"),
    ],
)
def test_wrong_arguments_are_named(schema: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    assert wrong(schema, arguments).startswith(message)


def test_what_models_cannot_write_is_checked_and_not_told() -> None:
    schema = {
        **an_object(
            day={"type": "string", "format": "date", "pattern": "^2", "description": "When\u202e, as\n YYYY."},
            tags={"type": "array", "items": TEXT, "uniqueItems": True, "minItems": 1},
            size={"oneOf": [{"type": "integer"}, {"enum": ["small", "large"]}]},
            either={"type": ["string", "null"], "minLength": 2},
            anything={"not": {"type": "null"}},
            place={"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
            **{"not a name": TEXT},
        ),
        "required": ["day"],
        "dependentRequired": {"size": ["tags"]},
    }
    assert told("x_tool", "Says.", whole(schema)).parameters == {
        "type": "object",
        "properties": {
            "day": {"type": "string", "description": "When, as YYYY."},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "size": {"anyOf": [{"type": "integer"}, {"enum": ["small", "large"]}]},
            "either": {"anyOf": [{"type": "string", "minLength": 2}, {"type": "null"}]},
            "anything": {},
            "place": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
        },
        "required": ["day"],
    }
    assert wrong(schema, {"day": "1999-01-01"}) == "day: does not match '^2'"
    assert "has non-unique elements" in wrong(schema, {"day": "2", "tags": ["a", "a"]})
    assert wrong(schema, {"day": "2", "size": 3}) == "arguments: 'tags' is a dependency of 'size'"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "items",
                    "enum",
                    "anyOf",
                    "allOf",
                    "$ref",
                    "required",
                    "const",
                    "not",
                    "a",
                    "pattern",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(schema=st.dictionaries(st.sampled_from(["properties", "required", "anyOf", "$defs", "allOf"]), JSON), value=JSON)
def test_whatever_is_sent_as_a_schema_is_taken_or_refused(schema: dict[str, Any], value: Any) -> None:
    try:
        made = whole({**schema, "type": "object"})
        told("x_tool", "", made)
    except UsageError:
        return
    try:
        argument_check(made)({"a": value})
    except ArgumentsError:
        return
