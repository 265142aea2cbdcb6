"""Words as tools are found by them: stems of English and Arabic words, and what Arabic ones are called in English.

Tools describe themselves in English, also those of servers elsewhere; what they are for may be asked in Arabic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from qafila.agent.spelling import one_form, plain, without_vowels
from qafila.agent.words import without_article

_WORD = re.compile(r"[^\W\d_]+|\d+")
# An indefinite accusative's alef, before or after its vowel sign.
_ACCUSATIVE = re.compile("\u0627\u064b|\u064b\u0627")
# The light stemmer light10 (Larkey, Ballesteros and Connell 2007, "Light Stemming for Arabic Information Retrieval",
# table 1).
_ENDINGS = ("ها", "ان", "ات", "ون", "ين", "يه", "ه", "ي")
_SUFFIXES = (
    *(("ies", "y"), ("ations", "ate"), ("ation", "ate"), ("ators", "ate"), ("ator", "ate")),
    *(("ions", ""), ("ion", ""), ("ing", ""), ("ers", ""), ("er", "")),
)
# Words that say nothing of what a tool is for.
_EMPTY: Final = re.compile(
    "a|an|and|are|as|at|be|by|can|do|does|for|from|how|i|in|into|is|it|me|my|of|on|or|some|that|the|these|this|to|tool|"
    "use|what|when|which|with|words|you"
)
#: Arabic words, and the English words of descriptions that they stand for.
_ENGLISH: Final[Mapping[str, str]] = {
    "أداة": "tool", "اجتماع": "event meeting", "احسب": "calculate compute", "احصاء": "statistics data",
    "إرسال": "send", "أرسل": "send", "ارسم": "plot chart", "استعلام": "query", "أنجز": "done task",
    "بحث": "search find", "ابحث": "search find", "بريد": "mail email", "بيانات": "data table", "تاريخ": "date",
    "تحويل": "convert", "حول": "convert", "ترجم": "translate", "ترجمة": "translate translation",
    "تذكر": "remember memory", "تذكير": "reminder", "ذكرني": "reminder remind", "تقويم": "calendar",
    "جدول": "table schedule", "جلب": "fetch", "حدث": "event calendar", "حذف": "delete", "احذف": "delete",
    "حرارة": "temperature", "حساب": "calculate", "درجة": "temperature degrees", "ذاكرة": "memory remember",
    "رابط": "url page", "رسم": "plot chart", "رسالة": "message mail", "ساعة": "time hour", "سؤال": "question",
    "شبكة": "web", "صفحة": "page", "صورة": "image picture", "طقس": "weather", "عدل": "edit change",
    "فوض": "delegate", "مساعد": "helper delegate", "قائمة": "list", "قياس": "units measure", "كتابة": "write",
    "اكتب": "write", "لغة": "language translate", "متر": "units length", "كيلومتر": "units length",
    "ميل": "units length", "مخطط": "plot chart", "مستند": "document", "وثيقة": "document", "ملاحظة": "note",
    "ملف": "file", "مهمة": "task", "مهام": "task", "موعد": "event appointment calendar",
    "مواعيد": "event appointment calendar", "موقع": "page web site", "نص": "text",
    "هجري": "hijri date calendar", "وحدة": "unit", "وحدات": "unit", "وزن": "units weight", "وقت": "time",
    "يوم": "day date", "عملة": "currency", "إنترنت": "web internet", "انجليزية": "english translate",
    "عربية": "arabic translate",
}  # fmt: skip

#: What units are called: who converts them writes the units, not the word.
_UNITS = re.compile(
    "km|kg|cm|mm|(kilo|centi|milli)?(met|lit)(re|er)s?|(kilo)?grams?|miles?|inch(es)?|feet|pounds?|ounces?|"
    "celsius|fahrenheit"
)


def words_of(text: str) -> list[str]:
    """The stems of a text's words, in order; after Arabic ones those of their English words, after units `unit`."""
    known = {_arabic(one_form(word)): english for word, english in _ENGLISH.items()}
    found: list[str] = []
    for word in _WORD.findall(one_form(without_vowels(_ACCUSATIVE.sub("", plain(text))))):
        if "\u0621" <= word[0] <= "\u064a":
            stem = _arabic(word)
            found += [stem, *map(_english, known.get(stem, "").split())]
        elif not _EMPTY.fullmatch(word):
            found.append(_english(word))
            found += ["unit"] if _UNITS.fullmatch(word) else []
    return found


def _arabic(word: str) -> str:
    if word.startswith("و") and len(word) > 3 and not word.startswith("وال"):
        # Light10 takes it for "and" wherever three letters are left; of words that begin with it, this makes none less
        # alike, since all are cut alike.
        word = word[1:]
    word = without_article(word)
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) >= len(ending) + 2:
            word = word.removesuffix(ending)
    return word


def _english(word: str) -> str:
    """Without the endings of plurals, verbs and what is made of them, as far as a few rules go."""
    for ending, instead in _SUFFIXES:
        if word.endswith(ending) and len(word) >= len(ending) + 3:
            word = word.removesuffix(ending) + instead
            break
    else:
        if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
            word = word.removesuffix("s")
        elif word.endswith("ed") and len(word) > 4:
            word = word.removesuffix("ed")
    return word.removesuffix("e") if len(word) > 3 else word
