"""``run.json``: what a run is made of and what came of it, read for the model card. Training writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qafila.errors import FormatError
from qafila.weights.json_object import read_json

RUN_FILE: Final = "run.json"


@dataclass(frozen=True, slots=True)
class RunBase:
    """The model that the run went on from; ``source`` is as the recipe names it."""

    source: str | None = None
    name: str | None = None
    license: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class RunData:
    """One source of the data that was learned from."""

    name: str
    path: str | None = None
    records: int | None = None
    tokens: int | None = None
    license: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class RunCard:
    """A run: version of Qafila, resolved recipe, base (None: trained from nothing), data, and figures of the result."""

    qafila: str
    recipe: Mapping[str, Any]
    base: RunBase | None
    data: tuple[RunData, ...]
    result: Mapping[str, Any] = field(default_factory=dict)

    def of_recipe(self, *keys: str) -> Any:
        """A value of the recipe by its keys; None where it has no such."""
        value: Any = self.recipe
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def read_run_card(folder: Path) -> RunCard | None:
    """The card in a run's folder, None where there is none; what it does not say is None.

    Raises:
        FormatError: it is damaged.
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        return None
    raw = read_json(path)
    base, data, recipe = raw.get("base"), raw.get("data") or [], raw.get("recipe") or {}
    result = raw.get("result") or {}
    sections = (base is None or isinstance(base, dict), isinstance(recipe, dict), isinstance(result, dict))
    if not all(sections) or not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        raise FormatError(path, "is not what a run leaves: base, recipe, data or result is of another kind")
    return RunCard(
        qafila=_text(raw, "qafila") or "unknown",
        recipe=recipe,
        base=None
        if base is None
        else RunBase(_text(base, "source"), _text(base, "name"), _text(base, "license"), _text(base, "sha256")),
        data=tuple(
            RunData(
                _text(one, "name") or "unnamed",
                _text(one, "path"),
                _count(one, "records"),
                _count(one, "tokens"),
                _text(one, "license"),
                _text(one, "sha256"),
            )
            for one in data
        ),
        result=result,
    )


def _text(raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    return value if isinstance(value, str) and value else None


def _count(raw: Mapping[str, Any], key: str) -> int | None:
    value = raw.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
