"""How dates are written in a call, as patterns for grammars: all that they match is read by `dates.read_when`.

They are narrower than what is read, so that a small model cannot write what is no date.
"""

from __future__ import annotations

from typing import Any, Final

_TIME: Final = "([01][0-9]|2[0-3]):[0-5][0-9]"
_MONTH, _DAY = "(0[1-9]|1[0-2])", "(0[1-9]|[12][0-9]|3[01])"
_NUMBERS: Final = f"(20[0-9]{{2}}-{_MONTH}-{_DAY}|1[34][0-9]{{2}}-{_MONTH}-{_DAY} (AH|هـ))"
_MONTHS: Final = (
    "January|February|March|April|May|June|July|August|September|October|November|December"
    "|يناير|فبراير|مارس|أبريل|مايو|يونيو|يوليو|أغسطس|سبتمبر|أكتوبر|نوفمبر|ديسمبر"
    "|Muharram|Safar|Rabi al-Awwal|Rabi al-Thani|Jumada al-Ula|Jumada al-Akhirah|Rajab|Shaban|Ramadan|Shawwal"
    "|Dhu al-Qadah|Dhu al-Hijjah|محرم|صفر|ربيع الأول|ربيع الآخر|جمادى الأولى|جمادى الآخرة|رجب|شعبان|رمضان|شوال"
    "|ذو القعدة|ذو الحجة"
)
_WEEKDAYS: Final = "(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_WEEKDAYS_ARABIC: Final = "(الاثنين|الثلاثاء|الأربعاء|الخميس|الجمعة|السبت|الأحد)"
_NAMED: Final = f"([1-9]|[12][0-9]) ({_MONTHS})"
_WORDS: Final = (
    f"today|tomorrow|the day after tomorrow|yesterday|(next |last )?{_WEEKDAYS}|next (week|month)"
    f"|in [1-9][0-9]? (days|weeks|months)|اليوم|غدا|بعد غد|أمس|{_WEEKDAYS_ARABIC}( القادم| الماضي)?"
    f"|الأسبوع القادم|الشهر القادم|بعد [1-9][0-9]? (أيام|أسابيع|أشهر)|{_NAMED}"
)


def written(*, words: bool, time: bool = True, empty: bool = False, alone: bool = False) -> dict[str, Any]:
    """The schema of a date.

    Args:
        words: whether words may stand for it that mean something else on another day. time: whether it may have one.
        empty: whether it may be left out. alone: whether it may be a time of the day that is meant anyway.
    """
    day = f"({_NUMBERS}" + (f"|{_WORDS}" if words else "") + ")"
    every = [day + (f"( {_TIME})?" if time else ""), *([_TIME] if alone else []), *([""] if empty else [])]
    return {"type": "string", "pattern": f"^({'|'.join(every)})$"}
