"""PyTorch checkpoints (``consolidated.00.pth``, ``adapter_model.bin``) read and written without torch.

A ``.pth`` file is a zip archive with one pickle, ``data.pkl``, and one entry a storage, ``data/0`` and so on. Python
never executes the pickle: see :mod:`qafila.weights.unpickle`. Source: PyTorch ``torch/serialization.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from qafila.errors import FormatError, UnsupportedError
from qafila.weights.archive import read_archive, write_archive
from qafila.weights.storage import map_file, quoted, staging
from qafila.weights.tensor import Bytes, LazyTensor, Tensor
from qafila.weights.unpickle import STORAGES, View, run_pickle

_STORAGE_NAMES: Final = {dtype: name for name, dtype in STORAGES.items()}
_MAX_PICKLE = 1 << 22  # a description takes some 250 bytes a tensor
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f920")


def read_pth(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors of a torch.save zip file, in file order, each a view of the mapped file until it is read.

    Views that are not contiguous are copied into row-major order when read. A state dict one level down, under
    ``model`` or ``state_dict``, is found.

    Raises:
        FormatError: damaged, or a pickle that asks for more than tensors.
        UnsupportedError: an old torch file, a TorchScript program, big-endian data, an element type without a DType.
        ModelNotFoundError, StorageError: the file is not there or cannot be read.
    """
    path = Path(path)
    _refuse_other_formats(path)
    entries = read_archive(path)
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise FormatError(path, "not a torch.save file: it has no single data.pkl")
    root = roots[0]
    if f"{root}/constants.pkl" in entries:
        raise UnsupportedError(path, "a TorchScript program, not weights; save the module's state_dict() instead")
    order = entries.get(f"{root}/byteorder")
    if order is not None and order[:8].tobytes().strip() != b"little":
        raise UnsupportedError(path, "written on a big-endian machine; save it again with byteorder little")
    program = entries[f"{root}/data.pkl"]
    if program.size > _MAX_PICKLE:
        raise FormatError(path, f"not weights: its data.pkl has {program.size} bytes, more than tensors need")
    tree = run_pickle(path, program.tobytes())
    for wrapper in ("state_dict", "model"):
        if type(tree) is dict and type(tree.get(wrapper)) is dict:
            tree = tree[wrapper]
    if type(tree) is not dict:
        raise FormatError(path, "not weights: the pickle holds no dictionary of tensors")
    return {name: _lazy(path, root, entries, name, view) for name, view in _views(path, tree)}


def _refuse_other_formats(path: Path) -> None:
    head = map_file(path)[:64]
    if head.startswith(_LEGACY_MAGIC):
        raise UnsupportedError(
            path,
            "saved by torch before 1.6, not as a zip file; open it once with torch.load(..., weights_only=True) and "
            "save it again with torch.save",
        )


def _views(path: Path, tree: dict[Any, Any]) -> Iterator[tuple[str, View]]:
    for name, value in tree.items():
        if type(value) is View:
            if type(name) is not str or not name.isprintable():
                raise FormatError(path, f"a tensor has the forbidden name {quoted(str(name))}")
            yield name, value


def _lazy(path: Path, root: str, entries: Mapping[str, Bytes], name: str, view: View) -> LazyTensor:
    storage = view.storage
    stored = entries.get(f"{root}/data/{storage.key}")
    width = storage.dtype.block_bytes
    if stored is None:
        raise FormatError(path, f"{name} lies in storage {quoted(storage.key)}, which is not in the file")
    if stored.size != storage.count * width:
        raise FormatError(
            path,
            f"{name} lies in a storage of {stored.size} bytes where {storage.count} elements of {storage.dtype.name} "
            f"take {storage.count * width}",
        )

    def read() -> Tensor:
        if _row_major(view):
            start = view.offset * width
            return Tensor(storage.dtype, view.shape, stored[start : start + prod(view.shape) * width])
        elements = stored[view.offset * width :].reshape(-1, width)
        steps = (*(step * width for step in view.strides), 1)
        strided = np.lib.stride_tricks.as_strided(elements, (*view.shape, width), steps, writeable=False)
        return Tensor(storage.dtype, view.shape, np.ascontiguousarray(strided).reshape(-1))

    return LazyTensor(storage.dtype, view.shape, f"{path}: {name}", read)


def _row_major(view: View) -> bool:
    expected = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1 and stride != expected:
            return prod(view.shape) == 0
        expected *= size
    return True


def write_pth(path: str | Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a file that ``torch.load(path, weights_only=True)`` opens as a dictionary of equal tensors.

    Tensors are read one at a time, so that memory holds one of them. Two names with the same LazyTensor object share
    one storage, as tied embeddings do. The file appears only when it is whole.

    Raises:
        UnsupportedError: a tensor is of a quantised type, which torch does not have.
        StorageError: the disk is full, or the folder is not there or cannot be written.
    """
    path = Path(path)
    with staging(path.parent) as stage:
        stage.reserve(sum(tensor.nbytes for tensor in tensors.values()))
        with stage.open(path.name) as write:
            write_archive(write, pth_entries(path, tensors))


def pth_entries(path: Path, tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, int, Iterable[Bytes]]]:
    """The entries of the zip file that :func:`write_pth` writes: name, size, and bytes read when their turn comes.

    Raises:
        UnsupportedError: a tensor is of a quantised type.
    """
    storages: dict[int, int] = {}
    unique: list[LazyTensor] = []
    for name, tensor in tensors.items():
        if tensor.dtype not in _STORAGE_NAMES:
            raise UnsupportedError(path, f"{name} is {tensor.dtype.name}, which a .pth file cannot hold; use BF16")
        if id(tensor) not in storages:
            storages[id(tensor)] = len(unique)
            unique.append(tensor)
    program = _pickle((name, tensor, storages[id(tensor)]) for name, tensor in tensors.items())
    small = {"data.pkl": program, ".format_version": b"1", ".storage_alignment": b"64", "byteorder": b"little"}
    for name, content in small.items():
        yield f"archive/{name}", len(content), [np.frombuffer(content, dtype=np.uint8)]
    for number, tensor in enumerate(unique):
        yield f"archive/data/{number}", tensor.nbytes, (tensor.read().data for _ in range(1))
    yield "archive/version", 2, [np.frombuffer(b"3\n", dtype=np.uint8)]


def _pickle(tensors: Iterable[tuple[str, LazyTensor, int]]) -> bytes:
    """The pickle (protocol 2) of a dictionary of contiguous tensors."""
    parts = [b"\x80\x02}"]
    for name, tensor, number in tensors:
        count = prod(tensor.shape)
        strides = [prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape))]
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", _text("storage")]
        parts += [b"ctorch\n", _STORAGE_NAMES[tensor.dtype].encode(), b"\n", _text(str(number)), _text("cpu")]
        parts += [_integer(count), b"tQK\x00(", *map(_integer, tensor.shape), b"t(", *map(_integer, strides), b"t"]
        parts += [b"\x89ccollections\nOrderedDict\n)RtRs"]
    return b"".join([*parts, b"."])


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)
