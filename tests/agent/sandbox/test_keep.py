"""What a command changed, and taking it over."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from pathlib import Path

import pytest

from qafila.agent.sandbox import keep as keeping
from qafila.agent.sandbox.changes import MOST_DIFF, Change, unified
from qafila.agent.sandbox.keep import keep
from qafila.agent.sandbox.sandbox import Limits, Outcome, Sandbox
from qafila.agent.sandbox.workspace import copied
from qafila.errors import SandboxError


def shell(sandbox: Sandbox, workspace: Path, line: str) -> Outcome:
    outcome = sandbox.run(["sh", "-ec", line], workspace=workspace, limits=Limits())
    assert outcome.status == 0, outcome.output
    return outcome


def test_changes_are_told_and_kept(sandbox: Sandbox, workspace: Path) -> None:
    (workspace / "old").mkdir()
    (workspace / "old" / "gone.txt").write_text("bye\n")
    (workspace / "blob").write_bytes(b"\0\1")
    line = """
        sed -i s/second/SECOND/ notes.txt; rm -r old; mkdir -p a/b; echo new > a/b/c; printf '\\0\\0\\0' > blob
        ln -s notes.txt link; chmod +x a/b/c; mkfifo pipe
    """
    outcome = shell(sandbox, workspace, line)
    assert (workspace / "notes.txt").read_text() == "first\nsecond\nthird\n"
    told = {c.path: (c.kind, c.what, c.size_before, c.size_after) for c in outcome.changes}
    assert told == {
        "a": ("created", "folder", None, None),
        "a/b": ("created", "folder", None, None),
        "a/b/c": ("created", "file", None, 4),
        "blob": ("changed", "file", 2, 3),
        "link": ("created", "link", None, None),
        "notes.txt": ("changed", "file", 19, 19),
        "old": ("deleted", "folder", None, None),
        "old/gone.txt": ("deleted", "file", 4, None),
        "pipe": ("created", "special", None, None),
    }
    by_path = {change.path: change for change in outcome.changes}
    assert by_path["notes.txt"].diff == (
        "--- a/notes.txt\n+++ b/notes.txt\n@@ -1,3 +1,3 @@\n first\n-second\n+SECOND\n third\n"
    )
    assert by_path["blob"].diff is None
    with pytest.raises(SandboxError, match="pipe: sockets"):
        keep(workspace, outcome.changes)
    keep(workspace, [change for change in outcome.changes if change.what != "special"])
    assert (workspace / "notes.txt").read_text() == "first\nSECOND\nthird\n"
    assert (workspace / "a/b/c").read_text() == "new\n"
    assert (workspace / "blob").read_bytes() == b"\0\0\0"
    assert (workspace / "link").readlink() == Path("notes.txt")
    assert not (workspace / "old").exists()
    assert sorted(path.name for path in workspace.iterdir()) == ["a", "blob", "link", "notes.txt"]


def test_a_file_and_a_folder_take_each_others_place(sandbox: Sandbox, workspace: Path) -> None:
    (workspace / "folder").mkdir()
    (workspace / "folder" / "x").write_text("x")
    outcome = shell(
        sandbox, workspace, "rm -r folder notes.txt; echo f > folder; mkdir notes.txt; echo y > notes.txt/y"
    )
    keep(workspace, outcome.changes)
    assert (workspace / "folder").read_text() == "f\n"
    assert (workspace / "notes.txt/y").read_text() == "y\n"


def test_what_is_touched_but_the_same_is_no_change(sandbox: Sandbox, workspace: Path) -> None:
    assert shell(sandbox, workspace, "cp notes.txt n; rm notes.txt; mv n notes.txt").changes == ()


def test_a_file_changed_meanwhile_is_not_overwritten(sandbox: Sandbox, workspace: Path) -> None:
    (workspace / "other").write_text("o")
    outcome = shell(sandbox, workspace, "echo x > notes.txt; echo y > made; echo z > other")
    (workspace / "notes.txt").write_text("mine\n")
    with pytest.raises(SandboxError, match=r"notes\.txt: not kept: it was changed"):
        keep(workspace, outcome.changes)
    assert (workspace / "other").read_text() == "o"  # nothing was applied
    assert not (workspace / "made").exists()
    (workspace / "made").write_text("mine too")
    with pytest.raises(SandboxError, match="made: not kept"):
        keep(workspace, [change for change in outcome.changes if change.path == "made"])


@pytest.mark.parametrize("path", ["notes.txt", "made"])
def test_a_link_in_the_place_of_a_file_is_not_followed(
    sandbox: Sandbox, workspace: Path, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    outcome = shell(sandbox, workspace, f"echo evil > {path}")

    def swap() -> None:
        (workspace / path).unlink(missing_ok=True)
        (workspace / path).symlink_to(target)

    swap()
    with pytest.raises(SandboxError, match="not kept"):
        keep(workspace, outcome.changes)
    # The same after the very last look at it.
    monkeypatch.setattr(keeping, "_unchanged", lambda *_: swap())
    with contextlib.suppress(SandboxError):
        keep(workspace, outcome.changes)
    assert target.read_text() == "untouched"


def test_a_folder_that_became_a_link_is_not_entered(sandbox: Sandbox, workspace: Path, tmp_path: Path) -> None:
    (workspace / "sub").mkdir()
    (workspace / "sub" / "a").write_text("a")
    outcome = shell(sandbox, workspace, "echo evil > sub/a; echo evil > sub/b")
    (workspace / "sub").rename(tmp_path / "elsewhere")
    (workspace / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SandboxError, match="on the way"):
        keep(workspace, outcome.changes)
    assert (tmp_path / "elsewhere" / "a").read_text() == "a"
    assert not (tmp_path / "elsewhere" / "b").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "sub/../../x", ".."])
def test_links_that_lead_out_are_not_kept(workspace: Path, target: str) -> None:
    change = Change("link", "created", "link", None, None, content=target.encode())
    with pytest.raises(SandboxError, match="leads out"):
        keep(workspace, [change])


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", ".", "a//b"])
def test_paths_that_lead_out_are_not_kept(workspace: Path, path: str) -> None:
    with pytest.raises(SandboxError, match="no path in a workspace"):
        keep(workspace, [Change(path, "created", "file", None, 1, content=b"x")])


def test_content_that_was_not_held_is_not_kept(sandbox: Sandbox, workspace: Path) -> None:
    (change,) = shell(sandbox, workspace, "echo x > notes.txt").changes
    with pytest.raises(SandboxError, match="too large to be kept"):
        keep(workspace, [dataclasses.replace(change, content=None)])


def test_a_copy_is_bounded_and_removed(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    os.mkfifo(workspace / "pipe")
    with copied(workspace, None) as copy:
        assert sorted(copy.real) == ["notes.txt"]
        assert list(place.iterdir())
    with pytest.raises(SandboxError, match="more than 0 MiB"), copied(workspace, None, most_bytes=5):
        pass
    with pytest.raises(SandboxError, match="more than 0 files"), copied(workspace, None, most_entries=0):
        pass
    with pytest.raises(SandboxError, match="cannot be a workspace"), copied(workspace / "none", None):
        pass
    assert not list(place.iterdir())


def test_what_a_command_closes_or_buries_is_removed(
    sandbox: Sandbox, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A place of its own, which the user that the command runs as can reach: others use the usual one meanwhile.
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    outcome = shell(sandbox, workspace, "mkdir -p d/e; echo x > d/e/f; chmod 000 d/e/f d/e d .")
    assert {"d", "d/e", "d/e/f"} <= {change.path for change in outcome.changes}
    bury = "import os\nfor _ in range(2500):\n    os.mkdir('deep'); os.chdir('deep')"
    with pytest.raises(SandboxError, match="too deep"):
        sandbox.run(["python3", "-c", bury], workspace=workspace, limits=Limits())
    assert not list(place.iterdir())
    place.rmdir()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (b"", b"a\n", "--- a/f\n+++ b/f\n@@ -0,0 +1 @@\n+a\n"),
        (b"a", b"", "--- a/f\n+++ b/f\n@@ -1 +0,0 @@\n-a\n\\ No newline at end of file\n"),
        (b"a\rb\x0bc\n", b"", "--- a/f\n+++ b/f\n@@ -1 +0,0 @@\n-a\rb\x0bc\n"),
        (b"\0", b"a", None),
        (b"a", b"\xff", None),
        (None, b"a", None),
    ],
)
def test_diffs(before: bytes | None, after: bytes, expected: str | None) -> None:
    assert unified("f", before, after) == expected


def test_a_diff_in_a_long_file_has_its_line_numbers_and_a_bound() -> None:
    lines = [f"line {n}\n" for n in range(5000)]
    changed = [*lines[:4000], "another\n", *lines[4001:]]
    text = unified("f", "".join(lines).encode(), "".join(changed).encode())
    assert text is not None
    assert "@@ -3998,7 +3998,7 @@\n line 3997\n" in text
    cut = unified("f", b"", "".join(lines).encode())
    assert cut is not None
    assert len(cut) < MOST_DIFF + 100
    whole = unified("f", b"", "".join(lines).encode(), 1 << 20)
    assert whole is not None
    assert whole.endswith("+line 4999\n")


def test_what_takes_long_to_compare_is_shown_as_replaced() -> None:
    text = unified("f", b"same\n" + b"a\n" * 4000, b"same\n" + b"b\n" * 4000, 1 << 20)
    assert text is not None
    assert text.startswith("--- a/f\n+++ b/f\n@@ -1,4001 +1,4001 @@\n-same\n-a\n")
    assert text.count("\n+b") == 4000
