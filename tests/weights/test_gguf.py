"""The GGUF reader and writer against the real model, the `gguf` package and files that lie."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from qafila.errors import FormatError, ModelNotFoundError, QafilaError, StorageError, UnsupportedError
from qafila.quant.dtypes import DType
from qafila.weights import gguf_header
from qafila.weights.gguf import GgufType, GgufValue, read_gguf
from qafila.weights.gguf_writer import write_gguf
from qafila.weights.tensor import LazyTensor, Tensor


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(key: str, element: int, count: int, data: bytes) -> bytes:
    return entry(key, 9, struct.pack("<IQ", element, count) + data)


def info(name: str | bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def build(
    entries: list[bytes],
    infos: list[bytes],
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF file by hand, from the specification, so that the reader is not tested against its own writer."""
    n_tensors, n_keys = counts or (len(infos), len(entries))
    header = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(entries) + b"".join(infos)
    return header + bytes(-len(header) % alignment) + data


VALUES = np.arange(16, dtype="<f4")
PLAIN = build(
    [entry("general.architecture", 8, string("llama")), array("t", 8, 2, string("a") + string("ب"))],
    [info("w", (8, 2), 0, 0), info("b", (8,), 1, 64)],
    VALUES.tobytes() + np.arange(8, dtype="<f2").tobytes(),
)


def write(tmp_path: Path, data: bytes, name: str = "model.gguf") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def random_tensor(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> LazyTensor:
    data = np.random.default_rng(seed).integers(0, 256, dtype.nbytes(shape), dtype=np.uint8)
    return LazyTensor.of(Tensor(dtype, shape, data))


def assert_same_tensors(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        one, other = tensor.read(), theirs[name].read()
        assert (one.dtype, one.shape) == (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(one.data, other.data), name


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_reads_a_file_made_by_hand(tmp_path: Path, version: int) -> None:
    file = read_gguf(write(tmp_path, PLAIN[:4] + struct.pack("<I", version) + PLAIN[8:]))
    assert (file.version, file.alignment) == (version, 32)
    assert file.get_str("general.architecture") == "llama"
    assert file.get_strings("t") == ("a", "ب")
    assert list(file.tensors) == ["w", "b"]
    weight = file.tensors["w"].read()
    assert (weight.dtype, weight.shape) == (DType.F32, (2, 8))  # the file says (8, 2), contiguous dimension first
    assert np.array_equal(weight.data.view("<f4"), VALUES)
    assert not weight.data.flags.writeable
    assert not weight.data.flags.owndata
    assert np.array_equal(file.tensors["b"].read().data.view("<f2"), np.arange(8))


def test_every_value_type(tmp_path: Path) -> None:
    scalars = {
        "u8": (0, "<B", 255),
        "i8": (1, "<b", -128),
        "u16": (2, "<H", 65535),
        "i16": (3, "<h", -3),
        "u32": (4, "<I", 2**32 - 1),
        "i32": (5, "<i", -(2**31)),
        "f32": (6, "<f", 0.5),
        "bool": (7, "<?", True),
        "u64": (10, "<Q", 2**64 - 1),
        "i64": (11, "<q", -(2**63)),
        "f64": (12, "<d", 0.1),
    }
    entries = [entry(key, kind, struct.pack(code, value)) for key, (kind, code, value) in scalars.items()]
    entries += [array(f"{key}s", kind, 3, struct.pack(code, value) * 3) for key, (kind, code, value) in scalars.items()]
    data = build([*entries, entry("odd", 8, string(b"\xff\xfe")), array("none", 8, 0, b"")], [])
    file = read_gguf(write(tmp_path, data))
    for key, (kind, _, value) in scalars.items():
        assert file.metadata[key].value == value
        assert type(file.metadata[key].value) is type(value)
        assert file.metadata[key].type == kind
        assert file.metadata[f"{key}s"].value.tolist() == [value] * 3  # type: ignore[union-attr]
        assert file.metadata[f"{key}s"].element_type == kind
    assert file.metadata["none"].value == ()
    write_gguf(tmp_path / "again.gguf", file.metadata, {})
    assert (tmp_path / "again.gguf").read_bytes() == data


def test_accessors_name_file_and_key(tmp_path: Path) -> None:
    entries = [
        entry("int", 4, struct.pack("<I", 7)),
        entry("float", 6, struct.pack("<f", 0.25)),
        entry("yes", 7, b"\x01"),
        entry("bad", 8, string(b"\xff")),
        array("bads", 8, 2, string("x") + string(b"\xc3")),
        array("ints", 5, 2, struct.pack("<ii", 1, 2)),
        array("floats", 6, 2, struct.pack("<ff", 1, 2)),
    ]
    path = write(tmp_path, build(entries, []))
    file = read_gguf(path)
    assert (file.get_int("int"), file.get_float("float"), file.get_float("int")) == (7, 0.25, 7.0)
    assert file.get_bool("yes") is True
    assert (file.get_ints("ints").tolist(), file.get_floats("floats").tolist()) == ([1, 2], [1.0, 2.0])
    assert (file.get_int("absent", 3), file.get_str("absent", ""), file.get_bool("absent", False)) == (3, "", False)
    wrong = [
        (lambda: file.get_int("absent"), "absent"),
        (lambda: file.get_int("yes"), "yes"),
        (lambda: file.get_int("float", 1), "float"),
        (lambda: file.get_str("int"), "int"),
        (lambda: file.get_bool("int"), "int"),
        (lambda: file.get_float("bad"), "bad"),
        (lambda: file.get_str("bad"), "bad"),
        (lambda: file.get_strings("bads"), "bads"),
        (lambda: file.get_strings("ints"), "ints"),
        (lambda: file.get_ints("floats"), "floats"),
        (lambda: file.get_floats("ints"), "ints"),
    ]
    for ask, key in wrong:
        with pytest.raises(FormatError, match=f"^{path}: metadata key '{key}'"):
            ask()


def test_the_alignment_key_is_honoured(tmp_path: Path) -> None:
    aligned = entry("general.alignment", 4, struct.pack("<I", 256))
    data = build(
        [aligned], [info("a", (1,), 0, 0), info("b", (1,), 0, 256)], b"abcd" + bytes(252) + b"efgh", alignment=256
    )
    path = write(tmp_path, data)
    file = read_gguf(path)
    assert [bytes(tensor.read().data) for tensor in file.tensors.values()] == [b"abcd", b"efgh"]
    write_gguf(tmp_path / "again.gguf", file.metadata, file.tensors)
    assert (tmp_path / "again.gguf").read_bytes() == data + bytes(252)
    with pytest.raises(FormatError, match="multiple of 256"):
        read_gguf(write(tmp_path, build([aligned], [info("a", (1,), 0, 32)], bytes(999), alignment=256)))


# --- the real model and the reference library --------------------------------------------------------------------


def test_the_default_model_round_trips(default_gguf: Path, tmp_path: Path) -> None:
    file = read_gguf(default_gguf)
    assert len(file.tensors) == 272
    assert len(file.get_strings("tokenizer.ggml.tokens")) == 49152
    path = tmp_path / "again.gguf"
    write_gguf(path, file.metadata, file.tensors)
    again = read_gguf(path)
    assert list(again.metadata) == list(file.metadata)
    assert all(again.metadata[key] == value for key, value in file.metadata.items())
    assert_same_tensors(again.tensors, file.tensors)
    assert path.read_bytes() == default_gguf.read_bytes()


def test_the_gguf_package_agrees_on_what_we_write(default_gguf: Path, tmp_path: Path) -> None:
    source = read_gguf(default_gguf)
    metadata = {key: value for key, value in source.metadata.items() if key != "tokenizer.ggml.tokens"}
    metadata.pop("tokenizer.ggml.merges")  # the package takes seconds for long arrays of strings
    metadata["general.name"] = GgufValue.string("قافلة")
    metadata["test.tokens"] = GgufValue.strings(source.get_strings("tokenizer.ggml.tokens")[:500])
    metadata["test.scores"] = GgufValue.float32s([1.5, -2.0])
    tensors = dict(list(source.tensors.items())[:12])
    tensors["norm.odd"] = random_tensor(DType.F32, (3,))
    tensors["experts"] = random_tensor(DType.Q6_K, (2, 3, 512))
    write_gguf(tmp_path / "model.gguf", metadata, tensors)
    theirs = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(fields) == list(metadata)
    for key, value in metadata.items():
        assert fields[key].types[0] == value.type
        contents = fields[key].contents()
        if isinstance(value.value, tuple | np.ndarray):
            assert list(contents) == list(value.value)
        else:
            assert contents == value.value
    assert [tensor.name for tensor in theirs.tensors] == list(tensors)
    for tensor in theirs.tensors:
        ours = tensors[tensor.name]
        assert tensor.tensor_type == ours.dtype.ggml_type
        assert tuple(reversed(tensor.shape.tolist())) == ours.shape
        assert tensor.data.tobytes() == ours.read().data.tobytes()


def test_we_read_what_the_gguf_package_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("names", ["one", "two"])
    matrix = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    writer.add_tensor("plain", matrix)
    blocks = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "theirs.gguf")
    assert file.get_int("llama.block_count") == 2
    assert file.get_strings("names") == ("one", "two")
    assert file.tensors["plain"].shape == file.tensors["blocks"].shape == (3, 64)
    assert file.tensors["plain"].read().data.tobytes() == matrix.tobytes()
    assert file.tensors["blocks"].dtype is DType.Q8_0
    assert file.tensors["blocks"].read().data.tobytes() == blocks.tobytes()


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype.ggml_type >= 0], ids=lambda dtype: dtype.name)
def test_every_type_has_the_size_ggml_gives_it(dtype: DType, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType(dtype.ggml_type)
    assert kind.name == dtype.name
    assert gguf.GGML_QUANT_SIZES[kind] == (dtype.block_size, dtype.block_bytes)
    tensors = {"x": random_tensor(dtype, (3, 256)), "y": random_tensor(dtype, (256,), 1)}
    write_gguf(tmp_path / "model.gguf", {}, tensors)
    assert_same_tensors(read_gguf(tmp_path / "model.gguf").tensors, tensors)


def test_unsupported_types_have_the_names_ggml_gives_them() -> None:
    names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    for number, name in gguf_header._OTHER_TYPES.items():
        assert names.get(number, name) == name
        assert number not in {dtype.ggml_type for dtype in DType}


# --- split models ------------------------------------------------------------------------------------------------


def shards(tmp_path: Path, count: int = 3, **changes: int) -> list[Path]:
    paths = []
    for number in range(count):
        metadata = {"general.architecture": GgufValue.string("llama")} if number == 0 else {}
        metadata["split.no"] = GgufValue(GgufType.UINT16, number)
        metadata["split.count"] = GgufValue(GgufType.UINT16, changes.get("stated", count))
        metadata["split.tensors.count"] = GgufValue(GgufType.INT32, changes.get("total", count))
        path = tmp_path / f"m-{number + 1:05}-of-{count:05}.gguf"
        name = "same" if changes.get("same") else f"w{number}"
        write_gguf(path, metadata, {name: random_tensor(DType.F32, (4,), number)})
        paths.append(path)
    return paths


def test_a_split_model_is_read_whole(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    file = read_gguf(paths[0])
    assert file.paths == tuple(paths)
    assert list(file.metadata) == ["general.architecture"]
    assert_same_tensors(file.tensors, {f"w{n}": random_tensor(DType.F32, (4,), n) for n in range(3)})


def test_split_models_of_the_gguf_package(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", split_max_tensors=2)
    for number in range(5):
        writer.add_tensor(f"t{number}", np.full((2, 2), number, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "big-00001-of-00003.gguf")
    assert [tensor.read().data.view("<f4").tolist() for tensor in file.tensors.values()] == [[n] * 4 for n in range(5)]


def test_a_broken_split_model_names_the_part(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    with pytest.raises(FormatError, match=r"part 2 of 3.*give the first part, m-00001-of-00003\.gguf"):
        read_gguf(paths[1])
    swapped = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(FormatError, match=r"m-00002-of-00003\.gguf: says it is part 3"):
        read_gguf(paths[0])
    paths[1].unlink()
    with pytest.raises(FormatError, match=r"m-00002-of-00003\.gguf: is missing"):
        read_gguf(paths[0])
    paths[1].write_bytes(swapped)
    renamed = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(FormatError, match="is not named NAME-00001-of-00003"):
        read_gguf(renamed)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"same": 1}, "tensor 'same' is in an earlier part too"),
        ({"total": 7}, "have 3 tensors, and it says 7"),
        ({"stated": 65535}, "named as one of 3 parts but says that there are 65535"),
    ],
)
def test_split_models_that_contradict_themselves(tmp_path: Path, changes: dict[str, int], problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        read_gguf(shards(tmp_path, **changes)[0])


# --- hostile files -----------------------------------------------------------------------------------------------

U64 = struct.Struct("<Q")
HUGE = 10**12
ONE = [info("w", (8,), 0, 0)]
HOSTILE: dict[str, tuple[bytes, str]] = {
    "bad magic": (build([], [], magic=b"GGJT"), "not a GGUF file"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
    "magic alone": (b"GGUF", "ends inside the version"),
    "version 1": (build([], [], version=1), "version 1"),
    "version 4": (build([], [], version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (build([], [], counts=(HUGE, 0)), "more than fit"),
    "tensor count 2^64": (build([], [], counts=(2**64 - 1, 2**64 - 1)), "more than fit"),
    "kv count": (build([], [], counts=(0, HUGE)), "more than fit"),
    "kv count one more": (build([entry("a", 4, b"1234")], [], b"", counts=(0, 2)), "metadata key 1"),
    "key length": (build([U64.pack(HUGE) + b"x" * 99], []), "metadata key 0"),
    "empty key": (build([entry("", 4, bytes(4))], []), "metadata key 0 is empty"),
    "key not utf-8": (build([entry(b"\xff\xff", 4, bytes(4))], []), "metadata key 0 is not valid UTF-8"),
    "key twice": (build([entry("k", 0, b"1"), entry("k", 0, b"2")], []), "'k' is there twice"),
    "value type": (build([entry("k", 13, bytes(8))], []), "'k' has the unknown type 13"),
    "string length": (build([entry("k", 8, U64.pack(HUGE) + b"abc")], []), "'k'"),
    "string length 2^64": (build([entry("k", 8, U64.pack(2**64 - 1) + b"abc")], []), "'k'"),
    "array length": (build([array("k", 8, HUGE, bytes(64))], []), "'k' claims 1000000000000 elements"),
    "array length 2^64": (build([array("k", 0, 2**64 - 1, bytes(64))], []), "'k' claims"),
    "array strings": (build([array("k", 8, 3, string("a"))], [], b""), "'k'"),
    "array string length": (build([array("k", 8, 1, U64.pack(HUGE))], [], b""), "'k'"),
    "array element type": (build([array("k", 77, 1, bytes(64))], []), "elements of metadata key 'k'"),
    "nested array": (build([array("k", 9, 1, bytes(64))], []), "'k' is an array of arrays"),
    "bool": (build([entry("k", 7, b"\x02")], []), "'k' is a bool of value 2"),
    "bools": (build([array("k", 7, 2, b"\x01\x09")], []), "'k' has bools"),
    "alignment 0": (build([entry("general.alignment", 4, bytes(4))], []), "general.alignment"),
    "alignment 12": (build([entry("general.alignment", 4, b"\x0c\0\0\0")], []), "general.alignment"),
    "alignment 2^31": (build([entry("general.alignment", 4, b"\0\0\0\x80")], []), "general.alignment"),
    "alignment type": (build([entry("general.alignment", 10, U64.pack(32))], []), "general.alignment"),
    "n_dims": (build([], [info("w", (1,) * 5, 0, 0)], bytes(64)), "'w' claims 5 dimensions"),
    "n_dims 2^32": (build([], [string("w") + b"\xff" * 4], bytes(64)), "'w' claims 4294967295 dimensions"),
    "dims overflow": (build([], [info("w", (2**33, 2**33), 0, 0)], bytes(64)), "'w' has the impossible shape"),
    "dims wrap to 0": (build([], [info("w", (2**32, 2**32), 24, 0)], bytes(64)), "'w' has the impossible shape"),
    "dim 0": (build([], [info("w", (0, 8), 0, 0)], bytes(64)), "'w' has the impossible shape"),
    "blocks": (build([], [info("w", (33,), 2, 0)], bytes(64)), "'w' of shape .33. does not divide into Q4_0"),
    "scalar block": (build([], [info("w", (), 2, 0)], bytes(64)), "'w' of shape .. does not divide into Q4_0"),
    "type": (build([], [info("w", (8,), 99, 0)], bytes(64)), "'w' has the type 99,"),
    "type with a name": (build([], [info("w", (256,), 16, 0)], bytes(999)), r"'w' has the type 16 \(IQ2_XXS\)"),
    "negative type": (build([], [info("w", (8,), 2**32 - 1, 0)], bytes(64)), "'w' has the type 4294967295"),
    "offset outside": (build([], [info("w", (8,), 0, 64)], bytes(64)), "'w' needs 32 bytes at 64"),
    "offset 2^64": (build([], [info("w", (8,), 0, 2**64 - 32)], bytes(64)), "'w' needs 32 bytes"),
    "offset unaligned": (build([], [info("w", (4,), 0, 16)], bytes(64)), "'w' starts at 16"),
    "tensor too big": (build([], [info("w", (17,), 0, 0)], bytes(64)), "'w' needs 68 bytes"),
    "no data": (build([], ONE)[:-3], "'w' needs 32 bytes at 0"),
    "overlap": (build([], [*ONE, info("v", (4,), 0, 0)], bytes(64)), "tensors 'w' and 'v' overlap"),
    "overlap inside": (build([], [info("w", (24,), 0, 0), info("v", (1,), 0, 64)], bytes(96)), "overlap"),
    "tensor twice": (build([], [*ONE, info("w", (8,), 0, 32)], bytes(64)), "'w' is there twice"),
    "tensor name not utf-8": (build([], [info(b"\xc3", (8,), 0, 0)], bytes(64)), "the name of tensor 0"),
    "tensor name length": (build([], [U64.pack(HUGE) + bytes(64)]), "the name of tensor 0"),
    "terminal escapes": (build([entry("a\n\x1b[2J\u202e" + "x" * 999, 13, b"")], [], bytes(9)), r"'a\\n\\x1b\[2J"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_cheaply(tmp_path: Path, case: str) -> None:
    data, problem = HOSTILE[case]
    path = write(tmp_path, data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=problem) as caught:
            read_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()  # one line, no control characters
    assert len(message) < len(str(path)) + 400
    assert peak < 1 << 20


def test_unsupported_is_told_from_damaged(tmp_path: Path) -> None:
    for case in ("version 1", "version 4", "big-endian", "type", "type with a name", "nested array"):
        with pytest.raises(UnsupportedError):
            read_gguf(write(tmp_path, HOSTILE[case][0]))


def test_truncation_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for size in range(1, len(PLAIN)):
        path.write_bytes(PLAIN[:size])
        with pytest.raises(FormatError, match=r"^[^\n]+$"):
            read_gguf(path)


def test_sparse_files_do_not_fill_memory(tmp_path: Path) -> None:
    """A file of a terabyte that takes no disk makes every count plausible."""
    cases = {
        "strings": (build([array("k", 8, 1 << 36, b"")], []), "most that is read"),
        "numbers": (build([array("k", 6, 1 << 36, b"")], []), "most that is read"),
        "string": (build([entry("k", 8, U64.pack(1 << 39))], []), "header is larger than 64 MiB"),
        "keys": (build([], [], counts=(0, 1 << 34)), "most that is read"),
        "tensors": (build([], [], counts=(1 << 34, 0)), "most that is read"),
    }
    path = tmp_path / "sparse.gguf"
    for data, problem in cases.values():
        path.write_bytes(data)
        try:
            os.truncate(path, 1 << 40)
        except OSError:
            pytest.skip("this file system has no files of a terabyte")
        tracemalloc.start()
        try:
            with pytest.raises(FormatError, match=problem):
                read_gguf(path)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(FormatError, match="is a folder"):
        read_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(FormatError, match="not a regular file"):
        read_gguf(tmp_path / "pipe.gguf")
    with pytest.raises(FormatError, match="not a regular file"):
        read_gguf(Path("/dev/zero"))
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    with pytest.raises(FormatError, match="cannot be opened"):
        read_gguf(tmp_path / "loop.gguf")
    with pytest.raises(QafilaError):
        read_gguf(Path("a\0b"))


# --- writing -----------------------------------------------------------------------------------------------------


def test_writing_streams(tmp_path: Path) -> None:
    def lazy(number: int) -> LazyTensor:
        return LazyTensor(DType.F32, (1 << 20,), "test", lambda: random_tensor(DType.F32, (1 << 20,), number).read())

    tensors = [(f"w{number}", lazy(number)) for number in range(8)]
    tracemalloc.start()
    try:
        write_gguf(tmp_path / "model.gguf", {}, iter(tensors))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20  # of 32 MiB; two tensors and the random numbers' own
    finally:
        tracemalloc.stop()
    assert_same_tensors(read_gguf(tmp_path / "model.gguf").tensors, dict(tensors))


@pytest.mark.parametrize(
    ("metadata", "tensors", "problem"),
    [
        ({"k": GgufValue.uint32(2**32)}, {}, "metadata key 'k': 4294967296 does not fit UINT32"),
        ({"k": GgufValue.uint32(-1)}, {}, "metadata key 'k'"),
        ({"k": GgufValue.float32(1e300)}, {}, "metadata key 'k'"),
        ({"k": GgufValue.string("\ud800")}, {}, "metadata key 'k'"),
        ({"k": GgufValue(GgufType.UINT32, "text")}, {}, "metadata key 'k': UINT32 cannot hold a string"),
        ({"k": GgufValue(GgufType.STRING, 5)}, {}, "metadata key 'k': STRING cannot hold a number"),
        ({"k": GgufValue(GgufType.ARRAY, np.zeros(2, "<f4"), GgufType.INT32)}, {}, "metadata key 'k'"),
        ({"": GgufValue.uint32(1)}, {}, "key is empty"),
        ({}, [("w", DType.F32, (1,)), ("w", DType.F32, (1,))], "'w' is to be written twice"),
        ({}, [("w", DType.U8, (1,))], "'w' is U8"),
        ({}, [("w", DType.F32, (1,) * 5)], "'w' has the shape"),
        ({}, [("w" * 64, DType.F32, (1,))], "1 to 63 bytes"),
        ({}, [("", DType.F32, (1,))], "1 to 63 bytes"),
        ({}, [("\ud800", DType.F32, (1,))], "1 to 63 bytes"),
    ],
)
def test_what_gguf_cannot_hold(tmp_path: Path, metadata: Any, tensors: Any, problem: str) -> None:
    path = write(tmp_path, b"precious")
    with pytest.raises(FormatError, match=problem):
        write_gguf(path, metadata, [(name, random_tensor(dtype, shape)) for name, dtype, shape in tensors])
    assert path.read_bytes() == b"precious"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, b"precious")

    def damaged() -> Tensor:
        raise FormatError("source", "went bad")

    broken = LazyTensor(DType.F32, (4,), "test", damaged)
    with pytest.raises(FormatError, match="went bad"):
        write_gguf(path, {}, {"a": random_tensor(DType.F32, (4,)), "b": broken})
    huge = LazyTensor(DType.F32, (1 << 50,), "test", damaged)
    with pytest.raises(StorageError, match="GB are needed"):
        write_gguf(path, {}, {"a": huge})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"model\.gguf: cannot be written: No space left on device; free some"):
            write_gguf(path, {}, {"a": random_tensor(DType.F32, (4,))})
    with pytest.raises(StorageError, match="is a folder"):
        write_gguf(tmp_path, {}, {})
    with pytest.raises(StorageError, match="create it first"):
        write_gguf(tmp_path / "absent" / "model.gguf", {}, {})
    assert path.read_bytes() == b"precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]


def test_a_model_may_be_rewritten_onto_itself(tmp_path: Path) -> None:
    tensors = {"w": random_tensor(DType.Q4_0, (4, 64))}
    path = tmp_path / "model.gguf"
    write_gguf(path, {"a": GgufValue.boolean(True)}, tensors)
    before = path.read_bytes()
    file = read_gguf(path)
    write_gguf(path, file.metadata, file.tensors)
    assert path.read_bytes() == before
