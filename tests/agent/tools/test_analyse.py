"""Queries and pictures: worked out behind walls, bounded, and nothing of the workspace changed but the picture."""

from __future__ import annotations

import asyncio
import importlib.util
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_place import Place, told

from qafila.agent.carry_out import outcome
from qafila.agent.edits import apply
from qafila.agent.observation import MOST_SHOWN, Observation
from qafila.agent.policy import DEFAULTS
from qafila.agent.sandbox.sandbox import Limits, Sandbox, find_sandbox
from qafila.agent.tool import ArgumentsError, Surroundings, ToolError
from qafila.agent.tools import analyse, commands
from qafila.agent.tools.analyse import plot, query_data
from qafila.agent.tools.builtin import builtin
from qafila.errors import SandboxError, UsageError

pytest.importorskip("duckdb", reason="the extra `analysis` is not installed")
pytest.importorskip("matplotlib", reason="the extra `analysis` is not installed")


@pytest.fixture(scope="session")
def able(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A sandbox whose Python has what is needed."""
    seen = sandbox.run(
        ["python3", "-I", "-c", "import duckdb"], workspace=tmp_path_factory.mktemp("probe"), limits=Limits()
    )
    if seen.status != 0:
        pytest.skip(f"Python lies where a command in {sandbox.name} may not go: {seen.output.splitlines()[-1]}")
    return sandbox


@pytest.fixture
def here(able: Sandbox, tmp_path: Path) -> Surroundings:
    return _place(tmp_path, lambda: able)


@pytest.fixture
def anywhere(tmp_path: Path) -> Surroundings:
    """For what is the same behind whichever walls."""
    return _place(tmp_path, find_sandbox)


def _place(folder: Path, sandbox: Callable[[], Sandbox]) -> Surroundings:
    workspace = folder / "workspace"
    (workspace / "بيانات").mkdir(parents=True)
    (workspace / "sales.csv").write_text(
        "city,amount,day\nCairo,3,2026-01-01\nالقاهرة,4.5,2026-01-02\nبغداد,,2026-01-03\n"
    )
    (workspace / "بيانات" / "أرقام.tsv").write_text("الاسم\tالقيمة\nأ\t1\nب\t2\n")
    (workspace / "list.json").write_text('[{"a": 1}, {"a": 2}]')
    (workspace / "matplotlibrc").write_text("lines.linewidth: 40\nfigure.figsize: 1, 1\n")
    (folder / "outside.csv").write_text("secret\nhunter2\n")
    return Surroundings(workspace, sandbox)


def test_files_are_queried_by_name(here: Surroundings) -> None:
    assert query_data(here, "SELECT city, amount FROM 'sales.csv' ORDER BY amount DESC NULLS LAST") == (
        "city | amount\nالقاهرة | 4.5\nCairo | 3\nبغداد | NULL\n[3 rows]"
    )
    assert query_data(here, """SELECT sum("القيمة") AS "المجموع" FROM 'بيانات/أرقام.tsv'""") == "المجموع\n3\n[1 row]"
    assert query_data(here, "SELECT max(a) AS most FROM 'list.json'") == "most\n2\n[1 row]"
    assert query_data(here, "SELECT * FROM 'list.json' WHERE a > 5") == "a\n[0 rows]"
    assert query_data(here, "PIVOT 'sales.csv' ON city USING count(*) GROUP BY day").endswith("[3 rows]")
    assert query_data(here, "SELECT '\ud800' AS half") == "half\n\ufffd\n[1 row]"


def test_results_are_bounded(here: Surroundings) -> None:
    lines = query_data(here, "SELECT i, i / 3 AS third FROM range(12345) t(i)").splitlines()
    assert lines[2] == "1 | 0.333333333333333"
    assert lines[-1] == f"[the first {len(lines) - 2} of 12,345 rows]"
    assert query_data(here, "FROM range(10_000_000_000)").endswith("of more than 100,000 rows]")
    wide = query_data(here, f"SELECT {', '.join(f'{i} AS c{i}' for i in range(200))}")
    assert wide.endswith("[1 row]\n[the first 20 of 200 columns; name those you need]")
    cells = query_data(here, "SELECT repeat('س', 1000000) AS a, 'x\ny' AS b FROM range(90)")
    assert cells.splitlines()[1] == f"{'س' * 77}... | x\\ny"
    for text in ("\n".join(lines), wide, cells):
        assert len(text) <= MOST_SHOWN


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT cty FROM 'sales.csv'", 'Candidate bindings: "city"'),
        ("FROM sales", "does not exist! There are the files 'list.json', 'sales.csv', 'بيانات/أرقام.tsv'"),
        ("FROM 'slaes.csv'", "There are the files"),
        ("SELEC 1", "syntax error"),
        ("", "one statement that reads"),
        ("SELECT 1; SELECT 2", "one statement that reads"),
        ("COPY (SELECT 1) TO 'sales.csv'", "one statement that reads"),
        ("CREATE TABLE t AS SELECT 1", "one statement that reads"),
        ("ATTACH 'x.db'", "one statement that reads"),
        ("SET threads = 64", "one statement that reads"),
        ("INSTALL httpfs", "one statement that reads"),
        ("LOAD 'x.duckdb_extension'", "one statement that reads"),
        ("FROM '../outside.csv'", "Permission Error"),
        ("FROM read_csv('/etc/hostname')", "Permission Error"),
        ("FROM read_text('/proc/self/environ')", "Permission Error"),
        ("FROM glob('/*')", "Permission Error"),
        ("FROM 'https://example.org/x.csv'", "Permission Error"),
        ("FROM task", "does not exist"),
        ("SELECT * FROM sqlite_scan('/x', 'y')", "it exists in the sqlite_scanner extension."),
        ("SELECT list(i) FROM range(400000000) t(i)", "Out of Memory"),
        ("x" * 10_001, "more than 10,000 characters"),
    ],
)
def test_what_a_query_may_not(here: Surroundings, sql: str, said: str) -> None:
    with pytest.raises(ToolError) as error:
        query_data(here, sql)
    assert said in str(error.value)
    assert len(str(error.value)) < 1200


def test_a_query_that_takes_too_long_is_stopped(here: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyse, "_LIMITS", Limits(seconds=1.0, memory_mb=2048))
    with pytest.raises(ToolError, match="took longer than 1 seconds"):
        query_data(here, "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range % 7 = b.range % 3")


def _size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += length + 12


def test_a_picture_is_an_edit_of_the_same_bytes_each_time(here: Surroundings) -> None:
    sql = "SELECT day, amount FROM 'sales.csv'"
    first = plot(here, sql, "line", "day", "out/line.png", "amount", "المبيعات $x$")
    assert first.text == "drew 2 values, 1 row left out into out/line.png"
    assert [(edit.kind, edit.path) for edit in first.edits] == [("created", "out"), ("created", "out/line.png")]
    picture = first.edits[1].after
    assert picture is not None
    assert _size(picture) == (800, 500)  # whatever a file matplotlibrc in the workspace says
    assert {kind for kind, _ in _chunks(picture)} <= {b"IHDR", b"pHYs", b"IDAT", b"IEND", b"sBIT"}
    pixels = zlib.decompress(b"".join(data for kind, data in _chunks(picture) if kind == b"IDAT"))
    assert len(set(pixels)) > 20
    assert not (here.workspace / "out").exists()
    apply(here.workspace, first.edits)
    again = plot(here, sql, "line", "day", "out/line.png", "amount", "المبيعات $x$")
    assert (again.text, again.edits) == ("out/line.png shows this already", ())


def test_each_kind_draws_something_of_its_own(anywhere: Surroundings) -> None:
    pictures = {
        plot(anywhere, "SELECT * FROM 'sales.csv'", kind, "city" if kind == "bar" else "amount", "a.png", "amount")
        .edits[0]
        .after
        for kind in ("bar", "scatter", "histogram")
    }
    assert len(pictures) == 3


def test_what_cannot_be_drawn(anywhere: Surroundings) -> None:
    sales = "SELECT * FROM 'sales.csv'"
    with pytest.raises(ToolError, match="no column 'none'; it gives city, amount, day"):
        plot(anywhere, sales, "bar", "none", "a.png", "amount")
    with pytest.raises(ToolError, match="y: column city holds strs, not numbers: Cairo"):
        plot(anywhere, sales, "bar", "amount", "a.png", "city")
    with pytest.raises(ToolError, match="more than 100 rows"):
        plot(anywhere, "SELECT i, i AS j FROM range(101) t(i)", "bar", "i", "a.png", "j")
    with pytest.raises(ToolError, match="no rows that can be drawn"):
        plot(anywhere, "SELECT 'nan'::double AS i", "histogram", "i", "a.png")
    with pytest.raises(SandboxError, match="leads out of the workspace"):
        plot(anywhere, "SELECT 1 AS i", "histogram", "i", "../a.png")


def test_arabic_is_joined_and_runs_from_the_right(anywhere: Surroundings) -> None:
    """It looks like the joined forms of its letters (Arabic Presentation Forms), put one by one from the left."""
    joined = "\u202d\ufee1\ufefc\ufeb3\u202c"  # meem, lam with alef, seen; the marks keep them in this order
    first, second, other = (
        plot(anywhere, "SELECT 1 AS i", "histogram", "i", "a.png", title=title).edits[0].after
        for title in ("سلام", joined, "مالس")
    )
    assert first == second != other


def test_pandas_can_be_used_in_programs(here: Surroundings) -> None:
    pytest.importorskip("pandas")
    code = "import pandas\nprint(pandas.read_csv('sales.csv')['amount'].sum())"
    assert commands.run_python(here, code).text == "7.5\n"


def test_the_tools_and_their_effects(tmp_path: Path) -> None:
    by_name = {one.name: one for one in analyse.tools()}
    assert by_name["query_data"].effect == "read"
    assert (by_name["plot"].effect, by_name["plot"].controls) == ("write", {"path"})
    with pytest.raises(ArgumentsError, match="path"):
        by_name["plot"].check({"sql": "SELECT 1", "kind": "bar", "x": "a", "path": "sales.csv"})
    # Where there is no data, no query makes sense.
    toolbox = builtin(["query_data", "plot", "list_files"])

    def nowhere() -> Sandbox:
        raise SandboxError("no sandbox works here")

    assert toolbox.options(Surroundings(tmp_path, nowhere), ()).barred == ("query_data", "plot")
    (tmp_path / "a.CSV").write_text("a\n1\n")
    assert toolbox.options(Surroundings(tmp_path, nowhere), ()).barred == ()
    found = asyncio.run(outcome(by_name["query_data"], {"sql": "SELECT 1"}, Surroundings(tmp_path, nowhere)))
    assert isinstance(found, Observation)
    assert (found.status, found.text) == ("error", "no sandbox works here")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "duckdb" else find(name))
    assert not {"query_data", "plot"} & set(builtin().by_name)
    with pytest.raises(UsageError, match=r"tool query_data: duckdb is missing; `pip install 'qafila\[analysis\]'`"):
        builtin(["query_data"])


def test_a_run_asks_before_it_draws(place: Place) -> None:
    assert DEFAULTS["write"] == "ask"
    (place.workspace / "a.csv").write_text("a\n1\n2\n")
    calls = [("query_data", {"sql": "SELECT sum(a) AS s FROM 'a.csv'"})]
    _, events = place.begin([calls], analyse.tools())
    assert told(events)[0][0] == "ok", told(events)
    assert told(events) == [("ok", "s\n3\n[1 row]")]
