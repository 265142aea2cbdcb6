"""Safetensors files damaged at random: they load, every tensor included, or raise a QafilaError of one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from qafila.errors import QafilaError
from qafila.quant.dtypes import DType
from qafila.weights.safetensors import read_safetensors, write_safetensors
from qafila.weights.tensor import LazyTensor, Tensor

SETTINGS = settings(max_examples=400, deadline=None)
PLAIN_TYPES = [dtype for dtype in DType if not dtype.quantised]
NUMBERS = st.one_of(st.integers(-1, 40), st.sampled_from([1 << 31, 1 << 32, 1 << 63, 1 << 64, 10**30, 1.5, True, None]))
JSON = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=3), st.sampled_from(["F32", "BF16"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("safetensors")


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    tensors = {}
    for name, dtype, shape in (("w", DType.F32, (2, 3)), ("قافلة", DType.BF16, (5,)), ("flag", DType.BOOL, ())):
        tensors[name] = LazyTensor.of(Tensor(dtype, shape, np.ones(dtype.nbytes(shape), np.uint8)))
    (path,) = write_safetensors(folder / "whole", tensors)
    return path.read_bytes()


def loads_or_refuses(path: Path) -> bool:
    """Whether it loaded."""
    try:
        tensors = read_safetensors(path).tensors
    except QafilaError as error:
        message = str(error)
    else:
        message = ""
        for tensor in tensors.values():
            assert len(tensor.read().data.tobytes()) == tensor.nbytes
    assert message.isprintable()
    return not message


def reference_loads(path: Path) -> bool:
    try:
        with safe_open(path, "np") as file:
            file.keys()
    except (SafetensorError, UnicodeDecodeError):
        return False
    return True


@SETTINGS
@given(
    edits=st.lists(
        st.tuples(
            st.sampled_from(("replace", "insert", "delete", "truncate")),
            st.floats(0, 1, exclude_max=True),
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"0", b"9", b"{", b"[", b'"', b",", b"-"])),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_damaged_files(folder: Path, whole: bytes, edits: list[tuple[str, float, bytes]]) -> None:
    data = bytearray(whole)
    for kind, place, value in edits:
        at = int(place * len(data))
        end = {"replace": at + len(value), "insert": at, "delete": at + len(value), "truncate": len(data)}[kind]
        data[at:end] = value if kind in ("replace", "insert") else b""
    path = folder / "damaged.safetensors"
    path.write_bytes(data)
    if loads_or_refuses(path):
        assert reference_loads(path), "we accept what the reference refuses"


def test_every_byte_set_to_extremes(folder: Path, whole: bytes) -> None:
    path = folder / "extreme.safetensors"
    for at in range(len(whole)):
        for byte in b'\x00\x01\x7f\x80\xff09-"{}[],: ':
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            loads_or_refuses(path)


@SETTINGS
@given(
    header=st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__", "\x1b"]),
        st.one_of(
            JSON,
            st.fixed_dictionaries(
                {
                    "dtype": st.one_of(st.sampled_from(["F32", "BF16", "BOOL", "Q4_0", "F8_E5M2"]), JSON),
                    "shape": st.one_of(st.lists(NUMBERS, max_size=3), JSON),
                    "data_offsets": st.one_of(st.lists(st.integers(0, 40), min_size=2, max_size=2), JSON),
                }
            ),
        ),
        max_size=3,
    ),
    size=st.integers(0, 40),
)
def test_headers_of_any_json(folder: Path, header: dict[str, object], size: int) -> None:
    text = json.dumps(header).encode()
    path = folder / "header.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    loads_or_refuses(path)


@SETTINGS
@given(index=st.one_of(JSON, st.fixed_dictionaries({"weight_map": st.dictionaries(st.sampled_from("wx"), JSON)})))
def test_indexes_of_any_json(folder: Path, index: object) -> None:
    path = folder / "any.index.json"
    path.write_text(json.dumps(index))
    assert not loads_or_refuses(path)


@settings(SETTINGS, max_examples=150)  # every example is flushed to the disk
@given(
    plan=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(PLAIN_TYPES), st.lists(st.integers(0, 4), max_size=4).map(tuple)),
        max_size=5,
    ),
    metadata=st.dictionaries(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=9)] * 2, max_size=3),
    most=st.integers(1, 300),
)
def test_anything_written_comes_back(
    folder: Path, plan: dict[str, tuple[DType, tuple[int, ...]]], metadata: dict[str, str], most: int
) -> None:
    random = np.random.default_rng(len(plan))
    tensors = {
        name: LazyTensor.of(Tensor(dtype, shape, random.integers(0, 256, dtype.nbytes(shape), dtype=np.uint8)))
        for name, (dtype, shape) in plan.items()
    }
    target = folder / "written"
    paths = write_safetensors(target, tensors, max_shard_bytes=most, metadata=metadata)
    assert sorted(target.iterdir()) == sorted(paths)
    file = read_safetensors(target)
    assert file.metadata == metadata
    assert file.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        again = file.tensors[name].read()
        assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(again.data, tensor.read().data)
