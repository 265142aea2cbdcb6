"""The safetensors reader and writer against the `safetensors` package and files that lie."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from qafila.errors import FormatError, ModelNotFoundError, QafilaError, StorageError, UnsupportedError
from qafila.quant.dtypes import DType
from qafila.weights.safetensors import read_safetensors, write_safetensors
from qafila.weights.tensor import LazyTensor, Tensor

TORCH = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I16: torch.int16,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
}


def build(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def random_tensor(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> LazyTensor:
    high = 2 if dtype is DType.BOOL else 256
    data = np.random.default_rng(seed).integers(0, high, dtype.nbytes(shape), dtype=np.uint8)
    return LazyTensor.of(Tensor(dtype, shape, data))


def everything() -> dict[str, LazyTensor]:
    """Every type, an empty tensor, a scalar, and names beyond ASCII, in no order."""
    tensors = {f"w.{dtype.name}": random_tensor(dtype, (3, 5), n) for n, dtype in enumerate(reversed(TORCH))}
    tensors['قافلة "q" \\ \n'] = random_tensor(DType.BF16, (2, 2, 2))
    tensors["empty"] = random_tensor(DType.F16, (0, 4))
    tensors["scalar"] = random_tensor(DType.F32, ())
    return tensors


def as_torch(tensor: LazyTensor) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(tensor.read().data.tobytes() or bytes(8)), dtype=TORCH[tensor.dtype])
    return flat[: int(np.prod(tensor.shape))].reshape(tensor.shape)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else bits(tensor.reshape(1))


def assert_same(ours: Any, theirs: Any) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        one, other = tensor.read(), theirs[name].read()
        assert (one.dtype, one.shape) == (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(one.data, other.data), name


# --- the reference library ---------------------------------------------------------------------------------------


def test_the_reference_reads_what_we_write(tmp_path: Path) -> None:
    tensors = everything()
    assert write_safetensors(tmp_path, tensors) == (tmp_path / "model.safetensors",)
    theirs = load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == tensors.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == TORCH[tensors[name].dtype]
        assert tuple(tensor.shape) == tensors[name].shape
        assert bits(tensor) == tensors[name].read().data.tobytes()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_what_the_reference_writes(tmp_path: Path) -> None:
    tensors = everything()
    path = tmp_path / "any name.safetensors"
    save_file({name: as_torch(tensor) for name, tensor in tensors.items()}, path, metadata={"format": "pt", "اسم": "ق"})
    file = read_safetensors(path)
    assert file.metadata == {"format": "pt", "اسم": "ق"}
    assert (file.path, file.paths) == (path, (path,))
    assert_same(file.tensors, tensors)
    data = file.tensors["w.BF16"].read().data
    assert not data.flags.writeable
    assert not data.flags.owndata


def test_our_files_are_the_references_byte_for_byte(tmp_path: Path) -> None:
    tensors = everything()
    write_safetensors(tmp_path, tensors)
    reference = save({name: as_torch(tensor) for name, tensor in tensors.items()}, metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == reference
    write_safetensors(tmp_path, tensors, metadata={})
    assert (tmp_path / "model.safetensors").read_bytes() == save({n: as_torch(t) for n, t in tensors.items()})


def test_every_tensor_is_aligned_for_its_type(tmp_path: Path) -> None:
    write_safetensors(tmp_path, {f"x{'y' * n}": random_tensor(DType.F32, (3,)) for n in range(9)} | everything())
    for name, tensor in read_safetensors(tmp_path).tensors.items():
        address = tensor.read().data.ctypes.data
        assert address % tensor.dtype.block_bytes == 0, name


# --- shards ------------------------------------------------------------------------------------------------------


def sharded(tmp_path: Path) -> dict[str, LazyTensor]:
    tensors = {f"w{n}": random_tensor(DType.F32, (25,), n) for n in range(5)}
    tensors["large"] = random_tensor(DType.F32, (200,))
    write_safetensors(tmp_path, tensors, max_shard_bytes=250)
    return tensors


def test_shards_and_their_index(tmp_path: Path) -> None:
    tensors = sharded(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 1300}
    assert index["weight_map"] == {
        "large": "model-00004-of-00004.safetensors",
        **{f"w{n}": f"model-0000{n // 2 + 1}-of-00004.safetensors" for n in range(5)},
    }
    file = read_safetensors(tmp_path)
    assert_same(file.tensors, tensors)
    assert file.metadata == {"format": "pt"}
    assert [path.name for path in file.paths] == sorted(
        {*index["weight_map"].values()}, key=lambda n: (n[6:11] != "00004", n)
    )
    assert_same(read_safetensors(tmp_path / "model.safetensors.index.json").tensors, tensors)
    for shard, names in (
        (f"model-0000{n}-of-00004.safetensors", load_file(tmp_path / f"model-0000{n}-of-00004.safetensors"))
        for n in range(1, 5)
    ):
        assert {index["weight_map"][name] for name in names} == {shard}


def test_a_smaller_checkpoint_replaces_a_larger_one(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-extra.safetensors").write_text("somebody's own")
    write_safetensors(tmp_path, {"w": random_tensor(DType.F32, (2,))})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model-extra.safetensors",
        "model.safetensors",
    ]
    tensors = sharded(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(read_safetensors(tmp_path).tensors, tensors)


def test_a_checkpoint_may_be_resharded_onto_itself(tmp_path: Path) -> None:
    tensors = sharded(tmp_path)
    write_safetensors(tmp_path, read_safetensors(tmp_path).tensors, max_shard_bytes=500)
    assert_same(read_safetensors(tmp_path).tensors, tensors)
    write_safetensors(tmp_path, read_safetensors(tmp_path).tensors)
    assert_same(read_safetensors(tmp_path).tensors, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_transformers_own_shards(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    file = read_safetensors(tmp_path)
    assert len(file.paths) > 1
    state = model.state_dict()
    assert file.tensors.keys() == state.keys()
    for name, tensor in file.tensors.items():
        assert tensor.dtype is DType.BF16
        assert tensor.read().data.tobytes() == bits(state[name])


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "a\\b.safetensors", "config.json", 5],
)
def test_the_index_may_not_leave_its_folder(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "model"
    write_safetensors(folder, {"w": random_tensor(DType.F32, (2,))})
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(FormatError, match=r"index\.json: places tensor 'w' in .* not the plain name"):
        read_safetensors(folder)


def test_a_broken_index_names_file_and_tensor(tmp_path: Path) -> None:
    sharded(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    owners = index["weight_map"]
    path.write_text(json.dumps({"weight_map": {**owners, "w9": "model-00001-of-00004.safetensors"}}))
    with pytest.raises(FormatError, match=r"model-00001-of-00004\.safetensors: lacks tensor 'w9'"):
        read_safetensors(tmp_path)
    path.write_text(json.dumps({"weight_map": {**owners, "w0": owners["w4"]}}))
    with pytest.raises(FormatError, match=r"model-00001-of-00004\.safetensors: has tensor 'w0', which should be in"):
        read_safetensors(tmp_path)
    path.write_text(json.dumps({"weight_map": {name: owner for name, owner in owners.items() if name != "w0"}}))
    assert "w0" in read_safetensors(tmp_path).tensors
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": []}'):
        path.write_text(text)
        with pytest.raises(FormatError, match="has no 'weight_map'"):
            read_safetensors(tmp_path)
    path.write_text("[" * 99999)
    with pytest.raises(FormatError, match=r"index\.json: the index is nested too deeply"):
        read_safetensors(tmp_path)
    path.write_text(json.dumps(index))
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(FormatError, match=r"model-00002-of-00004\.safetensors: is missing"):
        read_safetensors(tmp_path)


# --- hostile files -----------------------------------------------------------------------------------------------

HUGE = 10**15
F32 = entry()
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"\x08\0\0", "too short"),
    "gguf": (b"GGUF" + bytes(99), "it is a GGUF file"),
    "zip": (b"PK\x03\x04" + bytes(99), "zip archive"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "not an object": (build([1]), "not a safetensors file"),
    "header length": (build({}, length=HUGE), "claims a header of 1000000000000000 bytes"),
    "header length 2^64": (build({}, length=2**64 - 1), "claims a header"),
    "header length small": (build({"w": F32}, bytes(8), length=5), "not valid JSON"),
    "header length 0": (build({"w": F32}, bytes(8), length=0), "not valid JSON"),
    "header length large": (build({"w": F32}, bytes(8), length=len(json.dumps({"w": F32})) + 4), "not valid JSON"),
    "not utf-8": (build(b'{"\xff": 1}'), "not UTF-8"),
    "half a surrogate": (build(rb'{"\uD83d": 1}'), "not UTF-8"),
    "nan": (build(b'{"w": NaN}'), "NaN"),
    "deep": (build(b'{"a":' * 99999), "nested too deeply"),
    "deep lists": (build(b'{"a":' + b"[" * 99999), "nested too deeply"),
    "long number": (build(b'{"w":' + b"9" * 99999 + b"}"), "not valid JSON"),
    "key twice": (build(b'{"w": 1, "w": 2}'), "the key 'w' is there twice"),
    "metadata twice": (build(b'{"__metadata__": {}, "__metadata__": {}}'), "'__metadata__' is there twice"),
    "field twice": (build(b'{"w": {"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}}'), "'dtype' is there"),
    "metadata list": (build({"__metadata__": []}), "__metadata__"),
    "metadata numbers": (build({"__metadata__": {"a": 1}}), "__metadata__"),
    "entry": (build({"w": 7}), "'w' must have exactly the fields"),
    "entry field missing": (build({"w": {"dtype": "F32", "shape": []}}), "'w' must have exactly the fields"),
    "entry field extra": (build({"w": F32 | {"x": 1}}, bytes(8)), "'w' must have exactly the fields"),
    "dtype": (build({"w": entry("F8_E4M3", (8,))}, bytes(8)), "'w' has the type 'F8_E4M3'"),
    "dtype of gguf": (build({"w": entry("Q4_0", (32,), (0, 18))}, bytes(18)), "'w' has the type 'Q4_0'"),
    "dtype list": (build({"w": entry(["F32"])}, bytes(8)), "'w' has the type"),
    "shape": (build({"w": entry(shape="8")}, bytes(8)), "'w' has an impossible shape"),
    "shape negative": (build({"w": entry(shape=(-2, -1))}, bytes(8)), "'w' has an impossible shape"),
    "shape fraction": (build({"w": entry(shape=(2.0,))}, bytes(8)), "'w' has an impossible shape"),
    "shape bool": (build({"w": entry(shape=(True, 2))}, bytes(8)), "'w' has an impossible shape"),
    "shape overflow": (build({"w": entry(shape=(2**40, 2**40))}, bytes(8)), "'w' has an impossible shape"),
    "shape overflow and 0": (build({"w": entry(shape=(2**40, 2**40, 0))}, bytes(8)), "'w' has an impossible shape"),
    "shape wraps": (build({"w": entry(shape=(2**62, 4, 2))}, bytes(8)), "'w' has an impossible shape"),
    "dimensions": (build({"w": entry(shape=[1] * 9999 + [2])}, bytes(8)), "'w' has an impossible shape"),
    "shape too small": (build({"w": entry(shape=(1,))}, bytes(8)), "does not take 8 bytes"),
    "offsets outside": (build({"w": entry(shape=(HUGE,), offsets=(0, 4 * HUGE))}, bytes(8)), "outside the file"),
    "offsets beyond": (build({"w": entry(offsets=(8, 16))}, bytes(8)), "outside the file"),
    "offsets reversed": (build({"w": entry(offsets=(8, 0))}, bytes(8)), "outside the file"),
    "offsets negative": (build({"w": entry(offsets=(-8, 0))}, bytes(8)), "outside the file"),
    "offsets three": (build({"w": entry(offsets=(0, 8, 8))}, bytes(8)), "outside the file"),
    "overlap": (build({"w": F32, "v": entry(offsets=(4, 12))}, bytes(12)), "'v' overlaps"),
    "overlap whole": (build({"w": F32, "v": F32}, bytes(8)), "'v' overlaps"),
    "gap": (build({"w": F32, "v": entry(offsets=(12, 20))}, bytes(20)), "'v' leaves a gap"),
    "gap at the start": (build({"w": entry(offsets=(4, 12))}, bytes(12)), "'w' leaves a gap"),
    "rest": (build({"w": F32}, bytes(9)), "has 1 bytes that belong to no tensor"),
    "terminal escapes": (build({"\n\x1b[2J\u202e" + "x" * 999: 7}), r"'\\n\\x1b\[2J"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_cheaply(tmp_path: Path, case: str) -> None:
    data, problem = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=problem) as caught:
            read_safetensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 400
    assert peak < 4 << 20


def test_the_reference_refuses_them_too(tmp_path: Path) -> None:
    """Files that are refused although the reference takes them would be an interoperability bug."""
    stricter = {
        "dtype",  # a type that Qafila has no use for
        "entry field extra",
        "field twice",
        "key twice",
        "shape overflow and 0",
        "dimensions",
    }
    for case, (data, _) in HOSTILE.items():
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except Exception:
            continue
        assert case in stricter, case


def test_a_header_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(build({}, length=1 << 39))
    os.truncate(path, 1 << 40)
    with pytest.raises(FormatError, match="16 MiB is the most"):
        read_safetensors(path)
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "model.safetensors.index.json"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(FormatError, match="16 MiB is the most"):
        read_safetensors(path)


def test_truncation_anywhere(tmp_path: Path) -> None:
    write_safetensors(tmp_path, {"a": random_tensor(DType.F32, (3,)), "b": random_tensor(DType.BF16, (3,))})
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            read_safetensors(path)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_safetensors(tmp_path / "absent.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"has neither model\.safetensors nor"):
        read_safetensors(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(FormatError, match=r"model\.safetensors: is a folder"):
        read_safetensors(tmp_path)
    (tmp_path / "model.safetensors").rmdir()
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="not a regular file"):
        read_safetensors(tmp_path)
    with pytest.raises(QafilaError):
        read_safetensors(Path("a\0b"))


# --- writing -----------------------------------------------------------------------------------------------------


def test_writing_streams(tmp_path: Path) -> None:
    def lazy(number: int) -> LazyTensor:
        return LazyTensor(DType.F32, (1 << 20,), "test", lambda: random_tensor(DType.F32, (1 << 20,), number).read())

    tensors = [(f"w{number}", lazy(number)) for number in range(8)]
    tracemalloc.start()
    try:
        write_safetensors(tmp_path, iter(tensors), max_shard_bytes=10 << 20)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20  # of 32 MiB; two tensors and the random numbers' own
    finally:
        tracemalloc.stop()
    assert_same(read_safetensors(tmp_path).tensors, dict(tensors))


def test_what_safetensors_cannot_hold(tmp_path: Path) -> None:
    plain = random_tensor(DType.F32, (1,))
    with pytest.raises(UnsupportedError, match="'w' is Q4_0"):
        write_safetensors(tmp_path, {"w": random_tensor(DType.Q4_0, (32,))})
    with pytest.raises(FormatError, match="'w' is to be written twice"):
        write_safetensors(tmp_path, [("w", plain), ("w", plain)])
    with pytest.raises(FormatError, match="reserved name"):
        write_safetensors(tmp_path, {"__metadata__": plain})
    with pytest.raises(FormatError, match="not valid Unicode"):
        write_safetensors(tmp_path, {"\ud800": plain})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    write_safetensors(tmp_path, {"w": random_tensor(DType.F32, (2,))})
    before = (tmp_path / "model.safetensors").read_bytes()

    def damaged() -> Tensor:
        raise FormatError("source", "went bad")

    tensors = {f"w{n}": random_tensor(DType.F32, (25,), n) for n in range(5)}
    tensors["z"] = LazyTensor(DType.F32, (4,), "test", damaged)
    with pytest.raises(FormatError, match="went bad"):
        write_safetensors(tmp_path, tensors, max_shard_bytes=250)
    with pytest.raises(StorageError, match="GB are needed"):
        write_safetensors(tmp_path, {"z": LazyTensor(DType.F32, (1 << 50,), "test", damaged)})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(StorageError, match="cannot be made"):
        write_safetensors(tmp_path / "model.safetensors", {})


def test_the_default_model_in_bytes(default_gguf: Path, tmp_path: Path) -> None:
    """Real shapes through both containers; quantised blocks travel as bytes here."""
    from qafila.weights.gguf import read_gguf

    source = {name: tensor for name, tensor in read_gguf(default_gguf).tensors.items() if tensor.dtype is DType.F32}
    assert len(source) > 50
    write_safetensors(tmp_path, source, max_shard_bytes=50_000)
    assert_same(read_safetensors(tmp_path).tensors, source)
