"""Where the double `mcp_peer` is: it is run, not imported."""

from __future__ import annotations

import sys
from pathlib import Path


def command(mode: str, *files: Path) -> tuple[str, ...]:
    """What starts it."""
    return (sys.executable, "-I", "-S", str(Path(__file__).with_name("mcp_peer.py")), mode, *map(str, files))
