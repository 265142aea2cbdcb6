"""docs/recipes.md: every key of a recipe with its type, default and documentation, and every recipe there is.

`scripts/pages.py` writes it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qafila.train.recipe import Recipe, read_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipes.md"

INTRODUCTION = """\
# Recipes

<!-- Written by scripts/recipe_docs.py from src/qafila/train/recipe.py and recipes/: change those, not this page. -->

A recipe is one short TOML (or YAML) file. `qafila train RECIPE` runs it, `qafila train RECIPE train.steps=100` with a
key changed, `--small` with the recipe's own `[small]` table, and `--dry-run` says what it would take. Unknown keys are
refused. [The guide](training.md) shows how it all goes together.
"""

RECIPES = """
## Recipes that are here

Each is written for its real size; `--small` runs it on samples that lie beside it, on any laptop.
"""

KEYS = """
## Keys

Paths are relative to the recipe's folder. Of `model.base`, `preset` and `shape`, and of `train.steps`, `tokens` and
`epochs`, one is given; a key changed on the command line takes the others' place.
"""


def row(cells: Iterable[object]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION.rstrip(), RECIPES.rstrip(), "", row(("recipe", "objective", "model", "what"))]
    lines.append(row(["---"] * 4))
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        recipe = read_recipe(path)
        model = recipe.model.base or recipe.model.preset or "new"
        link = f"[{path.stem}](../recipes/{path.name})"
        lines.append(row((link, recipe.objective, f"`{model}`", recipe.description)))
    lines += [KEYS.rstrip(), ""]
    lines += _table((name, field) for name, field in Recipe.model_fields.items() if _section(field) is None)
    for name, field in Recipe.model_fields.items():
        section = _section(field)
        if section is not None:
            lines += _of_section(name, section)
    return "\n".join(lines) + "\n"


def _of_section(name: str, section: type[BaseModel], heading: str | None = None) -> list[str]:
    text = " ".join((section.__doc__ or "").split())
    lines = ["", f"### {heading or f'[{name}]'}", "", text, ""]
    lines += _table((key, field) for key, field in section.model_fields.items())
    for key, field in section.model_fields.items():
        inner = _section(field)
        if inner is not None and key == "train":
            lines += _of_section(key, inner, f"{name}.train and {name}.validation: a list of tables")
    return lines


def _table(fields: Iterable[tuple[str, FieldInfo]]) -> list[str]:
    lines = [row(("key", "value", "default", "")), row(["---"] * 4)]
    for key, field in fields:
        lines.append(row((f"`{key}`", _kind(field.annotation), _default(field), field.description or "")))
    return lines


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}, ""):
        return ""
    if isinstance(value, tuple):
        return f"`{list(value)}`".replace("'", '"')
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(annotation: Any) -> str:
    """A type as TOML calls it."""
    if annotation is type(None):
        return ""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(filter(None, map(_kind, arguments)))
    if origin is tuple:
        return f"list of {_kind(arguments[0])}s" if arguments else "list"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if origin is dict:
        return "table"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(annotation, str(annotation))


def _section(field: FieldInfo) -> type[BaseModel] | None:
    return next((kind for kind in _kinds(field.annotation) if issubclass(kind, BaseModel)), None)


def _kinds(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _kinds(argument)
