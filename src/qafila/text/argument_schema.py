"""JSON schemas of tool arguments, rewritten so that whatever they still allow can be read as a call.

JSON Schema allows what no parser of calls accepts: numbers that overflow (``1e999``) and values nested without end. It
also lets a model invent arguments. The rewritten schema allows a subset of the values, and only these are left out:

- Numbers without two bounds are any integer, or a decimal within 1e15 of zero, written without exponent.
- A value that may be anything nests at most `MAX_FREE_DEPTH` lists and objects.
- An object that names its properties has no others, unless ``additionalProperties`` says so; nor has a tool arguments
  that names none.
- A schema that has no ``type`` but keywords of one type has that type.

Parts in which keywords work upon one another (members of ``allOf``, whatever stands beside ``$ref``, ``anyOf``, ...)
keep their meaning untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from qafila.errors import UsageError

#: Most lists and objects inside one another in a value that may be anything; `tools.parse_tool_calls` reads 32 levels.
MAX_FREE_DEPTH = 8
#: Most schemas inside one another: as in the engine's check.
MAX_DEPTH = 64
#: Decimals without exponent are kept within this: 15 digits are what a double holds exactly.
MAX_DECIMAL = 10**15
#: Definitions of values that may be anything are called this and their depth.
FREE = "*any"

#: Keywords that say something about a schema and restrict nothing.
ANNOTATIONS = frozenset(
    (
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"),
        *("$comment", "$schema", "$id", "contentEncoding", "contentMediaType"),
    )
)
_OF_OBJECTS = (
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    *("minProperties", "maxProperties", "dependentRequired", "dependentSchemas"),
)
OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "object": _OF_OBJECTS,
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
# Keywords beside which no part of a schema stands alone.
_COMBINING = frozenset(
    (
        *("$ref", "anyOf", "oneOf", "allOf", "not", "if", "then", "else", "enum", "const", "$dynamicRef", "$anchor"),
        *("propertyNames", "dependentSchemas", "dependentRequired", "dependencies", "contains"),
        *("unevaluatedProperties", "unevaluatedItems", "x-guidance"),
    )
)
_DEFINITIONS = ("$defs", "definitions")
_ONE = ("items", "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else", "propertyNames")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_OBJECTS = ("properties", "patternProperties", "dependentSchemas", *_DEFINITIONS)


# What must be a list, and what an object; the names in a list of names.
_MUST_BE_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "required", "enum")
_MUST_BE_NAMES = ("required", "type")


def readable(parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The schema of a tool's arguments without annotations, rewritten as above.

    Args:
        parameters: a JSON schema of an object.
        where: how to name it in an error, such as ``tools[0].parameters``.

    Raises:
        UsageError: it is no schema of an object, nested too deeply, or no JSON.
    """
    schema = dict(parameters)
    if schema.get("type", "object") != "object":
        raise UsageError(f'{where}.type: it must be "object", not {str(schema["type"])!r:.60}')
    seen: set[str] = set()
    _shaped(schema, where)
    while isinstance(reference := schema.get("$ref"), str):
        if reference in seen:
            raise UsageError(f"{where}: JSON schema: it matches nothing, since it requires itself without end")
        seen.add(reference)
        found = target(schema, reference, where)
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        if not isinstance(found, Mapping) or rest.keys() & found.keys() - ANNOTATIONS - {*_DEFINITIONS, "type"}:
            raise UsageError(f"{where}: JSON schema: the keyword '$ref' is not supported beside others here")
        schema = {**found, **rest}
        _shaped(schema, where)
    schema["type"] = "object"
    if not schema.keys() & (_COMBINING | {"properties", "additionalProperties", "required"}):
        schema["properties"] = {}
    root = _rewritten(schema, where, 0)
    assert isinstance(root, dict)
    if FREE in str(root):
        root["$defs"] = {**root.get("$defs", {}), **_free_values()}
    return root


def target(root: Mapping[str, Any], reference: object, where: str) -> Any:
    """What a reference within a schema points to.

    Raises:
        UsageError: it leads out of the schema, or nowhere.
    """
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise UsageError(
            f"{where}: JSON schema: the reference {str(reference)!r:.60} leads out of it, which is not supported"
        )
    here: Any = root
    for name in reference.split("/")[1:]:
        name = unquote(name).replace("~1", "/").replace("~0", "~")
        if isinstance(here, Mapping) and name in here:
            here = here[name]
        elif isinstance(here, list) and name.isdigit() and int(name) < len(here):
            here = here[int(name)]
        else:
            raise UsageError(f"{where}: JSON schema: the reference {reference!r:.60} leads nowhere")
    return here


def without_annotations(schema: Any, where: str, depth: int = 0) -> Any:
    """A schema without descriptions and the like, its meaning untouched.

    Raises:
        UsageError: it is nested too deeply.
    """
    return _each(schema, where, depth, without_annotations)


def moved(schema: Any, to: str) -> Any:
    """A schema whose references into itself hold when it is no root any more, but stands at ``to``."""
    result = _each(schema, to, 0, lambda part, _where, _depth: moved(part, to))
    if isinstance(result, dict) and isinstance(reference := result.get("$ref"), str) and reference.startswith("#"):
        result["$ref"] = to + reference[1:]
    return result


def _shaped(schema: Mapping[str, Any], where: str) -> None:
    """Raise UsageError where a keyword holds what it never can."""
    for keys, kind, told in ((_OBJECTS, dict, "an object"), (_MUST_BE_LISTS, list, "a list")):
        for key in keys:
            if not isinstance(schema.get(key, kind()), kind):
                raise UsageError(f"{where}: JSON schema: '{key}' must be {told}")
    for key in _MUST_BE_NAMES:
        names = schema.get(key, [])
        if not all(isinstance(name, str) for name in (names if isinstance(names, list) else [names])):
            raise UsageError(f"{where}: JSON schema: '{key}' must be made of names")


def _each(schema: Any, where: str, depth: int, rewrite: Callable[[Any, str, int], Any]) -> Any:
    """A schema without annotations, and all schemas in it as ``rewrite`` makes them."""
    if depth > MAX_DEPTH:
        raise UsageError(f"{where}: JSON schema: it is nested more than {MAX_DEPTH} levels deep")
    if not isinstance(schema, Mapping):
        return schema
    _shaped(schema, where)
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ANNOTATIONS:
            continue
        if key in _OBJECTS and isinstance(value, Mapping):
            value = {name: rewrite(part, where, depth + 1) for name, part in value.items()}
        elif key in _LISTS and isinstance(value, list):
            value = [rewrite(part, where, depth + 1) for part in value]
        elif key in _ONE:
            value = rewrite(value, where, depth + 1)
        result[key] = value
    return result


def _rewritten(schema: Any, where: str, depth: int) -> Any:
    if schema is True or (isinstance(schema, Mapping) and not schema.keys() - ANNOTATIONS):
        return {"$ref": f"#/$defs/{FREE}{MAX_FREE_DEPTH}"}
    if not isinstance(schema, Mapping):
        return schema
    _shaped(schema, where)
    kept = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
    combining = kept.keys() & _COMBINING
    if combining and not (combining == {"anyOf"} and _only_requires(kept["anyOf"])):
        alone = len(combining) == 1 and kept.keys() - {*_DEFINITIONS} == combining
        if alone and combining <= {"anyOf", "oneOf"}:
            return _each(kept, where, depth, _rewritten)
        if combining == {"allOf"} and (merged := _merged(kept)) is not None:
            return _rewritten(merged, where, depth + 1)
        return _definitions_rewritten(kept, where, depth)
    kind = kept.get("type") or _kind(kept)
    if isinstance(kind, list):
        return _union(kept, kind, where, depth)
    if kind is not None:
        kept["type"] = kind
    if kind == "number":
        return _number(kept)
    if kind == "array" and "items" not in kept:
        kept["items"] = True
    if kind == "object":
        _close(kept)
    choice = kept.pop("anyOf", None)
    result = _each(kept, where, depth, _rewritten)
    return result if choice is None else {**result, "anyOf": choice}


def _merged(schema: dict[str, Any]) -> dict[str, Any] | None:
    """A schema with an ``allOf`` of one member as one, where what both say does not differ; else None."""
    members = [part for part in schema["allOf"] if part.keys() - ANNOTATIONS] if _schemas(schema["allOf"]) else []
    rest = {key: value for key, value in schema.items() if key != "allOf"}
    if len(members) != 1 or any(rest.get(key, value) != value for key, value in members[0].items()):
        return None
    return {**rest, **members[0]}


def _schemas(members: object) -> bool:
    return isinstance(members, list) and all(isinstance(part, Mapping) for part in members)


def _only_requires(members: object) -> bool:
    """Whether alternatives do nothing but ask for properties."""
    return isinstance(members, list) and all(
        isinstance(part, Mapping) and part.keys() == {"required"} for part in members
    )


def _definitions_rewritten(schema: dict[str, Any], where: str, depth: int) -> dict[str, Any]:
    """A schema whose parts depend on one another as it is, but for the definitions that it holds."""
    result: dict[str, Any] = without_annotations(schema, where, depth)
    for key in _DEFINITIONS:
        if isinstance(schema.get(key), Mapping):
            result[key] = {name: _rewritten(part, where, depth + 1) for name, part in schema[key].items()}
    return result


def _kind(schema: Mapping[str, Any]) -> str | None:
    """The type that a schema without one speaks of, where it is one alone."""
    kinds = [kind for kind, keywords in OF_TYPE.items() if any(key in schema for key in keywords)]
    return kinds[0] if len(kinds) == 1 else None


def _union(schema: dict[str, Any], kinds: list[Any], where: str, depth: int) -> Any:
    """A list of types as alternatives, each with its own keywords."""
    own = {kind: {*OF_TYPE.get("number" if kind == "integer" else str(kind), ())} for kind in kinds if kind}
    all_typed = {key for keywords in OF_TYPE.values() for key in keywords}
    alternatives = []
    for kind in dict.fromkeys(str(kind) for kind in kinds):
        if kind == "integer" and "number" in kinds:
            continue
        part = {k: v for k, v in schema.items() if k not in all_typed | {*_DEFINITIONS} or k in own.get(kind, ())}
        alternatives.append(_rewritten({**part, "type": kind}, where, depth + 1))
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    if len(alternatives) == 1 and not definitions:
        return alternatives[0]
    return {**_definitions_rewritten(definitions, where, depth), "anyOf": alternatives}


def _number(schema: dict[str, Any]) -> dict[str, Any]:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    bounds = [bound for bound in (low, high) if bound is not None]
    if len(bounds) == 2 or not all(isinstance(bound, int | float) for bound in bounds):
        return schema
    integer = {**schema, "type": "integer"}
    if (low is not None and low >= MAX_DECIMAL) or (high is not None and high <= -MAX_DECIMAL):
        return integer
    decimal = dict(schema)
    if low is None:
        decimal["minimum"] = -MAX_DECIMAL
    if high is None:
        decimal["maximum"] = MAX_DECIMAL
    return {"anyOf": [integer, decimal]}


def _close(schema: dict[str, Any]) -> None:
    """Say what an object may hold, where the schema leaves it open."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        schema.setdefault("additionalProperties", True)
        properties = {}
    elif "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    required = schema.get("required")
    missing = [name for name in required if name not in properties] if isinstance(required, list) else []
    if missing and all(isinstance(name, str) for name in missing):
        other = schema["additionalProperties"] or True
        schema["properties"] = {**properties, **dict.fromkeys(missing, other)}


def _free_values() -> dict[str, Any]:
    """Definitions of any JSON value, by how deep it may nest."""
    scalar = [*({"type": kind} for kind in ("string", "boolean", "null")), *_number({"type": "number"})["anyOf"]]
    found: dict[str, Any] = {f"{FREE}0": {"anyOf": scalar}}
    for depth in range(1, MAX_FREE_DEPTH + 1):
        inner = {"$ref": f"#/$defs/{FREE}{depth - 1}"}
        nested = [{"type": "array", "items": inner}, {"type": "object", "additionalProperties": inner}]
        found[f"{FREE}{depth}"] = {"anyOf": [{"$ref": f"#/$defs/{FREE}0"}, *nested]}
    return found
