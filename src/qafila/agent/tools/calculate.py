"""A calculator: exact where numbers are, and never Python's `eval`."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from qafila.agent.tool import Surroundings, Tool, ToolError, tool

_MOST_CHARACTERS, _MOST_BITS, _MOST_DEPTH, _MOST_PLACES = 500, 20_000, 60, 300

_BINARY: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    **{name: getattr(math, name) for name in ("sin", "cos", "tan", "asin", "acos", "atan", "exp", "log", "log10")},
    "sqrt": math.sqrt,
    "log2": math.log2,
    "floor": math.floor,
    "ceil": math.ceil,
    "abs": abs,
    "round": round,
    "min": min,
    "max": max,
}
_NAMES: Final = {"pi": math.pi, "e": math.e}
# Arabic-Indic and Persian digits, and signs as people write them.
_SIGNS: Final = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹×÷−٫^", "01234567890123456789*/-.^")
_GROUPED: Final = re.compile(r"(?<=\d)[,٬](?=\d{3}(?!\d))")


def calculate(expression: str) -> str:
    """Compute an expression like (3+4)*2."""
    text = _GROUPED.sub("", expression.translate(_SIGNS)).replace("^", "**").replace("%", "/100")
    if len(text) > _MOST_CHARACTERS:
        raise ToolError(f"expression: more than {_MOST_CHARACTERS} characters")
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body, 0)
        return _written(value)
    except ToolError:
        raise
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError, TypeError) as error:
        raise ToolError(f"expression: cannot be computed ({error})") from None


def _value(node: ast.expr, depth: int) -> Any:
    if depth > _MOST_DEPTH:
        raise ToolError("expression: nested too deeply")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return Fraction(str(value)) if isinstance(value, float) else Fraction(value)
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=inner):
            value = _value(inner, depth + 1)
            return value if isinstance(sign, ast.UAdd) else -value
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left, depth + 1), _value(right, depth + 1))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(_BINARY[type(op)](_value(left, depth + 1), _value(right, depth + 1)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _called(name, [_value(argument, depth + 1) for argument in arguments])
    raise ToolError("expression: only numbers, + - * / // ^ %, brackets, and functions such as sqrt are understood")


def _called(name: str, values: list[Any]) -> Any:
    if name == "round" and len(values) == 2:
        if abs(values[1]) > _MOST_PLACES:
            raise ToolError(f"round: at most {_MOST_PLACES} places")
        return round(values[0], int(values[1]))
    result = _FUNCTIONS[name](*values)
    if isinstance(result, float) and not math.isfinite(result):
        raise ToolError("the result is no finite number")
    return Fraction(result) if isinstance(result, int) else result


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent.numerator) * bits > _MOST_BITS:
            raise ToolError("the result has too many digits")
        return base ** int(exponent)
    result = float(base) ** float(exponent)
    if isinstance(result, complex) or not math.isfinite(result):
        raise ToolError("the result is no finite real number")
    return result


def _bounded(value: Any) -> Any:
    if isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise ToolError("the result has too many digits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ToolError("the result is no finite number")
    return value


def _written(value: Any) -> str:
    if isinstance(value, Fraction):
        if value.denominator == 1:
            return str(value.numerator)
        shown = f"{float(value):.12g}"
        return shown if Fraction(shown) == value else f"about {shown}"
    if isinstance(value, float):
        return f"about {value:.12g}"
    return str(value)


def tools() -> tuple[Tool, ...]:
    """The tools of this module."""
    return (tool(calculate, effect="pure", live=_written_so, origin="built-in"),)


def _written_so(_: Surroundings, __: Sequence[Mapping[str, Any]]) -> Mapping[str, dict[str, Any]]:
    """What a model writes as an expression: no words but the functions."""
    names = "|".join((*_FUNCTIONS, *_NAMES))
    return {"expression": {"type": "string", "pattern": f"^([0-9(-]|{names})([0-9.,+*/()% ^-]|{names}){{0,40}}$"}}
