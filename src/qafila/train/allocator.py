"""Memory that a step gave back is used again by the next one."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_LARGEST: Final = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Let glibc keep what is freed; elsewhere nothing happens.

    Large tensors are pages that the kernel clears when they are first touched, and by default they are given back at
    once: a training step would have each of its activations cleared again (measured: a product of two matrices of
    12 MB, written to a new one, takes three times as long).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
