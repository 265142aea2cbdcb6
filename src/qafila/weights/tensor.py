"""A tensor is a view: a type, a shape and a buffer. BF16 has no NumPy type, so bytes stay bytes until asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qafila.quant.dtypes import DType

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Weights in memory or in a mapped file.

    ``shape`` is row-major (the last dimension is contiguous, and quantised blocks lie along it); ``data`` is a
    one-dimensional uint8 array of exactly ``dtype.nbytes(shape)`` bytes, little-endian, possibly a read-only view.
    """

    dtype: DType
    shape: tuple[int, ...]
    data: Bytes

    def __post_init__(self) -> None:
        expected = self.dtype.nbytes(self.shape)
        assert self.data.dtype == np.uint8, self.data.dtype
        assert self.data.shape == (expected,), self.data.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return self.data.size

    def rows(self) -> Bytes:
        """The buffer as ``[rows, bytes per row]``, a row being the last dimension; no copy."""
        width = self.dtype.nbytes(self.shape[-1:])
        return self.data.reshape(-1, width)


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is known before it is read: ``read()`` gives the bytes, zero-copy where the source allows.

    ``origin`` names the file and the tensor in it, for error messages.
    """

    dtype: DType
    shape: tuple[int, ...]
    origin: str
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in its own type."""
        return self.dtype.nbytes(self.shape)

    @staticmethod
    def of(tensor: Tensor, origin: str = "memory") -> LazyTensor:
        """A lazy view of a tensor that is already there."""
        return LazyTensor(tensor.dtype, tensor.shape, origin, lambda: tensor)

    def mapped(
        self, change: Callable[[Tensor], Tensor], shape: tuple[int, ...] | None = None, dtype: DType | None = None
    ) -> LazyTensor:
        """The same tensor with ``change`` applied when it is read; ``shape`` and ``dtype`` announce the result."""
        read = self.read
        return LazyTensor(dtype or self.dtype, shape or self.shape, self.origin, lambda: change(read()))
