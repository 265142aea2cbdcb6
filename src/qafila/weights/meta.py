"""Meta's own checkpoints: ``consolidated.NN.pth`` (one file a model-parallel rank) beside ``params.json``.

How shards divide the tensors is in :mod:`qafila.weights.shards`, what ``params.json`` means in
:mod:`qafila.weights.params`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from qafila.errors import FormatError, ModelNotFoundError, StorageError
from qafila.weights.archive import write_archive
from qafila.weights.json_object import read_json
from qafila.weights.params import check_params, meta_config, meta_params
from qafila.weights.pickles import pth_entries, read_pth
from qafila.weights.shards import EMBEDDING_NAME, divided, head_dim, merged, plain_tensors
from qafila.weights.storage import quoted, staging
from qafila.weights.tensor import LazyTensor

__all__ = ["MetaCheckpoint", "meta_config", "meta_params", "read_meta", "write_meta"]

_SHARD: Final = re.compile(r"consolidated(?:\.(\d{2,3}))?\.pth")

_KV_RANKS = 8  # beyond this many ranks Meta repeats key and value heads (MP_SCALE in llama-models)


@dataclass(frozen=True, slots=True)
class MetaCheckpoint:
    """A checkpoint in Meta's format, shards put together.

    ``params`` is ``params.json`` with the true number of key/value heads. ``tensors`` carry the names of Meta's modules
    without fused forms (experts are 2-D, ``[E * in, out]``); ``output.weight`` is not among them where it equals the
    embedding. ``ignored`` names what the files hold beyond the text model.
    """

    folder: Path
    params: dict[str, Any]
    tensors: Mapping[str, LazyTensor]
    shards: int
    ignored: tuple[str, ...]


def read_meta(folder: str | Path) -> MetaCheckpoint:
    """Open a folder with ``params.json`` and ``consolidated.NN.pth`` files; hardly more than headers is read.

    Raises:
        ModelNotFoundError: a file is not there. ConfigError: ``params.json`` is wrong (names the key).
        FormatError: a shard is missing, damaged, or disagrees with another. UnsupportedError.
    """
    folder = Path(folder)
    params = check_params(read_json(folder / "params.json"), folder / "params.json")
    paths = _shard_paths(folder)
    ignored: list[str] = []
    shards = [plain_tensors(path, read_pth(path), params, len(paths), ignored) for path in paths]
    for path, shard in zip(paths[1:], shards[1:], strict=True):
        for name in shards[0].keys() ^ shard.keys():
            raise FormatError(path, f"tensor {quoted(name)} is in one of this file and {paths[0].name} only")
    parts = {name: [shard[name] for shard in shards] for name in shards[0]}
    _check_queries(folder, params, parts)
    _count_kv_heads(params, parts)
    tensors = {name: merged(folder, name, group, params) for name, group in parts.items()}
    for name in [name for name in tensors if re.fullmatch(r"(text_model\.)?output\.weight", name)]:
        if _same_as_embedding(name, parts, tensors):
            del tensors[name]
    return MetaCheckpoint(folder, params, tensors, len(paths), tuple(dict.fromkeys(ignored)))


def _shard_paths(folder: Path) -> list[Path]:
    """The shards in order, all of them."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _SHARD.fullmatch(path.name)
        if match:
            number = int(match[1] or 0)
            if number in found:
                raise FormatError(path, f"is the same shard as {found[number].name}; remove one of them")
            found[number] = path
    if not found:
        raise ModelNotFoundError(f"{folder}: has no consolidated.00.pth")
    for number in range(len(found)):
        if number not in found:
            last = found[max(found)].name
            raise FormatError(folder, f"consolidated.{number:02d}.pth is missing (there is {last}); download it")
    return [found[number] for number in range(len(found))]


def _check_queries(folder: Path, params: Mapping[str, Any], parts: Mapping[str, Sequence[LazyTensor]]) -> None:
    """A folder whose last shards are missing shows in the number of query rows."""
    for name, group in parts.items():
        if name.endswith("layers.0.attention.wq.weight"):
            rows = sum(part.shape[0] for part in group if part.shape)
            expected = params["n_heads"] * head_dim(params)
            if rows != expected:
                count = f"{len(group)} shard{'s' if len(group) > 1 else ''}"
                reason = "some are missing, or " if rows < expected else ""
                raise FormatError(
                    folder, f"{count} hold {rows} of {expected} rows of {name}: {reason}params.json is another model's"
                )


def _count_kv_heads(params: dict[str, Any], parts: Mapping[str, Sequence[LazyTensor]]) -> None:
    """Put the true number of key/value heads into ``params`` where they are stored repeatedly.

    The 405B checkpoint for sixteen ranks says ``n_kv_heads`` 16 and holds each of its 8 heads twice. Grouped queries
    force the copies to be neighbours.
    """
    ranks = params.get("n_kv_heads")
    if ranks is None or ranks <= _KV_RANKS or ranks % _KV_RANKS:
        return
    repeats = ranks // _KV_RANKS
    for letter in "kv":
        group = next(
            (group for name, group in parts.items() if name.endswith(f"layers.0.attention.w{letter}.weight")), []
        )
        if len(group) != ranks or len({part.shape for part in group}) != 1:
            return
        heads = [part.read().data for part in group]
        copied = all(np.array_equal(heads[i], heads[i - i % repeats]) for i in range(ranks))
        if not copied or np.array_equal(heads[0], heads[-1]):
            return
    params["n_kv_heads"] = _KV_RANKS


def _same_as_embedding(name: str, parts: Mapping[str, Sequence[LazyTensor]], tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether the output matrix is the embedding, bit for bit, as in Llama 3.2 1B and 3B."""
    embedding = name.replace("output.", "tok_embeddings.")
    if embedding not in tensors:
        return False
    one, other = tensors[name], tensors[embedding]
    if (one.dtype, one.shape) != (other.dtype, other.shape) or len(one.shape) != 2:
        return False
    width = one.dtype.nbytes(parts[embedding][0].shape[-1:])
    # The first row tells them apart in nearly every model that has two, without reading both.
    if not np.array_equal(parts[name][0].read().data[:width], parts[embedding][0].read().data[:width]):
        return False
    return bool(np.array_equal(one.read().data, other.read().data))


def write_meta(
    folder: str | Path, params: Mapping[str, Any], tensors: Mapping[str, LazyTensor], shards: int = 1
) -> tuple[Path, ...]:
    """Write ``params.json`` and ``shards`` model-parallel files; :func:`read_meta` gives equal tensors back.

    The files appear when all are whole. A tensor is read once for each shard and held alone. Without an
    ``output.weight`` the embedding is written as such, as Meta's files always have one (in the same bytes where both
    are divided alike).

    Args:
        folder: made if it is not there.
        params: as :func:`meta_params` gives them.
        tensors: under the plain names that :func:`read_meta` gives.
        shards: model-parallel ranks; must divide the key/value heads.

    Raises:
        UsageError: the model does not divide into so many shards. UnsupportedError: a quantised tensor.
        StorageError: the disk is full, the folder cannot be written, or it holds other shards.
    """
    folder = Path(folder)
    params = dict(check_params(params, folder / "params.json"))
    tensors = _with_output(tensors)
    names = [f"consolidated.{number:02d}.pth" for number in range(shards)]
    ranks = divided(params, tensors, shards)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name) and path.name not in names]
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}; choose another folder") from None
    if others:
        raise StorageError(f"{folder}: holds {others[0]} of another checkpoint; choose an empty folder")
    with staging(folder) as stage:
        stage.reserve(sum(tensor.nbytes for shard in ranks for tensor in shard.values()))
        for name, shard in zip(names, ranks, strict=True):
            with stage.open(name) as write:
                write_archive(write, pth_entries(folder / name, shard))
        with stage.open("params.json") as write:
            write(json.dumps(params, indent=2).encode() + b"\n")
    return tuple(folder / name for name in (*names, "params.json"))


def _with_output(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    completed = dict(tensors)
    for name in tensors:
        if EMBEDDING_NAME.fullmatch(name):
            completed.setdefault(name.replace("tok_embeddings.", "output."), tensors[name])
    return completed
