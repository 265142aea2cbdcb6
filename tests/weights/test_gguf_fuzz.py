"""GGUF files damaged at random: they load, every tensor included, or raise a QafilaError of one line."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qafila.errors import QafilaError
from qafila.quant.dtypes import DType
from qafila.weights.gguf import GgufType, GgufValue, read_gguf
from qafila.weights.gguf_values import FLOAT_TYPES, NUMBER_FORMATS, array_dtype
from qafila.weights.gguf_writer import write_gguf
from qafila.weights.tensor import LazyTensor, Tensor

SETTINGS = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
INTERESTING = (0, 1, 2, 4, 8, 9, 31, 32, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1)
GGUF_TYPES = [dtype for dtype in DType if dtype.ggml_type >= 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    metadata = {
        "general.architecture": GgufValue.string("llama"),
        "general.alignment": GgufValue.uint32(32),
        "flag": GgufValue.boolean(True),
        "tokens": GgufValue.strings(["a", "قافلة", ""]),
        "scores": GgufValue.float32s([0.5, 1.5]),
        "bools": GgufValue.numbers(GgufType.BOOL, [True, False]),
        "count": GgufValue(GgufType.UINT64, 7),
    }
    tensors = {}
    for name, dtype, shape in (("w", DType.F32, (2, 3)), ("q", DType.Q4_0, (1, 2, 32)), ("b", DType.BF16, (5,))):
        tensors[name] = LazyTensor.of(Tensor(dtype, shape, np.ones(dtype.nbytes(shape), np.uint8)))
    path = folder / "whole.gguf"
    write_gguf(path, metadata, tensors)
    return path.read_bytes()


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[str, float, int]]:
    """Places as fractions of the file, so that one draw fits any length."""
    kinds = st.sampled_from(("byte", "u32", "u64", "insert", "delete", "truncate"))
    value = st.one_of(st.sampled_from(INTERESTING), st.integers(0, (1 << 64) - 1))
    place = st.floats(0, 1, exclude_max=True)
    return draw(st.lists(st.tuples(kinds, place, value), min_size=1, max_size=4))


def apply(data: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    result = bytearray(data)
    for kind, place, value in edits:
        at = int(place * len(result))
        if kind == "byte" and result:
            result[at] = value & 0xFF
        elif kind == "u32":
            result[at : at + 4] = struct.pack("<I", value & 0xFFFFFFFF)
        elif kind == "u64":
            result[at : at + 8] = struct.pack("<Q", value)
        elif kind == "insert":
            result[at:at] = struct.pack("<Q", value)[: 1 + value % 8]
        elif kind == "delete":
            del result[at : at + 1 + value % 16]
        else:
            del result[at:]
    return bytes(result)


def loads_or_refuses(path: Path) -> None:
    try:
        file = read_gguf(path)
    except QafilaError as error:
        message = str(error)
    else:
        message = ""
        for tensor in file.tensors.values():
            assert len(tensor.read().data.tobytes()) == tensor.nbytes
        for value in file.metadata.values():
            value.encode()
    assert message.isprintable()


@SETTINGS
@given(edits=damage())
@example(edits=[("u64", 8 / 500, (1 << 64) - 1)])
def test_damaged_files(folder: Path, whole: bytes, edits: list[tuple[str, float, int]]) -> None:
    path = folder / "damaged.gguf"
    path.write_bytes(apply(whole, edits))
    loads_or_refuses(path)


def test_every_header_byte_set_to_extremes(folder: Path, whole: bytes) -> None:
    path = folder / "extreme.gguf"
    for at in range(len(whole)):
        for byte in (0x00, 0x01, 0x7F, 0x80, 0xFF):
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            loads_or_refuses(path)


@SETTINGS
@given(data=st.binary(max_size=200))
def test_random_bytes_after_the_magic(folder: Path, data: bytes) -> None:
    path = folder / "random.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + data)
    loads_or_refuses(path)


@st.composite
def values(draw: st.DrawFn) -> GgufValue:
    kind = draw(st.sampled_from(sorted(NUMBER_FORMATS)))
    text = st.one_of(st.text(max_size=9), st.binary(max_size=9).map(lambda b: b.decode("utf-8", "surrogateescape")))
    text = text.filter(lambda s: s.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == s)
    size = array_dtype(kind).itemsize
    if draw(st.booleans()):
        return draw(st.one_of(text.map(GgufValue.string), st.lists(text, max_size=5).map(GgufValue.strings)))
    if kind is GgufType.BOOL:
        flags = st.lists(st.booleans(), max_size=5)
        return draw(
            st.one_of(st.booleans().map(GgufValue.boolean), flags.map(lambda bits: GgufValue.numbers(kind, bits)))
        )
    numbers = np.frombuffer(
        draw(st.binary(min_size=size, max_size=5 * size).map(lambda b: b[: len(b) // size * size])), array_dtype(kind)
    )
    if draw(st.booleans()):
        return GgufValue.numbers(kind, numbers)
    number = numbers[0].item()
    if kind in FLOAT_TYPES and number != number:
        number = 0.0  # a signalling NaN does not survive Python's float
    return GgufValue(kind, number)


@settings(SETTINGS, max_examples=150)  # every example is flushed to the disk
@given(
    metadata=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).filter(
            lambda k: k != "general.alignment" and not k.startswith("split.")
        ),
        values(),
        max_size=6,
    ),
    alignment=st.sampled_from((None, 1, 8, 32, 64)),
    plan=st.lists(
        st.tuples(st.sampled_from(GGUF_TYPES), st.lists(st.integers(1, 3), min_size=1, max_size=4)), max_size=4
    ),
    seed=st.integers(0, 99),
)
def test_anything_written_comes_back(
    folder: Path, metadata: dict[str, GgufValue], alignment: int | None, plan: list[tuple[DType, list[int]]], seed: int
) -> None:
    if alignment is not None:
        metadata = {"general.alignment": GgufValue.uint32(alignment), **metadata}
    random = np.random.default_rng(seed)
    tensors = {}
    for number, (dtype, dims) in enumerate(plan):
        shape = (*dims[:-1], dims[-1] * dtype.block_size)
        data = random.integers(0, 256, dtype.nbytes(shape), dtype=np.uint8)
        tensors[f"t{number}"] = LazyTensor.of(Tensor(dtype, shape, data))
    path = folder / "written.gguf"
    write_gguf(path, metadata, tensors)
    file = read_gguf(path)
    assert list(file.metadata.items()) == list(metadata.items())
    assert list(file.tensors) == list(tensors)
    for name, tensor in tensors.items():
        again = file.tensors[name].read()
        assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(again.data, tensor.read().data)
    first = path.read_bytes()
    write_gguf(path, file.metadata, file.tensors)
    assert path.read_bytes() == first
