"""A reward model as `transformers` opens it: ``AutoModelForSequenceClassification`` with one label.

The folder ``reward`` in a model's folder holds a configuration, the tokenizer, and the weights: those of the model (the
same files, linked) and ``score.weight`` ``[1, D]``, the head. The score of a conversation is read at its last token,
the one that ends the answer.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qafila.errors import FormatError, StorageError
from qafila.weights.json_object import read_json
from qafila.weights.safetensors import INDEX_FILE, read_safetensors, write_safetensors
from qafila.weights.tensor import LazyTensor

FOLDER: Final = "reward"
HEAD: Final = "score.weight"
_HEAD_FILE: Final = "score.safetensors"
_BESIDE: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, eq=False)
class RewardHead:
    """What a reward model has besides its model.

    Attributes:
        score: the head, ``[1, D]``.
        pad_id: the padding token, behind which transformers does not look for the end. None where it also ends answers:
            it would hide the end, so then there is none, and one conversation is scored at a time.
    """

    score: LazyTensor
    pad_id: int | None = None


def is_reward_folder(folder: Path) -> bool:
    """Whether this is the folder of a reward model, and nothing else: it may be replaced by another."""
    if folder.name != FOLDER or folder.is_symlink() or not (folder / _HEAD_FILE).is_file():
        return False
    known = {*_BESIDE, INDEX_FILE, "config.json"}
    return all(file.is_file() and (file.name in known or file.suffix == ".safetensors") for file in folder.iterdir())


def read_reward_head(folder: Path, dim: int) -> RewardHead | None:
    """The head beside the model in ``folder``; None where there is none.

    Args:
        folder: a run's, or an exported one.
        dim: the width of the model.

    Raises:
        FormatError: the head is damaged, or of another width.
    """
    place = folder / FOLDER / _HEAD_FILE
    if not place.is_file():
        return None
    tensors = read_safetensors(place).tensors
    if list(tensors) != [HEAD] or tensors[HEAD].shape != (1, dim):
        raise FormatError(place, f"is no reward head of this model: {HEAD} [1, {dim}] is expected, and it alone")
    config = folder / FOLDER / "config.json"
    pad = read_json(config).get("pad_token_id")
    if pad is not None and (isinstance(pad, bool) or not isinstance(pad, int) or pad < 0):
        raise FormatError(config, "pad_token_id is no token: a whole number or nothing is expected")
    return RewardHead(tensors[HEAD], pad)


def write_reward_model(head: RewardHead, folder: Path) -> Path:
    """Leave the reward model in ``folder / "reward"``, whole or not at all, beside the model that is in ``folder``.

    Args:
        head: of the model.
        folder: with the model in Hugging Face's format.

    Returns:
        The folder made.

    Raises:
        StorageError: it cannot be written.
    """
    made = folder / FOLDER
    staged = folder / f".{FOLDER}.partial"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        _fill(staged, head, folder)
        shutil.rmtree(made, ignore_errors=True)
        staged.replace(made)
    except OSError as error:
        raise StorageError(f"{made}: cannot be written: {error.strerror or error}; choose another place") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return made


def _fill(staged: Path, head: RewardHead, folder: Path) -> None:
    (written,) = write_safetensors(staged, {HEAD: head.score})
    written.replace(staged / _HEAD_FILE)
    owners: dict[str, str] = {}
    for number, file in enumerate(read_safetensors(folder).paths, 1):
        # transformers takes a file of this very name for the whole model, whatever the index says.
        name = f"model-{number:05d}.safetensors"
        _link(file, staged / name)
        owners |= dict.fromkeys(read_safetensors(file).tensors, name)
    _write(staged / INDEX_FILE, {"metadata": {}, "weight_map": {**owners, HEAD: _HEAD_FILE}})
    _write(staged / "config.json", _configured(read_json(folder / "config.json"), head.pad_id))
    for name in _BESIDE:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, staged / name)


def _configured(config: dict[str, Any], pad_id: int | None) -> dict[str, Any]:
    """The model's configuration as that of a classifier with one label."""
    changed = {
        **config,
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "pad_token_id": pad_id,
    }
    return {key: value for key, value in changed.items() if value is not None}


def _write(path: Path, value: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _link(file: Path, place: Path) -> None:
    """The same file at another place; a copy where the file system has no links."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
