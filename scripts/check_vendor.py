"""Check the third-party files of the chat page against the hashes that vendor.json records.

python scripts/check_vendor.py           exit with 1 if a file is missing, changed, unlisted or without its licence
python scripts/check_vendor.py --hash    print package, file and SHA-256 of what is there, to fill in vendor.json

Files are taken unchanged from the npm package of the version named there (`npm pack NAME@VERSION`), so that anyone can
compare them with the registry's.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[1] / "src" / "qafila" / "server" / "pages" / "vendor"
FIELDS = {"package", "version", "licence", "licence_file", "file", "source", "sha256"}


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def problems(vendor: Path = VENDOR) -> list[str]:
    """What is wrong in the folder, one line each; empty when every file is the recorded one."""
    entries = json.loads((vendor / "vendor.json").read_text(encoding="utf-8"))
    found: list[str] = []
    listed = {"vendor.json"}
    for entry in entries:
        name = entry.get("file", "?")
        if set(entry) != FIELDS:
            found.append(f"{name}: vendor.json has the fields {sorted(entry)}, expected {sorted(FIELDS)}")
            continue
        listed |= {name, entry["licence_file"]}
        path = vendor / name
        if not path.is_file():
            found.append(f"{name}: missing")
        elif sha256(path) != entry["sha256"]:
            found.append(f"{name}: not the file of {entry['package']} {entry['version']} that vendor.json records")
        licence = vendor / entry["licence_file"]
        if not licence.is_file() or licence.stat().st_size == 0:
            found.append(f"{name}: its licence {entry['licence_file']} is missing")
    here = {path.relative_to(vendor).as_posix() for path in vendor.rglob("*") if path.is_file()}
    found += [f"{name}: not listed in vendor.json" for name in sorted(here - listed)]
    return found


def main(arguments: list[str]) -> int:
    """Check, or print the hashes."""
    if arguments == ["--hash"]:
        for entry in json.loads((VENDOR / "vendor.json").read_text(encoding="utf-8")):
            print(f"{entry['package']} {entry['file']} {sha256(VENDOR / entry['file'])}")
        return 0
    found = problems()
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
