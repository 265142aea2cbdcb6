"""Reading GGUF files, versions 2 and 3, little-endian, single or split. Source: ggml ``docs/gguf.md``.

The container only: what keys mean is in ``gguf_config``, what tensors are called is in ``names``. The file stays
mapped; a tensor's bytes are a view of it and are read from the disk when they are first touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy.typing as npt

from qafila.errors import FormatError
from qafila.weights.gguf_header import Header, read_header
from qafila.weights.gguf_values import FLOAT_TYPES, INTEGER_TYPES, GgufType, GgufValue
from qafila.weights.storage import is_there, quoted
from qafila.weights.tensor import LazyTensor

__all__ = ["GgufFile", "GgufType", "GgufValue", "read_gguf"]

_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_SPLIT_NUMBER, _SPLIT_COUNT, _SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True, slots=True, eq=False)
class GgufFile:
    """An open GGUF model.

    ``metadata`` is in file order, each value with its GGUF type; of a split model it is the first file's, without the
    ``split.`` keys. ``tensors`` have row-major shapes (GGUF's own order reversed). ``alignment`` is in bytes. ``paths``
    are all files of the model.

    The ``get_`` methods give the value of a key; they raise FormatError when the key is there with another type, and
    when it is missing and no default is given.
    """

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, GgufValue]
    tensors: Mapping[str, LazyTensor]
    paths: tuple[Path, ...]

    def get_str(self, key: str, default: str | None = None) -> str:
        """A string of valid UTF-8."""
        found = self._find(key, default is not None, "a string", lambda value: value.type is GgufType.STRING)
        return cast(str, default) if found is None else self._clean(key, cast(str, found.value))

    def get_int(self, key: str, default: int | None = None) -> int:
        """An integer of any width."""
        found = self._find(key, default is not None, "an integer", lambda value: value.type in INTEGER_TYPES)
        return cast(int, default if found is None else found.value)

    def get_float(self, key: str, default: float | None = None) -> float:
        """A number; integers count."""
        numbers = INTEGER_TYPES | FLOAT_TYPES
        found = self._find(key, default is not None, "a number", lambda value: value.type in numbers)
        return float(cast(float, default if found is None else found.value))

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        """A bool."""
        found = self._find(key, default is not None, "a bool", lambda value: value.type is GgufType.BOOL)
        return cast(bool, default if found is None else found.value)

    def get_strings(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """An array of strings of valid UTF-8."""
        found = self._find(
            key, default is not None, "an array of strings", lambda value: value.element_type is GgufType.STRING
        )
        if found is None:
            return cast("tuple[str, ...]", default)
        strings = cast("tuple[str, ...]", found.value)
        self._clean(key, "".join(strings))
        return strings

    def get_ints(self, key: str, default: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """An array of integers of any width, one-dimensional and read-only."""
        found = self._find(
            key, default is not None, "an array of integers", lambda value: value.element_type in INTEGER_TYPES
        )
        return cast("npt.NDArray[Any]", default if found is None else found.value)

    def get_floats(self, key: str, default: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """An array of floats of any width, one-dimensional and read-only."""
        found = self._find(
            key, default is not None, "an array of floats", lambda value: value.element_type in FLOAT_TYPES
        )
        return cast("npt.NDArray[Any]", default if found is None else found.value)

    def _find(self, key: str, optional: bool, wanted: str, fits: Callable[[GgufValue], bool]) -> GgufValue | None:
        value = self.metadata.get(key)
        if value is None:
            if optional:
                return None
            raise FormatError(self.path, f"metadata key {quoted(key)} is missing")
        if not fits(value):
            raise FormatError(self.path, f"metadata key {quoted(key)} must be {wanted}, not {value.type_name}")
        return value

    def _clean(self, key: str, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise FormatError(self.path, f"metadata key {quoted(key)} is not valid UTF-8") from None
        return text


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file; of a split model (``NAME-00001-of-0000N.gguf``) give the first and all are opened.

    Raises:
        ModelNotFoundError: there is no such file.
        UnsupportedError: big-endian, another version, nested arrays, or a tensor of a type that is not a ``DType``.
        FormatError: the file is damaged or hostile, or a part of the split model is missing; the message names the
            file and the key or tensor.
    """
    path = Path(path)
    header = read_header(path)
    count = _split_number(path, header, _SPLIT_COUNT, 1)
    if count <= 1:
        return _opened(path, header, header.metadata, header.tensors, (path,))
    paths = _shard_paths(path, header, count)
    tensors = dict(header.tensors)
    for number, shard in enumerate(paths[1:], start=1):
        if not is_there(shard):
            raise FormatError(shard, f"is missing: it is part {number + 1} of {count} of the model")
        part = read_header(shard)
        stated = (_split_number(shard, part, _SPLIT_NUMBER, -1), _split_number(shard, part, _SPLIT_COUNT, -1))
        if stated != (number, count):
            raise FormatError(shard, f"says it is part {stated[0] + 1} of {stated[1]}, not {number + 1} of {count}")
        for name in part.tensors.keys() & tensors.keys():
            raise FormatError(shard, f"tensor {quoted(name)} is in an earlier part too")
        tensors.update(part.tensors)
    total = _split_number(path, header, _SPLIT_TENSORS, len(tensors))
    if total != len(tensors):
        raise FormatError(path, f"its {count} parts have {len(tensors)} tensors, and it says {total}")
    split_keys = (_SPLIT_NUMBER, _SPLIT_COUNT, _SPLIT_TENSORS)
    metadata = {key: value for key, value in header.metadata.items() if key not in split_keys}
    return _opened(path, header, metadata, tensors, paths)


def _opened(
    path: Path,
    header: Header,
    metadata: dict[str, GgufValue],
    tensors: dict[str, LazyTensor],
    paths: tuple[Path, ...],
) -> GgufFile:
    return GgufFile(
        path, header.version, header.alignment, MappingProxyType(metadata), MappingProxyType(tensors), paths
    )


def _split_number(path: Path, header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key)
    if value is None:
        return default
    if value.type not in INTEGER_TYPES:
        raise FormatError(path, f"metadata key '{key}' must be an integer, not {value.type_name}")
    return cast(int, value.value)


def _shard_paths(path: Path, header: Header, count: int) -> tuple[Path, ...]:
    number = _split_number(path, header, _SPLIT_NUMBER, 0)
    named = _SHARD_NAME.fullmatch(path.name)
    if named is None:
        raise FormatError(path, f"is part {number + 1} of {count} but is not named NAME-00001-of-{count:05}.gguf")
    if number != 0 or int(named["number"]) != 1:
        first = f"{named['stem']}-00001-of-{named['count']}.gguf"
        raise FormatError(path, f"is part {number + 1} of {count} of a split model; give the first part, {first}")
    if int(named["count"]) != count:
        raise FormatError(path, f"is named as one of {int(named['count'])} parts but says that there are {count}")
    return tuple(path.with_name(f"{named['stem']}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1))
