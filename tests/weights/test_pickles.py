from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qafila.errors import FormatError, ModelNotFoundError, QafilaError, StorageError, UnsupportedError
from qafila.quant.dtypes import DType
from qafila.weights import archive
from qafila.weights.pickles import read_pth, write_pth
from qafila.weights.tensor import LazyTensor, Tensor

TORCH_TYPES = {
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.F64: torch.float64,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I16: torch.int16,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
}


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes in row-major order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_equal(read: LazyTensor, tensor: torch.Tensor) -> None:
    assert TORCH_TYPES[read.dtype] == tensor.dtype
    assert read.shape == tuple(tensor.shape)
    assert read.read().data.tobytes() == (raw(tensor) if tensor.numel() else b"")


def samples() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {dtype.name: (torch.randn(3, 5) * 50).to(kind) for dtype, kind in TORCH_TYPES.items()}
    base = torch.arange(60.0).reshape(5, 12)
    return made | {
        "transposed": base.t(),
        "rows": base[1:3],
        "strided": base[::2, 1::3],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "one row": base[2:3].t(),
    }


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def zipped(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **options: Any) -> Path:
    """A zip file as torch.save makes it, around a pickle of our own."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/byteorder", "little")
        for name, content in (storages or {}).items():
            file.writestr(f"archive/data/{name}", content)
        file.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_what_torch_saves(tmp_path: Path, protocol: int) -> None:
    tensors = samples()
    found = read_pth(saved(tmp_path / "a.pth", tensors, pickle_protocol=protocol))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert_equal(found[name], tensor)


def test_reads_state_dicts_and_what_wraps_them(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 4)
    state = module.state_dict()  # an OrderedDict with a _metadata attribute
    assert state._metadata
    for value in (state, {"model": state, "step": 7}, {"state_dict": state, "args": {"lr": 0.1, "betas": [1, (2, 3)]}}):
        found = read_pth(saved(tmp_path / "a.pth", value))
        assert list(found) == ["weight", "bias"]
        assert_equal(found["weight"], module.weight)


def test_steps_over_byte_buffers(tmp_path: Path) -> None:
    # Llama 4's files carry Transformer Engine's _extra_state.
    for content in (b"", b"\xff\x00abc"):
        for protocol in (2, 4):
            value = {"x": io.BytesIO(content), "w": torch.ones(2), "y": content, "n": None, "z": OrderedDict(a=1)}
            found = read_pth(saved(tmp_path / "a.pth", value, pickle_protocol=protocol))
            assert list(found) == ["w"]


def test_contiguous_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(5, 12)
    found = read_pth(saved(tmp_path / "a.pth", {"base": base, "rows": base[1:3]}))
    whole, rows = found["base"].read().data, found["rows"].read().data
    assert np.shares_memory(whole, rows)
    assert not whole.flags.writeable


def test_one_storage_may_carry_many_names(tmp_path: Path) -> None:
    base = torch.randn(8, 4)
    tensors = {"a": base, "b": base, "c": base[2:]}
    write_pth(tmp_path / "b.pth", read_pth(saved(tmp_path / "a.pth", tensors)))
    for name, tensor in torch.load(tmp_path / "b.pth", weights_only=True).items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_opens_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip64: bool, mmap: bool) -> None:
    if zip64:  # as if every size, offset and count were beyond 32 bits
        monkeypatch.setattr(archive, "_MAX_32", 0)
        monkeypatch.setattr(archive, "_MAX_16", 0)
    tensors = samples()
    read = read_pth(saved(tmp_path / "a.pth", tensors))
    write_pth(tmp_path / "b.pth", read)
    assert zipfile.ZipFile(tmp_path / "b.pth").testzip() is None
    opened = torch.load(tmp_path / "b.pth", weights_only=True, mmap=mmap)
    assert list(opened) == list(tensors)
    again = read_pth(tmp_path / "b.pth")
    for name, tensor in tensors.items():
        assert opened[name].dtype == tensor.dtype
        assert torch.equal(opened[name], tensor)
        assert_equal(again[name], tensor)
        if mmap and tensor.numel():
            assert opened[name].data_ptr() % 64 == 0


def test_two_names_of_one_tensor_share_their_bytes(tmp_path: Path) -> None:
    tensor = LazyTensor.of(Tensor(DType.F32, (64, 64), np.arange(64 * 64 * 4, dtype=np.uint32).astype(np.uint8)))
    write_pth(tmp_path / "a.pth", {"embedding": tensor, "output": tensor})
    assert (tmp_path / "a.pth").stat().st_size < 1.2 * tensor.nbytes
    opened = torch.load(tmp_path / "a.pth", weights_only=True)
    assert opened["embedding"].data_ptr() == opened["output"].data_ptr()


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    read = read_pth(saved(tmp_path / "a.pth", samples()))
    write_pth(tmp_path / "b.pth", read)
    write_pth(tmp_path / "c.pth", read)
    assert (tmp_path / "b.pth").read_bytes() == (tmp_path / "c.pth").read_bytes()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = saved(tmp_path / "a.pth", {"w": torch.ones(2)})
    before = target.read_bytes()

    def fail() -> Tensor:
        raise FormatError("source", "broken")

    with pytest.raises(FormatError, match="broken"):
        write_pth(target, {"w": LazyTensor(DType.F32, (2,), "source", fail)})
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    with pytest.raises(StorageError):
        write_pth(tmp_path / "nowhere" / "a.pth", {})


def test_quantised_tensors_cannot_be_written(tmp_path: Path) -> None:
    tensor = LazyTensor.of(Tensor(DType.Q4_0, (32,), np.zeros(18, dtype=np.uint8)))
    with pytest.raises(UnsupportedError, match=r"w is Q4_0"):
        write_pth(tmp_path / "a.pth", {"w": tensor})
    assert not list(tmp_path.iterdir())


class Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (Hostile(os.system, "touch owned"), r"posix\.system"),
        ({"w": Hostile(eval, "1")}, r"(__builtin__|builtins)\.eval"),
        ({"w": [{"deep": (Hostile(exec, "1"),)}]}, r"(__builtin__|builtins)\.exec"),
        ({"w": Hostile(getattr, "x", "upper")}, r"(__builtin__|builtins)\.getattr"),
        ({"w": Hostile(__import__, "os")}, r"(__builtin__|builtins)\.__import__"),
    ],
)
def test_code_in_a_pickle_is_refused_and_named(tmp_path: Path, value: Any, asked: str, protocol: int) -> None:
    path = zipped(tmp_path / "a.pth", pickle.dumps(value, protocol=protocol))
    with pytest.raises(FormatError, match=rf"a\.pth: not weights: it asks for {asked}$") as caught:
        read_pth(path)
    assert "\n" not in str(caught.value)
    assert not Path("owned").exists()


def test_globals_on_the_list_are_never_called(tmp_path: Path) -> None:
    # _codecs.encode is stepped over: neither its result nor its failure is ever seen.
    program = b"\x80\x02}X\x01\x00\x00\x00wc_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00nope\x86Rs."
    assert read_pth(zipped(tmp_path / "a.pth", program)) == {}


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n("
PIECE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ%bt"


def tensor_program(count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    def number(value: int) -> bytes:
        return b"\x8a\x0c" + value.to_bytes(12, "little", signed=True)

    def several(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = PIECE.replace(b"%b", struct.pack("<i", count)) + b"Q"
    description = storage + number(offset) + several(shape) + several(strides)
    return b"\x80\x02}X\x01\x00\x00\x00w" + TENSOR + description + b"\x89ccollections\nOrderedDict\n)RtRs."


def test_the_handmade_program_is_a_tensor(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.pth", tensor_program(6, 1, (2, 2), (3, 1)), {"0": np.arange(6, dtype="<f4").tobytes()})
    found = read_pth(path)["w"].read()
    assert found.data.view(np.float32).tolist() == [1, 2, 4, 5]
    assert torch.load(path, weights_only=True)["w"].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("count", "offset", "shape", "strides"),
    [
        (6, 3, (2, 2), (3, 1)),  # ends beyond the storage
        (6, 7, (), ()),
        (6, 0, (7,), (1,)),
        (6, -1, (2,), (1,)),
        (6, 0, (-2, -3), (3, 1)),
        (6, 5, (2,), (-1,)),
        (6, 0, (1 << 40, 1 << 40), (0, 0)),  # terabytes from one element
        (6, 0, (7,), (0,)),
        (6, 0, (2, 2), (3,)),
        (6, 0, (1 << 90,), (1,)),
        (6, 0, (1,) * 17, (1,) * 17),
        (-6, 0, (2,), (1,)),
        (2**31 - 1, 0, (2,), (1,)),  # a storage larger than its entry
    ],
)
def test_views_outside_their_storage_are_refused(
    tmp_path: Path, count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    path = zipped(tmp_path / "a.pth", tensor_program(count, offset, shape, strides), {"0": bytes(24)})
    with pytest.raises(FormatError, match=r"a\.pth: "):
        read_pth(path)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"\x80\x02}",  # no STOP
        b"\x80\x02]" + b"2" * 1000 + b".",  # DUP
        b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",  # a number of two gigabytes
        b"\x80\x02\x8b\xff\xff\xff\xff.",
        b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes without end
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x02(((((t.",
        b"\x80\x02h\x07.",  # recalls what was never there
        b"\x80\x02}q\x00h\x00h\x00s.",  # a dictionary as a key
        b"\x80\x02)q\x00h\x00\x86.",  # a tuple, not a dictionary
        b"\x80\x02ctorch\nFloatStorage\n.",
        b"\x80\x02NN\x86R.",
        b"\x80\x02cos\nsystem" + b"a" * 1000,
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02}Nb.",
        b"\x80\x02(b.",
        b"\x80\x02NQ.",
        b"I" + b"9" * 5000 + b"\n.",
    ],
)
def test_odd_programs_get_one_line(tmp_path: Path, program: bytes) -> None:
    if program == b"\x80\x02}Nb.":  # attributes of a dictionary: in order, and empty
        assert read_pth(zipped(tmp_path / "a.pth", program)) == {}
        return
    with pytest.raises(FormatError, match=r"a\.pth: ") as caught:
        read_pth(zipped(tmp_path / "a.pth", program))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_shared_tuples_cost_no_time(tmp_path: Path) -> None:
    # 2**100 leaves if anybody walked them: as a key, they would be hashed.
    nested = b"\x80\x02)" + b"q\x00h\x00\x86" * 100
    with pytest.raises(FormatError, match="no dictionary"):
        read_pth(zipped(tmp_path / "a.pth", nested + b"."))
    with pytest.raises(FormatError, match="neither a string nor a number"):
        read_pth(zipped(tmp_path / "b.pth", b"\x80\x02}" + nested[2:] + b"Ns."))


@pytest.mark.parametrize("call", [b"ctorch\nSize\n", b"ccollections\nOrderedDict\n"])
def test_a_list_is_not_copied_again_and_again(tmp_path: Path, call: bytes) -> None:
    # 300 kB of pickle that would make gigabytes of copies.
    pairs = b"]q\x01(" + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(30_000)) + b"e"
    program = b"\x80\x02" + call + b"q\x00" + pairs + b"h\x00h\x01\x85R" * 10_000 + b"."
    with pytest.raises(FormatError, match="copies one list again and again"):
        read_pth(zipped(tmp_path / "a.pth", program))


def test_keys_that_hash_alike_cost_no_time(tmp_path: Path) -> None:
    # Python's hash of an integer is its remainder by 2**61 - 1: these would all fall into one slot of the dictionary.
    keys = (k * (2**61 - 1) for k in range(1, 1 << 14))
    program = b"\x80\x02}(" + b"".join(b"\x8a\x10" + k.to_bytes(16, "little") + b"N" for k in keys) + b"u."
    with pytest.raises(FormatError, match="more than 64 bits as a key"):
        read_pth(zipped(tmp_path / "a.pth", program))


def test_a_pickle_larger_than_weights_need_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="more than tensors need"):
        read_pth(zipped(tmp_path / "a.pth", b"\x80\x02" + b"}" * (5 << 20) + b"."))


def test_element_types_without_a_dtype_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"w": torch.ones(2, dtype=torch.complex64)})
    with pytest.raises(UnsupportedError, match=r"torch\.ComplexFloatStorage"):
        read_pth(path)


def test_formats_from_before_are_told_apart(tmp_path: Path) -> None:
    old = saved(tmp_path / "old.pth", {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedError, match=r"torch\.load\(\.\.\., weights_only=True\)"):
        read_pth(old)
    (tmp_path / "lfs.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(FormatError, match="git lfs pull"):
        read_pth(tmp_path / "lfs.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(FormatError, match="empty"):
        read_pth(tmp_path / "empty.pth")
    with pytest.raises(ModelNotFoundError):
        read_pth(tmp_path / "none.pth")
    with pytest.raises(QafilaError):
        read_pth(tmp_path)


def test_big_endian_and_torchscript_are_refused(tmp_path: Path) -> None:
    for name, content, message in (("byteorder", "big", "big-endian"), ("constants.pkl", ".", "TorchScript")):
        with zipfile.ZipFile(tmp_path / f"{name}.pth", "w") as file:
            file.writestr("archive/data.pkl", b"\x80\x02}.")
            file.writestr(f"archive/{name}", content)
        with pytest.raises(UnsupportedError, match=message):
            read_pth(tmp_path / f"{name}.pth")


def test_zip_tricks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="compressed"):
        read_pth(zipped(tmp_path / "bomb.pth", b"\x80\x02}" + bytes(1 << 20), compression=zipfile.ZIP_DEFLATED))
    for number, name in enumerate(("../evil", "/etc/passwd", "a/../../b", "a\\b", "a\nb")):
        path = tmp_path / f"{number}.pth"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"x")
        with pytest.raises(FormatError, match="forbidden name"):
            read_pth(path)
    with zipfile.ZipFile(tmp_path / "twice.pth", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(FormatError, match="there twice"):
        read_pth(tmp_path / "twice.pth")


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.pth", tensor_program(6, 0, (6,), (1,)), {"0": bytes(24), "1": bytes(24)})
    data = bytearray(path.read_bytes())
    record = data.rfind(b"PK\x01\x02", 0, data.rfind(b"archive/data/0"))
    data[record + 20 : record + 28] = struct.pack("<II", 60, 60)  # reaches into the next entry
    path.write_bytes(bytes(data))
    with pytest.raises(FormatError, match="overlap"):
        read_pth(path)
    data[record + 20 : record + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(bytes(data))
    with pytest.raises(FormatError, match="beyond the file"):
        read_pth(path)


def test_truncated_files_get_one_line(tmp_path: Path) -> None:
    whole = saved(tmp_path / "a.pth", samples()).read_bytes()
    for length in (*range(0, len(whole), 331), len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_pth(tmp_path / "cut.pth")


def outcome(path: Path, most: int) -> str:
    """The error's line, or an empty text after all tensors were read."""
    try:
        for tensor in read_pth(path).values():
            assert tensor.read().nbytes == tensor.nbytes <= most
    except QafilaError as error:
        return str(error)
    return ""


SEED = io.BytesIO()
torch.save({"w": torch.arange(12.0).reshape(3, 4).t(), "v": torch.ones(2, dtype=torch.bfloat16), "n": [1, None]}, SEED)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(SEED.getvalue()) - 1), st.binary(min_size=1, max_size=4)), max_size=6),
    cut=st.none() | st.integers(0, len(SEED.getvalue())),
)
def test_mutated_files_load_or_say_why(tmp_path: Path, edits: list[tuple[int, bytes]], cut: int | None) -> None:
    data = bytearray(SEED.getvalue()[:cut])
    for at, piece in edits:
        data[at : at + len(piece)] = piece
    path = tmp_path / "fuzz.pth"
    path.write_bytes(bytes(data))
    assert "\n" not in outcome(path, most=len(data))


PIECES = [bytes([code]) for code in b"(NKMJGX}])tqhaesucQRb.\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x93\x94"] + [
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"c_io\nBytesIO\n",
    PIECE.replace(b"%b", struct.pack("<i", 6)) + b"Q",
    b"K\x01",
    b"K\x02K\x03\x86",
    b"X\x01\x00\x00\x00w",
]


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(st.sampled_from(PIECES) | st.binary(max_size=2), max_size=30))
def test_programs_at_random_build_weights_or_say_why(tmp_path: Path, program: list[bytes]) -> None:
    path = zipped(tmp_path / "fuzz.pth", b"\x80\x02" + b"".join(program) + b".", {"0": bytes(24)})
    assert "\n" not in outcome(path, most=24)
