"""Native kernels of Qafila; types are given as ggml's numbers (``DType.ggml_type``)."""

import numpy as np
import numpy.typing as npt

def dequantise(ggml_type: int, data: npt.NDArray[np.uint8], out: npt.NDArray[np.float32], threads: int = 0) -> None:
    """Blocks to float32.

    Args:
        ggml_type: the type of ``data``.
        data: one-dimensional and contiguous, a whole number of blocks.
        out: one-dimensional and contiguous, exactly as many values; every one is written.
        threads: at most so many; 0 for one a processor. Results do not depend on it.

    Raises:
        ValueError: sizes that do not fit, or an unknown type; nothing has been touched.
        TypeError: arrays of another type or layout.
    """

def quantise(ggml_type: int, values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8], threads: int = 0) -> None:
    """float32 to blocks; arguments as in :func:`dequantise`.

    Raises:
        ValueError: sizes that do not fit or a type that cannot be written (nothing has been touched), or values that
            are not finite or too large for a block type (``out`` then holds nothing of use).
        TypeError: arrays of another type or layout.
    """

def read_bandwidth(bytes: int, threads: int, passes: int = 3) -> float:
    """Bytes a second that ``threads`` threads together read from memory, each its own part of a fresh buffer.

    Args:
        bytes: of the buffer; more than the processor's caches hold, or it is they that are measured.
        threads: 1 to 1,024.
        passes: how often the buffer is read; the first pass counts too.

    Raises:
        ValueError: an argument out of range. MemoryError: no such buffer.
    """
