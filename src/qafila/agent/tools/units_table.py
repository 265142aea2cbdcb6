"""Units and what they are in SI base units.

Sources: the SI Brochure, 9th edition (BIPM, 2019): units, tables 2, 4 and 8, and prefixes, table 7; NIST Special
Publication 811 (2008), appendix B.8: factors of other units, those that are exact by definition; IEC 80000-13: binary
prefixes. A year is the mean Gregorian year of 365.2425 days, and a month its twelfth part. A gallon, a pint and an
ounce of volume are those of the United States unless they say otherwise; a dunam is the metric one.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias

#: Exponents of length, mass, time, temperature, data and angle.
Dimension: TypeAlias = tuple[int, int, int, int, int, int]

NONE: Final[Dimension] = (0, 0, 0, 0, 0, 0)
LENGTH: Final[Dimension] = (1, 0, 0, 0, 0, 0)
AREA: Final[Dimension] = (2, 0, 0, 0, 0, 0)
VOLUME: Final[Dimension] = (3, 0, 0, 0, 0, 0)
MASS: Final[Dimension] = (0, 1, 0, 0, 0, 0)
TIME: Final[Dimension] = (0, 0, 1, 0, 0, 0)
TEMPERATURE: Final[Dimension] = (0, 0, 0, 1, 0, 0)
DATA: Final[Dimension] = (0, 0, 0, 0, 1, 0)
ANGLE: Final[Dimension] = (0, 0, 0, 0, 0, 1)
SPEED: Final[Dimension] = (1, 0, -1, 0, 0, 0)
FREQUENCY: Final[Dimension] = (0, 0, -1, 0, 0, 0)
FORCE: Final[Dimension] = (1, 1, -2, 0, 0, 0)
PRESSURE: Final[Dimension] = (-1, 1, -2, 0, 0, 0)
ENERGY: Final[Dimension] = (2, 1, -2, 0, 0, 0)
POWER: Final[Dimension] = (2, 1, -3, 0, 0, 0)

#: What people call them, for messages.
NAMES: Final[dict[Dimension, str]] = {
    LENGTH: "a length",
    AREA: "an area",
    VOLUME: "a volume",
    MASS: "a mass",
    TIME: "a time",
    TEMPERATURE: "a temperature",
    DATA: "an amount of data",
    ANGLE: "an angle",
    SPEED: "a speed",
    FREQUENCY: "a frequency",
    FORCE: "a force",
    PRESSURE: "a pressure",
    ENERGY: "an energy",
    POWER: "a power",
}


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: a value times ``factor``, plus ``offset``, is in SI base units (bits for data, degrees for angles).

    Attributes:
        symbol: as it is written. factor, offset: see above. dimension: what it measures. exact: whether the factor is.
        prefixes: which go before it: ``si``, ``large`` (SI's from kilo on, and the binary ones), or none.
    """

    symbol: str
    factor: Fraction
    dimension: Dimension
    prefixes: str = ""
    offset: Fraction = Fraction(0)
    exact: bool = True


#: Prefixes by symbol, in powers of ten; and by name.
SI_PREFIXES: Final[dict[str, int]] = {
    "Q": 30, "R": 27, "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1,
    "d": -1, "c": -2, "m": -3, "µ": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24, "r": -27, "q": -30,
}  # fmt: skip
#: Powers of 1024, IEC 80000-13.
BINARY_PREFIXES: Final[dict[str, int]] = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6, "Zi": 7, "Yi": 8}
PREFIX_NAMES: Final[dict[str, str]] = {
    "quetta": "Q", "ronna": "R", "yotta": "Y", "zetta": "Z", "exa": "E", "peta": "P", "tera": "T", "giga": "G",
    "mega": "M", "kilo": "k", "hecto": "h", "deca": "da", "deci": "d", "centi": "c", "milli": "m", "micro": "µ",
    "nano": "n", "pico": "p", "femto": "f", "atto": "a", "zepto": "z", "yocto": "y", "ronto": "r", "quecto": "q",
    "kibi": "Ki", "mebi": "Mi", "gibi": "Gi", "tebi": "Ti", "pebi": "Pi", "exbi": "Ei",
    "كيلو": "k", "ميغا": "M", "ميجا": "M", "غيغا": "G", "جيجا": "G", "تيرا": "T", "بيتا": "P", "هكتو": "h",
    "ديسي": "d", "سنتي": "c", "ملي": "m", "مللي": "m", "ميلي": "m", "ميكرو": "µ", "مايكرو": "µ", "نانو": "n",
    "كيبي": "Ki", "ميبي": "Mi", "جيبي": "Gi", "غيبي": "Gi",
}  # fmt: skip

_PI: Final = Fraction("3.14159265358979323846264338327950288")
_INCH: Final = Fraction("0.0254")
_POUND: Final = Fraction("0.45359237")
_GRAVITY: Final = Fraction("9.80665")
_GALLON: Final = 231 * _INCH**3
_IMPERIAL: Final = Fraction("0.00454609")
_DAY: Final = Fraction(86400)
_YEAR: Final = Fraction("365.2425") * _DAY
_ZERO: Final = Fraction("273.15")


def _unit(symbol: str, factor: str | int | Fraction, dimension: Dimension, prefixes: str = "") -> Unit:
    return Unit(symbol, Fraction(factor), dimension, prefixes)


#: Each unit with its other symbols and names; Arabic names as people write them, without vowels.
UNITS: Final[tuple[tuple[Unit, str], ...]] = (
    (_unit("m", 1, LENGTH, "si"), "metre meter م متر امتار"),
    (_unit("in", _INCH, LENGTH), "″ inch inches بوصة بوصات انش"),
    (_unit("ft", 12 * _INCH, LENGTH), "′ foot feet قدم اقدام"),
    (_unit("yd", 36 * _INCH, LENGTH), "yard ياردة ياردات"),
    (_unit("mi", 63360 * _INCH, LENGTH), "mile ميل اميال"),
    (_unit("nmi", 1852, LENGTH), "NM nautical_mile ميل_بحري اميال_بحرية"),
    (_unit("fathom", 72 * _INCH, LENGTH), "قامة"),
    (_unit("Å", "1e-10", LENGTH), "angstrom انجستروم"),
    (_unit("au", 149_597_870_700, LENGTH), "AU astronomical_unit وحدة_فلكية"),
    (_unit("ly", 9_460_730_472_580_800, LENGTH), "light_year light-year سنة_ضوئية سنوات_ضوئية"),
    (_unit("g", "0.001", MASS, "si"), "gram gramme غ غم جم غرام جرام غرامات جرامات"),
    (_unit("t", 1000, MASS, "si"), "tonne metric_ton طن اطنان"),
    (_unit("lb", _POUND, MASS), "lbs pound رطل ارطال باوند"),
    (_unit("oz", _POUND / 16, MASS), "ounce اونصة اوقية"),
    (_unit("st", 14 * _POUND, MASS), "stone"),
    (_unit("US ton", 2000 * _POUND, MASS), "short_ton"),
    (_unit("UK ton", 2240 * _POUND, MASS), "long_ton imperial_ton"),
    (_unit("ct", "0.0002", MASS), "carat قيراط قراريط"),
    (_unit("oz t", "0.0311034768", MASS), "ozt troy_ounce اونصة_ترويسية"),
    (_unit("s", 1, TIME, "si"), "sec second ث ثانية ثوان ثواني"),
    (_unit("min", 60, TIME), "minute دقيقة دقائق"),
    (_unit("h", 3600, TIME), "hr hrs hour ساعة ساعات"),
    (_unit("d", _DAY, TIME), "day يوم ايام"),
    (_unit("week", 7 * _DAY, TIME), "wk اسبوع اسابيع"),
    (_unit("month", _YEAR / 12, TIME), "شهر اشهر شهور"),
    (_unit("year", _YEAR, TIME), "yr سنة سنوات سنين عام اعوام"),
    (_unit("K", 1, TEMPERATURE, "si"), "kelvin كلفن كلفين"),
    (Unit("°C", Fraction(1), TEMPERATURE, offset=_ZERO), "C ℃ degC celsius centigrade مئوية مئوي سيليزي سلسيوس °م"),
    (
        Unit("°F", Fraction(5, 9), TEMPERATURE, offset=_ZERO - Fraction(160, 9)),
        "F ℉ degF fahrenheit فهرنهايت °ف",
    ),
    (Unit("°R", Fraction(5, 9), TEMPERATURE), "degR rankine رانكين"),
    (_unit("a", 100, AREA), "are ار"),
    (_unit("ha", 10_000, AREA), "hectare هكتار هكتارات"),
    (_unit("ac", 43560 * (12 * _INCH) ** 2, AREA), "acre ايكر"),
    (_unit("dunam", 1000, AREA), "donum دونم دونمات"),
    (_unit("L", "0.001", VOLUME, "si"), "l litre liter ل لتر ليتر لترات"),
    (_unit("gal", _GALLON, VOLUME), "gallon us_gallon جالون غالون جالونات غالونات"),
    (_unit("qt", _GALLON / 4, VOLUME), "quart"),
    (_unit("pt", _GALLON / 8, VOLUME), "pint باينت"),
    (_unit("cup", _GALLON / 16, VOLUME), "كوب اكواب"),
    (_unit("fl oz", _GALLON / 128, VOLUME), "floz fluid_ounce اونصة_سائلة"),
    (_unit("tbsp", _GALLON / 256, VOLUME), "tablespoon ملعقة_طعام ملعقة_كبيرة"),
    (_unit("tsp", _GALLON / 768, VOLUME), "teaspoon ملعقة_شاي ملعقة_صغيرة"),
    (_unit("UK gal", _IMPERIAL, VOLUME), "imperial_gallon جالون_امبراطوري"),
    (_unit("UK pt", _IMPERIAL / 8, VOLUME), "imperial_pint"),
    (_unit("bbl", 42 * _GALLON, VOLUME), "barrel oil_barrel برميل براميل"),
    (_unit("mph", 63360 * _INCH / 3600, SPEED), "mile_per_hour"),
    (_unit("kn", Fraction(1852, 3600), SPEED), "kt knot عقدة عقد"),
    (_unit("km/h", Fraction(1000, 3600), SPEED), "kph kmh kmph"),
    (_unit("c", 299_792_458, SPEED), "speed_of_light سرعة_الضوء"),
    (_unit("bit", 1, DATA, "large"), "b بت"),
    (_unit("B", 8, DATA, "large"), "byte octet بايت"),
    (_unit("kB", 8000, DATA), "KB"),
    (_unit("Hz", 1, FREQUENCY, "si"), "hertz هرتز"),
    (_unit("rpm", Fraction(1, 60), FREQUENCY), ""),
    (_unit("N", 1, FORCE, "si"), "newton نيوتن"),
    (_unit("kgf", _GRAVITY, FORCE), "kilogram-force"),
    (_unit("lbf", _POUND * _GRAVITY, FORCE), "pound-force"),
    (_unit("Pa", 1, PRESSURE, "si"), "pascal باسكال"),
    (_unit("bar", 100_000, PRESSURE, "si"), "بار"),
    (_unit("atm", 101_325, PRESSURE), "atmosphere ضغط_جوي"),
    (_unit("mmHg", "133.322387415", PRESSURE), "مم_زئبق ملم_زئبق"),
    (_unit("Torr", Fraction(101_325, 760), PRESSURE), "torr تور"),
    (_unit("psi", _POUND * _GRAVITY / _INCH**2, PRESSURE), ""),
    (_unit("J", 1, ENERGY, "si"), "joule جول"),
    (_unit("Wh", 3600, ENERGY, "si"), "watt-hour watt_hour واط_ساعة"),
    (_unit("cal", "4.184", ENERGY, "si"), "calorie سعرة كالوري سعرات"),
    (_unit("kcal", 4184, ENERGY), "Cal food_calorie سعرة_حرارية سعرات_حرارية"),
    (_unit("BTU", "1055.05585262", ENERGY), "Btu"),
    (_unit("eV", "1.602176634e-19", ENERGY, "si"), "electronvolt الكترون_فولت"),
    (_unit("W", 1, POWER, "si"), "watt واط وات"),
    (_unit("hp", 550 * 12 * _INCH * _POUND * _GRAVITY, POWER), "horsepower حصان"),
    (_unit("PS", 75 * _GRAVITY, POWER), "metric_horsepower حصان_متري"),
    (_unit("°", 1, ANGLE), "deg degree درجة درجات"),
    (_unit("arcmin", Fraction(1, 60), ANGLE), "arcminute دقيقة_قوسية"),
    (_unit("arcsec", Fraction(1, 3600), ANGLE), "arcsecond ثانية_قوسية"),
    (_unit("gon", Fraction(9, 10), ANGLE), "grad gradian غراد"),
    (_unit("turn", 360, ANGLE), "revolution دورة دورات"),
    (Unit("rad", 180 / _PI, ANGLE, "si", exact=False), "radian راديان"),
)

#: Short Arabic forms of units with a prefix, in their symbols.
ARABIC_SHORT: Final[dict[str, str]] = {
    "كم": "km", "سم": "cm", "مم": "mm", "ملم": "mm", "نم": "nm", "كغ": "kg", "كغم": "kg", "كجم": "kg", "كلغ": "kg",
    "كيلو": "kg", "ملغ": "mg", "مغ": "mg", "ملغم": "mg", "مجم": "mg", "مل": "mL", "سل": "cL", "كيلو واط ساعة": "kWh",
    "كيلوواط ساعة": "kWh", "كيلومتر مربع": "km²", "درجة مئوية": "°C", "درجات مئوية": "°C", "درجة فهرنهايت": "°F",
    "درجة سيليزية": "°C", "س": "h",
}  # fmt: skip
