"""`qafila data`: pack, show and verify, as typed in a shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from qafila.cli.data import command
from qafila.errors import DataError, FormatError, UsageError

ARABIC = "القاهرة عاصمة مصر"


def run(*args: object) -> None:
    typer.main.get_command(command).main(args=[str(arg) for arg in args], prog_name="data", standalone_mode=False)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    lines = [{"Q": f"What is {n}?", "A": f"{ARABIC} {n}."} for n in range(40)]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\nbroken\n", encoding="utf-8")
    return path


@pytest.mark.usefixtures("default_gguf")
def test_every_record_left_out_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, plain, blank, pairs = (tmp_path / name for name in ("t.jsonl", "p.txt", "b.txt", "pairs.jsonl"))
    rows = ['{"text": "fine"}', "", '{"text": " "}', '{"txt": "x"}', '{"text": 5}', '{"text": "x"', "plain"]
    texts.write_text("\n".join([*rows, json.dumps({"text": "word " * 100})]), encoding="utf-8")
    plain.write_bytes(b"one\ntwo \xff\n")
    blank.write_bytes(b"\n\n")
    sources = (texts, plain, blank)
    run("pack", *sources, "--to", tmp_path / "a", "--objective", "pretrain", "--sequence", 64, "--overlong", "skip")
    told = capsys.readouterr().err
    for place in (
        f"{texts}:3: text: empty",
        f"{texts}:4: no form has these fields: txt",
        f"{texts}:5: text: expected text, not 5",
        f"{texts}:6: not valid JSON (Expecting ',' delimiter, at character 13)",
        f"{texts}:7: not valid JSON (Expecting value, at character 1)",
        f"{texts}:8: 102 tokens, more than the 64 of a row; left out",
        f"{plain}:2: not UTF-8 text (byte 0xff)",
        f"{blank}:1: empty",
    ):
        assert place in told
    fine = {"prompt": "q", "chosen": "a", "rejected": "b"}
    wrong = [{**fine, "chosen": ""}, {**fine, "rejected": "a"}, {"prompt": "q", "chosen": "a"}]
    lines = [fine, *wrong, {**fine, "rejected": "word " * 200}]
    pairs.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    run("pack", pairs, "--to", tmp_path / "b", "--objective", "dpo", "--form", "preference", "--overlong", "skip",
        "--sequence", 128)  # fmt: skip
    told = capsys.readouterr().err
    for place in (
        f"{pairs}:2: chosen: empty",
        f"{pairs}:3: chosen and rejected are the same",
        f'{pairs}:4: no field "rejected"; there are prompt, chosen',
        f"{pairs}:5: ",
    ):
        assert place in told


FIELDS = ("--form", "prompt", "--field", "prompt=Q", "--field", "completion=A")


@pytest.mark.usefixtures("default_gguf")
def test_pack_show_and_verify(tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = tmp_path / "pack"
    run("pack", examples, "--to", pack, "--sequence", 256, "--validation", 0.2, *FIELDS)
    out, err = capsys.readouterr()
    assert "1 malformed" in err
    assert f"{examples}:41: not valid JSON" in err
    assert out.startswith(f"{pack}: ")
    assert f"{pack}-validation: " in out
    run("show", pack, "--rows", 1000)
    shown = capsys.readouterr().out
    run("show", f"{pack}-validation", "--rows", 1000)
    shown += capsys.readouterr().out
    for n in range(40):
        assert f"<|im_start|>user\nWhat is {n}?<|im_end|>\n<|im_start|>assistant\n⟦{ARABIC} {n}.<|im_end|>⟧" in shown
    run("show", pack, "--json")
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert [piece["learned"] for piece in first["pieces"]] == [False, True]
    assert first["source"] == str(examples)
    assert f" learned, from {examples}\n" in shown
    run("verify", pack, "--tokenizer", "default")
    assert f"{pack}: whole (1 files, " in capsys.readouterr().out
    shard = next(pack.glob("*.bin"))
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FormatError, match=f"{shard.name}: is damaged"):
        run("verify", pack)


@pytest.mark.usefixtures("default_gguf")
def test_json_answers(tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = tmp_path / "pack"
    run("pack", examples, "--to", pack, "--sequence", 256, "--limit", 10, "--json", *FIELDS)
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["documents"] == 10
    assert told["problems"]["records"] == 10
    assert 0 < told["targets"] < told["tokens"]
    run("verify", pack, "--json")
    assert json.loads(capsys.readouterr().out)["whole"] is True


def test_another_tokenizer_is_refused(tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama2, small = (shared_data / "models" / name for name in ("llama2_tokenizer.model", "tok512.model"))
    text = tmp_path / "a.txt"
    text.write_text(f"Once upon a time. {ARABIC}", encoding="utf-8")
    pack = tmp_path / "pack"
    run("pack", text, "--to", pack, "--tokenizer", llama2, "--objective", "pretrain", "--sequence", 64)
    capsys.readouterr()
    run("show", pack, "--tokenizer", llama2)
    assert f"<s>⟦Once upon a time. {ARABIC}</s>⟧" in capsys.readouterr().out
    for name in ("show", "verify"):
        with pytest.raises(DataError, match="another tokenizer"):
            run(name, pack, "--tokenizer", small)


@pytest.mark.usefixtures("default_gguf")
def test_what_cannot_be_asked(tmp_path: Path, examples: Path) -> None:
    for options, problem in [
        (("--objective", "x"), "there are pretrain"),
        (("--field", "x"), "NAME=THEIRS"),
        (("--form", "x"), "there are auto"),
        (("--objective", "fim"), "objective fim"),
        (("--overlong", "split"), "overlong"),
    ]:
        with pytest.raises(UsageError, match=problem):
            run("pack", examples, "--to", tmp_path / "pack", *options)
    with pytest.raises(DataError, match="holds no pack"):
        run("verify", tmp_path)
    with pytest.raises(DataError, match="no such file"):
        run("pack", tmp_path / "none", "--to", tmp_path / "pack")
    run("pack", examples, "--to", tmp_path / "pack", "--sequence", 256, *FIELDS)
    with pytest.raises(UsageError, match="numbered from 0"):
        run("show", tmp_path / "pack", "--from", 100000)
