"""`qafila tokenizer`, as a user calls it."""

from __future__ import annotations

import gzip
import json
import lzma
import random

import pytest

from qafila.cli.main import main
from qafila.cli.tokenizer import size
from qafila.errors import UsageError
from qafila.text.tokenizer import load_tokenizer
from qafila.weights.load import open_checkpoint

ENGLISH = "The caravan went on through the desert, and the camels carried what they could carry all the way"
ARABIC = "سارت القافلة في الصحراء، وحملت الجمال ما لم يحمله المسافرون من المتاع في الطريق إلى المدينة"


def lines(sentence, count=200):
    draw = random.Random(0)
    words = sentence.split()
    return [" ".join(draw.choice(words)[: draw.randrange(2, 9)] for _ in range(12)) for _ in range(count)]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "en.txt").write_text("\n".join(lines(ENGLISH)))
    with gzip.open(folder / "ar.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": line}) + "\n" for line in lines(ARABIC))
    with lzma.open(folder / "pairs.jsonl.xz", "wt") as file:
        file.writelines(json.dumps({"ar": line, "en": "x"}) + "\n" for line in lines(ARABIC, 20))
    return folder


@pytest.fixture(scope="module")
def trained(corpora):
    folder = corpora / "made"
    assert main(["tokenizer", "train", str(corpora / "en.txt"), str(corpora / "ar.jsonl.gz"), "--to", str(folder),
                 "--vocab", "400", "--chat", "chatml"]) == 0  # fmt: skip
    return folder


def run(capsys, *arguments):
    status = main(["tokenizer", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def error(capsys, *arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    return err


def test_train(corpora, trained, capsys, tmp_path):
    made = load_tokenizer(trained)
    assert made.vocab_size == 400
    assert made.decode(made.encode(ARABIC)) == ARABIC
    files = (corpora / "en.txt", corpora / "ar.jsonl.gz")
    status, out, _ = run(capsys, "train", *files, "--to", tmp_path / "a", "--vocab", 330, "--chat", "plain",
                         "--pattern", "llama-4", "--reserved", 1, "--weight", 3, "--weight", "1", "--json")  # fmt: skip
    assert status == 0
    told = json.loads(out)
    assert (told["vocab_size"], told["special_tokens"]) == (330, 4)
    assert [source["weight"] for source in told["sources"]] == [3, 1]
    assert told["bytes"] == sum(source["nbytes"] for source in told["sources"])
    assert json.loads((tmp_path / "a" / "training.json").read_text())["pattern"] == "llama-4"
    assert run(capsys, "train", *files, "--to", tmp_path / "a", "--vocab", 330, "--chat", "plain", "--force")[0] == 0


def test_train_says_what_is_wrong(corpora, trained, capsys, tmp_path):
    english = corpora / "en.txt"
    assert "already exists" in error(capsys, "train", english, "--to", trained, "--vocab", 400)
    assert "no such file" in error(capsys, "train", tmp_path / "no.txt", "--to", tmp_path / "x", "--vocab", 600)
    assert "--vocab 300: must be above 512" in error(capsys, "train", english, "--to", tmp_path / "x", "--vocab", 300)
    one_of_two = ("train", english, english, "--to", tmp_path / "x", "--vocab", 600, "--weight", 1)
    assert "--weight: 1 given for 2 files" in error(capsys, *one_of_two)
    assert "--bytes lots" in error(capsys, "train", english, "--to", tmp_path / "x", "--vocab", 600, "--bytes", "lots")
    (tmp_path / "bad.jsonl").write_text("{oops\n" * 50)
    assert "bad.jsonl" in error(capsys, "train", tmp_path / "bad.jsonl", "--to", tmp_path / "x", "--vocab", 600)
    assert not (tmp_path / "x").exists()


def test_fertility(corpora, trained, capsys, default_gguf):
    texts = (corpora / "en.txt", corpora / "ar.jsonl.gz")
    status, out, _ = run(capsys, "fertility", default_gguf, trained, *texts, "--json")
    assert status == 0
    default, ours = json.loads(out)["tokenizers"]
    assert default["vocab_size"] == 49152
    assert default["languages"]["Arabic"]["words"] == ours["languages"]["Arabic"]["words"] == 200 * 12
    assert default["languages"]["Arabic"]["tokens_per_word"] > 2 * ours["languages"]["Arabic"]["tokens_per_word"]
    status, out, _ = run(capsys, "fertility", trained, *texts)
    table = out.splitlines()
    assert table[0].split()[:3] == ["LANGUAGE", "TOKENIZER", "VOCABULARY"]
    assert {line.split()[0] for line in table[1:]} == {"English", "Arabic"}
    status, out, _ = run(capsys, "fertility", trained, corpora / "pairs.jsonl.xz", "--field", "ar", "--json")
    assert list(json.loads(out)["tokenizers"][0]["languages"]) == ["Arabic"]
    assert "no text was named" in error(capsys, "fertility", trained)
    assert "name a model or tokenizer" in error(capsys, "fertility", *texts)


def test_extend(corpora, capsys, default_gguf, tmp_path):
    to = tmp_path / "extended"
    arguments = ("extend", default_gguf, corpora / "ar.jsonl.gz", "--to", to, "--pieces", 64, "--dtype", "BF16")
    status, out, err = run(capsys, *arguments, "--check", corpora / "en.txt", "--json")
    assert status == 0, err
    told = json.loads(out)
    assert (told["vocab_size"], told["script"], told["lines_unchanged"]) == (49152 + 64, "arabic", 200)
    assert told["script_tokens_after"] < 0.7 * told["script_tokens_before"]
    old, new = open_checkpoint(default_gguf), open_checkpoint(to)
    assert new.config == old.config.with_changes(vocab_size=49152 + 64)
    assert (new.generation.stop_ids, new.chat_template) == (old.generation.stop_ids, old.chat_template)
    assert new.tokenizer.encode(ENGLISH) == old.tokenizer.encode(ENGLISH)
    assert new.tokenizer.special_tokens == old.tokenizer.special_tokens
    assert "already exists" in error(capsys, *arguments)


def test_extend_says_what_is_wrong(corpora, capsys, default_gguf, tmp_path):
    start = ("extend", default_gguf, corpora / "en.txt", "--to", tmp_path / "x", "--pieces", 64)
    assert "no script but Latin" in error(capsys, *start)
    assert "no Hebrew text" in error(capsys, *start, "--script", "hebrew")
    assert "script 'elvish'" in error(capsys, *start, "--script", "elvish")
    assert "takes F32, F16, BF16" in error(capsys, *start, "--dtype", "Q4_0")
    assert list(tmp_path.iterdir()) == []


def test_sizes():
    written = ("1", "500k", "10M", "1.5G", "2gb", None)
    assert [size(text) for text in written] == [1, 500_000, 10**7, 1_500_000_000, 2 * 10**9, None]
    for wrong in ("", "k", "0", "-1", "1e999", "10 MiB", "nan"):
        with pytest.raises(UsageError, match="--bytes"):
            size(wrong)
