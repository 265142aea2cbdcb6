"""Calls written under their grammars parse, name a tool that is there, and fit its schema, whatever the model likes.

`benchmarks/tool_calls.py` does the same ten thousand times.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import LLAMA3, ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.chat.llama import Llama
from qafila.engine.grammar import GrammarCompiler, GrammarMatcher
from qafila.engine.request import GrammarSpec
from qafila.errors import UsageError
from qafila.text.argument_schema import MAX_FREE_DEPTH
from qafila.text.call_stream import CallDelta, CallStream
from qafila.text.messages import ToolSchema
from qafila.text.tool_grammar import STYLES, CallStyle, call_grammar, words_grammar
from qafila.text.tools import MAX_CALLS, parse_tool_calls, render_tool_calls

TOKENIZER = ByteTokenizer(LLAMA3, eos="<|eot_id|>")
COMPILER = GrammarCompiler(TOKENIZER)
STOP = TOKENIZER.special_tokens["<|eot_id|>"]


def permits(matcher: GrammarMatcher, token: int) -> bool:
    return bool(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")[token])


def allowed(grammar: str, text: str, before: str | None = None) -> int | None:
    """None where the grammar allows the whole text and an end after it, else how much of the text it allows."""
    matcher = COMPILER.compile(GrammarSpec("lark", grammar)).matcher()
    if before is not None:
        matcher.accept(TOKENIZER.special_tokens[before])
    for index, byte in enumerate(text.encode()):
        if not permits(matcher, byte):
            return len(text.encode()[:index].decode(errors="ignore"))
        matcher.accept(byte)
    return None if permits(matcher, STOP) else len(text)


def tool(properties: dict[str, Any] | None = None, name: str = "f", **more: Any) -> ToolSchema:
    return ToolSchema(name, "", {"type": "object", "properties": properties or {}, **more})


def call(style: CallStyle, arguments: str, name: str = "f") -> str:
    return {
        "json": f'{{"type": "function", "name": "{name}", "parameters": {arguments}}}',
        "function": f"<function={name}>{arguments}</function>",
        "chatml": f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>',
        "pythonic": f"[{name}({arguments})]",
    }[style]


EMPTY = {"json": "{}", "function": "{}", "chatml": "{}", "pythonic": ""}
JOINED = {"json": "; ", "function": "; ", "chatml": "\n"}
TOOLS = [tool(), tool(name="get"), tool({"city": {"type": "string"}}, "get_weather", required=["city"])]


def several(style: CallStyle, count: int) -> str:
    if style == "pythonic":
        return f"[{', '.join(['f()'] * count)}]"
    return JOINED[style].join([call(style, "{}")] * count)


@pytest.mark.parametrize("style", STYLES)
def test_calls_one_or_several_with_or_without_prose(style: CallStyle) -> None:
    auto = call_grammar(TOOLS, style)
    required = call_grammar(TOOLS, style, choice="required", parallel=False)
    named = call_grammar(TOOLS, style, choice="required", names=["get"])
    one = call(style, EMPTY[style], "get")
    for grammar in (auto, required, named):
        assert allowed(grammar, one) is None
    assert allowed(named, call(style, EMPTY[style], "f")) is not None
    assert allowed(auto, "Hello, [1] {2}.") is None
    assert allowed(required, "Hello") == 0
    assert allowed(auto, several(style, MAX_CALLS)) is None
    assert parse_tool_calls(several(style, MAX_CALLS)) is not None
    assert allowed(auto, several(style, MAX_CALLS + 1)) is not None
    assert allowed(required, several(style, 2)) is not None
    if style in ("chatml", "function"):
        assert allowed(auto, f"I will look.\n{one}") is None
        assert allowed(required, f"I will look.\n{one}") == 0


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "arguments": {}}',
        ' {"parameters": {}, "name": "f"}',
        '{"function": {"name": "f", "arguments": "{}"}}',
        '{"type": "function", "name": "f"}',
        '{"n\\u0061me": "f", "\\u0070arameters": {}}',
        "[f(a=1)]",
        "[f(a=1), g()]\n",
        "[ f . g ()]",
        "[(f)()]",
        "<tool_call>{}</tool_call>",
        '<function=g>{"a": 1}</function>',
        'Well: <function=g>{"a": 1}</function>',
        'f.call(query="x") and more',
    ],
)
def test_prose_is_nothing_that_would_be_read_as_a_call(style: CallStyle, text: str) -> None:
    tools = [tool({"a": {"type": "string"}}, "h", required=["a"])]
    assert allowed(call_grammar(tools, style), text) is not None
    assert allowed(words_grammar(), text) is not None


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"name": "Ada", "born": 1815}',
        "[1, 2]",
        "[link](https://example.org) (x)",
        "f(x) <b>",
        "<",
        "{",
        "[",
        "سلام",
    ],
)
def test_other_prose_is_free(style: CallStyle, text: str) -> None:
    assert allowed(call_grammar(TOOLS, style), text) is None
    assert allowed(words_grammar(), text) is None
    assert parse_tool_calls(text) is None


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_that_must_match_a_schema(style: CallStyle) -> None:
    answer = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    tree = {"$ref": "#/$defs/t"}
    recursive = tool(
        {"t": tree, "u": {"$ref": "#/properties/t"}}, "r", **{"$defs": {"t": {"type": "array", "items": tree}}}
    )
    grammar = call_grammar([*TOOLS, recursive], style, answer=json.dumps(answer))
    assert allowed(grammar, '{"name": "Ada"}') is None
    assert allowed(grammar, "Ada") == 0
    assert allowed(grammar, several(style, 2)) is None
    inner = "t=[[], []], u=[]" if style == "pythonic" else '{"t": [[], []], "u": []}'
    assert allowed(grammar, call(style, inner, "r")) is None


def test_a_special_token_may_stand_before_calls() -> None:
    grammar = call_grammar(TOOLS, "json", begin="<|python_tag|>")
    assert allowed(grammar, call("json", "{}"), "<|python_tag|>") is None
    assert allowed(grammar, call("json", "{}")) is None
    assert allowed(grammar, "Hello", "<|python_tag|>") == 0


ARGUMENTS = [
    ({"a": {"type": "string", "maxLength": 2}}, ["{}", '{"a": "xy"}', '{"a": "\\n"}'], ['{"a": "xyz"}', '{"b": 1}']),
    ({"a": {"type": "integer", "minimum": 3, "maximum": 10}}, ['{"a": 3}', '{"a": 10}'], ['{"a": 2}', '{"a": 3.5}']),
    ({"a": {"type": "number"}}, ['{"a": 1.5}', '{"a": -100000000000000000000}'], ['{"a": 1e999}', '{"a": "1"}']),
    ({"a": {"enum": ["it's", 1, None]}}, ['{"a": "it\'s"}', '{"a": 1}', '{"a": null}'], ['{"a": "its"}']),
    ({"a": {"type": ["boolean", "null"]}}, ['{"a": true}', '{"a": null}'], ['{"a": 0}']),
    (
        {"a": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}},
        ['{"a": [1]}', '{"a": [1, 2]}'],
        ['{"a": []}', '{"a": [1, 2, 3]}', '{"a": ["1"]}'],
    ),
    (
        {"a": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": {"type": "null"}}},
        ['{"a": []}', '{"a": [1]}', '{"a": [1, "x", null, null]}'],
        ['{"a": ["x"]}', '{"a": [1, "x", 1]}'],
    ),
    (
        {"a": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {}, "z": {}}, "required": ["y"]}},
        ['{"a": {"x": 1, "y": {"k": [1.5, {}]}, "z": "q"}}', '{"a": {"y": 1}}'],
        ['{"a": {"x": 1}}', '{"a": {"y": 1, "w": 2}}'],
    ),
    (
        {"a": {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": {"type": "string"}}},
        ['{"a": {}}', '{"a": {"x": 1, "k": "v"}}', '{"a": {"k": "v", "l": "w"}}'],
        ['{"a": {"x": "1"}}', '{"a": {"k": 1}}'],
    ),
    ({"a": {"type": "string", "pattern": '^"\\d+"$'}}, ['{"a": "\\"12\\""}'], ['{"a": "12"}']),
    ({"a": {"type": "string", "format": "date"}}, ['{"a": "2024-02-29"}'], ['{"a": "2024-13-01"}']),
    ({"a": {"oneOf": [{"type": "string"}, {"type": "number"}]}}, ['{"a": "x"}', '{"a": 1.5}'], ['{"a": null}']),
    ({"a": {"allOf": [{"type": "integer"}, {"minimum": 0}]}}, ['{"a": 3}'], ['{"a": -3}']),
    ({"a": {"type": "integer"}, "b": {}, "c": {}}, ['{"b": 1}', '{"a": 1, "c": []}', "{}"], ['{"b": 1, "a": 1}']),
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("properties", "fit", "unfit"), ARGUMENTS)
def test_arguments_are_what_the_schema_says(
    style: CallStyle, properties: dict[str, Any], fit: list[str], unfit: list[str]
) -> None:
    grammar = call_grammar([tool(properties)], style)
    for text, good in [(text, True) for text in fit] + [(text, False) for text in unfit]:
        if style == "pythonic" and "1e999" in text:
            written = "[f(a=1e999)]"
        elif style == "pythonic":
            parsed = parse_tool_calls(call("json", text))
            assert parsed is not None
            written = render_tool_calls(parsed, "pythonic")
        else:
            written = call(style, text)
        assert (allowed(grammar, written) is None) is good, written


def test_both_kinds_of_quotes_and_all_characters_in_python_text() -> None:
    grammar = call_grammar([tool({"a": {"type": "string"}, "b": {"enum": ["it's", 'a"\\']}})], "pythonic")
    for text in ["[f(a='it\\'s \"x\"')]", "[f(a=\"\\x00\\n\", b='it\\'s')]", '[f(b="it\'s")]', "[f(b='a\"\\\\')]"]:
        assert allowed(grammar, text) is None
        assert parse_tool_calls(text) is not None
    for text in ["[f(a='\n')]", "[f(a='\\ud800')]", "[f(a='\\q')]", "[f(a=f'x')]"]:
        assert allowed(grammar, text) is not None


@pytest.mark.parametrize("style", STYLES)
def test_a_tool_without_arguments_and_one_that_is_all_reference(style: CallStyle) -> None:
    for parameters in ({}, {"type": "object"}, {"type": "object", "properties": {}}):
        grammar = call_grammar([ToolSchema("f", "", parameters)], style)
        assert allowed(grammar, call(style, EMPTY[style])) is None
        assert allowed(grammar, call(style, "a=1" if style == "pythonic" else '{"a": 1}')) is not None
    inner = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"$ref": "#"}}, "required": ["a"]}
    grammar = call_grammar([ToolSchema("f", "", {"$ref": "#/$defs/m", "$defs": {"m": inner}})], style)
    assert allowed(grammar, call(style, "a=1" if style == "pythonic" else '{"a": 1}')) is None
    assert allowed(grammar, call(style, "a=True" if style == "pythonic" else '{"a": true}')) is not None


@pytest.mark.parametrize(
    ("schema", "fit", "unfit"),
    [
        ({"patternProperties": {"^x": {"type": "number"}}, "additionalProperties": False}, {"x1": 1.5}, {"y": 1}),
        (
            {"properties": {"n": {"type": "number"}, "m": {}}, "anyOf": [{"required": ["n"]}]},
            {"n": 1.5, "m": [1]},
            {"m": 1},
        ),
        ({"allOf": [{"properties": {"n": {"type": "number"}}}, {"title": "only"}]}, {"n": 1.5}, {"n": "1"}),
        ({"allOf": [{"$ref": "#/$defs/n"}], "description": "old pydantic"}, {"n": 1}, {"n": "1"}),
        ({"minProperties": 1, "additionalProperties": {"type": "number"}}, {"n": 1}, {}),
    ],
)
def test_numbers_are_finite_in_less_usual_json_schemas(schema: Any, fit: Any, unfit: Any) -> None:
    definitions = {"n": {"type": "object", "properties": {"n": {"type": "number"}}}}
    outer = tool({"a": {"type": "object", **schema}}, **{"$defs": definitions})
    grammar = call_grammar([outer], "json")
    assert allowed(grammar, call("json", json.dumps({"a": fit}))) is None
    assert allowed(grammar, call("json", json.dumps({"a": unfit}))) is not None
    name = next(iter(fit))
    assert allowed(grammar, call("json", f'{{"a": {{"{name}": 1e999}}}}')) is not None


@pytest.mark.parametrize("style", STYLES)
def test_long_text_is_no_trouble(style: CallStyle) -> None:
    text = '"' + 3000 * "x" + '"'
    written = call(style, f"a={text}" if style == "pythonic" else f'{{"a": {text}}}')
    for most, good in [(100_000, True), (3000, True), (2999, False)]:
        grammar = call_grammar([tool({"a": {"type": "string", "maxLength": most}})], style)
        assert (allowed(grammar, written) is None) is good


@pytest.mark.parametrize("style", STYLES)
def test_white_space_has_an_end(style: CallStyle) -> None:
    grammar = call_grammar([tool({"a": {"type": "array", "items": {"type": "integer"}}})], style)
    inner = "a=[{}1]" if style == "pythonic" else '{{"a": [{}1]}}'
    assert allowed(grammar, call(style, inner.format(" " * 10))) is None
    assert allowed(grammar, call(style, inner.format(" " * 100))) is not None


@pytest.mark.parametrize("style", STYLES)
def test_values_that_may_be_anything_do_not_nest_beyond_what_is_read(style: CallStyle) -> None:
    grammar = call_grammar([tool({"a": {}})], style)
    for depth, good in [(MAX_FREE_DEPTH, True), (MAX_FREE_DEPTH + 1, False)]:
        value = "[" * depth + "]" * depth
        written = call(style, f"a={value}" if style == "pythonic" else f'{{"a": {value}}}')
        assert (allowed(grammar, written) is None) is good
        assert parse_tool_calls(written) is not None


@pytest.mark.parametrize("style", ["json", "function", "chatml"])
def test_what_json_calls_do_not_support_is_refused_by_name(style: CallStyle) -> None:
    for schema, words in [({"type": "array", "uniqueItems": True}, "uniqueItems"), ({"not": {}}, "not")]:
        with pytest.raises(UsageError, match=words):
            COMPILER.compile(GrammarSpec("lark", call_grammar([tool({"a": schema})], style)))


@pytest.mark.parametrize("style", STYLES)
def test_many_tools_and_many_arguments_are_no_trouble(style: CallStyle) -> None:
    properties = {f"argument_{i}": {"type": "string"} for i in range(12)}
    tools = [tool({**properties, "any": {}}, f"tool_{i}", required=["argument_3"]) for i in range(40)]
    inner = 'argument_3="x"' if style == "pythonic" else '{"argument_3": "x"}'
    assert allowed(call_grammar(tools, style), call(style, inner, "tool_39")) is None


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "tool_calls.py"
    spec = importlib.util.spec_from_file_location("tool_calls", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tool_calls"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def llama(default_gguf: Path) -> Iterator[Llama]:
    with Llama.load(default_gguf) as loaded:
        yield loaded


@pytest.mark.parametrize("cases", [48, pytest.param(200, marks=pytest.mark.slow)])
def test_hot_answers_of_the_default_model_are_calls_that_fit(script: ModuleType, llama: Llama, cases: int) -> None:
    report = script.Cases(llama, seed=1, most_tokens=80).run(cases)
    assert report.faults == []
    assert report.total("cases") == cases
    for style in STYLES:
        assert report.outcomes[style]["calls"] >= cases // 40
    assert report.total("complete") + report.total("cut") + report.total("refused") == cases


FRAGMENTS = [
    *('{"', "name", '"', ": ", '"parameters"', '"arguments', '"type": "function"', "}", "[", "(", ")", "]", "f", "get"),
    *(
        "a=",
        "1",
        "<tool_call>",
        "<tool_",
        "<function=",
        "f>",
        "{}",
        "\n",
        " ",
        ", ",
        ".call(query=",
        "\\u00",
        "6e",
        "é",
    ),
    *("\u3000", "; ", '{"name": "get", "', "[get(", "</tool_call>", "</function>"),
]
GRAMMARS = {style: COMPILER.compile(GrammarSpec("lark", call_grammar(TOOLS, style))) for style in STYLES}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(STYLES), st.lists(st.sampled_from(FRAGMENTS), max_size=14))
def test_what_is_read_as_calls_is_calls_of_tools_that_are_there(style: CallStyle, parts: list[str]) -> None:
    """Fragments that the grammar does not allow are left out, so that whatever comes together is an answer."""
    matcher, text = GRAMMARS[style].matcher(), ""
    for part in parts:
        for byte in part.encode():
            if not permits(matcher, byte):
                break
            matcher.accept(byte)
            text += chr(byte)
    if not permits(matcher, STOP):
        return
    text = text.encode("latin-1").decode(errors="replace")
    stream = CallStream(style, call_id=lambda: "id")
    deltas = [*stream.push(text), *stream.finish()]
    streamed = [delta.name for delta in deltas if isinstance(delta, CallDelta) and delta.name is not None]
    assert streamed == [call.name for call in parse_tool_calls(text) or ()]
    assert {*streamed} <= {tool.name for tool in TOOLS}
