"""Zip archives as torch.save writes them: entries stored, never compressed, so that a mapped file is the tensors.

Only what a checkpoint needs of the format (PKWARE APPNOTE 6.3): the central directory, zip64, stored entries. Nothing
is ever extracted to disk, so names are labels; those that try to be paths out of the archive are refused all the same.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from qafila.errors import FormatError, UnsupportedError
from qafila.weights.storage import explain_start, map_file, quoted
from qafila.weights.tensor import Bytes

Write = Callable[[bytes | memoryview], object]

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")

# An entry, an offset or a count at or above these goes to the zip64 fields.
_MAX_32 = 0xFFFFFFFF
_MAX_16 = 0xFFFF
_ALIGNMENT = 64  # what torch.save aligns storages to
_MAX_ENTRIES = 100_000  # a checkpoint has one entry a tensor
_FLAGS = 0x808  # sizes after the bytes, names in UTF-8
_DATE = 0x21  # 1980-01-01: equal tensors give equal files


def read_archive(path: Path) -> dict[str, Bytes]:
    """Every entry of a zip file with stored entries: name to a view of its bytes, no copy.

    Raises:
        FormatError: not a zip file, damaged, or with entries that overlap, repeat a name or lie outside the file.
        UnsupportedError: an entry is compressed or encrypted.
        ModelNotFoundError: there is no such file.
    """
    whole = memoryview(map_file(path))
    data = np.frombuffer(whole, dtype=np.uint8)
    start, size, count = _directory(path, whole)
    ranges: list[tuple[int, int]] = []
    entries: dict[str, Bytes] = {}
    at, end = start, start + size
    for _ in range(count):
        if at + _CENTRAL.size > end:
            raise FormatError(path, "the zip directory is cut short; download the file again")
        head = _CENTRAL.unpack_from(whole, at)
        flags, method, packed, full = head[3], head[4], head[8], head[9]
        name_length, extra_length, comment_length, offset = head[10], head[11], head[12], head[16]
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_length
        at = extra_at + extra_length + comment_length
        if head[0] != b"PK\x01\x02" or at > end:
            raise FormatError(path, "the zip directory is damaged; download the file again")
        name = _name(path, bytes(whole[name_at:extra_at]))
        full, packed, offset = _zip64(path, bytes(whole[extra_at : extra_at + extra_length]), full, packed, offset)
        if flags & 1:
            raise UnsupportedError(path, f"entry {name} is encrypted")
        if method != 0:
            raise UnsupportedError(path, f"entry {name} is compressed; torch.save stores entries as they are")
        if packed != full:
            raise FormatError(path, f"entry {name} claims two sizes, {packed} and {full} bytes")
        if name in entries:
            raise FormatError(path, f"entry {name} is there twice")
        body = _body(path, whole, name, offset, start)
        if body + full > start:
            raise FormatError(path, f"entry {name} ({full} bytes) reaches beyond the file; download it again")
        ranges.append((offset, body + full))
        entries[name] = data[body : body + full]
    ranges.sort()
    for (_, before), (after, _) in pairwise(ranges):
        if after < before:
            raise FormatError(path, "entries of the zip file overlap")
    return entries


def _directory(path: Path, data: memoryview) -> tuple[int, int, int]:
    """Where the central directory lies, its bytes and its entries, checked against the file's size."""
    tail_at = max(0, len(data) - _END.size - 0xFFFF)
    tail = bytes(data[tail_at:])
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or found + _END.size > len(tail):
        whole = bytes(data[:4]) == b"PK\x03\x04"
        reason = " or cut short; download it again" if whole else explain_start(bytes(data[:64]))
        raise FormatError(path, f"not a zip file as torch.save writes it{reason}")
    end_at = tail_at + found
    _, disk, _, _, count, size, start, _ = _END.unpack_from(data, end_at)
    limit = end_at
    locator_at = end_at - _LOCATOR.size
    if locator_at >= 0 and bytes(data[locator_at : locator_at + 4]) == b"PK\x06\x07":
        end64_at = _LOCATOR.unpack_from(data, locator_at)[2]
        if end64_at + _END64.size > locator_at or bytes(data[end64_at : end64_at + 4]) != b"PK\x06\x06":
            raise FormatError(path, "the zip64 directory is damaged; download the file again")
        _, _, _, _, disk, _, _, count, size, start = _END64.unpack_from(data, end64_at)
        limit = end64_at
    if disk != 0:
        raise UnsupportedError(path, "a zip file in several parts")
    if start + size > limit or count * _CENTRAL.size > size:
        raise FormatError(path, "the zip directory reaches beyond the file; download it again")
    if count > _MAX_ENTRIES:
        raise FormatError(path, f"{count} entries in a zip file of weights, more than {_MAX_ENTRIES}")
    return start, size, count


def _name(path: Path, raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(path, "an entry of the zip file has a name that is not UTF-8") from None
    if not name or not name.isprintable() or name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise FormatError(path, f"an entry of the zip file has the forbidden name {quoted(name)}")
    return name


def _zip64(path: Path, extra: bytes, full: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The three sizes with those that did not fit 32 bits taken from the zip64 field."""
    wanted = [value == 0xFFFFFFFF for value in (full, packed, offset)]
    if not any(wanted):
        return full, packed, offset
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1 and at + 4 + length <= len(extra) and length >= 8 * sum(wanted):
            values = iter(struct.unpack_from(f"<{sum(wanted)}Q", extra, at + 4))
            sizes = [next(values) if big else small for big, small in zip(wanted, (full, packed, offset), strict=True)]
            return sizes[0], sizes[1], sizes[2]
        at += 4 + length
    raise FormatError(path, "an entry lacks its zip64 sizes; download the file again")


def _body(path: Path, data: memoryview, name: str, offset: int, limit: int) -> int:
    """Where an entry's bytes start, after its local header."""
    if offset + _LOCAL.size > limit:
        raise FormatError(path, f"entry {name} starts beyond the file; download it again")
    head = _LOCAL.unpack_from(data, offset)
    body = offset + _LOCAL.size + head[9] + head[10]
    own = bytes(data[offset + _LOCAL.size : offset + _LOCAL.size + head[9]])
    if head[0] != b"PK\x03\x04" or own != name.encode() or head[3] != 0:
        raise FormatError(path, f"entry {name} disagrees with the zip directory; download the file again")
    return int(body)


def write_archive(write: Write, entries: Iterable[tuple[str, int, Iterable[Bytes]]]) -> None:
    """Write a zip file with stored entries, every entry's bytes 64-byte aligned, front to back.

    Args:
        write: appends bytes to the file.
        entries: name, number of bytes, and the bytes in pieces, each read only when its turn comes.
    """
    directory: list[bytes] = []
    at = 0
    for name, size, pieces in entries:
        record, length = _write_entry(write, at, name.encode(), size, pieces)
        directory.append(record)
        at += length
    size, count = sum(map(len, directory)), len(directory)
    for record in directory:
        write(record)
    if at >= _MAX_32 or size >= _MAX_32 or count >= _MAX_16:
        write(_END64.pack(b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, count, count, size, at))
        write(_LOCATOR.pack(b"PK\x06\x07", 0, at + size, 1))
    short = min(count, 0xFFFF)
    write(_END.pack(b"PK\x05\x06", 0, 0, short, short, min(size, 0xFFFFFFFF), min(at, 0xFFFFFFFF), 0))


def _write_entry(write: Write, at: int, name: bytes, size: int, pieces: Iterable[Bytes]) -> tuple[bytes, int]:
    """Write one entry at offset ``at``; its record for the central directory and its length in the file."""
    big = size >= _MAX_32
    extra = struct.pack("<HHQQ", 1, 16, 0, 0) if big else b""
    # The padding is an extra field of its own, as torch writes it ("FB"), so that the bytes after it are aligned.
    padding = -(at + _LOCAL.size + len(name) + len(extra) + 4) % _ALIGNMENT
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    short = 0xFFFFFFFF if big else 0
    # Checksum and sizes follow the bytes (flag 8), as in torch's own files: the file is written front to back.
    header = (45 if big else 20, _FLAGS, 0, 0, _DATE, 0, short, short, len(name), len(extra))
    write(_LOCAL.pack(b"PK\x03\x04", *header) + name + extra)
    crc, written = 0, 0
    for piece in pieces:
        view = np.ascontiguousarray(piece).data
        crc = zlib.crc32(view, crc)
        write(view)
        written += piece.size
    assert written == size
    descriptor = struct.pack("<4sIQQ" if big else "<4sIII", b"PK\x07\x08", crc, size, size)
    write(descriptor)
    far = at >= _MAX_32
    wide = ([size, size] if big else []) + ([at] if far else [])
    more = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    version = 45 if wide else 20
    sizes = (0xFFFFFFFF if big else size,) * 2
    fields = (version, version, _FLAGS, 0, 0, _DATE, crc, *sizes, len(name), len(more), 0, 0, 0, 0)
    record = _CENTRAL.pack(b"PK\x01\x02", *fields, 0xFFFFFFFF if far else at) + name + more
    return record, _LOCAL.size + len(name) + len(extra) + size + len(descriptor)
