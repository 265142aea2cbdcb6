"""From JSON schemas to grammars of Python literals: the arguments of pythonic calls, as text of a Lark grammar.

llguidance writes JSON by itself (``%json``), not Python. What is the same in both (numbers, text in double quotes) is
left to it, the rest is made of rules here. A keyword that has no rule is refused by name.
"""

from __future__ import annotations

import json
import keyword
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qafila.errors import UsageError
from qafila.text.argument_schema import FREE, OF_TYPE, target

#: White space between two parts of a call: without a limit, a model may write it for ever.
WHITESPACE = r"[ \t\r\n]{0,16}"

_CHARACTERS = r"[^{quote}\\\x00-\x1f]|\\[\\\x22'nrt]|\\x[01][0-9a-f]"
_DOUBLE = f"({_CHARACTERS.format(quote=chr(34))})"
_SINGLE = f"({_CHARACTERS.format(quote=chr(39))})"
_TERMINALS = {
    "COMMA": f"/{WHITESPACE},{WHITESPACE}/",
    "COLON": f"/{WHITESPACE}:{WHITESPACE}/",
    "LIST": f"/\\[{WHITESPACE}/",
    "LIST_END": f"/{WHITESPACE}\\]/",
    "DICT": f"/\\{{{WHITESPACE}/",
    "DICT_END": f"/{WHITESPACE}\\}}/",
    "TEXT": f"/\"{_DOUBLE}*\"|'{_SINGLE}*'/",
    "INTEGER": "/-?(0|[1-9][0-9]*)/",
}
_ALL_TYPED = frozenset(word for words in OF_TYPE.values() for word in words)
_NUMERIC = OF_TYPE["number"]
# Steps of the search for an end of recursive schemas; real ones take some hundred.
_MAX_STEPS = 20_000


def lark_string(text: str) -> str:
    """Text as a string of a Lark grammar, which nothing in it can end or turn into something else."""
    return json.dumps(text).replace("%", "\\u0025")


def is_python_name(text: str) -> bool:
    """Whether a call can have an argument of this name, and read it back unchanged."""
    usable = text.isidentifier() and not keyword.iskeyword(text) and text != "__debug__"
    return usable and unicodedata.normalize("NFKC", text) == text


class PythonGrammar:
    """Collects the rules of literals; one for all tools of a grammar, which share what they have in common."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._references: dict[tuple[str, str], str] = {}

    def text(self) -> str:
        """The rules and terminals that the expressions given out refer to, one a line."""
        return "".join(f"{name}: {body}\n" for name, body in {**_TERMINALS, **self._rules}.items())

    def keywords(self, schema: Mapping[str, Any], where: str) -> str:
        """An expression that matches the keyword arguments of a call, without its brackets; "" where there are none.

        Arguments that ``additionalProperties`` would allow, whatever their names, are never written.

        Args:
            schema: what `argument_schema.readable` gives.
            where: how to name the schema in an error.

        Raises:
            UsageError: a keyword that is not supported, a name that is not one in Python, or no finite arguments.
        """
        return _Tool(self, schema, where).keywords()

    def rule(self, body: str) -> str:
        """The name of a rule with this body."""
        name = f"p{len(self._rules)}"
        self._rules[name] = body
        return name

    def terminal(self, body: str) -> str:
        """The name of a terminal with this body."""
        name = f"P{len(self._rules)}"
        self._rules[name] = body
        return name

    def referred(self, key: tuple[str, str], body: Callable[[], str]) -> str:
        """The rule for what a reference points to; it may refer to itself."""
        if key not in self._references:
            self._references[key] = name = self.rule("")
            self._rules[name] = body()
        return self._references[key]


class _Tool:
    """The schema of one tool on its way to rules."""

    def __init__(self, grammar: PythonGrammar, root: Mapping[str, Any], where: str) -> None:
        self._grammar = grammar
        self._root = root
        self._where = where
        self._steps = 0

    def keywords(self) -> str:
        if not self._ends(self._root, frozenset()):
            raise self._error("it matches nothing, since it requires itself without end")
        schema = self._merged(self._root)
        self._known(schema, _OBJECT)
        pairs = []
        for name, part, needed in self._properties(schema):
            if not is_python_name(name):
                raise self._error(f'the property "{name[:60]}" is no Python name, which calls of this model need')
            pairs.append((f"{lark_string(name + '=')} {self._value(part)}", needed))
        return self._sequence(pairs, None)

    def _error(self, problem: str) -> UsageError:
        return UsageError(f"{self._where}: JSON schema: {problem}")

    def _known(self, schema: Mapping[str, Any], known: Iterable[str]) -> None:
        for key in schema.keys() - {*known}:
            raise self._error(f"the keyword '{key:.60}' is not supported here in Python calls")

    def _value(self, schema: Any) -> str:
        """An expression for the literals of a schema; in brackets where it is a choice."""
        if schema is False:
            raise self._error("it matches nothing, being false")
        if not isinstance(schema, Mapping):
            raise self._error("it must be an object or a boolean")
        if isinstance(schema.get("$ref"), str):
            self._known(schema, ("$ref",))
            reference = schema["$ref"]
            shared = reference.startswith(f"#/$defs/{FREE}")
            key = ("" if shared else self._where, reference)
            return self._grammar.referred(key, lambda: self._value(self._target(reference)))
        schema = self._merged(schema)
        if "enum" in schema or "const" in schema:
            return self._literals(schema)
        for choice in ("anyOf", "oneOf"):
            if choice in schema:
                return self._choice(schema, choice)
        kind = schema.get("type")
        make = {
            "string": self._string,
            "integer": self._number,
            "number": self._number,
            "array": self._array,
            "object": self._object,
        }.get(str(kind))
        if make is not None:
            return make(schema)
        self._known(schema, ("type",))
        if kind == "boolean":
            return '("True" | "False")'
        if kind == "null":
            return '"None"'
        raise self._error(f"the type {str(kind)!r:.60} is not supported in Python calls")

    def _merged(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """A schema with an ``allOf`` of one member, or of members that say different things, as one."""
        if "allOf" not in schema:
            return schema
        members = schema["allOf"]
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for member in members if isinstance(members, list) else [None]:
            if isinstance(member, Mapping) and "$ref" in member and len(member) == 1:
                member = self._target(member["$ref"])
            if not isinstance(member, Mapping) or any(merged.get(key, value) != value for key, value in member.items()):
                raise self._error("the keyword 'allOf' is not supported with members that overlap in Python calls")
            merged.update(member)
        return self._merged(merged)

    def _literals(self, schema: Mapping[str, Any]) -> str:
        self._known(schema, ("enum", "const", "type"))
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if "const" in schema and "enum" in schema:
            raise self._error("the keyword 'enum' is not supported together with 'const' in Python calls")
        kinds = schema.get("type", None)
        kinds = kinds if isinstance(kinds, list) or kinds is None else [kinds]
        found = (
            [v for v in values if kinds is None or any(_is_a(v, k) for k in kinds)] if isinstance(values, list) else []
        )
        if not found:
            raise self._error("'enum' is empty or has no value of the right type")
        spellings = [spelling for value in found for spelling in self._spellings(value)]
        return f"({' | '.join(lark_string(spelling) for spelling in dict.fromkeys(spellings))})"

    def _spellings(self, value: Any) -> list[str]:
        """A value as literals; text in both kinds of quotes."""
        if not isinstance(value, str):
            return [self._spelling(value)]
        double = self._spelling(value)
        inner = double[1:-1].replace('\\"', '"').replace("'", "\\'")
        return [double, f"'{inner}'"]

    def _spelling(self, value: Any) -> str:
        if value is None or isinstance(value, bool):
            return str(value)
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self._error("half a surrogate pair in 'enum' or 'const' is no text") from None
            return json.dumps(value, ensure_ascii=False)
        if isinstance(value, int | float) and math.isfinite(value):
            return repr(value)
        if isinstance(value, list):
            return f"[{', '.join(map(self._spelling, value))}]"
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{self._spelling(k)}: {self._spelling(v)}' for k, v in value.items())}}}"
        raise self._error("'enum' or 'const' holds what is no JSON value")

    def _choice(self, schema: Mapping[str, Any], choice: str) -> str:
        """Alternatives, each with the keywords beside them where these do not collide."""
        beside = {k: v for k, v in schema.items() if k not in (choice, "$defs", "definitions")}
        members = schema[choice]
        if not isinstance(members, list) or not members:
            raise self._error(f"'{choice}' must be a list of schemas")
        if choice == "oneOf" and not self._disjoint(members):
            raise self._error("the keyword 'oneOf' is supported only where its members differ in type or in values")
        parts = []
        for member in members:
            if beside and (not isinstance(member, Mapping) or any(beside.get(k, v) != v for k, v in member.items())):
                raise self._error(
                    f"the keyword '{choice}' is not supported beside '{next(iter(beside))}' in Python calls"
                )
            parts.append(self._value({**beside, **member} if beside else member))
        return f"({' | '.join(dict.fromkeys(parts))})"

    def _disjoint(self, members: Sequence[Any]) -> bool:
        seen: set[str] = set()
        for member in members:
            if isinstance(member, Mapping) and "$ref" in member:
                member = self._target(member["$ref"])
            if not isinstance(member, Mapping):
                return False
            if "const" in member or "enum" in member:
                values = [member["const"]] if "const" in member else member["enum"]
                mine = {json.dumps(value, sort_keys=True) for value in values} if isinstance(values, list) else {""}
                kinds = {
                    kind for kind in OF_TYPE.keys() | {"boolean", "null"} for v in mine if _is_a(json.loads(v), kind)
                }
                if seen & (mine | kinds):
                    return False
                seen |= mine | {f"={kind}" for kind in kinds}
                continue
            kind = member.get("type")
            if kind is None and isinstance(member.get("anyOf"), list):  # a number, as `argument_schema` writes it
                inner = {str(part.get("type")) for part in member["anyOf"] if isinstance(part, Mapping)}
                kind = "number" if inner == {"integer", "number"} else None
            kind = "number" if kind == "integer" else kind
            if not isinstance(kind, str) or kind in seen or f"={kind}" in seen:
                return False
            seen.add(kind)
        return True

    def _string(self, schema: Mapping[str, Any]) -> str:
        self._known(schema, ("type", *OF_TYPE["string"]))
        if "pattern" in schema or "format" in schema:
            # JSON's escapes, of those that llguidance writes, mean the same in Python.
            return f"%json {json.dumps(dict(schema))}"
        least, most = self._count(schema, "minLength"), self._count(schema, "maxLength")
        if not least and most is None:
            return "TEXT"
        times = f"{{{least or 0},{'' if most is None else most}}}"
        if most is not None and most < (least or 0):
            raise self._error("'minLength' is more than 'maxLength'")
        return f"/\"{_DOUBLE}{times}\"|'{_SINGLE}{times}'/"

    def _count(self, schema: Mapping[str, Any], key: str) -> int | None:
        value = schema.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise self._error(f"'{key}' must be a number that is not negative")
        return None if value is None else math.ceil(value) if key.startswith("min") else math.floor(value)

    def _number(self, schema: Mapping[str, Any]) -> str:
        self._known(schema, ("type", *_NUMERIC))
        if schema["type"] == "integer" and len(schema) == 1:
            return "INTEGER"
        return f"%json {json.dumps(dict(schema))}"

    def _array(self, schema: Mapping[str, Any]) -> str:
        known = ("type", "items", "prefixItems", "minItems", "maxItems", "uniqueItems")
        self._known(schema, known)
        if schema.get("uniqueItems"):
            raise self._error("the keyword 'uniqueItems' is not supported")
        first, item = schema.get("prefixItems", []), schema.get("items", False)
        if not isinstance(first, list) or isinstance(item, list):
            raise self._error("'prefixItems' must be a list, and 'items' a schema")
        least, most = self._count(schema, "minItems") or 0, self._count(schema, "maxItems")
        if item is False:
            most = min(len(first), len(first) if most is None else most)
        if most is not None and most < least:
            raise self._error("'minItems' is more than 'maxItems'")
        first = first[:most]
        inner = self._repeated(
            item, max(0, least - len(first)), None if most is None else most - len(first), bool(first)
        )
        for index in range(len(first) - 1, -1, -1):
            step = " ".join(part for part in ("COMMA" if index else "", self._value(first[index]), inner) if part)
            inner = step if index < least else f"({step})?"
        return f"(LIST {inner} LIST_END)" if inner else "(LIST LIST_END)"

    def _repeated(self, item: Any, least: int, most: int | None, continued: bool) -> str:
        if most == 0:
            return ""
        value = self._value(item)
        if continued:
            return f"(COMMA {value}){_times(least, most)}"
        rest = f"(COMMA {value}){_times(max(least - 1, 0), None if most is None else most - 1)}" if most != 1 else ""
        if rest:
            value = self._grammar.rule(value) if len(value) > 40 else value
            rest = f"(COMMA {value}){_times(max(least - 1, 0), None if most is None else most - 1)}"
        whole = f"{value} {rest}".strip()
        return whole if least else f"({whole})?"

    def _object(self, schema: Mapping[str, Any]) -> str:
        self._known(schema, _OBJECT)
        pairs, names = [], []
        for name, part, needed in self._properties(schema):
            names.append(name)
            spellings = [lark_string(spelling) for spelling in self._spellings(name)]
            pairs.append((f"({' | '.join(spellings)}) COLON {self._value(part)}", needed))
        other = schema.get("additionalProperties", False)
        more = None
        if other is not False:
            more = f"{self._key(names)} COLON {self._value(other)}"
        inner = self._sequence(pairs, more)
        return f"(DICT {inner} DICT_END)" if inner else "(DICT DICT_END)"

    def _key(self, taken: Sequence[str]) -> str:
        """A key that is none of these."""
        if not taken:
            return "TEXT"
        if any(set(name) & set("\\\"'") or not name.isprintable() for name in taken):
            # Such a key has more spellings than can be told apart.
            raise self._error("'additionalProperties' is not supported beside a property with quotes or escapes")
        spellings = [lark_string(spelling) for name in taken for spelling in self._spellings(name)]
        return self._grammar.terminal(f"TEXT & ~({' | '.join(spellings)})")

    def _properties(self, schema: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise self._error("'properties' must be an object, and 'required' a list")
        if missing := [name for name in required if name not in properties]:
            raise self._error(f"it requires {str(missing[0])!r:.60}, which 'properties' does not have")
        possible = [(name, part) for name, part in properties.items() if part is not False or name in required]
        return [(name, part, name in required) for name, part in possible]

    def _sequence(self, items: Sequence[tuple[str, bool]], more: str | None) -> str:
        """Items in their order, with commas between them, those not needed left out at will, then any ``more``."""
        tail = f" (COMMA {more})*" if more else ""
        first = next((index for index, (_, needed) in enumerate(items) if needed), None)
        if first is not None:
            before = "".join(f"({item} COMMA)? " for item, _ in items[:first])
            after = "".join(f" COMMA {item}" if needed else f" (COMMA {item})?" for item, needed in items[first + 1 :])
            return f"{before}{items[first][0]}{after}{tail}"
        # Each is written once for every item before it: a rule is shorter, but the number of rules is limited too.
        names = [
            self._grammar.rule(item) if len(items) * len(item) > 200 and len(items) > 1 else item for item, _ in items
        ]
        choices = [
            name + "".join(f" (COMMA {other})?" for other in names[index + 1 :]) + tail
            for index, name in enumerate(names)
        ]
        if more:
            choices.append(more + tail)
        return f"({' | '.join(choices)})?" if choices else ""

    def _target(self, reference: Any) -> Any:
        return target(self._root, reference, self._where)

    def _ends(self, schema: Any, inside: frozenset[str]) -> bool:
        """Whether a schema has an instance of finite size, not counting what it is inside of."""
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise self._error("it is too large, or refers to itself in too many ways")
        if not isinstance(schema, Mapping) or "enum" in schema or "const" in schema:
            return True
        reference = schema.get("$ref")
        if isinstance(reference, str) and (
            reference in inside or not self._ends(self._target(reference), inside | {reference})
        ):
            return False
        for choice in ("anyOf", "oneOf"):
            members = schema.get(choice)
            if isinstance(members, list) and not any(self._ends(member, inside) for member in members):
                return False
        needed = [part for part in schema.get("allOf", []) if isinstance(schema["allOf"], list)]
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if isinstance(properties, Mapping) and isinstance(required, list):
            needed += [part for name, part in properties.items() if name in required]
        if schema.get("minItems"):
            needed += [schema.get("items"), *(schema.get("prefixItems") or [])]
        return all(self._ends(part, inside) for part in needed)


_OBJECT = ("type", "properties", "required", "additionalProperties", "$defs", "definitions")


def _times(least: int, most: int | None) -> str:
    return "*" if not least and most is None else f"{{{least},{'' if most is None else most}}}"


def _is_a(value: object, kind: object) -> bool:
    """Whether a JSON value is of a type of JSON Schema."""
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and float(value).is_integer())
    names = {type(None): "null", str: "string", list: "array", dict: "object"}
    return names.get(type(value)) == kind
