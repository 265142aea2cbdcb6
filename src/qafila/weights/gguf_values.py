"""The typed metadata values of a GGUF file. Source: ggml ``docs/gguf.md``."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt


class GgufType(IntEnum):
    """A metadata value's type, by its number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct's letters; NumPy reads the same ones.
NUMBER_FORMATS = {
    GgufType.UINT8: "B",
    GgufType.INT8: "b",
    GgufType.UINT16: "H",
    GgufType.INT16: "h",
    GgufType.UINT32: "I",
    GgufType.INT32: "i",
    GgufType.FLOAT32: "f",
    GgufType.BOOL: "?",
    GgufType.UINT64: "Q",
    GgufType.INT64: "q",
    GgufType.FLOAT64: "d",
}
FLOAT_TYPES = frozenset({GgufType.FLOAT32, GgufType.FLOAT64})
INTEGER_TYPES = frozenset(NUMBER_FORMATS) - FLOAT_TYPES - {GgufType.BOOL}

_LENGTH = struct.Struct("<Q")


def array_dtype(element: GgufType) -> np.dtype[Any]:
    """The little-endian NumPy type of an array of numbers or bools."""
    letter = NUMBER_FORMATS[element]
    return np.dtype({"I": "<u4", "i": "<i4", "Q": "<u8", "q": "<i8"}.get(letter, f"<{letter}"))


def encode_string(text: str) -> bytes:
    """Length and bytes of a string; bytes that were not UTF-8 when read come back as they were."""
    data = text.encode("utf-8", "surrogateescape")
    return _LENGTH.pack(len(data)) + data


@dataclass(frozen=True, slots=True, eq=False)
class GgufValue:
    """A metadata value with its GGUF type, so that writing it back gives the same bytes.

    ``value`` is an int, float, bool or str, or for ``ARRAY`` a tuple of str or a one-dimensional NumPy array of
    ``element_type``. Strings that are not valid UTF-8 hold each stray byte as a lone surrogate (``surrogateescape``).
    Two values are equal when their types and bytes are.
    """

    type: GgufType
    value: int | float | str | tuple[str, ...] | npt.NDArray[Any]
    element_type: GgufType | None = None

    @staticmethod
    def string(value: str) -> GgufValue:
        """A string."""
        return GgufValue(GgufType.STRING, value)

    @staticmethod
    def boolean(value: bool) -> GgufValue:
        """A bool."""
        return GgufValue(GgufType.BOOL, value)

    @staticmethod
    def uint32(value: int) -> GgufValue:
        """An unsigned 32-bit integer, what most counts are."""
        return GgufValue(GgufType.UINT32, value)

    @staticmethod
    def float32(value: float) -> GgufValue:
        """A 32-bit float."""
        return GgufValue(GgufType.FLOAT32, value)

    @staticmethod
    def strings(values: Iterable[str]) -> GgufValue:
        """An array of strings."""
        return GgufValue(GgufType.ARRAY, tuple(values), GgufType.STRING)

    @staticmethod
    def int32s(values: npt.ArrayLike) -> GgufValue:
        """An array of 32-bit integers, what token types are."""
        return GgufValue.numbers(GgufType.INT32, values)

    @staticmethod
    def float32s(values: npt.ArrayLike) -> GgufValue:
        """An array of 32-bit floats, what token scores are."""
        return GgufValue.numbers(GgufType.FLOAT32, values)

    @staticmethod
    def numbers(element_type: GgufType, values: npt.ArrayLike) -> GgufValue:
        """An array of numbers or bools of ``element_type``."""
        return GgufValue(GgufType.ARRAY, np.array(values, dtype=array_dtype(element_type)), element_type)

    @property
    def type_name(self) -> str:
        """The type in words, for messages: ``UINT32``, ``ARRAY of STRING``."""
        return self.type.name if self.element_type is None else f"{self.type.name} of {self.element_type.name}"

    def encode(self) -> bytes:
        """The value's bytes in the file, without its type.

        Raises:
            ValueError: the value does not fit its type.
        """
        value = self.value
        if isinstance(value, str):
            if self.type is not GgufType.STRING:
                raise ValueError(f"{self.type_name} cannot hold a string")
            return encode_string(value)
        if self.type is GgufType.STRING:
            raise ValueError("STRING cannot hold a number")
        if isinstance(value, tuple):
            if self.element_type is not GgufType.STRING:
                raise ValueError(f"{self.type_name} cannot hold strings")
            return self._array_start(len(value)) + b"".join(map(encode_string, value))
        if isinstance(value, np.ndarray):
            if self.element_type is None or value.ndim != 1 or value.dtype != array_dtype(self.element_type):
                raise ValueError(f"{self.type_name} cannot hold {value.dtype} {value.shape}")
            return self._array_start(len(value)) + value.tobytes()
        try:
            return struct.pack(f"<{NUMBER_FORMATS[self.type]}", value)
        except (struct.error, OverflowError, KeyError):
            raise ValueError(f"{value!r} does not fit {self.type_name}") from None

    def _array_start(self, count: int) -> bytes:
        assert self.type is GgufType.ARRAY
        assert self.element_type is not None
        return struct.pack("<IQ", self.element_type, count)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GgufValue):
            return NotImplemented
        return (self.type, self.element_type) == (other.type, other.element_type) and self.encode() == other.encode()

    __hash__ = None  # type: ignore[assignment]
