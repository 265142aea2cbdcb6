"""The schema of a tool from elsewhere: checked before anything is asked of it, and what is made of it.

The schema is untrusted. References are replaced by what they point to, so that its size and what it costs to check a
value against it are known; patterns are matched by an engine whose time is linear (Rust's, through pydantic-core).
Arguments are validated against all of it (JSON Schema 2020-12). The model is told a part that every chat format and the
grammar engine know: looser, never stricter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from qafila.agent.mcp.definition import MOST_OF_ARGUMENT, described
from qafila.agent.tool import ArgumentsError
from qafila.errors import UsageError
from qafila.text.argument_schema import OF_TYPE, target
from qafila.text.messages import ToolSchema
from qafila.text.python_grammar import is_python_name
from qafila.text.tool_grammar import CallStyle, call_grammar

#: Schemas inside one another, and all of them once references are replaced.
MOST_DEPTH, MOST_PARTS = 24, 2000
#: Characters of a call's arguments as JSON.
MOST_ARGUMENTS = 100_000
_OBJECTS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = (
    *("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames"),
    *("unevaluatedProperties", "unevaluatedItems", "contentSchema"),
)
# What would need a registry of schemas, or Python's own regular expressions (jsonschema matches these two by itself).
_REFUSED = ("$dynamicRef", "$recursiveRef", "patternProperties", "unevaluatedProperties")
_DROPPED = ("$defs", "definitions", "$schema", "$id", "$anchor", "$dynamicAnchor", "$comment", "$vocabulary")
# One style that writes arguments as JSON, for all that do, and the one that writes them in Python.
_STYLES: tuple[CallStyle, ...] = ("json", "pythonic")
# What all styles of calls can write; the rest is only checked.
_TOLD = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "minItems", "maxItems"),
)


def whole(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with its references replaced by what they point to.

    Raises:
        UsageError: it is no schema of an object, too large, refers to itself or out of itself, or uses what is refused.
    """
    if schema.get("type") != "object":
        raise UsageError('its schema must have the type "object"')
    made = _Inliner(schema).inlined(schema, (), 0)
    assert isinstance(made, dict)
    if not made.keys() & {"allOf", "anyOf", "oneOf", "if", "additionalProperties"}:
        made["additionalProperties"] = False  # what nobody named says nothing that a person could judge
    from jsonschema import Draft202012Validator, FormatChecker, SchemaError

    try:
        Draft202012Validator.check_schema(made, format_checker=FormatChecker(()))
    except (SchemaError, RecursionError) as error:
        message = str(getattr(error, "message", "nested too deeply"))
        raise UsageError(f"its schema is no JSON Schema 2020-12: {described(message, 200)}") from None
    for pattern in _patterns(made):
        _regex(pattern)
    return made


class _Inliner:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root, self._parts = root, 0

    def inlined(self, schema: Any, within: tuple[str, ...], depth: int) -> Any:
        self._parts += 1
        if depth > MOST_DEPTH:
            raise UsageError(f"its schema is nested more than {MOST_DEPTH} levels deep")
        if self._parts > MOST_PARTS:
            raise UsageError(f"its schema has more than {MOST_PARTS} parts")
        if not isinstance(schema, Mapping):
            return schema
        for key in _REFUSED:
            if key in schema:
                raise UsageError(f"its schema has the keyword {key}, which is not supported")
        made: dict[str, Any] = {}
        for key, value in schema.items():
            if key in _DROPPED or key == "$ref":
                continue
            if key in _OBJECTS and isinstance(value, Mapping):
                made[key] = {name: self.inlined(part, within, depth + 1) for name, part in value.items()}
            elif key in _LISTS and isinstance(value, list):
                made[key] = [self.inlined(part, within, depth + 1) for part in value]
            elif key in _ONE:
                made[key] = self.inlined(value, within, depth + 1)
            else:
                made[key] = value
        if "$ref" not in schema:
            return made
        reference = schema["$ref"]
        if reference in within:
            raise UsageError("its schema refers to itself, which is not supported")
        found = self.inlined(target(self._root, reference, "its schema"), (*within, reference), depth + 1)
        if not made.keys() - {"description", "title", "default"}:
            return {**found, **made} if isinstance(found, dict) else found
        return {**made, "allOf": [*made.get("allOf", ()), found]}


def _subschemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema without references, and all in it."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for key, value in schema.items():
        parts: Any = ()
        if key in _OBJECTS and isinstance(value, Mapping):
            parts = value.values()
        elif key in _LISTS and isinstance(value, list):
            parts = value
        elif key in _ONE:
            parts = (value,)
        for part in parts:
            yield from _subschemas(part)


def _patterns(schema: Mapping[str, Any]) -> Iterator[str]:
    for part in _subschemas(schema):
        if isinstance(part.get("pattern"), str):
            yield part["pattern"]


@lru_cache(maxsize=256)
def _regex(pattern: str) -> Callable[[str], bool]:
    """Whether a text holds a match, in time linear in it.

    Raises:
        UsageError: the pattern is none, or of a kind that cannot be matched in linear time.
    """
    from pydantic_core import SchemaError, SchemaValidator, core_schema

    try:
        validator = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except SchemaError:
        raise UsageError(f"its schema has the pattern {described(pattern, 60)!r}, which is not supported") from None
    return validator.isinstance_python


@lru_cache(maxsize=1)
def _validator() -> Any:
    """The class of validators that match patterns in linear time; it takes long to make."""
    from jsonschema import Draft202012Validator, ValidationError, validators

    def pattern_holds(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not _regex(pattern)(instance):
            yield ValidationError(f"does not match {pattern!r:.100}")

    return validators.extend(Draft202012Validator, {"pattern": pattern_holds})


def argument_check(schema: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that gives back arguments that a schema (as `whole` makes it) allows.

    It raises ArgumentsError for others; the message names the first that is wrong.
    """
    validator = _validator()(schema)

    def check(arguments: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(arguments)
        if len(json.dumps(given, ensure_ascii=False)) > MOST_ARGUMENTS:
            raise ArgumentsError(f"they are longer than {MOST_ARGUMENTS:,} characters")
        try:
            error = next(validator.iter_errors(given), None)
        except (RecursionError, ArithmeticError):
            raise ArgumentsError("they are nested too deeply, or hold a number that is too large") from None
        if error is not None:
            where = ".".join(map(str, error.absolute_path)) or "arguments"
            raise ArgumentsError(f"{where}: {described(str(error.message), 300)}")
        return given

    return check


def told(name: str, description: str, schema: Mapping[str, Any]) -> ToolSchema:
    """What a model is told of a tool, with a schema (as `whole` makes it) that every style of calls can write.

    Raises:
        UsageError: an argument that must be given has a name that calls cannot have, or the grammar engine refuses it.
    """
    made = ToolSchema(name, description, _object(schema, root=True))
    from llguidance import LLMatcher

    for style in _STYLES:
        grammar = LLMatcher.grammar_from_lark(call_grammar([made], style, choice="required"))
        problem = LLMatcher.validate_grammar(grammar)
        if problem:
            raise UsageError(f"its schema cannot be written by models: {described(problem, 200)}")
    return made


def _loose(schema: Any) -> dict[str, Any]:
    """A schema that allows at least what another one does, made of what models can be told."""
    if not isinstance(schema, Mapping):
        return {}
    made: dict[str, Any] = {}
    if isinstance(schema.get("description"), str):
        made["description"] = described(schema["description"], MOST_OF_ARGUMENT)
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if values and all(isinstance(value, str | int | float | bool | None) for value in values):
            return {**made, "enum": values}
        return made
    members = schema.get("anyOf", schema.get("oneOf"))
    if members is not None:
        return {**made, "anyOf": [_loose(member) for member in members]}
    kind = schema.get("type")
    if isinstance(kind, list):
        return {**made, "anyOf": [_loose({**schema, "type": one, "description": None}) for one in kind]}
    if kind == "object":
        return {**made, **_object(schema)}
    if kind is None:
        return made
    made["type"] = kind
    of_kind = OF_TYPE.get("number" if kind == "integer" else kind, ())
    made.update({key: schema[key] for key in _TOLD if key in schema and key in of_kind})
    if kind == "array":
        made["items"] = _loose(schema.get("items"))
    return made


def _object(schema: Mapping[str, Any], *, root: bool = False) -> dict[str, Any]:
    properties = schema.get("properties", {})
    required = [name for name in schema.get("required", ()) if name in properties]
    shown = {name: part for name, part in properties.items() if part is not False}
    if root:
        for name in required:
            if not is_python_name(name):
                raise UsageError(f"its argument {described(name, 60)!r} has a name that calls cannot have")
        shown = {name: part for name, part in shown.items() if is_python_name(name)}
    made: dict[str, Any] = {"type": "object"}
    if shown or root:
        made["properties"] = {name: _loose(part) for name, part in shown.items()}
    if required:
        made["required"] = required
    other = schema.get("additionalProperties")
    if isinstance(other, Mapping) and not root:
        made["additionalProperties"] = _loose(other)
    return made
