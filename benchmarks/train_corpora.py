"""Real corpora for training runs: ``python benchmarks/train_corpora.py english arabic --xz``.

Of the data in ``../shared/data`` (absent from the repository): ``english`` and ``arabic`` books, cleaned, four
whole books held out, the same ones each time; ``--xz`` says what they cost after the others. ``instructions`` are
Alpaca's and ``preferences`` Anthropic's, short ones.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1] / "../shared/data"
Record = dict[str, Any]

_MARKS = re.compile("[\u200e\u200f\u200a-\u200d\u2060\u2066-\u2069\ufeff]")
_FORMS = re.compile("[\ufb50-\ufdf1\ufe70-\ufefc]")
_NOTE = re.compile(r"[\[(]?[0-9٠-٩*]{1,3}[\])]?")


def main() -> None:
    """Write the corpora that were asked for, and say what they hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=list(MAKERS), metavar="NAME", help=", ".join(MAKERS))
    parser.add_argument("--to", type=Path, default=Path("build/corpora"))
    parser.add_argument("--xz", action="store_true", help="bits that xz -9e takes for a held-out byte")
    parser.add_argument("--bytes", type=float, default=14e6, help="most bytes that are learned from")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        learned, held = MAKERS[name](int(arguments.bytes))
        for part, records in (("train", learned), ("heldout", held)):
            path = arguments.to / f"{name}-{part}.jsonl"
            path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
            print(f"{path}: {len(records)} records, {path.stat().st_size:,} bytes")
        if arguments.xz:
            print(f"xz -9e: {xz_bits(_text(learned), _text(held)):.3f} bits a held-out byte of {name}")


def xz_bits(learned: bytes, held: bytes) -> float:
    """Bits that ``xz -9e`` takes for each byte of a text that follows what it could learn from."""
    preset = 9 | lzma.PRESET_EXTREME
    return (
        8 * (len(lzma.compress(learned + held, preset=preset)) - len(lzma.compress(learned, preset=preset))) / len(held)
    )


def _text(records: list[Record]) -> bytes:
    return "".join(record["text"] for record in records).encode()


def english(most: int) -> tuple[list[Record], list[Record]]:
    """English classics without their front matter."""
    return _books("books_en.jsonl.xz", clean_markdown, most, held=(4, 300_000))


def arabic(most: int) -> tuple[list[Record], list[Record]]:
    """Arabic books without OpenITI's markup and their tables of contents."""
    return _books("books_ar.jsonl.xz", clean_openiti, most, held=(4, 300_000))


def clean_markdown(text: str) -> str:
    """Without title, author and year; spaces at ends of lines and empty lines of more than one go."""
    body = text.split("\n-------", 1)[-1].lstrip("-")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t\r]+\n", "\n", body)).strip() + "\n"


def clean_openiti(text: str) -> str:
    """What an author wrote: no metadata, no list of contents, no lone note numbers, each paragraph on one line.

    The lines of a file are wrapped in the middle of sentences; halves of verses are paragraphs of their own.
    """
    body = text.split("#META#Header#End#", 1)[-1].replace("\r", "")
    # The contents stand before the first heading, usually twice.
    body = body[max(body.find("# |"), 0) :]
    body = _FORMS.sub(lambda m: unicodedata.normalize("NFKC", m.group()), _MARKS.sub("", body)).replace("\u0640", "")
    made: list[str] = []
    for block in re.split(r"\n\s*\n", body):
        lines = [" ".join(line.split()) for line in block.split("\n")]
        paragraph = " ".join(line for line in lines if line and not _NOTE.fullmatch(line))
        paragraph = re.sub(r" ([:،؛.؟!])", r"\1", paragraph)
        if paragraph.startswith("# |"):
            paragraph = paragraph[3:].strip()
            # A title stands on its cover, its title page and its first chapter; notes are empty without their numbers.
            if paragraph in made[-3:] or paragraph == "هوامش":
                continue
        if paragraph:
            made.append(paragraph)
    return "\n\n".join(made) + "\n"


def _books(
    name: str, clean: Callable[[str], str], most: int, held: tuple[int, int]
) -> tuple[list[Record], list[Record]]:
    """The first books in an order that says nothing of them: ``held`` is how many are held out, of at most how long."""
    learned: list[Record] = []
    out: list[Record] = []
    size = 0
    for record in sorted(_read(name), key=lambda r: _hash(r["source"])):
        made = {"source": record["source"], "text": clean(record["text"])}
        n = len(made["text"].encode())
        if len(out) < held[0] and 50_000 < n <= held[1]:
            out.append(made)
        # A book that would go beyond is left out whole; a short one after it may still fit.
        elif size + n <= most:
            size += n
            learned.append(made)
    return learned, out


def _read(name: str) -> list[Record]:
    with lzma.open(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def instructions(most: int) -> tuple[list[Record], list[Record]]:
    """Alpaca's instructions with answers of at most 300 characters; 150 of them are held out."""
    records = _lines("alpaca_4500.jsonl.gz", lambda r: str(r["output"]), lambda r: len(r["output"]) <= 300)
    return _cut(records[150:], most), records[:150]


def preferences(most: int) -> tuple[list[Record], list[Record]]:
    """Anthropic's comparisons of short conversations; 200 of them are held out."""
    sides = ("chosen", "rejected")
    records = _lines(
        "hh_harmless_1800.jsonl.gz",
        lambda r: str(r["chosen"]),
        lambda r: all(len(r[side]) <= 600 for side in sides) and r["chosen"] != r["rejected"],
    )
    return _cut(records[200:], most), records[:200]


def _lines(name: str, key: Callable[[Record], str], fits: Callable[[Record], bool]) -> list[Record]:
    """Those that fit, each once, in an order that says nothing of them."""
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        made = {key(record): record for line in lines if fits(record := json.loads(line))}
    return [made[k] for k in sorted(made, key=_hash)]


def _cut(records: list[Record], most: int) -> list[Record]:
    size = 0
    kept = []
    for record in records:
        size += len(json.dumps(record, ensure_ascii=False).encode())
        if size > most:
            break
        kept.append(record)
    return kept


MAKERS: dict[str, Callable[[int], tuple[list[Record], list[Record]]]] = {
    "english": english,
    "arabic": arabic,
    "instructions": instructions,
    "preferences": preferences,
}


if __name__ == "__main__":
    main()
