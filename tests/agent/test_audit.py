"""The audit log: whatever is done to it afterwards shows, and a run can be erased without a trace of what it held."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest

from qafila.agent.audit import Verdict, verify
from qafila.agent.events import Began, Budget, Ended, Prices, Steered
from qafila.agent.journal import Journal
from qafila.agent.signing import Checkpoint, Signer, public_key, read_note
from qafila.cli.main import main
from qafila.errors import AgentError, DataError, FormatError, UsageError


def began(goal: str) -> Began:
    return Began(
        goal=goal,
        system="",
        model="scripted",
        tools=(),
        effects={},
        workspace="workspace",
        budget=Budget(),
        prices=Prices(),
        choosing="free",
        seed=0,
        temperature=0.0,
        answer_tokens=1,
        version="0",
    )


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "audit.key")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(f"sqlite:///{tmp_path}/agent.sqlite3")


def written(journal: Journal, signer: Signer, runs: int = 3) -> list[str]:
    """Some runs, with a checkpoint after each; gives their ids."""
    found = []
    for number in range(runs):
        run = journal.begin(began(goal=f"goal {number}"))
        for place in range(1, 4):
            journal.add(run, place, Steered(text=f"my number is 0100{number}{place}"))
        journal.add(run, 4, Ended(reason="done", answer="yes"))
        journal.audit.checkpoint(signer)
        found.append(run)
    return found


def lines(journal: Journal, signer: Signer) -> list[str]:
    return list(journal.audit.lines(signer.public))


def test_a_log_that_nobody_touched_is_good(journal: Journal, signer: Signer) -> None:
    written(journal, signer)
    verdict = verify(lines(journal, signer), key=signer.public)
    assert verdict == Verdict(15, 3, 0, 15, (), signer.public)
    journal.begin(began(goal="later"))
    assert verify(lines(journal, signer), key=signer.public).signed == 15


def rows(text: list[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in text]


def test_every_way_to_change_it_shows(journal: Journal, signer: Signer, tmp_path: Path) -> None:
    written(journal, signer)
    good = lines(journal, signer)
    draw = random.Random(7)

    def wrong(changed: list[dict[str, object]], kept: tuple[str, ...] = ()) -> str:
        verdict = verify([json.dumps(row) for row in changed], key=signer.public, kept=kept)
        assert not verdict.good
        return "\n".join(verdict.problems)

    for _ in range(20):
        place = draw.randrange(1, 15)
        edited = rows(good)
        edited[place]["body"] = str(edited[place]["body"]).replace("kind", "kinds", 1)
        assert "its content or its time was changed" in wrong(edited)
        moved = rows(good)
        moved[place]["at"] = float(str(moved[place]["at"])) + 1000
        assert "its content or its time was changed" in wrong(moved)
        recommitted = rows(good)
        recommitted[place] = {**recommitted[place], "salt": None, "body": None, "commitment": "00" * 32}
        assert "are not the ones that were signed" in wrong(recommitted)
        removed = rows(good)
        del removed[place]
        assert "missing or out of order" in wrong(removed)
        swapped = rows(good)
        other = place % 15 + 1
        swapped[place], swapped[other] = swapped[other], swapped[place]
        assert "missing or out of order" in wrong(swapped)
        renumbered = rows(good)
        del renumbered[place]
        for number, row in enumerate(renumbered[1:15]):
            row["place"] = number
        assert "its end is missing" in wrong(renumbered)
        gone = rows(good)
        gone[place]["body"] = None
        assert "its content is gone, and it was not erased" in wrong(gone)
        timeless = rows(good)
        timeless[place]["at"] = None
        assert "its content is gone, and it was not erased" in wrong(timeless)

    # Cut short with its later checkpoints: only one that was kept elsewhere knows.
    short = [row for row in rows(good) if row.get("place", 0) < 10]  # type: ignore[operator]
    notes = journal.audit.checkpoints()
    short = [row for row in short if row.get("checkpoint") not in notes[2:]]
    assert verify([json.dumps(row) for row in short], key=signer.public).good
    assert "its end is missing" in wrong(short, (notes[2],))

    # Written anew by somebody with another key.
    other = Journal(f"sqlite:///{tmp_path}/other.sqlite3")
    forger = Signer(tmp_path / "other.key")
    written(other, forger)
    assert "is not signed with this key" in wrong(rows(lines(other, forger)))
    assert verify(lines(other, forger)).good  # which is why a key has to be trusted, not found in the log

    unsigned = [row for row in rows(good) if "checkpoint" not in row]
    assert "nothing in it is signed" in wrong(unsigned)


def test_what_is_changed_in_the_database_shows(journal: Journal, signer: Signer, tmp_path: Path) -> None:
    run = written(journal, signer)[1]
    with sqlite3.connect(tmp_path / "agent.sqlite3") as database:
        database.execute("UPDATE agent_events SET body = replace(body, '0100', '0199') WHERE run = ?", (run,))
    database.close()
    problems = verify(lines(journal, signer), key=signer.public).problems
    assert len(problems) == 3
    assert all(
        f"(run {run}, event" in problem and "its content or its time was changed" in problem for problem in problems
    )


def test_what_was_put_in_beside_the_log_shows(journal: Journal, signer: Signer, tmp_path: Path) -> None:
    first, second, _ = written(journal, signer)
    with sqlite3.connect(tmp_path / "agent.sqlite3") as database:
        # A word that nobody said, and a run that the log is to take for erased while it says something else.
        database.execute(
            "INSERT INTO agent_events SELECT run, 5, at, body FROM agent_events WHERE run = ? AND number = 1", (first,)
        )
        database.execute("UPDATE agent_log SET salt = NULL WHERE run = ? AND number = 2", (second,))
        database.execute(
            "UPDATE agent_events SET body = replace(body, '0100', '0199') WHERE run = ? AND number = 2", (second,)
        )
    database.close()
    export = lines(journal, signer)
    assert sorted(verify(export, key=signer.public).problems) == sorted(
        [f"event 5 of run {first}: was put in beside the log", f"event 2 of run {second}: was put in beside the log"]
    )


def test_a_run_is_erased_and_the_log_stays_good(journal: Journal, signer: Signer, tmp_path: Path) -> None:
    first, second, third = written(journal, signer)
    before = journal.audit.leaves()
    assert journal.erase(second) == 5
    verdict = verify(lines(journal, signer), key=signer.public)
    assert (verdict.good, verdict.events, verdict.erased, verdict.signed) == (True, 15, 5, 15)
    text = "\n".join(lines(journal, signer))
    assert "goal 0" in text
    assert "goal 1" not in text
    assert not any(leaf.salt is not None and leaf.salt in text for leaf in before if leaf.run == second)
    assert [run.id for run in journal.runs()] == [third, first]
    with pytest.raises(AgentError, match="there is no run"):
        journal.erase(second)


def test_a_fork_is_in_the_log_too(journal: Journal, signer: Signer) -> None:
    (run,) = written(journal, signer, 1)
    new = journal.fork(run, 2)
    assert [leaf.run for leaf in journal.audit.leaves()][5:] == [new] * 3
    assert journal.audit.checkpoint(signer) == journal.audit.checkpoint(signer)


def test_notes(signer: Signer, tmp_path: Path) -> None:
    key = public_key(signer.public)
    note = signer.note(Checkpoint(7, b"\x01" * 32))
    assert read_note(note, key) == Checkpoint(7, b"\x01" * 32)
    assert (tmp_path / "audit.key").stat().st_mode & 0o777 == 0o600
    assert Signer(tmp_path / "audit.key").public == signer.public
    for changed in (note.replace("\n7\n", "\n8\n"), note[:-8] + "AAAAAA==", note.replace("— ", "- ")):
        assert read_note(changed, key) == f"the checkpoint of {changed.split()[1]} events is not signed with this key"
    for changed in ("", note.replace("qafila-agent", "other"), note.replace("\n7\n", "\n٧\n"), "x\n" * 5):
        assert read_note(changed, key) == "a checkpoint is no note of this log"
    with pytest.raises(UsageError, match="no Ed25519 public key"):
        public_key("AAAA")
    (tmp_path / "short.key").write_bytes(b"short")
    with pytest.raises(FormatError, match="no key of 32 bytes"):
        Signer(tmp_path / "short.key")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"audit": "other", "version": 1}', "{" * 2000])
def test_what_is_no_log_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"line 1: is no line of an audit log|the audit log is empty"):
        verify(text.splitlines())


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("QAFILA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QAFILA_AGENT_DATABASE", url := f"sqlite:///{tmp_path}/agent.sqlite3")
    journal = Journal(url)
    run = journal.begin(began(goal="write to me\u2028 at\x85 a street"))
    assert main(["audit", "verify"]) == 1
    assert "nothing in it is signed" in capsys.readouterr().out
    assert main(["audit", "key"]) == 0
    key = capsys.readouterr().out.strip()
    assert main(["audit", "checkpoint"]) == 0
    (tmp_path / "note").write_text(capsys.readouterr().out, encoding="utf-8")
    file = str(tmp_path / "log.jsonl")
    assert main(["audit", "export", file]) == 0
    assert key in capsys.readouterr().out
    assert main(["audit", "export", file]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["audit", "verify", file, "--key", key, "--checkpoint", str(tmp_path / "note")]) == 0
    assert capsys.readouterr().out == "1 events of 1 runs, 1 of them signed: as it was written\n"
    assert main(["audit", "erase", run, "--yes"]) == 0
    assert main(["audit", "verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["erased"] == 1
    Path(file).write_text(Path(file).read_text("utf-8").replace("street", "tower"), encoding="utf-8")
    assert main(["audit", "verify", file, "--key", key]) == 1
    assert "its content or its time was changed" in capsys.readouterr().out
