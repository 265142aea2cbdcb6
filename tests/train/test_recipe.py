"""Recipes are read strictly: what is unknown or contradictory is refused with what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from qafila.errors import UsageError
from qafila.train.recipe import Recipe, read_recipe

TEXT = """
name = "tiny"
objective = "sft"

[model]
base = "default"

[data]
train = [{ path = "a.jsonl" }, { path = "b.jsonl", weight = 3 }]

[train]
epochs = 2

[small]
model.shape = { dim = 64, n_layers = 2 }
model.tokenizer = "t"
train.steps = 5
data.train = [{ path = "c.jsonl" }]
"""


def written(folder: Path, text: str = TEXT, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as error:
        read_recipe(written(folder, text), overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_values_and_defaults(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path))
    assert (recipe.name, recipe.objective, recipe.model.base) == ("tiny", "sft", "default")
    assert [source.weight for source in recipe.data.train] == [1.0, 3.0]
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert recipe.adapter is None


def test_yaml_says_the_same(tmp_path: Path) -> None:
    yaml = """
name: tiny
objective: sft
model: {base: default}
data:
  train:
    - path: a.jsonl
    - {path: b.jsonl, weight: 3}
train: {epochs: 2}
"""
    plain = read_recipe(written(tmp_path)).model_copy(update={"small": {}})
    assert read_recipe(written(tmp_path, yaml, "recipe.yaml")) == plain


def test_overrides_take_toml_values_and_bare_words(tmp_path: Path) -> None:
    path = written(tmp_path)
    recipe = read_recipe(
        path,
        ["train.batch=16", "optimizer.name=muon", "data.train.1.weight=0.5", "adapter.rank=4", "optimizer.lr=1e-3"],
    )
    assert (recipe.train.batch, recipe.optimizer.name, recipe.optimizer.lr) == (16, "muon", 1e-3)
    assert recipe.data.train[1].weight == 0.5
    assert recipe.adapter is not None
    assert recipe.adapter.rank == 4


def test_an_override_takes_the_place_of_the_keys_that_it_excludes(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path), ["train.steps=7", "model.preset=llama-2-7b", "model.tokenizer=t"])
    assert (recipe.train.steps, recipe.train.epochs) == (7, None)
    assert (recipe.model.preset, recipe.model.base) == ("llama-2-7b", None)
    assert read_recipe(written(tmp_path), ["model.base=other"]).model.base == "other"


def test_small_changes_what_its_table_says(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path), ["train.batch=2"], small=True)
    assert recipe.model.shape == {"dim": 64, "n_layers": 2}
    assert recipe.model.base is None
    assert (recipe.train.steps, recipe.train.epochs, recipe.train.batch) == (5, None, 2)
    assert [source.path for source in recipe.data.train] == ["c.jsonl"]
    assert recipe.small == {}


def test_small_without_a_table_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT[: TEXT.index("[small]")])
    with pytest.raises(UsageError, match="has no small table"):
        read_recipe(path, small=True)


def test_unknown_keys_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    told = refused(tmp_path, TEXT.replace("epochs = 2", "epoch = 2"))
    assert "recipe.toml: unknown key train.epoch" in told
    assert "epochs" in told
    assert "micro_batch" in told
    assert "unknown key trian" in refused(tmp_path, TEXT + "\n[trian]\nsteps = 1\n")
    told = refused(tmp_path, TEXT.replace("weight = 3", "wieght = 3"))
    assert "unknown key data.train.1.wieght" in told
    assert "weight" in told
    assert "unknown key optimizer.beta" in refused(tmp_path, TEXT, "optimizer.beta=0.9")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("epochs = 2", "epochs = 2\nsteps = 3"), "give one of steps, tokens and epochs, not steps and epochs"),
        (('base = "default"', 'base = "default"\npreset = "llama-7b"'), "exactly one of base, preset and shape"),
        (('base = "default"', 'preset = "llama-7b"'), "needs a tokenizer"),
        (('base = "default"', 'base = "default"\ntokenizer = "t"'), "brings its own tokenizer"),
        (("epochs = 2", "epochs = -1"), "train.epochs"),
        (('"sft"', '"dance"'), "objective"),
        (("[train]", "[dpo]\nbeta = 0.1\n\n[train]"), "belong to objective dpo"),
        (("weight = 3", 'weight = 3, form = "poem"'), 'data.train.1: form "poem": there is none of that name'),
        (("weight = 3", 'weight = 3, fields = { answer = "x" }'), 'data.train.1: field "answer": no form has it'),
        (('name = "tiny"', 'name = "../tiny"'), "name"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    assert told in refused(tmp_path, TEXT.replace(*change))


def test_bad_overrides_are_refused(tmp_path: Path) -> None:
    assert "section.key=value" in refused(tmp_path, TEXT, "train.steps")
    assert "name has no keys" in refused(tmp_path, TEXT, "name.first=x")


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    assert "is no TOML" in refused(tmp_path, "name = ")
    (tmp_path / "bad.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(UsageError, match="is no YAML"):
        read_recipe(tmp_path / "bad.yaml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(UsageError, match="UTF-8"):
        read_recipe(tmp_path / "latin.toml")
    with pytest.raises(UsageError, match=r"gone\.toml"):
        read_recipe(tmp_path / "gone.toml")


def test_every_key_has_its_documentation() -> None:
    def undocumented(section: type, above: str = "") -> list[str]:
        found = []
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            inner = [a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(a, type)]
            nested = [a for a in inner if hasattr(a, "model_fields")]
            if nested:
                found += undocumented(nested[0], f"{above}{name}.")
            elif not field.description:
                found.append(above + name)
        return found

    assert undocumented(Recipe) == ["objective"] or undocumented(Recipe) == []
