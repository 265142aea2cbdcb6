"""Tool calls as text: the ways in which Llama models write them, read and written.

Reading follows the order of the reference parser (llama-models, models/llama3/tool_utils.py):
``<function=NAME>{json}``, then JSON objects, then a Python list of calls with keyword arguments, then the built-in
``name.call(query="...")``. Unlike the reference, all calls of a message are returned and not only the first, JSON
objects may follow one another (separated by ``;``, ``,`` or white space) and quotes inside arguments survive. Nothing
is ever evaluated: Python text is read by ``ast`` and only literals are accepted.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from qafila.errors import ChatError
from qafila.text.messages import ToolCall

ToolFormat: TypeAlias = Literal["json", "function", "pythonic"]

BUILTIN_TOOLS = ("brave_search", "wolfram_alpha", "photogen")
CODE_INTERPRETER = "code_interpreter"

# Limits of what is looked at: a model's answer is untrusted text. Python's own parser is kept to short, shallow input.
MAX_CHARACTERS = 200_000
MAX_PYTHON_CHARACTERS = 50_000
MAX_DEPTH = 32
MAX_CALLS = 64

_FUNCTION = re.compile(r"<function=([^<>{}\s]{1,256})>\s*(?=\{)")
_BUILTIN = re.compile(r'\b(\w{1,256})\.call\(query="([^"]*)"\)')
_NAME = re.compile(r"[^\W\d][\w.\-]{0,255}")
_TAG = re.compile(r"<tool_call>\s*\[?\s*")
_TAG_END = re.compile(r"\]?\s*(?:</tool_call>|\Z)")
_SEPARATOR = re.compile(r"[\s;,]*")
# Strings of one line, and first what makes it hard to say where strings are: long ones, prefixes (f"{...}"), comments.
_STRING = re.compile(
    r"""(?P<hard>\"{3}|'{3}|\#|(?<!\w)[bBfFrRtTuU]{1,2}["'])"""
    r"""|"(?:[^"\\\r\n]|\\(?:\r\n|[\s\S]))*"|'(?:[^'\\\r\n]|\\(?:\r\n|[\s\S]))*'"""
)

Found: TypeAlias = list[tuple[str, dict[str, Any]]]


def parse_tool_calls(text: str, *, id_prefix: str = "call") -> tuple[ToolCall, ...] | None:
    """The tool calls that an assistant's text is, in order; None where it is prose.

    Args:
        text: the answer without its special tokens.
        id_prefix: the calls get the ids ``<id_prefix>_0``, ``<id_prefix>_1``, ...

    Malformed, oversized or too deeply nested text is prose: this function does not raise.
    """
    text = text.strip()
    if not text or len(text) > MAX_CHARACTERS:
        return None
    found = _function_tags(text) or _tool_call_tags(text) or _json_calls(text) or _python_calls(text) or _builtin(text)
    if not found or len(found) > MAX_CALLS or not _writable(found):
        return None
    return tuple(ToolCall(f"{id_prefix}_{i}", name, arguments) for i, (name, arguments) in enumerate(found))


def render_tool_call(call: ToolCall, style: ToolFormat) -> str:
    """One call as Llama writes it, without special tokens.

    Args:
        call: the call; ``code_interpreter`` and the built-in tools have forms of their own in every style.
        style: ``json`` ({"type": "function", ...}), ``function`` (<function=f>{...}</function>), ``pythonic`` (f(a=1)).

    Raises:
        ChatError: arguments that the form cannot express.
    """
    if is_builtin(call):
        key = "code" if call.name == CODE_INTERPRETER else "query"
        value = call.arguments.get(key)
        if not isinstance(value, str) or (key == "query" and '"' in value):
            reason = "without double quotes " if isinstance(value, str) else ""
            raise ChatError(f'tool call "{call.name}": needs the text argument "{key}" {reason}'.rstrip())
        return value if key == "code" else f'{call.name}.call(query="{value}")'
    if style == "json":
        return _dump(call, {"type": "function", "name": call.name, "parameters": dict(call.arguments)})
    if style == "function":
        return f"<function={call.name}>{_dump(call, dict(call.arguments))}</function>"
    for name in call.arguments:
        try:
            ast.parse(f"f({name}=0)")
        except (SyntaxError, ValueError):
            raise ChatError(f'tool call "{call.name}": argument "{name}" is not a Python name') from None
    arguments = ", ".join(f"{name}={python_literal(value)}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})"


def render_tool_calls(calls: Sequence[ToolCall], style: ToolFormat) -> str:
    """All calls of a message: a Python list in ``pythonic`` style, else one after another with ``; `` between them."""
    texts = [render_tool_call(call, style) for call in calls]
    if style == "pythonic" and not any(is_builtin(call) for call in calls):
        return f"[{', '.join(texts)}]"
    return "; ".join(texts)


def is_builtin(call: ToolCall) -> bool:
    """Whether the call is of a tool that Llama 3.1 has a form of its own for."""
    return call.name == CODE_INTERPRETER or call.name in BUILTIN_TOOLS


def python_literal(value: object, depth: int = 0) -> str:
    """A JSON value as a Python literal, text in double quotes.

    Raises:
        ChatError: a value that JSON does not have (NaN, infinity, an object), or nesting beyond 32 levels.
    """
    if depth > MAX_DEPTH:
        raise ChatError(f"tool call: arguments are nested more than {MAX_DEPTH} levels deep")
    if value is None or isinstance(value, bool | int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(python_literal(item, depth + 1) for item in value)}]"
    if isinstance(value, Mapping):
        items = (f"{python_literal(k, depth + 1)}: {python_literal(v, depth + 1)}" for k, v in value.items())
        return f"{{{', '.join(items)}}}"
    raise ChatError(f"tool call: an argument of type {type(value).__name__} ({str(value)[:40]}) cannot be written")


def _dump(call: ToolCall, value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ChatError(f'tool call "{call.name}": arguments are not JSON values') from None


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _decode(text: str, start: int) -> tuple[Any, int] | None:
    try:
        value, end = json.JSONDecoder(parse_constant=_not_json).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return (value, end) if _shallow(value) else None


def _function_tags(text: str) -> Found:
    found: Found = []
    position = 0
    while match := _FUNCTION.search(text, position):
        decoded = _decode(text, match.end())
        position = match.end()
        if decoded is not None and isinstance(decoded[0], dict):
            found.append((match.group(1), decoded[0]))
            position = decoded[1]
        if len(found) > MAX_CALLS:
            break
    return found


def _tool_call_tags(text: str) -> Found:
    """``<tool_call>{...}</tool_call>`` of the ChatML models: the JSON inside, an object or a list of them."""
    found: Found = []
    position = 0
    while start := _TAG.search(text, position):
        inner, position = _objects(text, start.end())
        end = _TAG_END.match(text, position)
        if not inner or not end:
            return []
        found += inner
        position = end.end()
    return found


def _json_calls(text: str) -> Found:
    found, end = _objects(text, 0)
    return found if end == len(text) else []


def _objects(text: str, position: int) -> tuple[Found, int]:
    """Calls as JSON objects one after another, and where they end; none where one object is no call."""
    found: Found = []
    while text.startswith("{", position):
        decoded = _decode(text, position)
        call = decoded and _json_call(decoded[0])
        if not decoded or not call or len(found) > MAX_CALLS:
            return [], position
        found.append(call)
        separator = _SEPARATOR.match(text, decoded[1])
        position = separator.end() if separator else decoded[1]
    return found, position


def _json_call(source: object) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(source, dict):
        return None
    inner = source.get("function")
    value: dict[str, Any] = inner if isinstance(inner, dict) else source
    name = value.get("name")
    arguments = value.get("parameters", value.get("arguments", {}))
    if isinstance(arguments, str):
        decoded = _decode(arguments, 0)
        arguments = decoded[0] if decoded and decoded[1] == len(arguments) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(arguments, dict):
        return None
    # An object that merely has a "name", such as a record the user asked for, is not a call.
    if value.get("type") != "function" and not ("parameters" in value or "arguments" in value):
        return None
    return name, arguments


def _python_calls(text: str) -> Found:
    if not (text.startswith("[") and text.endswith("]")) or "(" not in text or len(text) > MAX_PYTHON_CHARACTERS:
        return []
    # Python's parser recurses in C; brackets and unary signs are what makes it deep, unless they stand in quotes.
    hard = any(match["hard"] for match in _STRING.finditer(text))
    bare = text if hard else _STRING.sub('""', text)
    if _nesting(bare) > MAX_DEPTH or re.search(r"(?:[-+~]\s*){8}|(?:\bnot\s+){8}", bare):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(text, mode="eval").body
        calls = body.elts if isinstance(body, ast.List) else []
        found: Found = []
        for node in calls:
            if not isinstance(node, ast.Call) or node.args or not (name := _dotted(node.func)):
                return []
            arguments: dict[str, Any] = {}
            for keyword in node.keywords:
                if keyword.arg is None or keyword.arg in arguments:
                    return []
                arguments[keyword.arg] = _literal(keyword.value)
            found.append((name, arguments))
        return found
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := _dotted(node.value)):
        return f"{left}.{node.attr}"
    return None


def _literal(node: ast.expr) -> Any:
    """A JSON value out of a Python literal; ValueError for anything else (calls, names, bytes, sets, sums)."""
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool | int | float | str)):
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise ValueError("not a JSON number")
        return node.value
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):  # models mix JSON into Python
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value = _literal(node.operand)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_literal(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("not a JSON object")
        return dict(zip(keys, map(_literal, node.values), strict=True))
    raise ValueError("not a literal")


def _builtin(text: str) -> Found:
    # Only from the start on: prose that mentions a call in its middle is not one.
    found: Found = []
    position = 0
    while len(found) <= MAX_CALLS and (match := _BUILTIN.match(text, position)):
        found.append((match.group(1), {"query": match.group(2)}))
        separator = _SEPARATOR.match(text, match.end())
        position = separator.end() if separator else match.end()
    return found


def _writable(found: Found) -> bool:
    """Whether the calls can be written as JSON and UTF-8: no half surrogate, infinity or number beyond printing."""
    try:
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _shallow(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return False
