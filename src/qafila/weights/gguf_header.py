"""Parsing a GGUF file's header: every count and length is checked against the file before anything is allocated."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np

from qafila.errors import FormatError, UnsupportedError
from qafila.native import _native
from qafila.quant.dtypes import DType
from qafila.weights.gguf_values import NUMBER_FORMATS, GgufType, GgufValue, array_dtype
from qafila.weights.storage import explain_start, map_file, quoted
from qafila.weights.tensor import LazyTensor, Tensor

MAGIC = b"GGUF"
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4

# Far above any published model (Llama 4's header takes 12 MB, Maverick has some thousand tensors); they bound what a
# hostile or sparse file can make us allocate.
_MAX_HEADER = 64 << 20
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 18
_MAX_ARRAY = 1 << 24
_ALIGNMENTS = tuple(1 << power for power in range(21))

_DTYPES = {dtype.ggml_type: dtype for dtype in DType if dtype.ggml_type >= 0}
# ggml.h; for messages only.
_OTHER_TYPES = MappingProxyType(
    {
        4: "Q4_2",
        5: "Q4_3",
        9: "Q8_1",
        15: "Q8_K",
        16: "IQ2_XXS",
        17: "IQ2_XS",
        18: "IQ3_XXS",
        19: "IQ1_S",
        21: "IQ3_S",
        22: "IQ2_S",
        23: "IQ4_XS",
        29: "IQ1_M",
        34: "TQ1_0",
        35: "TQ2_0",
        39: "MXFP4",
    }
)

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Header:
    """What one GGUF file (one shard of a split model) says, checked."""

    version: int
    alignment: int
    metadata: dict[str, GgufValue]
    tensors: dict[str, LazyTensor]


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Cursor:
    """A position in the mapped header; every step is checked against the end of the file."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path, self.buffer, self.position = path, buffer, 0
        self.limit = min(len(buffer), _MAX_HEADER)
        self.array = np.frombuffer(buffer, dtype=np.uint8)

    def overrun(self, what: str) -> FormatError:
        if self.limit < len(self.buffer):
            return FormatError(self.path, f"its header is larger than {_MAX_HEADER >> 20} MiB, seen at {what}")
        return FormatError(self.path, f"it ends inside {what}: the file is truncated or damaged")

    def advance(self, size: int, what: str) -> int:
        """Step over ``size`` bytes; gives where they start."""
        start = self.position
        if size > self.limit - start:
            raise self.overrun(what)
        self.position = start + size
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.buffer, self.advance(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.buffer, self.advance(8, what))[0])

    def data(self, size: int, what: str) -> bytes:
        start = self.advance(size, what)
        return self.buffer[start : self.position]

    def name(self, what: str) -> str:
        """A key or tensor name: valid UTF-8 and not empty."""
        data = self.data(self.u64(what), what)
        try:
            name = data.decode()
        except UnicodeDecodeError:
            raise FormatError(self.path, f"{what} is not valid UTF-8") from None
        if not name:
            raise FormatError(self.path, f"{what} is empty")
        return name


def read_header(path: Path) -> Header:
    """Map ``path`` and parse its header; tensors are views of the mapping.

    Raises:
        ModelNotFoundError: there is no such file.
        UnsupportedError: big-endian, version 1 or a future one, nested arrays, tensor types without a ``DType``.
        FormatError: anything that does not fit together; the message names the key or tensor.
    """
    buffer = map_file(path)
    cursor = _Cursor(path, buffer)
    if buffer[:4] != MAGIC:
        raise FormatError(path, f"is not a GGUF file{explain_start(buffer[:64])}")
    cursor.position = 4
    version = cursor.u32("the version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(path, "is a big-endian GGUF file; convert it on a little-endian machine")
    if version not in (2, 3):
        raise UnsupportedError(path, f"is GGUF version {version}; versions 2 and 3 are known")
    tensor_count = cursor.u64("the tensor count")
    key_count = cursor.u64("the metadata count")
    # The smallest entries: a name of one byte, a type, a value of one byte; a name, no dimensions, type, offset.
    _check_count(cursor, "metadata entries", key_count, 8 + 1 + 4 + 1, _MAX_KEYS)
    _check_count(cursor, "tensors", tensor_count, 8 + 1 + 4 + 4 + 8, _MAX_TENSORS)
    metadata: dict[str, GgufValue] = {}
    for index in range(key_count):
        key = cursor.name(f"metadata key {index}")
        if key in metadata:
            raise FormatError(path, f"metadata key {quoted(key)} is there twice")
        metadata[key] = _read_value(cursor, f"metadata key {quoted(key)}")
    alignment = alignment_of(path, metadata)
    infos: dict[str, _TensorInfo] = {}
    for index in range(tensor_count):
        info = _read_tensor_info(cursor, index, alignment)
        if info.name in infos:
            raise FormatError(path, f"tensor {quoted(info.name)} is there twice")
        infos[info.name] = info
    start = cursor.position + -cursor.position % alignment
    _check_layout(path, infos, len(buffer) - start)
    tensors = {}
    for name, info in infos.items():
        data = cursor.array[start + info.offset : start + info.offset + info.nbytes]
        read = partial(Tensor, info.dtype, info.shape, data)
        tensors[name] = LazyTensor(info.dtype, info.shape, f"{path}: tensor {quoted(name)}", read)
    return Header(version, alignment, metadata, tensors)


def alignment_of(path: Path, metadata: dict[str, GgufValue]) -> int:
    """The alignment of tensor data, in bytes, that ``metadata`` asks for.

    Raises:
        FormatError: it is not a UINT32 power of two.
    """
    stated = metadata.get(ALIGNMENT_KEY)
    if stated is None:
        return DEFAULT_ALIGNMENT
    value = stated.value
    if stated.type is not GgufType.UINT32 or value not in _ALIGNMENTS:
        raise FormatError(path, f"metadata key '{ALIGNMENT_KEY}' must be a UINT32 power of two, 2^20 at most")
    assert isinstance(value, int)
    return value


def _check_count(cursor: _Cursor, what: str, count: int, smallest: int, most: int) -> None:
    if count > (len(cursor.buffer) - cursor.position) // smallest:
        raise FormatError(cursor.path, f"it claims {count} {what}, more than fit in the file")
    if count > most:
        raise FormatError(cursor.path, f"it claims {count} {what}; {most} is the most that is read")


def _read_type(cursor: _Cursor, what: str) -> GgufType:
    number = cursor.u32(f"the type of {what}")
    try:
        return GgufType(number)
    except ValueError:
        raise FormatError(cursor.path, f"{what} has the unknown type {number}") from None


def _read_value(cursor: _Cursor, what: str) -> GgufValue:
    kind = _read_type(cursor, what)
    if kind is GgufType.STRING:
        data = cursor.data(cursor.u64(what), what)
        return GgufValue(kind, data.decode("utf-8", "surrogateescape"))
    if kind is GgufType.ARRAY:
        return _read_array(cursor, what)
    number = struct.Struct(f"<{NUMBER_FORMATS[kind]}")
    start = cursor.advance(number.size, what)
    if kind is GgufType.BOOL and cursor.buffer[start] > 1:
        raise FormatError(cursor.path, f"{what} is a bool of value {cursor.buffer[start]}")
    return GgufValue(kind, number.unpack_from(cursor.buffer, start)[0])


def _read_array(cursor: _Cursor, what: str) -> GgufValue:
    element = _read_type(cursor, f"the elements of {what}")
    count = cursor.u64(f"the length of {what}")
    if element is GgufType.ARRAY:
        raise UnsupportedError(cursor.path, f"{what} is an array of arrays")
    width = 8 if element is GgufType.STRING else array_dtype(element).itemsize
    if count > (len(cursor.buffer) - cursor.position) // width:
        raise FormatError(cursor.path, f"{what} claims {count} elements, more than fit in the file")
    if count > _MAX_ARRAY:
        raise FormatError(cursor.path, f"{what} claims {count} elements; {_MAX_ARRAY} is the most that is read")
    if element is GgufType.STRING:
        return GgufValue(GgufType.ARRAY, _read_strings(cursor, count, what), element)
    data = cursor.data(count * width, what)
    if element is GgufType.BOOL and data.strip(b"\x00\x01"):
        raise FormatError(cursor.path, f"{what} has bools that are neither 0 nor 1")
    return GgufValue(GgufType.ARRAY, np.frombuffer(data, dtype=array_dtype(element)), element)


def _read_strings(cursor: _Cursor, count: int, what: str) -> tuple[str, ...]:
    # Vocabularies and merges are 100,000 strings and more, so these are read natively, all in one.
    found = _native.read_strings(cursor.array, cursor.position, cursor.limit, count)
    if found is None:
        raise cursor.overrun(what)
    strings, cursor.position = found
    return strings


def _read_tensor_info(cursor: _Cursor, index: int, alignment: int) -> _TensorInfo:
    path = cursor.path
    name = cursor.name(f"the name of tensor {index}")
    what = f"tensor {quoted(name)}"
    dimensions = cursor.u32(what)
    if dimensions > MAX_DIMENSIONS:
        raise FormatError(path, f"{what} claims {dimensions} dimensions; GGUF allows {MAX_DIMENSIONS}")
    # The file has the contiguous dimension first.
    shape = tuple(cursor.u64(what) for _ in range(dimensions))[::-1]
    number = cursor.u32(what)
    offset = cursor.u64(what)
    dtype = _DTYPES.get(number)
    if dtype is None:
        known = f" ({_OTHER_TYPES[number]})" if number in _OTHER_TYPES else ""
        raise UnsupportedError(path, f"{what} has the type {number}{known}, which Qafila does not read")
    if 0 in shape or prod(shape) >= 1 << 63:
        raise FormatError(path, f"{what} has the impossible shape {list(shape)}")
    if dtype.quantised and (not shape or shape[-1] % dtype.block_size):
        raise FormatError(path, f"{what} of shape {list(shape)} does not divide into {dtype.name} blocks")
    if offset % alignment:
        raise FormatError(path, f"{what} starts at {offset}, which is not a multiple of {alignment}")
    return _TensorInfo(name, dtype, shape, offset, dtype.nbytes(shape))


def _check_layout(path: Path, infos: dict[str, _TensorInfo], size: int) -> None:
    """Every tensor lies inside the ``size`` bytes of tensor data, and no two overlap."""
    for info in infos.values():
        if info.offset + info.nbytes > size:
            raise FormatError(
                path,
                f"tensor {quoted(info.name)} needs {info.nbytes} bytes at {info.offset} of the tensor data, which has "
                f"{max(size, 0)} bytes: the file is truncated or damaged",
            )
    for one, next_one in pairwise(sorted(infos.values(), key=lambda info: info.offset)):
        if one.offset + one.nbytes > next_one.offset:
            raise FormatError(path, f"tensors {quoted(one.name)} and {quoted(next_one.name)} overlap")
