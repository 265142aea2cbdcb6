"""Scripts by their Unicode blocks: which one a character, a line or a piece of UTF-8 belongs to.

Block limits are those of Unicode 16's `Blocks.txt`. A block holds a script's letters with its own marks, digits and
punctuation (``،`` and ``٣`` are in Arabic's): text without characters of these blocks has nothing of the script.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType

from qafila.errors import UsageError


@dataclass(frozen=True)
class Script:
    """One script.

    Attributes:
        name: as options write it.
        label: as reports write it: for scripts of mainly one language here, that language.
        blocks: first and last code point of each block.
    """

    name: str
    label: str
    blocks: tuple[tuple[int, int], ...]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """One or more characters of the script."""
        return re.compile(f"[{self._class}]+")

    @cached_property
    def word(self) -> re.Pattern[str]:
        """A whole text of nothing but characters of the script, with at most one space in front."""
        return re.compile(f" ?[{self._class}]+")

    @property
    def _class(self) -> str:
        return "".join(f"{chr(first)}-{chr(last)}" for first, last in self.blocks)

    def holds(self, first: int, last: int | None = None) -> bool:
        """Whether a code point, or each one of a range, lies in one of the script's blocks."""
        last = first if last is None else last
        return any(low <= first and last <= high for low, high in self.blocks)

    def count(self, text: str) -> int:
        """How many characters of ``text`` are the script's."""
        return sum(map(len, self.pattern.findall(text)))


LATIN = Script(
    "latin", "English", ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x1E00, 0x1EFF))
)
ARABIC = Script(
    "arabic", "Arabic", ((0x600, 0x6FF), (0x750, 0x77F), (0x870, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC))
)


@cache
def scripts() -> Mapping[str, Script]:
    """All that are known, by name; Latin is called English, Arabic Arabic, the others as the script is."""
    others = {
        "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
        "cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
        "armenian": ((0x530, 0x58F),),
        "hebrew": ((0x590, 0x5FF), (0xFB1D, 0xFB4F)),
        "syriac": ((0x700, 0x74F), (0x860, 0x86F)),
        "devanagari": ((0x900, 0x97F), (0xA8E0, 0xA8FF)),
        "bengali": ((0x980, 0x9FF),),
        "gurmukhi": ((0xA00, 0xA7F),),
        "gujarati": ((0xA80, 0xAFF),),
        "tamil": ((0xB80, 0xBFF),),
        "telugu": ((0xC00, 0xC7F),),
        "kannada": ((0xC80, 0xCFF),),
        "malayalam": ((0xD00, 0xD7F),),
        "sinhala": ((0xD80, 0xDFF),),
        "thai": ((0xE00, 0xE7F),),
        "lao": ((0xE80, 0xEFF),),
        "tibetan": ((0xF00, 0xFFF),),
        "myanmar": ((0x1000, 0x109F),),
        "georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)),
        "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7A3)),
        "ethiopic": ((0x1200, 0x139F), (0x2D80, 0x2DDF)),
        "khmer": ((0x1780, 0x17FF),),
        "tifinagh": ((0x2D30, 0x2D7F),),
        "kana": ((0x3040, 0x30FF),),
        "han": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF)),
    }
    known = [LATIN, ARABIC, *(Script(name, name.capitalize(), blocks) for name, blocks in others.items())]
    return MappingProxyType({script.name: script for script in known})


def script_named(name: str) -> Script:
    """The script of that name.

    Raises:
        UsageError: it is not known.
    """
    found = scripts().get(name.lower())
    if found is None:
        raise UsageError(f"script {name[:40]!r}: not known; there are {', '.join(scripts())}")
    return found


def main_script(text: str, among: Iterable[Script] | None = None) -> Script | None:
    """The script that most characters of ``text`` have (of ``among``, or of all); None where it has none of any."""
    best, most = None, 0
    for script in scripts().values() if among is None else among:
        found = script.count(text)
        if found > most:
            best, most = script, found
    return best
