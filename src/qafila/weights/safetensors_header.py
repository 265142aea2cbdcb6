"""Parsing a safetensors file's header: the JSON is bounded, every offset is checked against the file."""

from __future__ import annotations

import json
import struct
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qafila.errors import FormatError, UnsupportedError
from qafila.quant.dtypes import DType
from qafila.weights.storage import explain_start, map_file, quoted
from qafila.weights.tensor import LazyTensor, Tensor

METADATA_KEY = "__metadata__"
# The reference reads 100 MB; published headers stay under 1 MiB, and JSON takes thirty times its size in memory.
_MAX_HEADER = 16 << 20
_MAX_DIMENSIONS = 8
_FIELDS = {"dtype", "shape", "data_offsets"}
_DTYPES = {
    dtype.name: dtype
    for dtype in (*(d for d in DType if d.floating), DType.I64, DType.I32, DType.I16, DType.I8, DType.U8, DType.BOOL)
}


def parse_object(path: Path, what: str, data: bytes) -> dict[str, Any]:
    """A JSON object out of an untrusted file.

    Raises:
        FormatError: not UTF-8, not JSON, nested too deeply, a key twice, NaN or infinity, or not an object.
    """
    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if "\\ud" in text.lower():  # half a surrogate pair is no character; the encoder says so
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise FormatError(path, f"{what} is nested too deeply") from None
    except ValueError as error:  # UnicodeError and JSONDecodeError are among these
        reason = "not UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise FormatError(path, f"{what} is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise FormatError(path, f"{what} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice)} is there twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def read_header(path: Path) -> tuple[dict[str, str], dict[str, LazyTensor]]:
    """Map ``path`` and parse its header: ``__metadata__``, and the tensors in order of their bytes, as views.

    Raises:
        ModelNotFoundError: there is no such file.
        UnsupportedError: a tensor of a type that is not a ``DType``.
        FormatError: anything that does not fit together; the message names the tensor.
    """
    buffer = map_file(path)
    if len(buffer) < 8:
        raise FormatError(path, "is too short for a safetensors file")
    length = int(struct.unpack_from("<Q", buffer)[0])
    if buffer[8:9] != b"{":
        raise FormatError(path, f"is not a safetensors file{explain_start(buffer[:64])}")
    if length > len(buffer) - 8:
        raise FormatError(
            path, f"claims a header of {length} bytes, more than the file has: it is truncated or damaged"
        )
    if length > _MAX_HEADER:
        raise FormatError(path, f"has a header of {length} bytes; {_MAX_HEADER >> 20} MiB is the most that is read")
    entries = parse_object(path, "the header", buffer[8 : 8 + length])
    metadata = _metadata(path, entries.pop(METADATA_KEY, {}))
    data = np.frombuffer(buffer, dtype=np.uint8)[8 + length :]
    spans = sorted((_span(path, name, entry, data.size) for name, entry in entries.items()), key=lambda s: s[3:])
    tensors: dict[str, LazyTensor] = {}
    position = 0
    for name, dtype, shape, begin, end in spans:
        what = f"tensor {quoted(name)}"
        if begin != position:
            problem = "overlaps the one before it" if begin < position else "leaves a gap before it"
            raise FormatError(path, f"{what} {problem}")
        position = end
        read = partial(Tensor, dtype, shape, data[begin:end])
        tensors[name] = LazyTensor(dtype, shape, f"{path}: {what}", read)
    if position != data.size:
        raise FormatError(path, f"has {data.size - position} bytes that belong to no tensor")
    return metadata, tensors


def _metadata(path: Path, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError(path, f"'{METADATA_KEY}' must map strings to strings")
    return value


def _span(path: Path, name: str, entry: object, size: int) -> tuple[str, DType, tuple[int, ...], int, int]:
    what = f"tensor {quoted(name)}"
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise FormatError(path, f"{what} must have exactly the fields {', '.join(sorted(_FIELDS))}")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise UnsupportedError(path, f"{what} has the type {quoted(str(entry['dtype']))}, which Qafila does not read")
    shape, offsets = _naturals(entry["shape"]), _naturals(entry["data_offsets"])
    if shape is None or len(shape) > _MAX_DIMENSIONS or prod(max(n, 1) for n in shape) >= 1 << 63:
        raise FormatError(path, f"{what} has an impossible shape")
    if offsets is None or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size:
        raise FormatError(path, f"{what} has data_offsets outside the file: it is truncated or damaged")
    begin, end = offsets
    if end - begin != dtype.nbytes(shape):
        raise FormatError(
            path, f"{what} of shape {list(shape)} and type {dtype.name} does not take {end - begin} bytes"
        )
    return name, dtype, shape, begin, end


def _naturals(value: object) -> tuple[int, ...] | None:
    """A JSON list of integers of at least 0 as a tuple, None for anything else."""
    if not isinstance(value, list):
        return None
    if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 1 << 63 for item in value):
        return None
    return tuple(value)
