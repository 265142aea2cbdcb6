"""Files to records: text, JSON lines, JSON and Parquet, plain or compressed, alone or in folders; in a fixed order.

A record is bytes and where they are from, so that whoever parses it can be another process.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Literal, cast

from qafila.data.problems import Origin
from qafila.errors import DataError, FormatError, UnsupportedError

MAX_RECORD: Final = 64 << 20
"""Bytes of the longest line or record that is read."""
MAX_JSON: Final = 1 << 30
"""Bytes of the largest ``.json`` file, which is read whole."""
PORTION: Final = 256 << 10
"""About how many bytes of a long text file make one record."""

_PROSE: Final = "txt md markdown rst org tex text html htm xml"
_CODE: Final = (
    "py pyi c h cc cpp cxx hpp cu cs java js jsx mjs ts tsx go rs rb php sh bash sql lua r jl swift kt scala css hs ml "
    "pl el vim"
)
TEXT: Final = frozenset(f".{name}" for name in f"{_PROSE} {_CODE}".split())
LINES: Final = frozenset((".jsonl", ".ndjson", ".jsonlines"))
_PACKED: Final = frozenset((".gz", ".xz", ".bz2"))
_NOT_PACKED: Final = frozenset((".zst", ".zip", ".lz4", ".7z", ".rar", ".tar", ".tgz"))
_DAMAGED: Final = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it stands in its file.

    Attributes:
        raw: UTF-8 text, or JSON.
        kind: ``text``, ``json``, or ``fault``: it cannot be read, and ``raw`` says why.
        first: the text begins a document. last: it ends one.
    """

    origin: Origin
    raw: bytes
    kind: Literal["text", "json", "fault"] = "json"
    first: bool = True
    last: bool = True

    def share(self) -> float:
        """A number in [0, 1) made of the content alone: the same record always gets the same one."""
        digest = hashlib.blake2b(self.raw.strip(), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64


def list_files(path: str | Path) -> list[Path]:
    """The data files that a path means: itself, or all that can be read below it, in the order of their names.

    Raises:
        DataError: nothing is there, or nothing that can be read.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        return [path]
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".") and kind_of(Path(name)) is not None]
    if not found:
        raise DataError(f"{path}: no file in this folder is text, .jsonl, .json or .parquet (.gz and .xz may follow)")
    return sorted(found, key=lambda file: file.relative_to(path).parts)


def kind_of(path: Path) -> str | None:
    """``text``, ``lines``, ``json`` or ``parquet``, by the name; None for others."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in _PACKED:
        suffix = suffixes[-2] if len(suffixes) > 1 else ""
        if suffix == ".parquet":
            return None
    if suffix in TEXT:
        return "text"
    if suffix in LINES:
        return "lines"
    return {".json": "json", ".parquet": "parquet", ".pq": "parquet"}.get(suffix)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def read_records(path: Path, *, as_text: bool = False, told: Callable[[int], None] | None = None) -> Iterator[Record]:
    """The records of one file, in its order.

    Args:
        path: the file.
        as_text: it is plain text, whatever its name.
        told: is called now and then with the number of bytes of the file that have been read.

    Raises:
        DataError: it cannot be opened, or its name tells no kind.
        FormatError: it is damaged.
    """
    kind = "text" if as_text and kind_of(path) != "parquet" else kind_of(path)
    if kind is None:
        suffix = path.suffix.lower()
        if suffix in _NOT_PACKED:
            raise UnsupportedError(path, f"{suffix} files are not read; unpack it first (.gz, .xz and .bz2 are read)")
        raise DataError(
            f"{path}: the name tells no kind of data; known are .txt, .md, .jsonl, .json, .parquet and source code; "
            "for plain text of another name set form text"
        )
    if kind == "parquet":
        yield from _parquet(path, told)
        return
    with _open(path, told) as file:
        if kind == "text":
            yield from _text(file, str(path))
        elif kind == "json":
            yield from _json(file, str(path))
        else:
            yield from _lines(file, str(path))


@contextmanager
def _open(path: Path, told: Callable[[int], None] | None) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file; damage of the packing is told as such."""
    try:
        with path.open("rb") as raw:
            source = cast("IO[bytes]", _Told(raw, told) if told else raw)
            yield _unpacked(source, path.suffix.lower())
    except _DAMAGED as error:
        raise FormatError(
            path, f"damaged or cut short ({str(error) or type(error).__name__}); fetch it again"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _unpacked(source: IO[bytes], suffix: str) -> BinaryIO:
    """What is in a packed file; it holds nothing open besides that file."""
    opener = {".gz": gzip.GzipFile, ".xz": lzma.LZMAFile, ".bz2": bz2.BZ2File}.get(suffix)
    if opener is None:
        return cast("BinaryIO", source)
    return cast("BinaryIO", opener(fileobj=source) if opener is gzip.GzipFile else opener(source))


class _Told:
    """A file that tells how far it has been read."""

    def __init__(self, file: BinaryIO, told: Callable[[int], None]) -> None:
        self._file, self._told = file, told

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._told(self._file.tell())
        return data

    def readline(self, size: int = -1) -> bytes:
        data = self._file.readline(size)
        self._told(self._file.tell())
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _start(head: bytes, path: str) -> bytes:
    """The first bytes without a byte order mark.

    Raises:
        FormatError: the mark is one of UTF-16 or UTF-32.
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise FormatError(path, "is UTF-16 or UTF-32 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    return head.removeprefix(b"\xef\xbb\xbf")


def _lines(file: BinaryIO, path: str) -> Iterator[Record]:
    number = 0
    while line := file.readline(MAX_RECORD + 1):
        number += 1
        if number == 1:
            line = _start(line, path)
        origin = Origin(path, number)
        if len(line) > MAX_RECORD and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_RECORD)
            yield Record(origin, f"the line is longer than {MAX_RECORD >> 20} MiB".encode(), "fault")
        elif line := line.strip():
            yield Record(origin, line)


def _json(file: BinaryIO, path: str) -> Iterator[Record]:
    """A list of records, one record, or JSON lines under the wrong name."""
    data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise UnsupportedError(path, f"is larger than {MAX_JSON >> 30} GiB; write it as JSON lines (.jsonl)")
    data = _start(data, path)
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError) as error:
        if data.lstrip().startswith(b"{") and b"\n" in data.strip():
            for number, line in enumerate(data.split(b"\n"), 1):
                if line := line.strip():
                    yield Record(Origin(path, number), line)
            return
        raise FormatError(path, f"is no JSON ({_reason(error)})") from None
    if not isinstance(whole, list):
        yield Record(Origin(path), data.strip())
        return
    del data
    for number, value in enumerate(whole, 1):
        yield _dumped(value, Origin(path, number, "record"))


def _dumped(value: object, origin: Origin) -> Record:
    try:
        raw = json.dumps(value, ensure_ascii=False, default=_plain).encode()
    except (ValueError, TypeError, RecursionError) as error:
        return Record(origin, f"is no plain data ({_reason(error)})".encode(errors="replace"), "fault")
    return Record(origin, raw)


def _plain(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _text(file: BinaryIO, path: str) -> Iterator[Record]:
    """A text file in portions that end where a line ends, if there are lines."""
    held = _start(file.read(PORTION), path)
    line, first = 1, True
    while True:
        more = file.read(PORTION)
        if not more:
            break
        held += more
        while len(held) >= 2 * PORTION:
            end = _cut(held)
            yield Record(Origin(path, line), _unix(held[:end]), "text", first=first, last=False)
            line += held.count(b"\n", 0, end)
            held, first = held[end:], False
    yield Record(Origin(path, line), _unix(held), "text", first=first, last=True)


def _unix(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n")


def _cut(data: bytes) -> int:
    """Where to cut, near `PORTION`: before the first letter of a line, or of a word, or anywhere between characters."""
    for mark in (b"\n\n", b"\n", b" "):
        found = data.rfind(mark, PORTION // 2, PORTION)
        if found >= 0:
            return found + len(mark)
    end = PORTION
    while end > PORTION - 4 and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _parquet(path: Path, told: Callable[[int], None] | None) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install 'qafila[data]'") from None
    number = 0
    try:
        size = path.stat().st_size
        with parquet.ParquetFile(path) as file:
            total = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield _dumped(_without_nulls(row), Origin(str(path), number, "row"))
                if told is not None:
                    told(size * number // total)
    except (pyarrow.ArrowException, ValueError) as error:
        raise FormatError(path, f"is no Parquet file that can be read ({_reason(error)})") from None
    except OSError as error:
        raise DataError(f"{path}: {_reason(error)}") from None


def _without_nulls(value: Any) -> Any:
    """Columns that other rows have are null here: the same as not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
