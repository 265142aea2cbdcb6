"""Folders that a pack is written in before it is moved into its place, and what killed processes left of them.

A process holds a lock (``flock``) on the folder that it writes in. The system lets it go when the process ends, however
it ends, so a folder that nobody holds is what a killed one left. Where there is no such lock (Windows, some network
file systems) nothing is removed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
from pathlib import Path
from typing import Final

from qafila.data.manifest import MANIFEST

if sys.platform != "win32":
    import fcntl

_OURS: Final = re.compile(rf"\d{{5,}}\.bin|{re.escape(MANIFEST)}")


class Held:
    """The lock on a folder; let go by `close`, and by the end of the process."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Let the folder go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def stage(parent: Path, name: str) -> tuple[Path, Held]:
    """A new folder beside the pack ``name`` in ``parent``, held by this process.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        folder = parent / f".{name}-{secrets.token_hex(6)}.partial"
        folder.mkdir()
        held = _hold(folder)
        # Between the two another process may have taken it for one that was left, and removed it.
        if held is None or folder.is_dir():
            return folder, held or Held(None)
        held.close()


def remove_left(parent: Path, name: str) -> list[Path]:
    """Remove what killed processes left of packing ``name``; gives the folders that went.

    Only folders named as `stage` names them, with nothing in them but files of a pack, that no process holds.
    """
    pattern = re.compile(rf"\.{re.escape(name)}-[0-9a-f]{{12}}\.partial")
    removed = []
    for folder in sorted(parent.iterdir()):
        if not pattern.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        held = _hold(folder)
        if held is None:
            continue
        try:
            if all(_OURS.fullmatch(entry.name) and entry.is_file() for entry in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
        finally:
            held.close()
    return removed


def _hold(folder: Path) -> Held | None:
    """The lock on a folder; None where another process has it, or there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return Held(descriptor)
