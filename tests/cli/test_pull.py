"""`qafila pull` and `qafila models`, end to end."""

from __future__ import annotations

import hashlib
import json

import pytest
from fake_hub import FakeHub, FakeRepo

from qafila.cli.main import main
from qafila.weights import cache

GGUF = b"GGUF" + bytes(1000)


@pytest.fixture
def a_hub(fake_hub: FakeHub) -> FakeHub:
    fake_hub.repos["me/tiny"] = FakeRepo({"tiny.gguf": GGUF, "LICENSE": b"MIT"}, license="mit")
    return fake_hub


def test_pull_prints_the_path_and_nothing_else(a_hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "hf:me/tiny"]) == 0
    out, err = capsys.readouterr()
    path = cache.home() / "models/hf/me--tiny" / ("a" * 40) / "tiny.gguf"
    assert (out, err) == (f"{path}\n", "")
    assert path.read_bytes() == GGUF


def test_pull_json(a_hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "hf:me/tiny", "--file", "tiny.gguf", "--revision", "main", "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err == ""
    assert record["name"] == "hf:me/tiny:tiny.gguf"
    assert record["source"] == "hf:me/tiny@main:tiny.gguf"
    assert (record["format"], record["license"], record["commit"]) == ("gguf", "mit", "a" * 40)
    assert record["bytes"] == len(GGUF) + 3
    assert record["files"] == ["LICENSE", "tiny.gguf"]
    with open(record["path"], "rb") as file:  # noqa: PTH123 - the path as a script would take it
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(GGUF).digest()


def test_the_licence_of_a_gated_model_is_shown(
    a_hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = a_hub.repos["me/tiny"]
    repo.gated, repo.token = True, "hf_x"
    repo.files["LICENSE"] = b"YOU MAY\x1b[2J"
    assert main(["pull", "hf:me/tiny"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: hf:me/tiny is gated")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert main(["pull", "hf:me/tiny"]) == 0
    err = capsys.readouterr().err
    assert "accept its licence: mit" in err
    assert "YOU MAY [2J" in err


def test_models_from_empty_to_empty(a_hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr() == ("", "no models here yet; `qafila pull default` fetches one\n")
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    main(["pull", "hf:me/tiny"])
    capsys.readouterr()
    assert main(["models"]) == 0
    out, err = capsys.readouterr()
    head, row = out.splitlines()
    assert head.split() == ["NAME", "FORMAT", "SIZE", "FETCHED", "SOURCE"]
    assert row.split()[:4] == ["hf:me/tiny", "gguf", "1.0", "KB"]
    assert row.endswith("hf:me/tiny (aaaaaaaa)")
    assert err == ""
    assert main(["models", "--json"]) == 0
    [record] = json.loads(capsys.readouterr().out)
    assert (record["name"], record["bytes"], record["revision"]) == ("hf:me/tiny", len(GGUF) + 3, "main")
    assert main(["models", "verify"]) == 0
    assert capsys.readouterr().out == "hf:me/tiny: 2 files as published\n"
    with open(record["path"], "ab") as file:  # noqa: PTH123
        file.write(b"!")
    assert main(["models", "verify", "tiny"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "tiny.gguf missing or changed; `qafila models remove hf:me/tiny` and pull it again" in err
    assert main(["models", "verify", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)[0]["bad"] == ["tiny.gguf"]
    assert main(["models", "remove", "tiny"]) == 0
    assert capsys.readouterr().out == "removed hf:me/tiny at aaaaaaaa, 1.0 KB\n"
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_model_that_lost_a_file_is_told_verified_and_removed(
    a_hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pull", "hf:me/tiny"])
    [model] = cache.cached_models()
    model.path.unlink()
    capsys.readouterr()
    assert main(["models"]) == 0
    assert "files are missing from hf:me/tiny: pull again, or `qafila models remove`" in capsys.readouterr().err
    assert main(["models", "verify"]) == 2
    assert "tiny.gguf missing or changed" in capsys.readouterr().err
    assert main(["models", "remove", "tiny"]) == 0
    assert not model.folder.exists()


def test_unfinished_downloads_are_told_and_cleaned(a_hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    (cache.home() / "staging/x").mkdir(parents=True)
    (cache.home() / "staging/x/part").write_bytes(bytes(2000))
    main(["models"])
    assert "2.0 KB of unfinished downloads: pull again to resume, or `qafila models clean`" in capsys.readouterr().err
    assert main(["models", "clean"]) == 0
    assert capsys.readouterr().out == "freed 2.0 KB\n"
