"""The program that answers a query or draws it: run by the sandbox's Python, it imports nothing of Qafila.

Started as ``python3 -I -c SOURCE`` in a copy of the workspace, with what to do as JSON on standard input (see `Task`
in `analyse.py`). It prints what the model is told and ends with status 0, or with 3 where that says why it cannot be
done. The sandbox is the wall; DuckDB's own locks, which are set here, are a second one.
"""

import datetime
import decimal
import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

_FAILED = 3
_MOST_CHARACTERS, _MOST_ROWS, _MOST_COLUMNS, _MOST_CELL = 1600, 50, 20, 80
_MOST_COUNTED, _MOST_POINTS, _MOST_BARS, _CHUNK = 100_000, 50_000, 100, 1000
_MOST_LABEL = 40


class TaskError(Exception):
    """What cannot be done; the message is for the model."""


def _connected(memory_mb: int) -> Any:
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": 1,
            "memory_limit": f"{memory_mb}MB",
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "allow_persistent_secrets": False,
            "python_enable_replacements": False,
        },
    )
    folder = str(Path.cwd()).replace("'", "''")
    for setting in (
        f"allowed_directories = ['{folder}']",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def _asked(connection: Any, sql: str) -> Any:
    """The result of the one statement that the text must be, and that must only read."""
    import duckdb

    try:
        kinds = [one.type for one in connection.extract_statements(sql)]
        # What DuckDB itself writes as more statements, PIVOT and UNPIVOT, is of the kind MULTI.
        reads = {duckdb.StatementType.SELECT, duckdb.StatementType.MULTI}
        if len(kinds) != 1 or kinds[0] not in reads:
            raise TaskError("sql: must be one statement that reads: SELECT ... FROM 'file.csv'")
        return connection.execute(sql)
    except duckdb.Error as error:
        raise TaskError(f"sql: {_said(error)}") from None


def _said(error: Exception) -> str:
    """What is wrong in DuckDB's words, without its advice on extensions and settings, which are locked."""
    return str(error).partition("\n\n")[0].partition("\nDatabase is launched")[0].strip()[:1000]


def _rows(result: Any, most: int) -> list[tuple[Any, ...]]:
    import duckdb

    try:
        found: list[tuple[Any, ...]] = result.fetchmany(most)
    except duckdb.Error as error:
        raise TaskError(f"sql: {_said(error)}") from None
    return found


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, bytes):
        return value[: _MOST_CELL // 2].hex() + ("..." if len(value) > _MOST_CELL // 2 else "")
    text = str(value).replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return text if len(text) <= _MOST_CELL else text[: _MOST_CELL - 3] + "..."


def query(task: dict[str, Any]) -> str:
    """The first rows of a query as a table, and how many there are."""
    result = _asked(_connected(task["memory_mb"]), task["sql"])
    names = [column[0] for column in result.description]
    lines = [" | ".join(_cell(name) for name in names[:_MOST_COLUMNS])]
    size = len(lines[0])
    count, open_end = 0, True
    while rows := _rows(result, _CHUNK):
        for row in rows:
            line = " | ".join(_cell(value) for value in row[:_MOST_COLUMNS])
            size += len(line) + 1
            if count == len(lines) - 1 and (not count or (count < _MOST_ROWS and size <= _MOST_CHARACTERS)):
                lines.append(line)
            count += 1
        if count >= _MOST_COUNTED:
            break
    else:
        open_end = False
    shown = len(lines) - 1
    said = f"more than {count:,} rows" if open_end else "1 row" if count == 1 else f"{count:,} rows"
    lines.append(f"[{said}]" if shown == count and not open_end else f"[the first {shown} of {said}]")
    if len(names) > _MOST_COLUMNS:
        lines.append(f"[the first {_MOST_COLUMNS} of {len(names)} columns; name those you need]")
    return "\n".join(lines)


def _index(names: list[str], role: str, name: str) -> int:
    if name not in names:
        raise TaskError(f"{role}: the query gives no column {name!r:.80}; it gives {', '.join(names)[:300]}")
    return names.index(name)


def _number(role: str, name: str, value: Any) -> float:
    if isinstance(value, bool | int | float | decimal.Decimal):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise TaskError(f"{role}: column {name} holds {type(value).__name__}s, not numbers: {_cell(value)}")


def _place(value: Any) -> Any:
    """Where a value stands on the axis of a line or of points: numbers and times as they are, all else by name."""
    if isinstance(value, bool | decimal.Decimal):
        return float(value)
    return value if isinstance(value, int | float | datetime.date) else _label(value)


def _label(value: Any) -> str:
    text = _cell(value)
    return text if len(text) <= _MOST_LABEL else text[: _MOST_LABEL - 1] + "…"


def plot(task: dict[str, Any]) -> str:
    """Draw a query into a file of the working folder."""
    kind, x, y = task["kind"], task["x"], task["y"]
    result = _asked(_connected(task["memory_mb"]), task["sql"])
    names = [column[0] for column in result.description]
    at = _index(names, "x", x)
    upright = at if kind == "histogram" else _index(names, "y", y)
    most = _MOST_BARS if kind == "bar" else _MOST_POINTS
    rows = _rows(result, most + 1)
    if len(rows) > most:
        raise TaskError(f"sql: gives more than {most:,} rows, too many for a {kind}; group them or add LIMIT")
    role = "x" if kind == "histogram" else "y"
    drawn = [
        (row[at], number)
        for row in rows
        if row[at] is not None
        and row[upright] is not None
        and math.isfinite(number := _number(role, names[upright], row[upright]))
        and not (isinstance(row[at], float) and not math.isfinite(row[at]))
    ]
    if not drawn:
        raise TaskError("sql: gives no rows that can be drawn")
    _draw(kind, drawn, task)
    left = len(rows) - len(drawn)
    return f"{len(drawn)} values" + (f", {left} row{'s' * (left > 1)} left out" if left else "")


def _draw(kind: str, drawn: list[tuple[Any, float]], task: dict[str, Any]) -> None:
    target = Path(task["target"]).absolute()
    # Away from the workspace, where a file called matplotlibrc would be settings.
    os.chdir(os.environ["TMPDIR"])
    os.environ["MPLCONFIGDIR"] = os.environ["TMPDIR"]
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a title with two dollar signs is a title
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    places = [_label(place) if kind == "bar" else _place(place) for place, _ in drawn]
    if any(isinstance(place, str) for place in places):
        places = [_label(place) for place, _ in drawn]
    numbers = [number for _, number in drawn]
    if kind == "line":
        axes.plot(places, numbers, marker="o" if len(numbers) <= 50 else None)
    elif kind == "scatter":
        axes.scatter(places, numbers, s=16)
    elif kind == "bar":
        # By position: two bars of one name would become one.
        axes.bar(range(len(numbers)), numbers)
        axes.set_xticks(range(len(numbers)), places)
    else:
        axes.hist(numbers, bins=min(50, max(5, math.ceil(math.sqrt(len(numbers))))))
    axes.set_xlabel(_label(task["x"]))
    axes.set_ylabel("count" if kind == "histogram" else _label(task["y"]))
    if task["title"]:
        axes.set_title(" ".join(task["title"].split())[:120])
    if any(isinstance(place, str) for place in places) and sum(len(str(place)) for place in places) > 60:
        axes.tick_params("x", rotation=90 if len(places) > 25 else 40)
    axes.margins(y=0.08)
    figure.savefig(target, format="png", metadata={"Software": None})


def main() -> None:
    """Do what standard input says."""
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    # Libraries warn there of fonts and caches; what goes wrong is told on standard output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each of its threads takes address space, which is limited
    task = json.loads(sys.stdin.buffer.read())
    try:
        print(query(task) if task["do"] == "query" else plot(task))
    except TaskError as error:
        print(error)
        sys.exit(_FAILED)
    except ModuleNotFoundError as error:
        print(f"the Python that the sandbox sees has no {error.name}")
        sys.exit(_FAILED)
    except MemoryError:
        print("sql: needs more memory than there is; read fewer rows or columns")
        sys.exit(_FAILED)
    except Exception as error:
        print(f"{type(error).__name__}: {str(error)[:500]}")
        sys.exit(_FAILED)


if __name__ == "__main__":
    main()
