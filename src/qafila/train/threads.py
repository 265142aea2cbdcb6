"""Threads that share their cores with other programs."""

from __future__ import annotations

import os
from typing import Final

_SPINS: Final = "1000"  # a few microseconds


def wait_briefly() -> None:
    """Let OpenMP's threads sleep soon when they wait for each other; call it before torch is imported.

    GNU OpenMP spins for tens of milliseconds by default. On a machine with another busy program the thread that is
    waited for has no core then, because the one that waits keeps it (measured on two cores beside one busy process:
    45 tokens/s by default, 67 so; nothing lost on an idle one). What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
