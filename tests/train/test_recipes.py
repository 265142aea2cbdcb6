"""The recipes of the field: each is valid, small and at its real size, and holds the values that were published."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qafila.data.examples import read_examples
from qafila.machine import Machine
from qafila.presets import preset
from qafila.text.formats import detect_format
from qafila.text.tokenizer import load_tokenizer
from qafila.train.estimate import Amounts, estimate
from qafila.train.recipe import Recipe, check_recipe, read_recipe
from qafila.train.run import train
from qafila.train.schedule import short_of_warmup
from qafila.train.shape import planned_config
from qafila.train.subject import find_subject
from qafila.weights.adapter_model import open_adapter_model
from qafila.weights.load import open_checkpoint

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(FOLDER.glob("*.toml"))
DATA = FOLDER / "data"
LAPTOP = Machine(8 * 10**9, 6 * 10**9, "physical memory")
AMOUNTS = Amounts(rows=1000, tokens=400_000, targets=200_000)


def find(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_at_its_real_size(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description
    assert recipe.small or path.stem == "quickstart"
    config = planned_config(recipe)
    if config is None:
        assert recipe.model.base is not None
        assert recipe.model.base.startswith("../")
        return
    speed = 500.0 if recipe.processor == "here" else None
    plan = estimate(recipe, config, AMOUNTS, LAPTOP, tokens_per_second=speed)
    assert plan.fits, plan.verdict


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "quickstart"], ids=lambda path: path.stem)
def test_a_recipe_made_small(path: Path) -> None:
    recipe = read_recipe(path, small=True)
    assert recipe.name != path.stem
    assert recipe.processor == "here"
    vocabulary = None
    if recipe.model.tokenizer is not None:
        vocabulary = load_tokenizer(FOLDER / recipe.model.tokenizer).vocab_size
    config = planned_config(recipe, vocabulary)
    assert config is not None
    plan = estimate(recipe, config, Amounts(10, 2000, 1000), LAPTOP, tokens_per_second=500.0)
    assert plan.fits, plan.verdict
    assert plan.processes == 1
    assert plan.tokens is not None
    assert plan.tokens <= 50_000
    assert plan.steps is not None
    assert short_of_warmup(recipe.schedule, plan.steps) is None
    for source in recipe.data.train:
        assert (FOLDER / source.path).is_file()
        kinds = {example.kind for example in read_examples(FOLDER / source.path, form=source.form)}
        wanted = {"pretrain": {"text"}, "fim": {"text"}, "sft": {"chat"}}.get(recipe.objective, {"preference"})
        assert kinds == wanted


@pytest.fixture(scope="module")
def stand_in(default_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the default one's tokenizer and template, so small that every recipe takes a step in a second."""
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "context_length": 2048}
    raw = {
        "name": "stand-in",
        "objective": "pretrain",
        "model": {"shape": shape, "tokenizer": str(default_gguf)},
        "data": {"train": [{"path": "data/text-en.jsonl"}], "workers": 1},
        "train": {"steps": 1, "batch": 1, "longest_first": False},
    }
    return train(check_recipe(raw, "stand-in"), beside=FOLDER, out=tmp_path_factory.mktemp("runs")).folder


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_made_small_takes_a_step(
    path: Path, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qafila.train.plots.draw", lambda lines, folder: [])  # a third of the time; test_run draws
    changes = ["train.steps=1", "train.longest_first=false", "data.workers=1", "evaluate.rows=1", "evaluate.prompts=[]"]
    small = path.stem != "quickstart"  # which is small as it is
    if read_recipe(path, small=small).model.base == "default":
        changes.append(f"model.base={stand_in}")
    recipe = read_recipe(path, changes, small=small)
    result = train(recipe, beside=FOLDER, out=tmp_path)
    assert result.steps == 1
    assert result.loss is not None
    assert math.isfinite(result.loss)
    assert math.isfinite(result.validation.get("loss", 0.0))  # so few records may leave none to validate on
    left = open_adapter_model(result.folder).base if recipe.adapter else open_checkpoint(result.folder)
    if recipe.objective == "sft":
        trained = find_subject(recipe, FOLDER).chat
        assert trained is not None
        assert detect_format(left.chat_template, left.tokenizer).name == trained.name


PUBLISHED: dict[str, dict[str, Any]] = {
    # stanford_alpaca, train.py and README
    "alpaca": {
        "optimizer.lr": 2e-5,
        "train.epochs": 3,
        "train.batch": 128,
        "data.sequence": 512,
        "schedule.warmup": 0.03,
    },
    # FastChat
    "vicuna": {"optimizer.lr": 2e-5, "train.epochs": 3, "train.batch": 128, "data.sequence": 2048},
    "dolly": {"optimizer.lr": 5e-6, "train.epochs": 2},
    "koala": {"train.epochs": 2},
    # Llama 2, sections 3.1 and 3.2
    "llama2-chat-sft": {
        "optimizer.lr": 2e-5,
        "optimizer.weight_decay": 0.1,
        "train.batch": 64,
        "train.epochs": 2,
        "data.sequence": 4096,
    },
    "llama2-reward": {"optimizer.lr": 1e-5, "train.epochs": 1, "schedule.warmup": 0.03, "schedule.final": 0.1},
    # Llama 3, sections 4.1.3 and 4.1.4
    "llama3-sft": {"optimizer.lr": 1e-5, "train.steps": 8500},
    "llama3-dpo": {"optimizer.lr": 1e-5, "dpo.beta": 0.1, "dpo.nll": 0.2, "dpo.mask_format_tokens": True},
    # Code Llama, sections 2.2 to 2.4
    "codellama-infill": {
        "optimizer.lr": 3e-4,
        "schedule.warmup": 1000,
        "schedule.final": pytest.approx(1 / 30),
        "data.fim_rate": 0.9,
        "data.fim_spm": 0.5,
        "train.tokens": 500e9,
    },
    "codellama-long": {
        "optimizer.lr": 2e-5,
        "model.rope_theta": 1e6,
        "data.sequence": 16384,
        "train.steps": 3000,
        "train.batch": 2**21 // 16384,
    },
    # LLaMA, table 2
    "redpajama": {
        "optimizer.lr": 3e-4,
        "optimizer.weight_decay": 0.1,
        "schedule.warmup": 2000,
        "schedule.final": 0.1,
        "train.batch": 2**22 // 2048,
        "train.tokens": 1e12,
    },
    # Llama 3, section 3.4.1 and table 4
    "llama3.1-8b": {"optimizer.lr": 3e-4},
    "llama3.1-70b": {"optimizer.lr": 1.5e-4},
    "llama3.1-405b": {
        "optimizer.lr": 8e-5,
        "schedule.warmup": 8000,
        "schedule.final": 0.01,
        "train.tokens": 15.6e12,
        "train.batch": 2**24 // 8192,
        "parallel.tensor": 8,
        "parallel.pipeline": 16,
        "parallel.data": 128,
        "parallel.reshard_after_forward": False,
    },
    "llama4-scout": {"train.tokens": 40e12},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_the_published_ones(name: str) -> None:
    recipe = read_recipe(FOLDER / f"{name}.toml")
    assert {key: find(recipe, key) for key in PUBLISHED[name]} == PUBLISHED[name]


def test_redpajamas_sources_have_the_papers_weights() -> None:
    sources = read_recipe(FOLDER / "redpajama.toml").data.train
    assert [source.weight for source in sources] == [0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02]
    assert sum(source.weight for source in sources) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "hours"), [("llama3.1-405b", 30.84e6), ("llama3.1-70b", 7.0e6), ("llama4-scout", 5.0e6)]
)
def test_cluster_layouts_take_the_hours_of_the_model_cards(name: str, hours: float) -> None:
    recipe = read_recipe(FOLDER / f"{name}.toml")
    config = planned_config(recipe)
    assert config is not None
    plan = estimate(recipe, config, None, LAPTOP)
    assert plan.processor_hours == pytest.approx(hours, rel=0.15)
    assert plan.processes == {"llama3.1-405b": 16384, "llama3.1-70b": 4096, "llama4-scout": 2048}[name]


def test_quickstart_stays_within_its_tokens(default_gguf: Path) -> None:
    checkpoint = open_checkpoint(default_gguf)
    chat = detect_format(checkpoint.chat_template, checkpoint.tokenizer)
    examples = list(read_examples(DATA / "quickstart.jsonl"))
    tokens = sum(len(chat.render(e.messages, add_generation_prompt=False).ids) for e in examples)
    recipe = read_recipe(FOLDER / "quickstart.toml")
    assert tokens * (recipe.train.epochs or 1) <= 120_000
    rows = -(-tokens // recipe.data.sequence) + 2
    plan = estimate(recipe, preset("smollm2-135m"), Amounts(rows, tokens, 1), LAPTOP, tokens_per_second=500.0)
    assert plan.tokens is not None
    assert plan.tokens <= 120_000


def test_quickstart_speaks_both_languages_and_holds_its_questions_back() -> None:
    lines = (DATA / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()
    assert 300 <= len(lines) <= 500
    assert (DATA / "quickstart.jsonl").stat().st_size <= 500_000
    conversations = [json.loads(line)["messages"] for line in lines]
    arabic = sum(any("\u0600" <= c <= "\u06ff" for m in messages for c in m["content"]) for messages in conversations)
    assert arabic >= len(lines) // 4
    assert sum(len(messages) > 2 for messages in conversations) >= 20
    asked = {m["content"] for messages in conversations for m in messages if m["role"] == "user"}
    assert not asked & set(read_recipe(FOLDER / "quickstart.toml").evaluate.prompts)


def test_the_page_of_recipes_is_as_the_schema_says() -> None:
    script = FOLDER.parent / "scripts" / "pages.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, "run make docs"
