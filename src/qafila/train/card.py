"""``run.json``: what a run is made of and what came of it, for people and for the model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qafila import __version__
from qafila.train.run_folder import write_whole

if TYPE_CHECKING:
    from qafila.train.run import Run


def write_card(run: Run) -> None:
    """Write ``run.json`` as things are now."""
    write_whole(run.folder.path / "run.json", json.dumps(describe(run), indent=2, ensure_ascii=False) + "\n")


def describe(run: Run) -> dict[str, Any]:
    """What ``run.json`` holds."""
    checkpoint = run.subject.checkpoint
    validation = {key: value for key, value in run.last_validation.items() if key != "step"}
    return {
        "qafila": __version__,
        "recipe": run.recipe.model_dump(mode="json"),
        "base": None
        if run.subject.source is None
        else {
            "source": run.recipe.model.base,
            "name": checkpoint.details.get("general.name"),
            "license": checkpoint.details.get("general.license"),
        },
        "data": [
            {
                "name": named.name,
                "path": source.path if not Path(source.path).is_absolute() else Path(source.path).name,
                "sha256": source.sha256,
                "records": source.examples,
                "tokens": source.tokens,
                "targets": source.targets,
                "weight": named.weight,
                "license": named.license,
            }
            for named in run.packs.train
            for source in named.pack.manifest.sources
        ],
        "result": {
            "steps": run.trainer.step,
            "of": run.steps,
            "tokens": run.trainer.tokens,
            "train_loss": run.loss,
            "validation": validation,
        },
    }
