"""Whatever the logits say, an answer under a grammar matches it; what cannot be done is refused by name."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import CHATML, ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.engine.grammar import MAX_RULES, GrammarCompiler, GrammarMatcher
from qafila.engine.request import GrammarSpec
from qafila.engine.sampler import Sampled, Sampler, SampleRow
from qafila.errors import QafilaError, TokenizerError, UsageError
from qafila.sampling import SamplingParams

TOKENIZER = ByteTokenizer(CHATML, eos="<|im_end|>")
STOP = TOKENIZER.special_tokens["<|im_end|>"]
COMPILER = GrammarCompiler(TOKENIZER)


def write(matcher: GrammarMatcher, seed: int, most: int = 400, *, vocabulary: int = 260) -> tuple[str, bool]:
    """An answer from random logits that like to stop; its text, and whether it is complete."""
    rng = np.random.default_rng(seed)
    bias = np.zeros(vocabulary, np.float32)
    bias[STOP] = 4
    bias[[ord(c) for c in '"}],:']] = 3
    sampler = Sampler(1)
    text = bytearray()
    for position in range(most):
        matcher.ask()
        logits_RV = (2 * rng.standard_normal((1, vocabulary)).astype(np.float32) + bias).astype(np.float32)
        [chosen] = sampler(logits_RV, [SampleRow(SamplingParams(), seed, position, mask=matcher.mask())])
        assert isinstance(chosen, Sampled)
        complete = matcher.accept(chosen.id)
        if chosen.id == STOP:
            assert complete
            assert matcher.finished
            return text.decode(), True
        text += TOKENIZER.token_bytes(chosen.id)
        if complete:
            return text.decode(), True
    return text.decode(errors="replace"), False


def valid(value: Any, schema: Any) -> bool:
    """A second opinion on the part of JSON schema that the tests use."""
    if "enum" in schema:
        return any(value == item and type(value) is type(item) for item in schema["enum"])
    if "anyOf" in schema:
        return any(valid(value, item) for item in schema["anyOf"])
    match schema["type"]:
        case "string":
            length = len(value) if isinstance(value, str) else -1
            return schema.get("minLength", 0) <= length <= schema.get("maxLength", length)
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "boolean" | "null":
            return isinstance(value, bool) if schema["type"] == "boolean" else value is None
        case "array":
            fits = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return fits and all(valid(item, schema["items"]) for item in value)
        case _:
            properties = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value) <= set(properties)
                and all(valid(item, properties[name]) for name, item in value.items())
            )


NAMES = st.text('abcé "\\', min_size=1, max_size=4)
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-50, 50),
        st.integers(0, 500),
    ),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}]),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(NAMES, st.integers(-3, 3), st.none()), min_size=1, max_size=4),
    ),
)


def grown(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def object_of(properties: dict[str, Any], optional: bool) -> dict[str, Any]:
        required = sorted(properties)[int(optional) :]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.one_of(
        st.builds(object_of, st.dictionaries(NAMES, inner, max_size=3), st.booleans()),
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda items: {"anyOf": items}, st.lists(inner, min_size=1, max_size=2)),
    )


@settings(deadline=None, max_examples=120)
@given(schema=st.recursive(LEAVES, grown, max_leaves=5), seed=st.integers(0, 2**32))
def test_answers_under_a_schema_parse_and_fit(schema: dict[str, Any], seed: int) -> None:
    matcher = COMPILER.compile(GrammarSpec("json_schema", json.dumps(schema))).matcher()
    text, complete = write(matcher, seed, 3000)
    assert complete
    assert valid(json.loads(text), schema)


def test_a_schema_may_be_a_boolean() -> None:
    text, complete = write(COMPILER.compile(GrammarSpec("json_schema", "true")).matcher(), 1, 2000)
    assert complete
    json.loads(text)


def test_any_object() -> None:
    grammar = COMPILER.compile(GrammarSpec("json_object"))
    for seed in range(5):
        text, complete = write(grammar.matcher(), seed, 2000)
        assert not complete or isinstance(json.loads(text), dict)
        assert text.startswith("{")


@pytest.mark.parametrize("pattern", ["(yes|no)", "[a-f0-9]{4}-[a-f0-9]{2}", "a+b?", "é{2,5}"])
def test_answers_match_their_regex(pattern: str) -> None:
    grammar = COMPILER.compile(GrammarSpec("regex", pattern))
    for seed in range(8):
        text, complete = write(grammar.matcher(), seed)
        assert complete
        assert re.fullmatch(pattern, text)


def test_a_lark_grammar_with_a_schema_inside() -> None:
    lark = 'start: call ("; " call)*\ncall: "f(" %json {"type": "integer", "minimum": 0, "maximum": 99} ")"\n'
    for seed in range(5):
        text, complete = write(COMPILER.compile(GrammarSpec("lark", lark)).matcher(), seed)
        assert complete
        assert re.fullmatch(r"f\(\d{1,2}\)(; f\(\d{1,2}\))*", text)


def allowed(matcher: GrammarMatcher) -> list[int]:
    return np.flatnonzero(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")).tolist()


def test_the_stop_token_comes_where_the_answer_may_end_and_alone_where_it_must() -> None:
    matcher = COMPILER.compile(GrammarSpec("regex", "ab?")).matcher()
    assert allowed(matcher) == [ord("a")]
    assert not matcher.accept(ord("a"))
    assert allowed(matcher) == [ord("b"), STOP]
    assert matcher.accept(ord("b"))
    assert matcher.finished
    assert allowed(matcher) == [STOP]


def test_several_stop_tokens_and_a_wider_model() -> None:
    other = TOKENIZER.special_tokens["<|endoftext|>"]
    compiler = GrammarCompiler(TOKENIZER, stop_ids=[other, 5000], vocabulary=1000)
    matcher = compiler(GrammarSpec("regex", "a*"))()
    assert matcher.mask().shape == (32,)
    assert allowed(matcher) == [ord("a"), other, STOP]


def test_control_tokens_never_stand_inside_text() -> None:
    matcher = COMPILER.compile(GrammarSpec("regex", "(.|\n)*")).matcher()
    assert not {TOKENIZER.special_tokens["<|im_start|>"]} & set(allowed(matcher))
    for byte in b"<|im":
        matcher.accept(byte)
    assert TOKENIZER.special_tokens["<|im_start|>"] not in allowed(matcher)


def test_matchers_of_one_grammar_do_not_meet() -> None:
    grammar = COMPILER.compile(GrammarSpec("regex", "ab|cd"))
    first, second = grammar.matcher(), grammar.matcher()
    first.ask()
    first.accept(ord("a"))
    assert allowed(second) == [ord("a"), ord("c")]
    assert allowed(first) == [ord("b")]
    with pytest.raises(QafilaError, match="does not allow token"):
        first.accept(ord("d"))


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"not": {"type": "string"}}', '"not"'),
        ("json_schema", '{"x-guidance": {"lenient": true}, "uniqueItems": true}', "x-guidance"),
        ("json_schema", '{"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 4}]}', "oneOf"),
        ("json_schema", '{"type": "string", "format": "colour"}', "colour"),
        ("json_schema", '{"$ref": "https://example.org/s.json"}', "example.org"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum"),
        ("json_schema", '{"enum": []}', "empty"),
        ("json_schema", "false", "false"),
        ("json_schema", "5", "object or a boolean"),
        ("json_schema", '{"type": ', "no JSON"),
        ("json_schema", '{"const": NaN}', "NaN"),
        ("json_schema", '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}', "without end"),
        ("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}', "without end"),
        ("json_schema", '{"type": "array", "items": {"$ref": "#"}, "minItems": 1}', "without end"),
        ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000, "nested"),
        ("json_schema", '{"type": "integer", "multipleOf": 99999999}', "multipleOf"),
        ("json_schema", '{"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}', "multipleOf"),
        ("json_schema", json.dumps({"$defs": {f"d{i}": {} for i in range(501)}}), "definitions"),
        ("regex", "(a", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"[^\s\S]", "matches nothing"),
        ("regex", "(" * 5000 + ")" * 5000, ""),
        ("regex", "a" * 200_000, "too many"),
        ("lark", "start: foo", "foo"),
        ("lark", "", "Empty"),
        ("lark", 'start: %json {"type": "integer", "multipleOf": 99999999}', "multipleOf"),
        ("lark", "start: %json {5}", "no JSON"),
        ("lark", "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(MAX_RULES)), "rules"),
        ("xml", "", "xml"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(kind: Any, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        COMPILER.compile(GrammarSpec(kind, text))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_recursion_that_can_end_is_fine() -> None:
    after = {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}
    tree = {"type": "object", "properties": {"next": after}, "required": ["next"], "additionalProperties": False}
    schema = {"$ref": "#/$defs/tree", "$defs": {"tree": tree}}
    text, complete = write(COMPILER.compile(GrammarSpec("json_schema", json.dumps(schema))).matcher(), 3, 2000)
    assert not complete or "next" in json.loads(text)


def test_a_vocabulary_without_an_end_is_refused() -> None:
    with pytest.raises(TokenizerError, match="EOS"):
        GrammarCompiler(ByteTokenizer()).compile(GrammarSpec("regex", "a"))
