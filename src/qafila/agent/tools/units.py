"""Units converted exactly, where the units' definitions are."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Final

from qafila.agent.spelling import TATWEEL, one_form, without_vowels
from qafila.agent.tool import Tool, ToolError, tool
from qafila.agent.tools import units_table as table
from qafila.agent.tools.units_table import Dimension, Unit

_MOST_CHARACTERS, _MOST_PARTS, _MOST_EXPONENT, _MOST_DIGITS = 60, 6, 4, 15
_SIGNS = str.maketrans("²³⁻¹μ٠١٢٣٤٥٦٧٨٩÷×*∙⋅", "23-1µ0123456789/····")
_WORDS = (
    (re.compile(r"\s*(?:\bper\b|\bفي ال|\bفي\b|\bلكل\b)\s*"), "/"),
    (re.compile(r"\b(?:square|sq\.?)\s+([^\s/·]+)"), r"\1^2"),
    (re.compile(r"\b(?:cubic|cu\.?)\s+([^\s/·]+)"), r"\1^3"),
    (re.compile(r"([^\s/·]+)\s+مربعة?\b"), r"\1^2"),
    (re.compile(r"([^\s/·]+)\s+مكعبة?\b"), r"\1^3"),
)
_PART = re.compile(r"^(?P<name>.*?[^\d^-])\^?(?P<power>-?\d)?$")
_PREFIX_SYMBOLS: Final = {name: name for name in (*table.SI_PREFIXES, *table.BINARY_PREFIXES)} | {"u": "µ"}


def convert_units(value: float, unit: str, to: str) -> str:
    """Convert a value between units: length, mass, temperature, data, km/h ..."""
    if not math.isfinite(value):
        raise ToolError("value: must be a finite number")
    source, target = _parsed("unit", unit), _parsed("to", to)
    if source.dimension != target.dimension:
        raise ToolError(f"{source.symbol} is {_what(source)} and {target.symbol} is {_what(target)}")
    given = Fraction(repr(value))  # 0.1 is a tenth, and not the binary number beside it
    result = (given * source.factor + source.offset - target.offset) / target.factor
    if source.dimension == table.TEMPERATURE and given * source.factor + source.offset < 0:
        raise ToolError(f"value: {_written(given)} {source.symbol} is below absolute zero")
    text = _written(result)
    # Both of them being multiples of pi, it cancels out.
    exact = source.exact == target.exact and Fraction(text) == result
    return f"{_written(given)} {source.symbol} = {'' if exact else 'about '}{text} {target.symbol}"


def _what(unit: Unit) -> str:
    return table.NAMES.get(unit.dimension, "something else")


def _written(value: Fraction) -> str:
    """A number as people write it; of what has no end, 12 digits."""
    try:
        number = float(value)
    except OverflowError:
        raise ToolError("value: the result is too large") from None
    if value and (number == 0 or not math.isfinite(number)):
        raise ToolError("value: the result is too small")
    if value.denominator == 1 and abs(value) < 10**_MOST_DIGITS:
        return str(value.numerator)
    longest = f"{number:.{_MOST_DIGITS}g}"
    return longest if Fraction(longest) == value else f"{number:.12g}"


def _parsed(role: str, text: str) -> Unit:
    """The unit that a text names: one of the table, with a prefix, or several multiplied and divided.

    Raises:
        ToolError: it names none.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ToolError(f"{role}: more than {_MOST_CHARACTERS} characters")
    clean = _clean(text)
    whole = _named(clean)
    if whole is not None:
        return whole
    for pattern, instead in _WORDS:
        clean = pattern.sub(instead, clean)
    factor, exact, symbols = Fraction(1), True, ""
    dimension: Dimension = table.NONE
    parts = list(_parts(clean))
    if len(parts) > _MOST_PARTS:
        raise ToolError(f"{role}: a unit of more than {_MOST_PARTS} parts")
    for divided, name in parts:
        found = _PART.match(name)
        one = _named(found["name"].strip()) if found else None
        if found is None or one is None:
            raise ToolError(f"{role}: {_unknown(text.strip(), (found['name'] if found else name).strip())}")
        power = int(found["power"] or 1)
        if not 0 < abs(power) <= _MOST_EXPONENT:
            raise ToolError(f"{role}: an exponent of {power}; at most {_MOST_EXPONENT} makes sense")
        if one.offset and (len(parts) > 1 or power != 1):
            raise ToolError(f"{role}: {one.symbol} has its own zero and cannot be multiplied; use K")
        signed = -power if divided else power
        factor *= one.factor**signed
        exact = exact and one.exact
        length, mass, time, heat, data, angle = (
            old + signed * new for old, new in zip(dimension, one.dimension, strict=True)
        )
        dimension = (length, mass, time, heat, data, angle)
        between = ("/" if symbols else "1/") if divided else ("·" if symbols else "")
        symbols += between + one.symbol + ("" if power == 1 else f"^{power}")
    return Unit(symbols, factor, dimension, exact=exact)


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFC", text).replace("**", "^").translate(_SIGNS)
    return " ".join(without_vowels(text.replace(TATWEEL, "")).split())


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """Names between signs, and whether each is divided by: only what follows a stroke directly is."""
    divided = False
    for piece in re.split(r"([/·])", text):
        if piece in ("/", "·"):
            divided = piece == "/"
        else:
            yield divided, piece.strip()


def _known() -> Mapping[str, Unit]:
    """Units by symbol and name; of names longer than two letters, whatever their case."""
    found: dict[str, Unit] = {}
    for unit, names in table.UNITS:
        for name in (unit.symbol, *(each.replace("_", " ") for each in names.split())):
            found.setdefault(name, unit)
            if len(name) > 2 or not name.isascii():
                found.setdefault(_word(name), unit)
    return found


def _word(text: str) -> str:
    return one_form(text.casefold())


def _named(text: str) -> Unit | None:
    """A unit of the table, with or without a prefix; None where there is none of this name."""
    known = _known()
    short = {_word(name): symbol for name, symbol in table.ARABIC_SHORT.items()}
    text = short.get(_word(text), text)
    symbol = known.get(text) or _prefixed(text, known, _PREFIX_SYMBOLS)
    if symbol is not None:
        return symbol
    word = _word(text)
    for form in (
        word,
        word.removesuffix("s"),
        word.removeprefix("ال"),
        word.removesuffix("ات"),
        word.removesuffix("ا"),
    ):
        if len(form) > 2 or not form.isascii():
            found = known.get(form) or _prefixed(form, known, table.PREFIX_NAMES)
            if found is not None:
                return found
    # A symbol in the wrong case is taken where only one can be meant: mb is no less Mb than MB.
    cased = list(_in_other_case(text))
    return cased[0] if len(cased) == 1 else None


def _prefixed(text: str, known: Mapping[str, Unit], prefixes: Mapping[str, str]) -> Unit | None:
    for written, prefix in prefixes.items():
        rest = text[len(written) :] if text.startswith(written) else ""
        unit = known.get(rest.strip() if len(written) > 2 else rest)
        made = _with_prefix(prefix, unit) if unit is not None else None
        if made is not None:
            return made
    return None


def _with_prefix(prefix: str, unit: Unit) -> Unit | None:
    """A unit with a prefix; None where that does not go there."""
    if prefix in table.BINARY_PREFIXES:
        by, goes = Fraction(1024) ** table.BINARY_PREFIXES[prefix], unit.prefixes == "large"
    else:
        power = table.SI_PREFIXES[prefix]
        by, goes = Fraction(10) ** power, unit.prefixes == "si" or (unit.prefixes == "large" and power >= 3)
    return Unit(prefix + unit.symbol, by * unit.factor, unit.dimension, exact=unit.exact) if goes else None


def _in_other_case(text: str) -> Iterator[Unit]:
    """Units whose symbols are this text but for the case, with prefixes."""
    wanted = text.casefold()
    for unit, names in table.UNITS:
        for symbol in (unit.symbol, *names.split()):
            if symbol.casefold() == wanted:
                yield unit
            for written, prefix in _PREFIX_SYMBOLS.items():
                made = _with_prefix(prefix, unit) if (written + symbol).casefold() == wanted else None
                if made is not None:
                    yield made


def _unknown(whole: str, name: str) -> str:
    """What is said of a name that no unit has, with those nearest to it."""
    near = [unit.symbol for unit in _in_other_case(name)]
    words = list(_known())
    words += [
        prefix + name
        for unit, names in table.UNITS
        if unit.prefixes
        for prefix in table.PREFIX_NAMES
        for name in names.split()
        if len(name) > 2 and name.isascii() == prefix.isascii()
    ]
    near = near or difflib.get_close_matches(_word(name), words, 3, 0.7)
    asked = f"{name!r:.40}" + (f" in {whole!r:.60}" if whole != name else "")
    return f"there is no unit {asked}" + (f"; near it are {', '.join(dict.fromkeys(near))}" if near else "")


def tools() -> tuple[Tool, ...]:
    """The tools of this module."""
    return (tool(convert_units, effect="pure", origin="built-in"),)
