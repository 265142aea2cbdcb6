"""Checks of a JSON schema that llguidance leaves to its caller: what would hang it, and what no finite text matches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from qafila.errors import UsageError

MAX_DEPTH = 64
MAX_DEFINITIONS = 500
# A multiple is recognised by a state machine of this many states.
MAX_MULTIPLE = 10_000

# Keywords that hold schemas: one, a list of them, or an object of them.
_ONE = ("items", "additionalProperties", "additionalItems", "not", "contains", "propertyNames", "if", "then", "else")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_OBJECTS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def check_schema(schema: object) -> None:
    """Refuse what llguidance would take and not survive.

    Raises:
        UsageError: the schema is no object or boolean, is nested too deeply, is too large, or needs endless text.
    """
    if not isinstance(schema, dict | bool):
        raise UsageError("JSON schema: it must be an object or a boolean")
    if schema is False:
        raise UsageError("JSON schema: it matches nothing, being false")
    multiples: set[Decimal] = set()
    definitions = 0
    for part in _parts(schema):
        if "x-guidance" in part:
            raise UsageError("JSON schema: the keyword 'x-guidance' is not supported")
        definitions += sum(len(part[key]) for key in ("$defs", "definitions") if isinstance(part.get(key), dict))
        multiple = part.get("multipleOf")
        if isinstance(multiple, int | float) and not isinstance(multiple, bool) and multiple > 0:
            multiples.add(Decimal(str(multiple)))
    if definitions > MAX_DEFINITIONS:
        raise UsageError(f"JSON schema: more than {MAX_DEFINITIONS} definitions are too many")
    if multiples and _together(multiples) > MAX_MULTIPLE:
        raise UsageError(
            f"JSON schema: 'multipleOf' is supported up to {MAX_MULTIPLE} (the least common multiple of all of them, "
            "without the decimal point)"
        )
    if not _Endings(schema).ends(schema):
        raise UsageError("JSON schema: it matches nothing, since it requires itself without end")


def _together(multiples: set[Decimal]) -> int:
    exponent = min(0, *(int(m.as_tuple().exponent) for m in multiples))
    if exponent < -20 or max(multiples) > Decimal(10) ** 20:
        return MAX_MULTIPLE + 1
    return math.lcm(*(int(m.scaleb(-exponent)) for m in multiples))


def _parts(schema: object) -> Iterator[dict[str, Any]]:
    """The schema and all schemas in it."""
    waiting = [(schema, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise UsageError(f"JSON schema: it is nested more than {MAX_DEPTH} levels deep")
        if not isinstance(part, dict):
            continue
        yield part
        for key in _ONE:
            waiting.append((part.get(key), depth + 1))
        for key in _LISTS:
            if isinstance(part.get(key), list):
                waiting += [(item, depth + 1) for item in part[key]]
        for key in _OBJECTS:
            if isinstance(part.get(key), dict):
                waiting += [(item, depth + 1) for item in part[key].values()]


class _Endings:
    """Which schemas have an instance of finite size, as far as references go: the least fixed point."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._ending: set[str] = set()
        self._seen: set[str] = set()

    def ends(self, schema: object) -> bool:
        while True:
            before = len(self._ending), len(self._seen)
            result = self._ends(schema)
            if len(self._seen) > MAX_DEFINITIONS:
                raise UsageError(f"JSON schema: more than {MAX_DEFINITIONS} different references are too many")
            for reference in sorted(self._seen - self._ending):
                target, found = self._resolve(reference)
                if not found or self._ends(target):
                    self._ending.add(reference)
            if result or (len(self._ending), len(self._seen)) == before:
                return result

    def _ends(self, schema: object) -> bool:
        if not isinstance(schema, dict):
            return True  # llguidance says what is wrong with `false`
        if "const" in schema or "enum" in schema:
            return True
        reference = schema.get("$ref")
        if isinstance(reference, str):
            self._seen.add(reference)
            if reference not in self._ending:
                return False
        alternatives = [schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)]
        if any(items and not any(self._ends(item) for item in items) for items in alternatives):
            return False
        conjuncts = schema.get("allOf")
        if isinstance(conjuncts, list) and not all(self._ends(item) for item in conjuncts):
            return False
        kinds = schema.get("type", ("object", "array", "other"))
        kinds = kinds if isinstance(kinds, list | tuple) else [kinds]
        return any(self._kind_ends(schema, kind) for kind in kinds) or not kinds

    def _kind_ends(self, schema: dict[str, Any], kind: object) -> bool:
        if kind == "object":
            properties, required = schema.get("properties"), schema.get("required")
            if not isinstance(required, list):
                return True
            properties = properties if isinstance(properties, dict) else {}
            other = schema.get("additionalProperties")
            return all(self._ends(properties.get(name, other)) for name in required if isinstance(name, str))
        if kind == "array":
            least = schema.get("minItems", 0)
            if not isinstance(least, int | float) or least < 1:
                return True
            first = schema.get("prefixItems")
            first = first if isinstance(first, list) else []
            needed = first[: int(min(least, len(first)))]
            if least > len(first):
                needed = [*needed, schema.get("items")]
            return all(self._ends(item) for item in needed)
        return True

    def _resolve(self, reference: str) -> tuple[object, bool]:
        """What a reference within the schema points to; others are llguidance's business."""
        if reference != "#" and not reference.startswith("#/"):
            return None, False
        here: object = self._root
        for name in reference.split("/")[1:]:
            name = unquote(name).replace("~1", "/").replace("~0", "~")
            if isinstance(here, dict) and name in here:
                here = here[name]
            elif isinstance(here, list) and name.isdigit() and int(name) < len(here):
                here = here[int(name)]
            else:
                return None, False
        return here, True
