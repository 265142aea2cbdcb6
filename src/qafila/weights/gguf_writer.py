"""Writing GGUF version 3, one tensor in memory at a time; the file appears when it is whole."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from qafila.errors import FormatError, UnsupportedError
from qafila.weights.gguf_header import MAGIC, MAX_DIMENSIONS, alignment_of
from qafila.weights.gguf_values import GgufValue, encode_string
from qafila.weights.storage import quoted, staging, write_tensor
from qafila.weights.tensor import LazyTensor

_VERSION = 3
_MAX_NAME = 63  # GGML_MAX_NAME less its final zero; llama.cpp refuses longer names


def write_gguf(
    path: Path,
    metadata: Mapping[str, GgufValue],
    tensors: Mapping[str, LazyTensor] | Iterable[tuple[str, LazyTensor]],
) -> None:
    """Write a GGUF file that llama.cpp opens; keys and tensors keep their order.

    Args:
        path: the file; one that is there already is replaced at the end. Its folder must exist.
        metadata: written as typed; ``general.alignment`` is honoured (32 bytes without it).
        tensors: names and row-major tensors, each read once, in order.

    Raises:
        UnsupportedError: a tensor that GGUF cannot hold (U8, BOOL, five dimensions, a name beyond 63 bytes).
        FormatError: a value that does not fit its type, an empty or repeated name.
        StorageError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    named = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    alignment = alignment_of(path, dict(metadata))
    header = [MAGIC, struct.pack("<IQQ", _VERSION, len(named), len(metadata))]
    header += [_entry(path, key, value) for key, value in metadata.items()]
    offset, seen = 0, set()
    for name, tensor in named:
        if name in seen:
            raise FormatError(path, f"tensor {quoted(name)} is to be written twice")
        seen.add(name)
        header.append(_tensor_info(path, name, tensor, offset))
        offset += tensor.nbytes + -tensor.nbytes % alignment
    start = b"".join(header)
    start += bytes(-len(start) % alignment)
    with staging(path.parent) as stage:
        stage.reserve(len(start) + offset)
        with stage.open(path.name) as write:
            write(start)
            for _, tensor in named:
                write_tensor(write, tensor)
                write(bytes(-tensor.nbytes % alignment))


def _entry(path: Path, key: str, value: GgufValue) -> bytes:
    if not key:
        raise FormatError(path, "a metadata key is empty")
    try:
        return encode_string(key) + struct.pack("<I", value.type) + value.encode()
    except ValueError as error:
        raise FormatError(path, f"metadata key {quoted(key)}: {error}") from None


def _tensor_info(path: Path, name: str, tensor: LazyTensor, offset: int) -> bytes:
    what = f"tensor {quoted(name)}"
    if tensor.dtype.ggml_type < 0:
        raise UnsupportedError(path, f"{what} is {tensor.dtype.name}, which GGUF has no type for")
    if len(tensor.shape) > MAX_DIMENSIONS or 0 in tensor.shape:
        raise UnsupportedError(path, f"{what} has the shape {list(tensor.shape)}, which GGUF cannot hold")
    if (
        not 0 < len(name.encode("utf-8", "surrogatepass")) <= _MAX_NAME
        or name != name.encode("utf-8", "replace").decode()
    ):
        raise UnsupportedError(path, f"{what}: names in GGUF have 1 to {_MAX_NAME} bytes of UTF-8")
    dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
    return encode_string(name) + dims + struct.pack("<IQ", tensor.dtype.ggml_type, offset)
