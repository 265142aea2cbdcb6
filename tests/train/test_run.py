"""Whole runs of a tiny model: they learn, resume bit for bit, stop when asked, and leave a model that opens."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from qafila import Llama
from qafila.cli.train_report import figures, validation_figures
from qafila.data.encode import CHOSEN
from qafila.data.shards import Pack
from qafila.errors import DataError, FormatError, TrainingError, UsageError
from qafila.text.formats import detect_format
from qafila.text.messages import Message
from qafila.text.text_sources import TextSource
from qafila.text.tokenizer import load_tokenizer
from qafila.text.train_tokenizer import train_tokenizer
from qafila.train.loop import Trainer
from qafila.train.recipe import check_recipe
from qafila.train.report import Silent
from qafila.train.run import Result, train
from qafila.train.subject import find_subject
from qafila.weights.load import open_checkpoint
from qafila.weights.model_card import model_card
from qafila.weights.run_card import read_run_card

LINES = [
    "the caravan walks to the well",
    "سارت القافلة إلى البئر",
    "a llama carries water and salt",
    "الماء في البئر بارد",
]
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "context_length": 256}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and a little data in every form."""
    folder = tmp_path_factory.mktemp("world")
    texts = [f"{i} " + " ".join(LINES[(i + k) % 4] for k in range(1 + i % 3)) for i in range(80)]
    made = train_tokenizer([TextSource("lines", lambda: iter(texts))], 300, specials="chatml")
    made.save(folder / "tokenizer")
    chats = [
        {"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": LINES[i % 4]}]}
        for i in range(60)
    ]
    pairs = [{"prompt": f"Say {i}", "chosen": LINES[i % 2], "rejected": LINES[2 + i % 2][::-1]} for i in range(40)]
    for name, records in (("texts", [{"text": t} for t in texts]), ("chats", chats), ("pairs", pairs)):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def recipe_of(objective: str, data: str, /, **tables: Any) -> Any:
    raw: dict[str, Any] = {
        "name": "tiny",
        "objective": objective,
        "model": {"shape": SHAPE, "tokenizer": "tokenizer"},
        "data": {"train": [{"path": data}], "sequence": 64, "validation_share": 0.1, "workers": 1},
        "optimizer": {"lr": 5e-3},
        "train": {"steps": 8, "batch": 4, "micro_batch": 2, "threads": 1},
        "checkpoint": {"every": 2},
    }
    for name, table in tables.items():
        raw[name] = {**raw[name], **table} if isinstance(raw.get(name), dict) else table
    if "base" in raw["model"]:
        raw["model"] = {key: raw["model"][key] for key in raw["model"] if key not in ("shape", "tokenizer")}
    return check_recipe(raw, "recipe")


class Watch(Silent):
    """Keeps what is told; ``at`` is called with each step."""

    def __init__(self, at: Any = None) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.warnings: list[str] = []
        self._at = at

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def step(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)
        if self._at is not None:
            self._at(line["step"])


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def weights(folder: Path) -> dict[str, bytes]:
    return {name: bytes(lazy.read().data) for name, lazy in open_checkpoint(folder).tensors.items()}


@pytest.mark.parametrize(
    ("objective", "data"), [("pretrain", "texts.jsonl"), ("sft", "chats.jsonl"), ("dpo", "pairs.jsonl")]
)
def test_a_run_learns_and_leaves_a_model(world: Path, tmp_path: Path, objective: str, data: str) -> None:
    watch = Watch()
    recipe = recipe_of(objective, data, train={"steps": 20, "batch": 4, "micro_batch": 2, "threads": 1})
    result = train(recipe, beside=world, out=tmp_path, reporter=watch)
    assert result.steps == 20
    assert [line["step"] for line in watch.lines] == list(range(1, 21))
    evaluations = [json.loads(x) for x in (tmp_path / "tiny" / "metrics.jsonl").read_text("utf-8").splitlines()]
    validation = [line["validation"] for line in evaluations if "validation" in line]
    assert validation[-1]["loss"] < validation[0]["loss"]
    card = json.loads((tmp_path / "tiny" / "run.json").read_text(encoding="utf-8"))
    assert card["result"]["steps"] == 20
    assert {p.name for p in (tmp_path / "tiny" / "plots").iterdir()} >= {"loss.png", "lr.png", "grad_norm.png"}
    if objective == "pretrain":
        assert 0 < validation[-1]["bits_per_byte"] < validation[0]["bits_per_byte"]
    if objective == "sft":
        assert validation[-1]["ends_met"] >= 0
    with Llama.load(tmp_path / "tiny", threads=1) as llama:
        assert llama.complete("the caravan", max_tokens=3, temperature=0).ids


def test_every_step_tells_the_share_of_the_processors_peak(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qafila.train.utilisation.time_products", lambda *_, **__: 2e10)
    recipe = recipe_of("sft", "chats.jsonl")
    watch = Watch()
    train(recipe, beside=world, out=tmp_path, reporter=watch)
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 300 * 32  # two layers, and the head
    norms = 5 * 32
    flops = 6 * (matrices + norms) + 12 * 2 * 4 * 8 * 64
    for line in watch.lines:
        assert line["mfu"] == pytest.approx(flops * line["tokens_per_second"] / 2e10, rel=1e-3)
        assert f"{100 * line['mfu']:.1f}% MFU" in figures(line)
    kept = [json.loads(x) for x in (tmp_path / "tiny" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["mfu"] for line in kept if "lr" in line] == [line["mfu"] for line in watch.lines]
    assert (tmp_path / "tiny" / "plots" / "mfu.png").is_file()


def test_accumulating_gives_the_gradients_of_the_whole_step(world: Path, tmp_path: Path) -> None:
    whole = train(
        recipe_of("sft", "chats.jsonl", train={"steps": 4, "batch": 4, "micro_batch": 4}),
        beside=world,
        out=tmp_path / "a",
    )
    parts = train(
        recipe_of("sft", "chats.jsonl", train={"steps": 4, "batch": 4, "micro_batch": 1}),
        beside=world,
        out=tmp_path / "b",
    )
    one, other = losses(whole.folder), losses(parts.folder)
    assert one.keys() == other.keys()
    assert all(math.isclose(one[k], other[k], rel_tol=1e-4) for k in one)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "muon"])
def test_resume_is_bit_for_bit(world: Path, tmp_path: Path, optimizer: str) -> None:
    recipe = recipe_of("sft", "chats.jsonl", optimizer={"name": optimizer, "lr": 5e-3})
    train(recipe, beside=world, out=tmp_path / "whole")

    def stop(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(recipe, beside=world, out=tmp_path / "parts", reporter=Watch(stop))
    assert first.stopped == signal.SIGTERM
    assert first.steps == 3
    torch.manual_seed(99)  # whatever happened in between does not count
    second = train(recipe, beside=world, out=tmp_path / "parts", resume=True)
    assert second.steps == 8
    assert losses(tmp_path / "whole" / "tiny") == losses(tmp_path / "parts" / "tiny")
    assert weights(tmp_path / "whole" / "tiny") == weights(tmp_path / "parts" / "tiny")


def test_a_damaged_checkpoint_is_passed_over(world: Path, tmp_path: Path) -> None:
    recipe = recipe_of("sft", "chats.jsonl")
    train(recipe, beside=world, out=tmp_path)
    saved = losses(tmp_path / "tiny")
    newest = max((tmp_path / "tiny" / "checkpoints").glob("step-*"))
    victim = max(newest.glob("*.distcp"), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    watch = Watch()
    train(recipe, beside=world, out=tmp_path, resume=True, reporter=watch)
    assert any(newest.name in text for text in watch.warnings)
    assert losses(tmp_path / "tiny") == saved


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(world: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        "sft", "chats.jsonl", optimizer={"lr": 1e30, "clip": 0.0}, schedule={"warmup": 3, "kind": "constant"}
    )
    with pytest.raises(TrainingError, match=r"step \d+: the (loss|norm).* at chats row.*optimizer\.lr.*checkpoint"):
        train(recipe, beside=world, out=tmp_path)


def test_what_cannot_be_resumed_is_refused(world: Path, tmp_path: Path) -> None:
    recipe = recipe_of("sft", "chats.jsonl")
    with pytest.raises(UsageError, match="no run to resume"):
        train(recipe, beside=world, out=tmp_path, resume=True)
    train(recipe, beside=world, out=tmp_path)
    with pytest.raises(UsageError, match="--resume goes on with it, --force"):
        train(recipe, beside=world, out=tmp_path)
    other = recipe_of("sft", "chats.jsonl", optimizer={"lr": 1e-3})
    with pytest.raises(UsageError, match=r"optimizer differs from the run that is there"):
        train(other, beside=world, out=tmp_path, resume=True)
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file"):
        train(recipe_of("sft", "nothing.jsonl"), beside=world, out=tmp_path / "x")


def test_a_killed_run_goes_on_from_its_last_checkpoint(world: Path, tmp_path: Path) -> None:
    recipe = recipe_of("sft", "chats.jsonl", train={"steps": 400, "batch": 4, "micro_batch": 4, "threads": 1})
    code = (
        "import json,sys; from pathlib import Path; from qafila.train.recipe import check_recipe;"
        "from qafila.train.run import train;"
        "train(check_recipe(json.loads(sys.argv[1]), 'r'), beside=Path(sys.argv[2]), out=Path(sys.argv[3]))"
    )
    arguments = [json.dumps(recipe.model_dump(mode="json", exclude_unset=True)), str(world), str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    metrics = tmp_path / "tiny" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text("utf-8").count('"lr"') > 15):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    reached = max(losses(tmp_path / "tiny"))
    watch = Watch(lambda step: os.kill(os.getpid(), signal.SIGTERM))
    result = train(recipe, beside=world, out=tmp_path, resume=True, reporter=watch)
    # Every second step is kept; one save may have been under way.
    assert reached - 4 <= result.steps - 1 <= reached
    assert losses(tmp_path / "tiny").keys() == set(range(1, result.steps + 1))


def test_result_says_what_came(world: Path, tmp_path: Path) -> None:
    result = train(recipe_of("reward", "pairs.jsonl"), beside=world, out=tmp_path)
    assert isinstance(result, Result)
    assert 0 <= result.validation["accuracy"] <= 1


def test_renamed_fields_are_read_and_a_source_s_licence_goes_to_the_card(world: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in (world / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    renamed = [{"q": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in records]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in renamed), encoding="utf-8")
    shutil.copytree(world / "tokenizer", tmp_path / "tokenizer")
    names = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    source = {"path": "theirs.jsonl", "fields": names, "license": "CC BY-NC 4.0"}
    recipe = recipe_of("reward", "", data={"train": [source]}, train={"steps": 2, "batch": 4})
    train(recipe, beside=tmp_path, out=tmp_path / "runs")
    folder = tmp_path / "runs" / "tiny"
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))["data"][0]
    assert told["records"] == 40
    assert told["license"] == "CC BY-NC 4.0"
    card = model_card("tiny", open_checkpoint(folder), read_run_card(folder))
    assert "| CC BY-NC 4.0 |" in card
    assert "**theirs**: is licensed CC BY-NC 4.0: this model is for non-commercial use only." in card
    # What the card says is not what is learned: a run goes on under another licence, not under other fields.
    free = recipe_of("reward", "", data={"train": [{**source, "license": "mit"}]}, train={"steps": 2, "batch": 4})
    assert train(free, beside=tmp_path, out=tmp_path / "runs", resume=True).steps == 2
    assert "| mit |" in model_card("tiny", open_checkpoint(folder), read_run_card(folder))
    swapped = {**source, "fields": {**names, "chosen": "bad", "rejected": "good"}}
    with pytest.raises(UsageError, match="data differs from the run"):
        train(
            recipe_of("reward", "", data={"train": [swapped]}, train={"steps": 2, "batch": 4}),
            beside=tmp_path,
            out=tmp_path / "runs",
            resume=True,
        )
    packed = next(p for p in (folder / "packs").iterdir() if "validation" not in p.name)
    with pytest.raises(UsageError, match="is packed already; give fields to"):
        train(recipe_of("reward", "", data={"train": [{**source, "path": str(packed)}]}), beside=tmp_path, out=tmp_path)


def test_a_run_of_an_older_recipe_goes_on(world: Path, tmp_path: Path) -> None:
    """Keys that were added since then have their defaults in it."""
    recipe = recipe_of("sft", "chats.jsonl", train={"steps": 2, "batch": 4})
    folder = train(recipe, beside=world, out=tmp_path).folder
    raw = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    del raw["data"]["train"][0]["fields"], raw["data"]["train"][0]["license"], raw["cost_per_hour"]
    (folder / "recipe.json").write_text(json.dumps(raw), encoding="utf-8")
    assert train(recipe, beside=world, out=tmp_path, resume=True).steps == 2
    (folder / "recipe.json").write_text(json.dumps(raw | {"later": 1}), encoding="utf-8")
    with pytest.raises(FormatError, match=r"recipe\.json: is damaged, or of another version; start the run again"):
        train(recipe, beside=world, out=tmp_path, resume=True)


def test_a_warm_up_that_does_not_fit_the_run_is_told(world: Path, tmp_path: Path) -> None:
    watch = Watch()
    recipe = recipe_of("sft", "chats.jsonl", schedule={"warmup": 50}, train={"steps": 1, "batch": 4})
    train(recipe, beside=world, out=tmp_path, reporter=watch)
    assert any("schedule.warmup: 50 steps of warm-up, and the run has 1" in text for text in watch.warnings)


@pytest.mark.parametrize("lost", ["loader/taken", "optimizer"])
def test_a_checkpoint_of_another_form_is_told_on_one_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    recipe = recipe_of("sft", "chats.jsonl", train={"steps": 2, "batch": 4})
    folder = train(recipe, beside=world, out=tmp_path).folder
    whole = Trainer.load_state_dict

    def without(trainer: Trainer, state: dict[str, Any]) -> None:
        place, keys = state, lost.split("/")
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]
        whole(trainer, state)

    monkeypatch.setattr(Trainer, "load_state_dict", without)
    with pytest.raises(FormatError) as caught:
        train(recipe, beside=world, out=tmp_path, resume=True)
    told = str(caught.value)
    assert "\n" not in told
    assert str(folder / "checkpoints" / "step-") in told
    assert f"is of another form than this version's (KeyError: '{lost.split('/')[-1]}'); go on with" in told


TALK = [Message("user", "Say 3"), Message("assistant", LINES[0]), Message("user", "السلام عليكم")]


@pytest.mark.parametrize("name", ["vicuna", "alpaca", "smollm2"])
def test_a_named_format_is_the_saved_model_s(world: Path, tmp_path: Path, name: str) -> None:
    """A tokenizer of ChatML: without a template in the saved model, it would be taken for one of ChatML."""
    one = {"train": {"steps": 1, "batch": 4}, "data": {"sequence": 256}}
    recipe = recipe_of("sft", "chats.jsonl", model={"format": name}, **one)
    trained = find_subject(recipe, world).chat
    assert trained is not None
    folder = train(recipe, beside=world, out=tmp_path).folder
    with Llama.load(folder, threads=1) as llama:
        assert llama.format.name == name
        assert llama.format.render(TALK).ids == trained.render(TALK).ids
        assert set(trained.stop_ids) <= set(llama.checkpoint.generation.stop_ids)
    theirs = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": m.role, "content": m.text} for m in TALK]
    text = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == trained.tokenizer.decode(trained.render(TALK).ids)

    # An adapter's folder carries it for the base that it sits on, which has another.
    base = {"base": str(folder), "format": "koala"}
    adapter = recipe_of("sft", "chats.jsonl", model=base, adapter={"rank": 2}, name="onit", **one)
    named = find_subject(adapter, world).chat
    assert named is not None
    folder = train(adapter, beside=world, out=tmp_path).folder
    with Llama.load(folder, threads=1) as llama:
        assert llama.format.name == "koala"
        assert llama.format.render(TALK).ids == named.render(TALK).ids


def test_conversations_leave_a_template_and_texts_none(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer" / "chat_template.jinja").unlink()
    one = {"train": {"steps": 1, "batch": 4}}
    learned = train(recipe_of("sft", "chats.jsonl", **one), beside=tmp_path / "bare", out=tmp_path / "a").folder
    template = (learned / "chat_template.jinja").read_text(encoding="utf-8")
    assert detect_format(template, load_tokenizer(learned)).name == "chatml"
    raw = train(recipe_of("pretrain", "texts.jsonl", **one), beside=tmp_path / "bare", out=tmp_path / "b").folder
    assert open_checkpoint(raw).chat_template is None


def test_a_reward_model_tells_its_ratings_apart_and_opens_in_transformers(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "tokenizer", tmp_path / "tokenizer")
    records = [json.loads(line) for line in (world / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    rated = [{**record, "margin": (0.0, 1 / 3, 1.0)[i % 3]} for i, record in enumerate(records)]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rated), encoding="utf-8")
    recipe = recipe_of("reward", "", data={"train": [{"path": "rated.jsonl"}], "validation": [{"path": "rated.jsonl"}]})
    result = train(recipe, beside=tmp_path, out=tmp_path / "runs")
    found = dict(result.validation)
    by_margin = [found[f"accuracy at margin {name}"] for name in ("0", "to 1/3", "to 1")]
    assert sum(n * a for n, a in zip((14, 13, 13), by_margin, strict=True)) / 40 == pytest.approx(found["accuracy"])
    assert not [key for key in found if key.startswith(("pairs at", "right at"))]
    assert f"margin to 1/3: {100 * by_margin[1]:.1f}%" in validation_figures({"validation": found})

    # What transformers scores is what was trained: measured on the same pairs, each answer by itself.
    folder = result.folder / "reward"
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert theirs.config.num_labels == 1
    assert float(theirs.score.weight.detach().abs().max()) > 0
    with torch.no_grad():
        packed = next(p for p in (result.folder / "packs").iterdir())
        pack = Pack.open(packed)
        losses_of: list[float] = []
        right = 0
        for number in range(len(pack)):
            row = pack.row(number)
            ends = row.lengths.cumsum().tolist()
            scores = [
                float(theirs(torch.from_numpy(row.ids[end - length : end].astype("int64"))[None]).logits)
                for end, length in zip(ends, row.lengths.tolist(), strict=True)
            ]
            for i, kind in enumerate(row.kinds.tolist()):
                if kind == CHOSEN:
                    difference = scores[i] - scores[i + 1]
                    losses_of.append(math.log1p(math.exp(float(row.margins[i]) - difference)))
                    right += difference > 0
    assert len(losses_of) == 40
    assert sum(losses_of) / 40 == pytest.approx(found["loss"], rel=1e-4)
    assert right / 40 == pytest.approx(found["accuracy"])
    card = model_card("tiny", open_checkpoint(result.folder), read_run_card(result.folder))
    assert "AutoModelForSequenceClassification" in card


def test_packs_of_two_templates_are_not_mistaken_for_each_other(world: Path, tmp_path: Path) -> None:
    """A checkpoint's own template has no name of its own: what it writes is what counts."""
    from qafila.train.sources import find_packs
    from qafila.train.subject import find_subject

    identities = set()
    for number, end in enumerate(("<|im_end|>", "<|im_end|>\n\n")):
        folder = tmp_path / str(number)
        shutil.copytree(world / "tokenizer", folder / "tokenizer")
        template = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
        (folder / "tokenizer" / "chat_template.jinja").write_text(template, encoding="utf-8")
        shutil.copy2(world / "chats.jsonl", folder)
        subject = find_subject(recipe_of("sft", "chats.jsonl"), folder)
        packs = find_packs(subject, folder, tmp_path / "packs", Silent())
        identities.add(packs.train[0].pack.manifest.identity)
    assert len(identities) == 2
