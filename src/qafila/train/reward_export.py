"""A trained reward model as `transformers` opens it: ``AutoModelForSequenceClassification`` with one label.

The folder ``reward`` in a run's folder holds a configuration, the tokenizer, and the weights: those of the run's model
(the same files, linked) and ``score.weight`` ``[1, D]``, the head. The score of a conversation is read at its last
token, the one that ends the answer.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from qafila.train.run_folder import write_whole
from qafila.train.save import lazy_tensor
from qafila.train.subject import Subject
from qafila.weights.safetensors import INDEX_FILE, read_safetensors, write_safetensors

FOLDER: Final = "reward"
HEAD: Final = "score.weight"
_BESIDE: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def save_reward_model(subject: Subject, score: Tensor, folder: Path) -> Path:
    """Leave the reward model in ``folder / "reward"``, beside the model that is saved in ``folder``.

    Args:
        subject: what was trained.
        score: the head, ``[1, D]``.
        folder: the run's, with the model in Hugging Face's format.
    """
    made = folder / FOLDER
    staged = folder / f".{FOLDER}.partial"
    shutil.rmtree(staged, ignore_errors=True)
    write_safetensors(staged, {HEAD: lazy_tensor(HEAD, score)})
    (staged / "model.safetensors").replace(staged / "score.safetensors")
    model = read_safetensors(folder)
    owners: dict[str, str] = {}
    for number, file in enumerate(model.paths, 1):
        # transformers takes a file of this very name for the whole model, whatever the index says.
        name = f"model-{number:05d}.safetensors"
        _link(file, staged / name)
        owners |= dict.fromkeys(read_safetensors(file).tensors, name)
    index = {"metadata": {}, "weight_map": {**owners, HEAD: "score.safetensors"}}
    write_whole(staged / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_whole(staged / "config.json", json.dumps(_configured(config, subject), indent=2) + "\n")
    for name in _BESIDE:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, staged / name)
    shutil.rmtree(made, ignore_errors=True)
    staged.replace(made)
    return made


def _configured(config: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """The model's configuration as that of a classifier with one label.

    transformers reads the score at the last token that is no padding: a padding token that also ends answers would
    hide the end, so then there is none, and one conversation is scored at a time.
    """
    pad = subject.generation.pad_id
    changed = {
        **config,
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "pad_token_id": None if pad in subject.end_ids else pad,
    }
    return {key: value for key, value in changed.items() if value is not None}


def _link(file: Path, place: Path) -> None:
    """The same file at another place; a copy where the file system has no links."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
