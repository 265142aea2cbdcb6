"""Edits: done once however often they are applied, taken back exactly, and never over what somebody else wrote."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.agent import edits as editing
from qafila.agent.edits import Edit, apply, edits_of, file_edit, inside, states
from qafila.agent.sandbox.changes import Change
from qafila.agent.sandbox.workspace import Mark
from qafila.errors import SandboxError


def tree(workspace: Path) -> dict[str, tuple[str, bytes, int]]:
    """Every entry of a workspace: its sort, what it holds, and its permissions."""
    found = {}
    for path in sorted(workspace.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            found[str(path.relative_to(workspace))] = ("link", os.fsencode(path.readlink()), 0)
        else:
            content = path.read_bytes() if path.is_file() else b""
            sort = "file" if path.is_file() else "folder"
            found[str(path.relative_to(workspace))] = (sort, content, stat.S_IMODE(status.st_mode))
    return found


def back(edits: tuple[Edit, ...]) -> list[Edit]:
    return [edit.reversed() for edit in reversed(edits)]


def mark(path: Path) -> Mark:
    return Mark.of(path.lstat())


def test_a_file_is_created_replaced_and_deleted(tmp_path: Path) -> None:
    created = file_edit(tmp_path, "a.txt", b"one\n")
    assert [(edit.kind, edit.path, edit.before, edit.after) for edit in created] == [
        ("created", "a.txt", None, b"one\n")
    ]
    assert tree(tmp_path) == {}
    apply(tmp_path, created)
    (tmp_path / "a.txt").chmod(0o750)
    replaced = file_edit(tmp_path, "a.txt", b"two\n")
    assert [(edit.kind, edit.before, edit.after) for edit in replaced] == [("changed", b"one\n", b"two\n")]
    apply(tmp_path, replaced)
    assert tree(tmp_path) == {"a.txt": ("file", b"two\n", 0o750)}
    assert file_edit(tmp_path, "a.txt", b"two\n") == ()
    deleted = file_edit(tmp_path, "a.txt", None)
    assert [edit.kind for edit in deleted] == ["deleted"]
    apply(tmp_path, deleted)
    assert tree(tmp_path) == {}
    assert file_edit(tmp_path, "a.txt", None) == ()
    for edits in (deleted, replaced, created):
        apply(tmp_path, back(edits))
        if edits is deleted:
            assert tree(tmp_path) == {"a.txt": ("file", b"two\n", 0o750)}
    assert tree(tmp_path) == {}


def test_folders_on_the_way_are_edits_too_and_go_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    edits = file_edit(tmp_path, "a/b/c/d.txt", b"x")
    assert [(edit.path, edit.what) for edit in edits] == [
        ("a/b", "folder"),
        ("a/b/c", "folder"),
        ("a/b/c/d.txt", "file"),
    ]
    apply(tmp_path, edits)
    assert (tmp_path / "a/b/c/d.txt").read_bytes() == b"x"
    apply(tmp_path, back(edits))
    assert list(tree(tmp_path)) == ["a"]


def test_links_are_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "link").symlink_to(outside)
    (workspace / "file").symlink_to(outside / "secret")
    for path in ("link/secret", "link/new", "file", "link"):
        for after in (b"changed", None):
            with pytest.raises(SandboxError):
                file_edit(workspace, path, after)
    edit = Edit(path="link/secret", what="file", before=b"s", after=b"t")
    assert states(workspace, [edit]) == ["other"]
    with pytest.raises(SandboxError, match="left as it is"):
        apply(workspace, [edit])
    assert tree(outside) == {"secret": ("file", b"s", stat.S_IMODE((outside / "secret").stat().st_mode))}


def test_a_link_is_made_led_elsewhere_and_taken_back(tmp_path: Path) -> None:
    made = (Edit(path="link", what="link", before=None, after=b"a.txt"),)
    led = (Edit(path="link", what="link", before=b"a.txt", after=b"b.txt"),)
    apply(tmp_path, made)
    apply(tmp_path, led)
    assert tree(tmp_path) == {"link": ("link", b"b.txt", 0)}
    apply(tmp_path, back(led))
    assert tree(tmp_path) == {"link": ("link", b"a.txt", 0)}
    apply(tmp_path, back(made))
    assert tree(tmp_path) == {}
    with pytest.raises(SandboxError, match="leads out of the workspace"):
        apply(tmp_path, [Edit(path="link", what="link", before=None, after=b"/etc/passwd")])


@pytest.mark.parametrize("path", ["../x", "a/../../x", "..", "/../x", "a\\..\\..\\x", "x\0y", " /../ "])
def test_paths_that_lead_out_are_refused(path: str) -> None:
    with pytest.raises(SandboxError):
        inside(path)


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("a/b", "a/b"), ("./a//b/", "a/b"), ("/a/b", "a/b"), ("a/../b", "b"), (" a ", "a"), ("a\\b", "a/b"), ("", ""),
        (".", ""), ("/", ""), ("...", "..."), ("..a/b", "..a/b"), ("ملف.txt", "ملف.txt"),
    ],
)  # fmt: skip
def test_paths_as_models_write_them(path: str, clean: str) -> None:
    assert inside(path) == clean


def test_a_name_that_is_no_text_is_refused() -> None:
    for name in ("\ud800", "\udcff"):
        with pytest.raises(SandboxError, match="no name of a file"):
            inside(name)


def test_nothing_is_applied_where_one_entry_is_another_by_now(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("old")
    edits = (*file_edit(tmp_path, "a.txt", b"a"), *file_edit(tmp_path, "b.txt", b"new"))
    (tmp_path / "b.txt").write_text("somebody else's")
    before = tree(tmp_path)
    assert states(tmp_path, edits) == ["before", "other"]
    with pytest.raises(SandboxError, match=r"b\.txt: was changed by somebody else"):
        apply(tmp_path, edits)
    assert tree(tmp_path) == before


def test_what_took_the_place_of_a_new_file_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "MOST_BYTES", 10)
    edits = file_edit(tmp_path, "a.txt", b"new")
    large, pipe = tmp_path / "a.txt", tmp_path / "p"
    large.write_bytes(b"x" * 11)
    os.mkfifo(pipe)
    for edit in (edits[0], Edit(path="p", what="file", before=None, after=b"new")):
        assert states(tmp_path, [edit]) == ["other"]
        with pytest.raises(SandboxError, match="left as it is"):
            apply(tmp_path, [edit])
        # Nor does it count as deleted because it cannot be read.
        assert states(tmp_path, [edit.reversed()]) == ["other"]
    assert large.read_bytes() == b"x" * 11
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_file_and_a_folder_are_not_taken_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_bytes(b"")
    edits = [
        Edit(path="a", what="file", before=None, after=b""), Edit(path="b", what="folder", before=None, after=b"")
    ]  # fmt: skip
    assert states(tmp_path, edits) == ["other", "other"]


def test_what_is_half_done_is_finished_or_taken_back(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    edits = (*file_edit(tmp_path, "new/a.txt", b"a"), *file_edit(tmp_path, "old.txt", None))
    for done in range(len(edits) + 1):
        apply(tmp_path, edits[:done])
        apply(tmp_path, edits)
        assert set(tree(tmp_path)) == {"new", "new/a.txt"}
        apply(tmp_path, back(edits))
        assert set(tree(tmp_path)) == {"old.txt"}
        apply(tmp_path, edits[:done])
        apply(tmp_path, back(edits))
        assert set(tree(tmp_path)) == {"old.txt"}


def test_limits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 11)
    monkeypatch.setattr(editing, "MOST_BYTES", 10)
    with pytest.raises(SandboxError, match="11 bytes are more than the 10 that one edit may replace"):
        file_edit(tmp_path, "a.txt", b"y")
    with pytest.raises(SandboxError, match="11 bytes are more than the 10 that one edit may write"):
        file_edit(tmp_path, "b.txt", b"y" * 11)


def test_a_file_is_no_folder_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(SandboxError, match="no folder"):
        file_edit(tmp_path, "a/b", b"x")


# What commands did in the sandbox.


def test_changes_of_permissions_are_done_and_taken_back(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("echo hi\n")
    script.chmod(0o644)
    change = Change("run.sh", "changed", "file", 8, 8, content=b"echo hi\n", mode=0o755, base=mark(script))
    edits = edits_of(tmp_path, [change])
    assert states(tmp_path, edits) == ["before"]
    apply(tmp_path, edits)
    assert tree(tmp_path) == {"run.sh": ("file", b"echo hi\n", 0o755)}
    assert states(tmp_path, edits) == ["after"]
    assert "644" in edits[0].diff()
    assert "755" in edits[0].diff()
    apply(tmp_path, back(edits))
    assert tree(tmp_path) == {"run.sh": ("file", b"echo hi\n", 0o644)}


def test_people_are_shown_all_of_a_change(tmp_path: Path) -> None:
    (edit,) = file_edit(tmp_path, "long", b"".join(b"line %d\n" % n for n in range(9000)))
    assert edit.diff().endswith("+line 8999\n")
    replaced = edit.model_copy(update={"before": b"a\n" * 4000})
    assert replaced.diff().count("\n-a") == 4000
    assert replaced.diff().endswith("+line 8999\n")
    (blob,) = file_edit(tmp_path, "blob", b"\0")
    assert blob.diff() == "created: blob (no text, or too long to be shown; 1 bytes)\n"
    link = Edit(path="l", what="link", before=b"a", after=b"b")
    assert link.diff() == "changed: l (link to a, now to b)\n"


def test_what_was_changed_or_deleted_comes_back_with_its_permissions(tmp_path: Path) -> None:
    for name in ("changed.sh", "deleted.sh"):
        (tmp_path / name).write_text("old")
        (tmp_path / name).chmod(0o750)
    before = tree(tmp_path)
    edits = edits_of(
        tmp_path,
        [
            Change(
                "changed.sh", "changed", "file", 3, 3, content=b"new", mode=0o600, base=mark(tmp_path / "changed.sh")
            ),
            Change("deleted.sh", "deleted", "file", 3, None, base=mark(tmp_path / "deleted.sh")),
        ],
    )
    apply(tmp_path, edits)
    assert tree(tmp_path) == {"changed.sh": ("file", b"new", 0o600)}
    apply(tmp_path, back(edits))
    assert tree(tmp_path) == before


def test_what_could_not_be_taken_back_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "MOST_BYTES", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    (tmp_path / "stale").write_text("s")
    (tmp_path / "out").symlink_to("/etc/hosts")
    stale = mark(tmp_path / "stale")
    (tmp_path / "stale").write_text("other")
    for change, words in (
        (Change("large", "deleted", "file", 11, None, base=mark(tmp_path / "large")), "large"),
        (Change("new", "created", "file", None, 11, content=b"x" * 11), "too many"),
        (Change("stale", "deleted", "file", 1, None, base=stale), "was changed in the workspace"),
        (Change("pipe", "created", "special", None, None), "not kept"),
        (Change("out", "deleted", "link", None, None, base=mark(tmp_path / "out")), "leads out"),
        (Change("a\udcff", "created", "file", None, 1, content=b"x"), "no text"),
    ):
        with pytest.raises(SandboxError, match=words):
            edits_of(tmp_path, [change])
    edits = edits_of(tmp_path, [Change("large", "created", "file", None, 1, content=b"x")])
    assert states(tmp_path, edits) == ["other"]


def test_leftovers_of_a_write_that_was_killed_are_swept_away(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    kept = [tmp_path / ".qafila-notes", tmp_path / "a" / "b.txt", tmp_path / ".qafila-0123456789abcdef.txt"]
    for path in (*kept, tmp_path / ".qafila-0123456789abcdef", tmp_path / "a" / ".qafila-fedcba9876543210"):
        path.write_text("x")
    edits = [Edit(path=path, what="file", before=None, after=b"") for path in ("a/c.txt", "d.txt", "gone/e.txt")]
    editing.sweep(tmp_path, edits)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


NAMES = st.sampled_from(["a", "b", "d/a", "d/e/b", "ملف"])
CONTENTS = st.one_of(st.none(), st.binary(max_size=6))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=6)), st.dictionaries(NAMES, CONTENTS, min_size=1))
def test_there_and_back_is_nothing_and_twice_is_once(files: dict[str, bytes], wanted: dict[str, bytes | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        for name, content in files.items():
            (workspace / name).parent.mkdir(parents=True, exist_ok=True)
            (workspace / name).write_bytes(content)
        before = tree(workspace)
        by_path = {edit.path: edit for name, after in wanted.items() for edit in file_edit(workspace, name, after)}
        edits = tuple(Edit.model_validate_json(edit.model_dump_json()) for edit in by_path.values())
        assert edits == tuple(by_path.values())
        assert states(workspace, edits) == ["before"] * len(edits)
        apply(workspace, edits)
        after = tree(workspace)
        assert {name: entry[1] for name, entry in after.items() if entry[0] == "file"} == {
            name: content for name, content in {**files, **wanted}.items() if content is not None
        }
        apply(workspace, edits)
        assert tree(workspace) == after
        apply(workspace, back(edits))
        assert tree(workspace) == before
        apply(workspace, back(edits))
        assert tree(workspace) == before
