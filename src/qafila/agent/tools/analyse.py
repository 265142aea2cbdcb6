"""Data analysis: SQL over the files of the workspace, and its results as pictures, worked out in the sandbox."""

from __future__ import annotations

import importlib.util
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field

from qafila.agent.edits import file_edit, inside
from qafila.agent.observation import whole_letters
from qafila.agent.sandbox.sandbox import Limits, Outcome
from qafila.agent.tool import Draft, Surroundings, Tool, ToolError, tool
from qafila.agent.tools.files import files_in

#: What DuckDB reads by the name of a file alone.
SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".ndjson")
#: Packages of the extra `analysis` that the tools need.
_PACKAGES = ("duckdb", "matplotlib")
_FAILED = 3  # as in analysis_script.py
_MOST_SQL, _MOST_NAMED = 10_000, 20
_DATABASE_MB = 512
_LIMITS = Limits(seconds=20.0, memory_mb=2048)  # of address space, of which libraries take more than they fill
_SCRIPT = Path(__file__).with_name("analysis_script.py")


class Task(TypedDict):
    """What `analysis_script.py` is told, as JSON; a query has no use for what comes after ``memory_mb``."""

    do: Literal["query", "plot"]
    sql: str
    memory_mb: int
    kind: str
    x: str
    y: str
    title: str
    target: str


def query_data(place: Surroundings, sql: str) -> str:
    """Query data files with DuckDB's SQL: SELECT city FROM 'sales.csv'."""
    return _worked_out(place, _task("query", sql)).output.rstrip("\n")


def plot(
    place: Surroundings,
    sql: str,
    kind: Literal["line", "bar", "scatter", "histogram"],
    x: str,
    path: Annotated[str, Field(pattern=r"^.+\.png$")],
    y: str = "",
    title: str = "",
) -> Draft:
    """Draw columns x and y of a query as a PNG file."""
    clean = inside(path)
    if not clean.endswith(".png"):
        raise ToolError("path: must be of a .png file")
    # A name that no file of the workspace has.
    target = f"plot-{secrets.token_hex(8)}.png"
    outcome = _worked_out(place, {**_task("plot", sql), "kind": kind, "x": x, "y": y, "title": title, "target": target})
    picture = next((change.content for change in outcome.changes if change.path == target), None)
    if picture is None:
        raise ToolError("no picture was drawn")
    edits = file_edit(place.workspace, clean, picture)
    return Draft(f"drew {outcome.output.strip()} into {clean}" if edits else f"{clean} shows this already", edits)


def _task(do: Literal["query", "plot"], sql: str) -> Task:
    if len(sql) > _MOST_SQL:
        raise ToolError(f"sql: more than {_MOST_SQL:,} characters")
    return {"do": do, "sql": sql, "memory_mb": _DATABASE_MB, "kind": "", "x": "", "y": "", "title": "", "target": ""}


def _worked_out(place: Surroundings, task: Task) -> Outcome:
    """What the script did, in a copy of the workspace that nothing but a picture is taken from."""
    argv = ["python3", "-I", "-c", _SCRIPT.read_text(encoding="utf-8")]
    stdin = whole_letters(json.dumps(task, ensure_ascii=False)).encode()
    outcome = place.sandbox().run(argv, workspace=place.workspace, limits=_LIMITS, stdin=stdin)
    if outcome.timed_out:
        raise ToolError(f"sql: took longer than {_LIMITS.seconds:g} seconds and was stopped; read or join less")
    if outcome.status == _FAILED:
        raise ToolError(_with_files(place, outcome.output.strip()))
    if outcome.status != 0:
        raise ToolError(f"sql: ended with status {outcome.status}; it may need more memory than there is")
    return outcome


def _with_files(place: Surroundings, why: str) -> str:
    """The reason, with the names of the files where one was not found."""
    if not ("No files found" in why or ("Table with name" in why and "does not exist" in why)):
        return why
    names = [f"'{path}'" for path in _data_files(place)]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    why = why.partition("\n")[0]  # what DuckDB takes for a likely name is a table of its own
    return f"{why} There are the files {', '.join(names[:_MOST_NAMED])}{more}; write them in quotes."


def _data_files(place: Surroundings) -> list[str]:
    return [path for path in files_in(place) if path.lower().endswith(SUFFIXES)]


def _where_data_is(place: Surroundings, _: Sequence[Mapping[str, Any]]) -> Mapping[str, dict[str, Any]] | None:
    """No query makes sense where there is no data."""
    return {} if _data_files(place) else None


def lacking() -> str | None:
    """Why these tools cannot be offered here; None where they can."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is missing; `pip install 'qafila[analysis]'` brings it" if missing else None


def tools() -> tuple[Tool, ...]:
    """The tools of this module."""
    seconds = 2 * _LIMITS.seconds
    return (
        tool(query_data, effect="read", live=_where_data_is, seconds=seconds, origin="built-in"),
        tool(plot, effect="write", live=_where_data_is, seconds=seconds, origin="built-in", controls=("path",)),
    )
