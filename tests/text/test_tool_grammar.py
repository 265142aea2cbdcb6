"""What cannot be called is refused by name, and nothing in a schema gets out of its place in the grammar's text."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from byte_tokenizer import CHATML, LLAMA3, LLAMA4, ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.errors import UsageError
from qafila.text.argument_schema import MAX_FREE_DEPTH, readable
from qafila.text.chat_format import ChatFormat
from qafila.text.formats import FORMATS, chat_format
from qafila.text.messages import ToolSchema
from qafila.text.template import TemplateFormat
from qafila.text.tool_grammar import STYLES, CallStyle, call_grammar


def tool(properties: dict[str, Any] | None = None, name: str = "f", **more: Any) -> ToolSchema:
    return ToolSchema(name, "", {"type": "object", "properties": properties or {}, **more})


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "object", "patternProperties": {"a": {}}}, "patternProperties"),
        ({"type": "object", "additionalProperties": {}, "minProperties": 1}, "minProperties"),
        ({"type": "string", "contentSchema": {}}, "contentSchema"),
        ({"if": {"type": "string"}}, "if"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 4}]}, "oneOf"),
        ({"oneOf": [{"const": 1}, {"type": "integer"}]}, "oneOf"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}], "type": "string"}, "anyOf"),
        ({"allOf": [{"type": "string", "maxLength": 3}, {"maxLength": 2}]}, "allOf"),
        ({"$ref": "https://example.org/s.json"}, "example.org"),
        ({"$ref": "#/$defs/none"}, "nowhere"),
        ({"$ref": "#"}, "without end"),
        ({"enum": []}, "enum"),
        ({"required": [1]}, "required"),
        ({"properties": []}, "properties"),
        ({"allOf": {}}, "allOf"),
        ({"enum": ["\ud800"]}, "surrogate"),
        ({"type": "colour"}, "colour"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems"),
        ({"type": "string", "minLength": "3"}, "minLength"),
        (
            {"type": "object", "properties": {"it's": {}}, "additionalProperties": {"type": "string"}},
            "additionalProperties",
        ),
    ],
)
def test_what_python_calls_do_not_support_is_refused_by_name(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        call_grammar([tool(), tool({"a": schema}, "g", required=["a"])], "pythonic")
    assert words in str(caught.value)
    assert str(caught.value).startswith("tools[1].parameters: JSON schema: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["not a name", "get-weather", "class", "1st", "ﬁ", "", "a)", "__debug__", "True"])
def test_python_calls_need_python_names(name: str) -> None:
    with pytest.raises(UsageError, match=r"tools\[0\]\.parameters: .* is no Python name"):
        call_grammar([tool({name: {}})], "pythonic")
    with pytest.raises(UsageError, match=r"tools\[0\]\.name: .* is no Python name"):
        call_grammar([tool(name=name)], "pythonic")


@pytest.mark.parametrize(
    ("style", "name"), [("json", 'a"b'), ("chatml", "a b"), ("function", "a>b"), ("json", ""), ("function", "a\n")]
)
def test_a_tools_name_must_be_one_that_is_read_again(style: CallStyle, name: str) -> None:
    with pytest.raises(UsageError, match=r"^tools\[0\]\.name: "):
        call_grammar([tool(name=name)], style)


@pytest.mark.parametrize(
    ("tools", "options", "words"),
    [
        ([], {}, "tools: there is none"),
        ([tool()], {"names": ["g"]}, "tool_choice: there is no tool of the name 'g'"),
        ([tool()], {"names": []}, "tools: there is none"),
        ([tool(), tool()], {}, r"tools\[1\].name: there are two"),
        ([ToolSchema("f", "", {"type": "array"})], {}, r"tools\[0\].parameters.type"),
        ([tool()], {"answer": "{"}, "response_format: the schema is no JSON"),
        ([tool()], {"answer": "[]"}, "response_format: the schema must be"),
        ([tool()], {"begin": "x | y"}, "cannot stand in a grammar"),
    ],
)
def test_what_makes_no_sense_is_refused(tools: list[ToolSchema], options: dict[str, Any], words: str) -> None:
    for style in STYLES:
        with pytest.raises(UsageError, match=words):
            call_grammar(tools, style, **options)


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    for style in STYLES:
        with pytest.raises(UsageError, match="nested more than 64 levels"):
            call_grammar([tool({"a": schema})], style)


def test_a_schema_that_refers_to_itself_everywhere_is_refused_quickly() -> None:
    definitions = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{j}"} for j in range(30)]} for i in range(30)}
    with pytest.raises(UsageError, match="JSON schema"):
        call_grammar([tool({"a": {"$ref": "#/$defs/d0"}}, **{"$defs": definitions, "required": ["a"]})], "pythonic")


KEYWORDS = st.sampled_from(
    [
        *(
            "type",
            "properties",
            "required",
            "additionalProperties",
            "items",
            "prefixItems",
            "enum",
            "const",
            "anyOf",
            "oneOf",
        ),
        *(
            "allOf",
            "$ref",
            "$defs",
            "minItems",
            "maxItems",
            "minLength",
            "maxLength",
            "pattern",
            "minimum",
            "not",
            "a",
            "title",
        ),
    ]
)
VALUES = st.sampled_from(
    [
        *("object", "array", "string", "number", "integer", "null", "#", "#/$defs/a", "#/properties/a", "a", "\ud800"),
        *(None, True, False, 0, 1, -1, 2.5, 1e308, 10**30),
    ]
)
SCHEMAS = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(STYLES), st.dictionaries(KEYWORDS, SCHEMAS, max_size=5))
def test_whatever_stands_for_a_schema_is_a_grammar_or_refused(style: CallStyle, schema: dict[str, Any]) -> None:
    refusal = ""
    try:
        call_grammar([ToolSchema("f", "", schema)], style).encode()
    except UsageError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith("tools[0].parameters")
    assert "\n" not in refusal


@pytest.mark.parametrize("style", STYLES)
def test_nothing_in_a_schema_begins_a_line_of_the_grammar(style: CallStyle) -> None:
    hostile = 'x"\nstart: /.*/\nPROSE: /.*/ // %json {} <tool_call> \\'
    schema = {"enum": [hostile], "description": hostile}
    inner = {"type": "object", "properties": {hostile: {}}, "title": hostile}
    made = call_grammar([ToolSchema("f", hostile, {"properties": {"a": schema, "b": inner}})], style)
    heads = [line.partition(":")[0] for line in made.splitlines()]
    assert all(re.fullmatch(r"start|[cpFNP]\d+|[A-Z_]+", head) for head in heads)
    assert len(set(heads)) == len(heads)
    assert "\\n" in made


def test_annotations_go_and_properties_of_their_names_stay() -> None:
    schema = {"properties": {"description": {"type": "string", "description": "d", "default": ""}}, "title": "t"}
    assert readable(schema, "") == {
        "type": "object",
        "properties": {"description": {"type": "string"}},
        "additionalProperties": False,
    }


def test_values_that_may_be_anything_are_finite() -> None:
    made = readable({"properties": {"a": {}, "b": {"type": "number"}}}, "")
    assert made["properties"]["a"] == {"$ref": f"#/$defs/*any{MAX_FREE_DEPTH}"}
    assert len(made["$defs"]) == MAX_FREE_DEPTH + 1
    integer, decimal = made["properties"]["b"]["anyOf"]
    assert integer == {"type": "integer"}
    assert decimal["minimum"] == -decimal["maximum"]
    json.dumps(made)


def styles() -> dict[str, CallStyle | None]:
    tokens = {"llama-3": LLAMA3, "llama-4": LLAMA4}
    return {
        name: chat_format(
            name, ByteTokenizer(next((t for p, t in tokens.items() if name.startswith(p)), CHATML))
        ).call_style
        for name in FORMATS
        if not name.startswith("code-llama-70b")
    }


def test_every_format_says_how_it_writes_calls() -> None:
    told = {name: style for name, style in styles().items() if style is not None}
    assert told == {
        "llama-3.1": "json",
        "llama-3.2": "pythonic",
        "llama-4": "pythonic",
        "chatml": "chatml",
        "smollm2": "chatml",
    }
    function = chat_format("llama-3.1", ByteTokenizer(LLAMA3), tool_format="function")
    assert function.call_style == "function"
    assert function.call_token is None
    assert chat_format("llama-3.1", ByteTokenizer(LLAMA3), ipython=True).call_token == "<|python_tag|>"


@pytest.mark.parametrize(
    ("source", "style"),
    [
        ("{{ messages }}", None),
        ("{{ tools }} <tool_call>", "chatml"),
        ("{{ tools }} [func_name1(params_name1=params_value1)]", "pythonic"),
        ("{{ tools }} <function=name>", "function"),
        ('{{ tools }} {"name": function name, "parameters": ...}', "json"),
    ],
)
def test_a_template_is_asked_what_it_mentions(source: str, style: CallStyle | None) -> None:
    made: ChatFormat = TemplateFormat(source, ByteTokenizer(CHATML))
    assert made.call_style == style
