"""Words for days and times, in English and in Arabic: one plain form of them, and what they stand for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

# Signs that are left out: what shows nothing, tatweel, and apostrophes, which some write in Hijri months.
_LEFT_OUT: Final = re.compile(
    "[\u00ad\u0640\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff'\u2018\u2019\u02be\u02bf]"
)
# Letters that people write one for the other.
_LETTERS: Final = str.maketrans("أإآٱىیة", "ااااييه")
_SIGNS: Final = str.maketrans("،٬٫−–—", ",,.---")


def plain(text: str) -> str:
    """A text as it is compared: ASCII digits, no case, no vowel marks, one form of letters that are often confused."""
    kept = "".join(
        str(unicodedata.digit(sign)) if sign.isdigit() else sign
        for sign in unicodedata.normalize("NFKC", _LEFT_OUT.sub("", text)).casefold()
        if not ("\u064b" <= sign <= "\u065f" or sign == "\u0670")
    )
    return " ".join(kept.translate(_LETTERS).translate(_SIGNS).split())


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
