"""The folder of checkpoints: whole ones or none, whatever happens while one is written. No torch in here.

``checkpoints/step-00000100/`` holds torch's files, ``plain.json`` and ``manifest.json`` with size and SHA-256 of each.
It is filled under another name (``.saving-...``) and renamed when all of it is on the disk. Whoever is killed
leaves at most a ``.saving-``, ``.removing-`` or ``.replaced-`` folder, which the next start puts in order.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qafila.errors import FormatError

MANIFEST: Final = "manifest.json"
PLAIN: Final = "plain.json"
_NAME: Final = re.compile(r"step-(\d{8,})")
_VERSION: Final = 1
_CHUNK: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Found:
    """A whole checkpoint.

    Attributes:
        path: its folder. step: optimiser steps that were done.
        metric: what was measured there (a validation loss), None where nothing was.
        identity: what it is of: names (``model``, ``tokenizer``, ...) to hashes or descriptions.
    """

    path: Path
    step: int
    metric: float | None = None
    identity: Mapping[str, str] = field(default_factory=dict)


def folder_name(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:08}"


def staging_name(step: int) -> str:
    """The name under which a step's folder is filled; the same in every process."""
    return f".saving-{folder_name(step)}"


def hash_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, for the manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(folder: Path, found: Found, files: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> Path:
    """Turn a filled staging folder into the checkpoint of its step.

    Args:
        folder: of all checkpoints; the staged one is in it.
        found: step, metric and identity to write down (its path is not used).
        files: the manifest's entries: name to size and hash.
        facts: more for the manifest (versions, number of processes).
    """
    staged, final = folder / staging_name(found.step), folder / folder_name(found.step)
    manifest = {
        "version": _VERSION,
        "step": found.step,
        "metric": found.metric,
        "identity": dict(found.identity),
        **facts,
        "files": {name: dict(entry) for name, entry in sorted(files.items())},
    }
    write_synced(staged / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    sync_folder(staged)
    replaced = folder / f".replaced-{folder_name(found.step)}"
    if final.exists():
        # Two names cannot be exchanged at once everywhere: `tidy` undoes this half if the other does not come.
        remove(replaced)
        final.replace(replaced)
    staged.replace(final)
    sync_folder(folder)
    remove(replaced)
    return final


def remove(path: Path) -> None:
    """Delete a checkpoint; while it goes, it is no checkpoint any more."""
    if not path.exists():
        return
    doomed = path.with_name(f".removing-{path.name.lstrip('.')}")
    with suppress(OSError):
        if doomed.exists():
            shutil.rmtree(doomed)
        path.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def tidy(folder: Path) -> list[str]:
    """Put in order what a killed process left; the names of what was removed."""
    removed = []
    for path in sorted(folder.glob(".replaced-step-*")):
        original = folder / path.name.removeprefix(".replaced-")
        if not original.exists():
            path.replace(original)
    for pattern in (".saving-step-*", ".removing-*", ".replaced-step-*"):
        for path in sorted(folder.glob(pattern)):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def listed(folder: Path) -> list[Path]:
    """Folders with the name of a checkpoint, newest first; whether they are whole is not looked at."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def describe(path: Path) -> tuple[Found, dict[str, dict[str, Any]]]:
    """A checkpoint's manifest: what it is, and the files that there must be.

    Raises:
        FormatError: there is none, or it is damaged.
    """
    file = path / MANIFEST
    try:
        if file.stat().st_size > 256 << 20:
            raise FormatError(file, "is no manifest of a checkpoint (too large)")
        raw = json.loads(file.read_text(encoding="utf-8"))
        if raw["version"] != _VERSION:
            raise FormatError(file, f"is of version {raw['version']!r:.20}; this Qafila reads version {_VERSION}")
        metric = raw["metric"]
        found = Found(
            path,
            int(raw["step"]),
            None if metric is None else float(metric),
            {str(k): str(v) for k, v in raw["identity"].items()},
        )
        files = {str(name): {"size": int(e["size"]), "sha256": str(e["sha256"])} for name, e in raw["files"].items()}
    except FileNotFoundError:
        raise FormatError(file, "is missing, so the checkpoint is not whole") from None
    except OSError as error:
        raise FormatError(file, f"cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(file, "is damaged") from None
    match = _NAME.fullmatch(path.name)
    if match is not None and int(match[1]) != found.step:
        raise FormatError(file, f"is of step {found.step}")
    return found, files


def verify(path: Path) -> Found:
    """Hold every file of a checkpoint to its manifest.

    Raises:
        FormatError: names the file that is missing, cut short, or has changed.
    """
    found, files = describe(path)
    for name, entry in files.items():
        file = path / name
        if "/" in name or "\\" in name or name in (".", ".."):
            raise FormatError(path / MANIFEST, f"names {name!r:.80}, which is no file of a checkpoint")
        try:
            if not file.is_file():
                raise FormatError(file, "is missing")
            size = file.stat().st_size
            if size != entry["size"]:
                raise FormatError(file, f"has {size:,} bytes where the manifest says {entry['size']:,}")
            if hash_file(file)["sha256"] != entry["sha256"]:
                raise FormatError(file, "has changed: its SHA-256 is not the manifest's")
        except OSError as error:
            raise FormatError(file, f"cannot be read ({error.strerror or error})") from None
    return found


def superseded(folder: Path, step: int, keep: int, *, lower_is_better: bool) -> list[Path]:
    """The checkpoints to delete after that of ``step``: all but the newest ``keep`` and the one with the best metric.

    Those of later steps go too: the run went back behind them, and what comes now takes their place.
    """
    later = [path for path in listed(folder) if path.name > folder_name(step)]
    paths = [path for path in listed(folder) if path not in later]
    measured: list[tuple[float, int, Path]] = []
    for path in paths:
        with suppress(FormatError):
            found = describe(path)[0]
            if found.metric is not None:
                measured.append((found.metric if lower_is_better else -found.metric, -found.step, path))
    best = min(measured)[2] if measured else None
    return later + [path for path in paths[keep:] if path != best]
