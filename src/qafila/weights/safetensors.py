"""Safetensors files, both ways, without torch: single, or sharded through an index as Hugging Face does.

Source: the format section of the safetensors README and its reference implementation (``safetensors/src/tensor.rs``):
eight bytes of header length, a JSON header, then tensor data without holes.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qafila.errors import FormatError, ModelNotFoundError, StorageError, UnsupportedError
from qafila.quant.dtypes import DType
from qafila.weights.safetensors_header import METADATA_KEY, parse_object, read_header
from qafila.weights.storage import is_folder, is_there, map_file, quoted, staging, write_tensor
from qafila.weights.tensor import LazyTensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHARD_FILE = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_MAX_INDEX = 16 << 20

# The reference orders tensors by type, then name, so that each begins at a multiple of its element size.
_WRITING_ORDER = (
    DType.I64,
    DType.F64,
    DType.F32,
    DType.I32,
    DType.BF16,
    DType.F16,
    DType.I16,
    DType.I8,
    DType.U8,
    DType.BOOL,
)


@dataclass(frozen=True, slots=True, eq=False)
class SafetensorsFile:
    """An open safetensors checkpoint.

    ``path`` is the file, or the index of a sharded checkpoint, whose files are ``paths``. ``metadata`` is the
    ``__metadata__`` of the (first) file. ``tensors`` are views of the mapped files.
    """

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, LazyTensor]
    paths: tuple[Path, ...]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Open a safetensors file, an index (``*.index.json``), or a folder with ``model.safetensors`` or its index.

    Raises:
        ModelNotFoundError: there is no such file, or the folder has neither.
        UnsupportedError: a tensor of a type that is not a ``DType``.
        FormatError: the file is damaged or hostile, the index and the shards disagree, or a shard is missing.
    """
    path = Path(path)
    if is_folder(path):
        candidates = [path / SINGLE_FILE, path / INDEX_FILE]
        found = next((candidate for candidate in candidates if is_there(candidate)), None)
        if found is None:
            raise ModelNotFoundError(f"{path}: has neither {SINGLE_FILE} nor {INDEX_FILE}")
        path = found
    if path.name.endswith(".index.json"):
        return _read_sharded(path)
    metadata, tensors = read_header(path)
    return SafetensorsFile(path, MappingProxyType(metadata), MappingProxyType(tensors), (path,))


def _read_sharded(index: Path) -> SafetensorsFile:
    owners = _read_index(index)
    shards = {name: index.parent / name for name in dict.fromkeys(owners.values())}
    for shard in shards.values():
        if not is_there(shard):
            raise FormatError(shard, f"is missing: {index.name} lists it")
    metadata: dict[str, str] | None = None
    tensors: dict[str, LazyTensor] = {}
    for shard_name, shard in shards.items():
        shard_metadata, shard_tensors = read_header(shard)
        metadata = shard_metadata if metadata is None else metadata
        for name, tensor in shard_tensors.items():
            # A tensor that the index does not list is kept; whoever knows the model says whether it belongs.
            owner = owners.setdefault(name, shard_name)
            if owner != shard_name:
                raise FormatError(shard, f"has tensor {quoted(name)}, which should be in {owner}")
            tensors[name] = tensor
    for name, shard_name in owners.items():
        if name not in tensors:
            raise FormatError(shards[shard_name], f"lacks tensor {quoted(name)}, which {index.name} places there")
    return SafetensorsFile(index, MappingProxyType(metadata or {}), MappingProxyType(tensors), tuple(shards.values()))


def _read_index(path: Path) -> dict[str, str]:
    data = map_file(path)
    if len(data) > _MAX_INDEX:
        raise FormatError(path, f"is an index of {len(data)} bytes; {_MAX_INDEX >> 20} MiB is the most that is read")
    weight_map = parse_object(path, "the index", data[:]).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(path, "has no 'weight_map' from tensor names to files")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise FormatError(
                path, f"places tensor {quoted(name)} in {quoted(str(shard))}, which is not the plain name of a shard"
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return name.endswith(".safetensors") and not re.search(r"[/\\\x00-\x1f\ud800-\udfff]", name)


def write_safetensors(
    folder: Path,
    tensors: Mapping[str, LazyTensor] | Iterable[tuple[str, LazyTensor]],
    *,
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] = MappingProxyType({"format": "pt"}),
) -> tuple[Path, ...]:
    """Write ``model.safetensors``, or shards and their index where that would exceed ``max_shard_bytes``.

    The folder is made if it is not there. The files appear when all are whole, the index last; then files of an
    earlier checkpoint under the same naming scheme are removed, because loaders would prefer them.

    Args:
        folder: where the files go.
        tensors: names and tensors, each read once and held alone in memory.
        max_shard_bytes: tensor bytes in a file; a larger tensor gets a file of its own.
        metadata: ``__metadata__`` of every file; ``transformers`` wants ``format``.

    Returns:
        The files written.

    Raises:
        UnsupportedError: a tensor of a type that safetensors has no name for (a quantised one).
        FormatError: a repeated or reserved name.
        StorageError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}; choose another folder") from None
    named = dict(_checked(folder, tensors))
    shards = _shards(named, max_shard_bytes)
    names = [SINGLE_FILE]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    with staging(folder) as stage:
        stage.reserve(sum(tensor.nbytes for tensor in named.values()))
        for name, shard in zip(names, shards, strict=True):
            with stage.open(name) as write:
                write(_header(folder / name, shard, metadata))
                for tensor in shard.values():
                    write_tensor(write, tensor)
        if len(shards) > 1:
            with stage.open(INDEX_FILE) as write:
                write(_index(dict(zip(names, shards, strict=True))))
            names.append(INDEX_FILE)
    _remove_stale(folder, keep=names)
    return tuple(folder / name for name in names)


def _checked(
    folder: Path, tensors: Mapping[str, LazyTensor] | Iterable[tuple[str, LazyTensor]]
) -> Iterable[tuple[str, LazyTensor]]:
    seen: set[str] = set()
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        if tensor.dtype not in _WRITING_ORDER:
            raise UnsupportedError(
                folder, f"tensor {quoted(name)} is {tensor.dtype.name}, which safetensors has no type for"
            )
        if name in seen or name == METADATA_KEY:
            raise FormatError(folder, f"tensor {quoted(name)} is to be written twice or has a reserved name")
        seen.add(name)
        yield name, tensor


def _shards(named: Mapping[str, LazyTensor], most: int) -> list[dict[str, LazyTensor]]:
    """The tensors in files of at most ``most`` bytes, filled in order; each file in the reference's own order."""
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in named.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return [
        dict(sorted(shard.items(), key=lambda item: (_WRITING_ORDER.index(item[1].dtype), item[0]))) for shard in shards
    ]


def _header(path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        entries[name] = {"dtype": tensor.dtype.name, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = _encoded(path, json.dumps(entries, ensure_ascii=False, separators=(",", ":")))
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _index(shards: Mapping[str, Mapping[str, LazyTensor]]) -> bytes:
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    owners = {name: file for file, shard in shards.items() for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(owners.items()))}
    return json.dumps(index, indent=2).encode() + b"\n"


def _encoded(path: Path, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise FormatError(path, "a tensor name or metadata value is not valid Unicode") from None


def _remove_stale(folder: Path, keep: list[str]) -> None:
    for path in sorted(folder.iterdir()):
        ours = path.name in (SINGLE_FILE, INDEX_FILE) or _SHARD_FILE.fullmatch(path.name)
        if ours and path.name not in keep and not is_folder(path):
            try:
                path.unlink()
            except OSError as error:
                raise StorageError(f"{path}: an earlier checkpoint's file is in the way: {error.strerror}") from None
