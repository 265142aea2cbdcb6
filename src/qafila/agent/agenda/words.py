"""Words for days and times, in English and in Arabic: one plain form of them, and what they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from qafila.agent import spelling

# Some write apostrophes in Hijri months.
_SIGNS: Final = str.maketrans("،–—", ",--", "'\u2018\u2019\u02be\u02bf")


def plain(text: str) -> str:
    """A text as it is compared: as `spelling.plain`, with no vowels and no apostrophes, and letters in one form."""
    text = spelling.without_vowels(spelling.plain(text))
    return " ".join(spelling.one_form(text).translate(_SIGNS).split())


def _numbered(*lines: str, first: int = 1) -> dict[str, int]:
    """Words and their number, from lines of words that mean the same."""
    return {plain(word): number for number, line in enumerate(lines, first) for word in line.split("|")}


#: Months of the Gregorian calendar, with the names of the Levant and of the Maghreb.
MONTHS: Final = _numbered(
    "january|jan|يناير|كانون الثاني|جانفي",
    "february|feb|فبراير|شباط|فيفري",
    "march|mar|مارس|آذار",
    "april|apr|أبريل|إبريل|نيسان|أفريل",
    "may|مايو|أيار|ماي",
    "june|jun|يونيو|يونيه|حزيران|جوان",
    "july|jul|يوليو|يوليه|تموز|جويلية",
    "august|aug|أغسطس|آب|أوت",
    "september|sep|sept|سبتمبر|أيلول",
    "october|oct|أكتوبر|تشرين الأول",
    "november|nov|نوفمبر|تشرين الثاني",
    "december|dec|ديسمبر|كانون الأول",
)

#: Months of the Hijri calendar, as they are written in Arabic and in Latin letters.
HIJRI_MONTHS: Final = _numbered(
    "محرم|المحرم|muharram|al-muharram",
    "صفر|safar",
    "ربيع الأول|rabi al-awwal|rabi i",
    "ربيع الآخر|ربيع الثاني|rabi al-thani|rabi al-akhir|rabi ii",
    "جمادى الأولى|جمادى الأول|jumada al-ula|jumada al-awwal|jumada i",
    "جمادى الآخرة|جمادى الثانية|جمادى الآخر|jumada al-akhirah|jumada al-akhira|jumada al-thani|jumada ii",
    "رجب|rajab",
    "شعبان|shaban|shaaban",
    "رمضان|ramadan|ramadhan",
    "شوال|shawwal",
    "ذو القعدة|ذي القعدة|dhu al-qadah|dhu al-qidah|dhul-qadah|dhul qadah",
    "ذو الحجة|ذي الحجة|dhu al-hijjah|dhu al-hijja|dhul-hijjah|dhul hijjah",
)

#: Days of the week; Monday is 0.
WEEKDAYS: Final = _numbered(
    "monday|mon|الاثنين|الإثنين|اثنين",
    "tuesday|tue|tues|الثلاثاء|ثلاثاء",
    "wednesday|wed|الأربعاء|أربعاء",
    "thursday|thu|thurs|الخميس|خميس",
    "friday|fri|الجمعة|جمعة",
    "saturday|sat|السبت|سبت",
    "sunday|sun|الأحد",
    first=0,
)

#: Days from today.
NEAR: Final = {
    plain(word): days
    for words, days in (
        ("today|tonight|اليوم|الليلة", 0),
        ("tomorrow|غدا|غد|بكرة|بكرا", 1),
        ("the day after tomorrow|day after tomorrow|بعد غد|بعد الغد", 2),
        ("yesterday|أمس|البارحة|مبارح", -1),
        ("the day before yesterday|day before yesterday|أول أمس|قبل أمس", -2),
    )
    for word in words.split("|")
}

#: Lengths of time: how many of which unit. In Arabic, one and two of a thing are words of their own.
SPANS: Final = {
    plain(word): (count, unit)
    for words, count, unit in (
        ("minute|minutes|min|دقيقة|دقائق", 1, "minutes"),
        ("دقيقتين|دقيقتان", 2, "minutes"),
        ("hour|hours|ساعة|ساعات", 1, "hours"),
        ("ساعتين|ساعتان", 2, "hours"),
        ("day|days|يوم|يوما|أيام", 1, "days"),
        ("يومين|يومان", 2, "days"),
        ("week|weeks|أسبوع|أسبوعا|أسابيع|الأسبوع", 1, "weeks"),
        ("أسبوعين|أسبوعان", 2, "weeks"),
        ("month|months|شهر|شهرا|أشهر|شهور|الشهر", 1, "months"),
        ("شهرين|شهران", 2, "months"),
        ("year|years|سنة|سنوات|عام|السنة|العام", 1, "years"),
        ("سنتين|عامين", 2, "years"),
    )
    for word in words.split("|")
}

#: Small numbers as they are written before such a unit.
NUMBERS: Final = _numbered(
    "a|an|one|واحد",
    "two|couple of",
    "three|ثلاثة|ثلاث",
    "four|أربعة|أربع",
    "five|خمسة|خمس",
    "six|ستة|ست",
    "seven|سبعة|سبع",
    "eight|ثمانية|ثماني",
    "nine|تسعة|تسع",
    "ten|عشرة|عشر",
)

#: Words of the half of the day.
MORNING: Final = frozenset(map(plain, ("am", "a.m.", "a.m", "ص", "صباحا", "in the morning", "فجرا")))
EVENING: Final = frozenset(
    map(
        plain,
        ("pm", "p.m.", "p.m", "م", "مساء", "ظهرا", "عصرا", "ليلا", "بعد الظهر", "in the evening", "in the afternoon"),
    )
)
NAMED_TIMES: Final = {plain("noon"): 12, plain("ظهرا"): 12, plain("midnight"): 0, plain("منتصف الليل"): 0}
NEXT: Final = frozenset(
    map(plain, ("next", "this", "coming", "on", "القادم", "القادمة", "المقبل", "المقبلة", "هذا", "يوم"))
)
LAST: Final = frozenset(map(plain, ("last", "الماضي", "الماضية", "الفائت")))
HIJRI: Final = frozenset(map(plain, ("هـ", "ه", "هجري", "هجرية", "ah", "a.h.", "h", "hijri")))
GREGORIAN: Final = frozenset(map(plain, ("م", "ميلادي", "ميلادية", "ad", "ce")))


def either(words: Iterable[str]) -> str:
    """A pattern for one of some words, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
