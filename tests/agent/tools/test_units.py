"""Units: exact where they are, in English and Arabic, and a name that is none is answered with those near it."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from qafila.agent.tool import ArgumentsError, ToolError
from qafila.agent.tools import units
from qafila.agent.tools.units import convert_units
from qafila.agent.tools.units_table import UNITS


@pytest.mark.parametrize(
    ("value", "unit", "to", "expected"),
    [
        # NIST SP 811, appendix B.8, and the SI Brochure.
        (1, "in", "cm", "1 in = 2.54 cm"),
        (5, "mi", "km", "5 mi = 8.04672 km"),
        (0.1, "inch", "mm", "0.1 in = 2.54 mm"),
        (1, "nautical mile", "m", "1 nmi = 1852 m"),
        (1, "lb", "g", "1 lb = 453.59237 g"),
        (70, "kilograms", "pounds", "70 kg = about 154.323583529 lb"),
        (1, "acre", "m2", "1 ac = 4046.8564224 m^2"),
        (1, "square mile", "sq km", "1 mi^2 = 2.589988110336 km^2"),
        (1, "gallon", "L", "1 gal = 3.785411784 L"),
        (1, "imperial gallon", "litres", "1 UK gal = 4.54609 L"),
        (1, "cubic metre", "L", "1 m^3 = 1000 L"),
        (100, "km/h", "m/s", "100 km/h = about 27.7777777778 m/s"),
        (1, "knot", "km per hour", "1 kn = 1.852 km/h"),
        (1, "kWh", "MJ", "1 kWh = 3.6 MJ"),
        (1, "kcal", "J", "1 kcal = 4184 J"),
        (1, "atm", "Pa", "1 atm = 101325 Pa"),
        (1, "Pa", "kg/m/s^2", "1 Pa = 1 kg/m/s^2"),
        (1, "N·m", "J", "1 N·m = 1 J"),
        (90, "deg", "turn", "90 ° = 0.25 turn"),
        (180, "°", "rad", "180 ° = about 3.14159265359 rad"),
        (1, "rad", "mrad", "1 rad = 1000 mrad"),
        (1, "year", "days", "1 year = 365.2425 d"),
        (100, "°C", "°F", "100 °C = 212 °F"),
        (-40, "F", "C", "-40 °F = -40 °C"),
        (0, "K", "celsius", "0 K = -273.15 °C"),
        # IEC 80000-13.
        (1, "MiB", "kB", "1 MiB = 1048.576 kB"),
        (1, "GB", "gigabits", "1 GB = 8 Gbit"),
        (1, "KB", "bytes", "1 kB = 1000 B"),
        (5, "ميل", "كيلومتر", "5 mi = 8.04672 km"),
        (2, "الأميال", "كم", "2 mi = 3.218688 km"),
        (70, "كغ", "غرام", "70 kg = 70000 g"),
        (37, "درجة مئوية", "فهرنهايت", "37 °C = 98.6 °F"),
        (37, "درجه مئويه", "فهرنهايت", "37 °C = 98.6 °F"),
        (2, "ساعه", "دقيقه", "2 h = 120 min"),
        (12, "ساعات", "دقائق", "12 h = 720 min"),
        (3, "متر مكعب", "لتر", "3 m^3 = 3000 L"),
        (90, "كيلومتر في الساعة", "م/ث", "90 km/h = 25 m/s"),
        (1, "ميغابايت", "كيلوبايت", "1 MB = 1000 kB"),
        (1, "كِيلُوغرام", "g", "1 kg = 1000 g"),
        (1, "kwh", "J", "1 kWh = 3600000 J"),
    ],
)
def test_conversions(value: float, unit: str, to: str, expected: str) -> None:
    assert convert_units(value, unit, to) == expected


@pytest.mark.parametrize(
    ("value", "unit", "to", "expected"),
    [
        (1, "kilometrs", "m", "unit: there is no unit 'kilometrs'; near it are kilometre, kilometer"),
        (1, "m", "متور", "to: there is no unit 'متور'; near it are متر"),
        (1, "mb", "B", "unit: there is no unit 'mb'; near it are Mbit, MB"),
        (1, "kg", "m", "kg is a mass and m is a length"),
        (1, "m s", "m", "unit: there is no unit 'm s'"),
        (1, "", "m", "unit: there is no unit ''"),
        (1, "millibyte", "B", "unit: there is no unit 'millibyte'"),
        (1, "m**9", "m", "unit: an exponent of 9"),
        (1, "m^99999999", "m", "unit: there is no unit"),
        (1, "m/" * 20 + "m", "m", "unit: a unit of more than 6 parts"),
        (1, "m" * 61, "m", "unit: more than 60 characters"),
        (1, "°C/m", "K/m", "unit: °C has its own zero"),
        (-300, "C", "K", "value: -300 °C is below absolute zero"),
        (1e308, "Qm", "qm", "value: the result is too large"),
        (1e-320, "qm", "Qm", "value: the result is too small"),
        (math.nan, "m", "m", "value: must be a finite number"),
        (math.inf, "m", "m", "value: must be a finite number"),
    ],
)
def test_what_cannot_be_converted(value: float, unit: str, to: str, expected: str) -> None:
    with pytest.raises(ToolError) as error:
        convert_units(value, unit, to)
    assert expected in str(error.value)


def test_no_name_means_two_units() -> None:
    seen: dict[str, str] = {}
    for unit, names in UNITS:
        for name in (unit.symbol, *names.split()):
            assert seen.setdefault(name, unit.symbol) == unit.symbol, name


def test_every_unit_is_itself() -> None:
    for unit, names in UNITS:
        for text in (unit.symbol, *(name.replace("_", " ") for name in names.split())):
            assert convert_units(1, text, text) == f"1 {unit.symbol} = 1 {unit.symbol}"


@pytest.mark.parametrize("text", ["(" * 60, "^" * 60, "m^-" * 20, "/" * 60, "·m^4" * 5, "\u202e\0m", "مربع " * 12])
def test_nonsense_is_refused_soon(text: str) -> None:
    started = time.process_time()
    with pytest.raises(ToolError):
        convert_units(1, text, "K")
    assert time.process_time() - started < 1


def test_the_tool_takes_numbers_alone() -> None:
    (made,) = units.tools()
    arguments: dict[str, Any] = {"unit": "m", "to": "km"}
    assert made.run(made.check({"value": 1500, **arguments}), None) == "1500 m = 1.5 km"  # type: ignore[arg-type]
    for wrong in ("many", None, [1]):
        with pytest.raises(ArgumentsError):
            made.check({"value": wrong, **arguments})
