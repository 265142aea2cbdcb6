"""The project's own promises: exact versions for everything, no undeclared import, no drawers."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = sorted((ROOT / "src").rglob("*.py"))
# import name -> distribution, where they differ
DISTRIBUTIONS: dict[str, str] = {}
EXTRA_IMPORTS = {
    "torch": "gpu",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "uvloop": "serve",
    "pydantic": "serve",
    "sqlalchemy": "serve",
    "prometheus_client": "serve",
    "cronsim": "agent",
    "cryptography": "agent",
    "pydantic_core": "agent",
    "hijridate": "agent",
    "icalendar": "agent",
    "mcp": "agent",
    "mcp_types": "agent",  # which mcp brings, as it does the next two
    "anyio": "agent",
    "httpx2": "agent",
    "jsonschema": "agent",
    "selectolax": "agent",
    "duckdb": "analysis",
    "opentelemetry": "telemetry",
    "ray": "ray",
    "torchao": "train",
    "yaml": "train",
    "matplotlib": "train",
    "pyarrow": "train",
}


def constraints() -> dict[str, str]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")  # exactly one exact version a line
            assert canonicalize_name(name) not in pins, f"{name} is pinned twice"
            assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", version), f"{line}: no local versions, no markers"
            pins[canonicalize_name(name)] = version
    return pins


def declared() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *(t for extra in extras.values() for t in extra)]
    return [Requirement(text) for text in [*texts, *PROJECT["build-system"]["requires"]]]


def test_constraints_cover_everything_that_is_installed() -> None:
    pins = constraints()
    assert pins["torch"] == "2.13.0"
    waiting = [(r.name, frozenset(r.extras), "pyproject.toml") for r in declared()]
    seen = set()
    while waiting:
        name, extras, why = waiting.pop()
        if (canonicalize_name(name), extras) in seen:
            continue
        seen.add((canonicalize_name(name), extras))
        assert canonicalize_name(name) in pins, f"{name} (needed by {why}) is not in constraints.txt"
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        for text in found.requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in (extras or {""})):
                waiting.append((needed.name, frozenset(needed.extras), name))
    for requirement in declared():
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} does not allow {pin}"


def test_the_tests_run_with_the_constrained_versions() -> None:
    other = []
    for name, pin in constraints().items():
        try:
            here = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
        if here != pin:
            other.append(f"{name} {here} is installed, {pin} is pinned")
    if other and not os.environ.get("CI"):
        pytest.skip("; ".join(other))
    assert other == []


def test_every_import_is_declared_and_every_dependency_imported() -> None:
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            imported |= {name.partition(".")[0] for name in names}
    foreign = imported - set(sys.stdlib_module_names) - {"qafila"}
    core = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    used = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in foreign - set(EXTRA_IMPORTS)}
    assert used - core == set(), "imported and not declared"
    assert core - used == set(), "declared and not imported"


def test_no_drawers_and_no_long_files() -> None:
    for path in SOURCES:
        assert path.stem not in ("utils", "common", "helpers", "misc"), path
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 600, f"{path.relative_to(ROOT)} has {lines} lines: split it"


def test_make_tells_what_it_can_do() -> None:
    done = subprocess.run(["make", "-s", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    for target in ("chat", "test", "test-all", "lint", "docs", "interop", "clean"):
        assert f"make {target} " in done.stdout


def test_continuous_integration_runs_everything() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "test-all" in script.read_text(encoding="utf-8")


def test_the_version_is_one() -> None:
    import qafila

    assert PROJECT["project"]["version"] == qafila.__version__
    assert f"## [{qafila.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


FAKE_PYTHON = """#!/bin/sh
# Stands for Python: notes what it is asked for, and makes a copy of itself where a .venv is wanted.
echo "$*" >> "$LOG"
[ "$1 $2" = "-m venv" ] || exit 0
for folder; do :; done
mkdir -p "$folder/bin" && rm -f "$folder/.runtime" "$folder/bin/python" && cp "$0" "$folder/bin/python"
"""


def test_make_repairs_what_a_broken_or_moved_environment_needs(tmp_path: Path) -> None:
    checkout, log = tmp_path / "a folder", tmp_path / "log"
    checkout.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (checkout / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    python = tmp_path / "python3"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)

    def make_chat() -> str:
        log.write_text("")
        command = ["make", "--no-print-directory", f"PY={python}", "chat"]
        environment = {**os.environ, "LOG": str(log), "MAKEFLAGS": ""}
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return log.read_text()

    first = make_chat()
    assert "scripts/check_machine.py" in first
    assert "-m venv" in first
    assert "--editable .[agent]\n" in first
    assert "gpu" not in first
    again = make_chat()
    assert again.splitlines()[-1] == "-m qafila chat default"
    assert "venv" not in again
    assert "pip" not in again
    interpreter = checkout / ".venv/bin/python"
    interpreter.unlink()
    interpreter.symlink_to(tmp_path / "gone")
    repaired = make_chat()
    assert "-m venv --clear" in repaired
    assert "--editable .[agent]\n" in repaired
    checkout = checkout.rename(tmp_path / "moved")
    moved = make_chat()
    assert "-m venv" not in moved
    assert "--editable .[agent]\n" in moved
    assert "pip" not in make_chat()
