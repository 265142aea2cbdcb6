"""The letters of a page, in whichever encoding it is."""

from __future__ import annotations

import codecs
import re
from typing import Final

_BOMS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Encodings of pages (https://encoding.spec.whatwg.org) under Python's names; other codecs of Python are no encodings.
_ENCODINGS: Final = frozenset(
    ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "koi8-r", "koi8-u", "gbk", "gb18030", "big5", "euc_jp", "shift_jis"]
    + ["iso2022_jp", "euc_kr", "cp866", "cp874", "mac-roman", "mac-cyrillic"]
    + [f"cp{number}" for number in range(1250, 1259)]
    + [f"iso8859-{number}" for number in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)]
)
# What labels mean on the web, where it is not what they say.
_MEANT: Final = {
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gbk",
    "iso8859-11": "cp874",
}
_META = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_META_BYTES = 4096


def decoded(content: bytes, charset: str | None, *, html: bool) -> str:
    """The text of a body: by its byte order mark, what it is said to be in, or UTF-8; what fits nothing is replaced.

    Args:
        content: of the answer. charset: of its Content-Type. html: whether the page itself may say it.
    """
    for mark, name in _BOMS:
        if content.startswith(mark):
            return content[len(mark) :].decode(name, "replace")
    meta = _META.search(content[:_META_BYTES]) if html else None
    labels = (charset, meta[1].decode("ascii") if meta else None, "utf-8")
    names = [name for name in map(_encoding, labels) if name is not None]
    for name in names:
        try:
            return content.decode(name)
        except UnicodeDecodeError:
            continue
    return content.decode(names[0], "replace")


def _encoding(label: str | None) -> str | None:
    if label is None:
        return None
    try:
        name = codecs.lookup(label.strip()).name
    except (LookupError, ValueError):
        return None
    name = _MEANT.get(name, name)
    return name if name in _ENCODINGS else None
