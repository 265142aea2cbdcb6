"""A folder with a PEFT adapter and a reference to its base opens as a model: what training with LoRA leaves behind.

The base is what ``base_model_name_or_path`` in ``adapter_config.json`` names: ``default``, ``hf:owner/name``, a path
(relative to the folder, or absolute) or the name of a pulled model; it may be such a folder itself. Tokenizer, chat
template and generation settings are the folder's own where it has them, else the base's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from qafila.errors import FormatError, ModelNotFoundError, UsageError
from qafila.quant.dtypes import DType
from qafila.weights.adapter import CONFIG_FILE, Adapter, read_adapter
from qafila.weights.load import Checkpoint, hugging_face_template, open_checkpoint
from qafila.weights.merge import kept_or_f16, merge

_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model")
# Adapters on adapters (preferences on instructions on Arabic) are a few deep; a circle would be without end.
_MOST_STACKED: Final = 8
# What the native engine multiplies an adapter beside (`qafila.engine.native_runner`); the rest is merged.
_BESIDE: Final = re.compile(
    r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(shared_expert\.)?(gate|up|down)_proj)\.weight"
)


@dataclass(frozen=True, slots=True)
class AdapterModel:
    """An adapter and the model it belongs on.

    Attributes:
        folder: where the adapter is.
        base: its base, with the tokenizer, chat template and generation settings of the folder where it has them.
        adapter: what was trained.
    """

    folder: Path
    base: Checkpoint
    adapter: Adapter

    @property
    def applies_unmerged(self) -> bool:
        """Whether the native engine computes it beside its base: a plain LoRA of matrices."""
        plain = all(_BESIDE.fullmatch(name) for name in self.adapter.modules)
        return plain and not self.adapter.dora and not self.adapter.saved

    def merged(self, dtype: Callable[[DType], DType] = kept_or_f16) -> Checkpoint:
        """One checkpoint of both; see `qafila.weights.merge.merge` for ``dtype``.

        Raises:
            FormatError: the adapter was made for another model.
        """
        return merge(self.base, self.adapter, dtype)


def open_adapter_model(folder: str | Path, *, depth: int = 0) -> AdapterModel:
    """Open an adapter's folder together with its base; no weights are read.

    Raises:
        ModelNotFoundError: the base is not here (names both, and how to get it). QafilaError: something is damaged.
    """
    folder = Path(folder)
    adapter = read_adapter(folder)
    path = base_path(folder, adapter.base_model_name)
    if depth >= _MOST_STACKED:
        raise FormatError(folder, f"is the {depth}th adapter of a chain, or of a circle; merge those below it")
    try:
        base = open_checkpoint(path, depth=depth + 1)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{folder}: is an adapter on {adapter.base_model_name}: {error}") from error
    return AdapterModel(folder, _with_files_of(folder, base), adapter)


def open_for_engine(path: str | Path, *, merge_adapter: bool = False) -> tuple[Checkpoint, Path | None]:
    """A checkpoint for an engine, and the adapter to add to it where the model is one that the engine can apply.

    Args:
        path: whatever `open_checkpoint` opens.
        merge_adapter: put an adapter into the weights in any case (for torch, or when more adapters go on top).

    Returns:
        The checkpoint; and the folder of the adapter that belongs on it, None where there is none or it is merged.
    """
    from qafila.weights.load import sniff_format

    path = Path(path)
    if sniff_format(path) != "adapter":
        return open_checkpoint(path), None
    model = open_adapter_model(path)
    if merge_adapter or not model.applies_unmerged:
        return model.merged(), None
    return model.base, path


def base_path(folder: Path, name: str | None) -> Path:
    """Where the base of an adapter in ``folder`` is, by the name that its configuration gives.

    Raises:
        ModelNotFoundError: it is not here. FormatError: there is no such name.
    """
    from qafila.weights.hub import resolve
    from qafila.weights.storage import is_there

    if not name:
        raise FormatError(folder / CONFIG_FILE, "names no base (base_model_name_or_path); open the base with --adapter")
    if "\0" in name:
        raise FormatError(folder / CONFIG_FILE, "base_model_name_or_path is no name of a file")
    if name != "default" and not name.startswith("hf:"):
        beside = Path(os.path.normpath(folder.absolute() / name))
        if beside == Path(os.path.normpath(folder.absolute())):
            raise FormatError(folder / CONFIG_FILE, "base_model_name_or_path is the adapter itself")
        if is_there(beside):
            return beside
    try:
        return resolve(name)
    except (ModelNotFoundError, UsageError) as error:
        raise ModelNotFoundError(f"{folder}: is an adapter, and its base is not here: {error}") from error


def _with_files_of(folder: Path, base: Checkpoint) -> Checkpoint:
    from qafila.weights.hf_generation import generation_from_hf
    from qafila.weights.json_object import read_json

    changes: dict[str, object] = {
        "path": folder,
        "format": "hf",
        "details": {**base.details, "general.name": folder.resolve().name},
    }
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        from qafila.text.tokenizer import load_tokenizer

        changes["load_tokenizer"] = lambda: load_tokenizer(folder)
    template = hugging_face_template(folder)
    if template is not None:
        changes["chat_template"] = template
    stated = folder / "generation_config.json"
    if stated.is_file():
        changes["generation"] = generation_from_hf(read_json(stated), {}, path=stated, config_path=stated)
    return replace(base, **changes)  # type: ignore[arg-type]
