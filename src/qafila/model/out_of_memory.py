"""Torch tells of exhausted memory in several ways; here they become one error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qafila.errors import QafilaError


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed for lack of memory, which on the CPU it says in words alone."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


@contextmanager
def memory_told(what: str) -> Iterator[None]:
    """Within it, a lack of memory raises a :class:`QafilaError` naming ``what`` did not fit."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise QafilaError(
                f"not enough memory for {what}; `qafila info` says what it needs, a shorter context needs less"
            ) from None
        raise
