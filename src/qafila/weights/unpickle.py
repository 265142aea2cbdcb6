"""A restricted interpreter of pickles: it knows only the instructions that a dictionary of tensors needs.

A pickle is a program: Python's own unpickler runs whatever it names. This one calls nothing, and builds nothing but
dict, list, tuple, str, int, float, bool, None and descriptions of tensors, so its work and memory stay proportional to
the bytes of the pickle. Sources: CPython ``pickletools.py`` for the instructions, PyTorch's ``torch/serialization.py``
and ``torch/_utils.py`` for what a storage and a tensor look like.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from qafila.errors import FormatError, UnsupportedError
from qafila.quant.dtypes import DType
from qafila.weights.storage import quoted

STORAGES: Final = {
    "FloatStorage": DType.F32,
    "HalfStorage": DType.F16,
    "BFloat16Storage": DType.BF16,
    "DoubleStorage": DType.F64,
    "LongStorage": DType.I64,
    "IntStorage": DType.I32,
    "ShortStorage": DType.I16,
    "CharStorage": DType.I8,
    "ByteStorage": DType.U8,
    "BoolStorage": DType.BOOL,
}
# Llama 4's files carry empty ``_extra_state`` entries of Transformer Engine: byte buffers. They are stepped over, never
# built, so naming them is harmless.
_OPAQUE: Final = frozenset(
    {("_io", "BytesIO"), ("io", "BytesIO"), ("_codecs", "encode"), ("builtins", "bytes"), ("__builtin__", "bytes")}
)
_CALLS: Final = {
    ("collections", "OrderedDict"): "dict",
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_parameter"): "parameter",
    ("torch", "Size"): "size",
}
_MAX_DIMENSIONS = 16


@dataclass(frozen=True, slots=True)
class _Call:
    """A name on the allow-list: what it would build, not the thing itself."""

    kind: str
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as the pickle describes it: its entry ``data/<key>`` and how many elements it holds."""

    key: str
    dtype: DType
    count: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as the pickle describes it; ``offset`` and ``strides`` count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Opaque:
    """Something that is stepped over."""

    __slots__ = ()


_OPAQUE_VALUE: Final = _Opaque()
_MARK: Final = _Opaque()


class _Program:
    """One run of the restricted interpreter over the bytes of ``data.pkl``."""

    def __init__(self, path: Path, code: bytes) -> None:
        self.path = path
        self.code = code
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def wrong(self, problem: str) -> FormatError:
        return FormatError(self.path, f"not weights: {problem}")

    def take(self, count: int) -> bytes:
        if count > len(self.code) - self.at:
            raise self.wrong("the pickle is cut short")
        piece = self.code[self.at : self.at + count]
        self.at += count
        return piece

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong("a string in the pickle is not UTF-8") from None

    def line(self) -> str:
        end = self.code.find(b"\n", self.at, self.at + 256)
        if end < 0:
            raise self.wrong("a name in the pickle has no end")
        text = self.text(end - self.at)
        self.at = end + 1
        return text

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.wrong("the pickle takes more than it has")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack:
            item = self.stack.pop()
            if item is _MARK:
                return items[::-1]
            items.append(item)
        raise self.wrong("the pickle takes more than it has")

    def named(self, module: str, name: str) -> Any:
        if (module, name) in _OPAQUE:
            return _Call("opaque")
        if (module, name) in _CALLS:
            return _Call(_CALLS[module, name])
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return _Call("storage", DType.U8)
        if module == "torch" and name in STORAGES:
            return _Call("storage", STORAGES[name])
        shown = quoted(f"{module}.{name}")[1:-1]
        if module == "torch" and name.endswith("Storage"):
            raise UnsupportedError(self.path, f"elements of type {shown} are not handled")
        raise self.wrong(f"it asks for {shown}")

    def persistent(self, identity: Any) -> Storage:
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
            raise self.wrong("it refers to something that is not a storage")
        _, kind, key, _, count = identity
        if type(kind) is not _Call or kind.dtype is None or type(key) is not str or type(count) is not int:
            raise self.wrong("it describes a storage wrongly")
        if count < 0:
            raise self.wrong("a storage has a negative size")
        return Storage(key, kind.dtype, count)

    def call(self, function: Any, arguments: Any) -> Any:
        if type(function) is not _Call or type(arguments) is not tuple:
            raise self.wrong("it calls something that is not a function")
        match function.kind:
            case "opaque":
                return _OPAQUE_VALUE
            case "dict" if not arguments:
                return {}
            case "dict" if len(arguments) == 1 and type(arguments[0]) is list:
                return self.dict_of(arguments[0])
            case "size" if len(arguments) == 1 and type(arguments[0]) in (tuple, list):
                self.spend(len(arguments[0]))
                return tuple(arguments[0])
            case "parameter" if len(arguments) in (2, 3) and type(arguments[0]) is View:
                return arguments[0]
            case "tensor" if len(arguments) in (6, 7):
                return self.tensor(*arguments[:4])
        raise self.wrong(f"it builds a {function.kind} wrongly")

    def spend(self, items: int) -> None:
        """Count what is copied: a list that is recalled and copied again and again would take any amount of memory."""
        self.copied += items
        if self.copied > len(self.code):
            raise self.wrong("it copies one list again and again")

    def dict_of(self, pairs: list[Any]) -> dict[Any, Any]:
        """The dictionary of an OrderedDict as protocol 2 of Python 2 wrote it: a list of pairs."""
        self.spend(len(pairs))
        built: dict[Any, Any] = {}
        for pair in pairs:
            if type(pair) not in (tuple, list) or len(pair) != 2:
                raise self.wrong("it builds a dict wrongly")
            built[self.key(pair[0])] = pair[1]
        return built

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> View:
        if type(storage) is not Storage or type(offset) is not int:
            raise self.wrong("it describes a tensor wrongly")
        for sizes in (shape, strides):
            if type(sizes) is not tuple or len(sizes) > _MAX_DIMENSIONS or any(type(n) is not int for n in sizes):
                raise self.wrong("it describes the shape of a tensor wrongly")
        if len(shape) != len(strides) or offset < 0 or any(not 0 <= n < 1 << 48 for n in (*shape, *strides)):
            raise self.wrong("it describes the shape of a tensor wrongly")
        count = prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if count else offset
        if count > storage.count or last >= storage.count + (count == 0):
            raise self.wrong(f"a tensor of shape {list(shape)} reaches beyond its {storage.count} stored elements")
        return View(storage, offset, shape, strides)

    def key(self, key: Any) -> Any:
        # Hashing a tuple walks all of it, and tuples that share their parts can make that walk endless.
        if type(key) not in (str, int, bool, type(None)):
            raise self.wrong("a dictionary has a key that is neither a string nor a number")
        # Longer numbers can be chosen to hash alike, and a dictionary of such keys takes quadratic time.
        if type(key) is int and not -(1 << 63) <= key < 1 << 64:
            raise self.wrong("a dictionary has a number of more than 64 bits as a key")
        return key

    def fill(self, pairs: list[Any]) -> None:
        target = self.pop()
        if type(target) is not dict or len(pairs) % 2:
            raise self.wrong("the pickle fills something that is not a dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[self.key(key)] = value
        self.stack.append(target)

    def extend(self, items: list[Any]) -> None:
        target = self.pop()
        if type(target) is not list:
            raise self.wrong("the pickle appends to something that is not a list")
        target.extend(items)
        self.stack.append(target)

    def small_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(items[::-1]))

    def remember(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.wrong("the pickle remembers what it does not have")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.wrong("the pickle recalls what it never had")
        self.stack.append(self.memo[index])

    def integer(self, count: int) -> int:
        if not 0 <= count <= 16:
            raise self.wrong("a number in the pickle is too long")
        return int.from_bytes(self.take(count), "little", signed=True)

    def reduce(self) -> None:
        arguments = self.pop()
        self.stack.append(self.call(self.pop(), arguments))

    def build(self) -> None:
        self.pop()  # attributes (``_metadata`` of a state dict): nothing that we keep
        if not self.stack or type(self.stack[-1]) not in (dict, _Opaque) or self.stack[-1] is _MARK:
            raise self.wrong("it changes the attributes of something that has none")

    def run(self) -> Any:
        """Execute until STOP; the value on the stack is the result."""
        while True:
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                return self.pop()
            step = _STEPS.get(code)
            if step is None:
                raise self.wrong(f"the pickle has an instruction that weights do not need (0x{code:02x})")
            step(self)


def _push(value: Callable[[_Program], Any]) -> Callable[[_Program], None]:
    return lambda p: p.stack.append(value(p))


_STEPS: Final[dict[int, Callable[[_Program], None]]] = {
    0x80: lambda p: p.number("<B"),  # PROTO
    0x95: lambda p: p.number("<Q"),  # FRAME
    ord("("): _push(lambda p: _MARK),
    ord("N"): _push(lambda p: None),
    0x88: _push(lambda p: True),
    0x89: _push(lambda p: False),
    ord("K"): _push(lambda p: p.number("<B")),
    ord("M"): _push(lambda p: p.number("<H")),
    ord("J"): _push(lambda p: p.number("<i")),
    0x8A: _push(lambda p: p.integer(p.number("<B"))),  # LONG1
    0x8B: _push(lambda p: p.integer(p.number("<i"))),  # LONG4
    ord("G"): _push(lambda p: p.number(">d")),
    ord("X"): _push(lambda p: p.text(p.number("<I"))),
    0x8C: _push(lambda p: p.text(p.number("<B"))),  # SHORT_BINUNICODE
    0x8D: _push(lambda p: p.text(p.number("<Q"))),  # BINUNICODE8
    ord("U"): _push(lambda p: p.text(p.number("<B"))),  # SHORT_BINSTRING, Python 2
    ord("B"): _push(lambda p: p.take(p.number("<I")) and _OPAQUE_VALUE),
    ord("C"): _push(lambda p: p.take(p.number("<B")) and _OPAQUE_VALUE),
    0x8E: _push(lambda p: p.take(p.number("<Q")) and _OPAQUE_VALUE),  # BINBYTES8
    ord("}"): _push(lambda p: {}),
    ord("]"): _push(lambda p: []),
    ord(")"): _push(lambda p: ()),
    ord("t"): _push(lambda p: tuple(p.pop_to_mark())),
    0x85: lambda p: p.small_tuple(1),
    0x86: lambda p: p.small_tuple(2),
    0x87: lambda p: p.small_tuple(3),
    ord("q"): lambda p: p.remember(p.number("<B")),
    ord("r"): lambda p: p.remember(p.number("<I")),
    0x94: lambda p: p.remember(len(p.memo)),  # MEMOIZE
    ord("h"): lambda p: p.recall(p.number("<B")),
    ord("j"): lambda p: p.recall(p.number("<I")),
    ord("a"): lambda p: p.extend([p.pop()]),
    ord("e"): lambda p: p.extend(p.pop_to_mark()),
    ord("s"): lambda p: p.fill([p.pop(), p.pop()][::-1]),
    ord("u"): lambda p: p.fill(p.pop_to_mark()),
    ord("c"): _push(lambda p: p.named(p.line(), p.line())),
    0x93: lambda p: _stack_global(p),
    ord("Q"): _push(lambda p: p.persistent(p.pop())),
    ord("R"): lambda p: p.reduce(),
    0x81: lambda p: p.reduce(),  # NEWOBJ: the same allow-list decides
    ord("b"): lambda p: p.build(),
}


def _stack_global(program: _Program) -> None:
    name, module = program.pop(), program.pop()
    if type(name) is not str or type(module) is not str:
        raise program.wrong("it names something that is not a name")
    program.stack.append(program.named(module, name))


def run_pickle(path: Path, code: bytes) -> Any:
    """What the pickle ``code`` of the file ``path`` describes, tensors as :class:`View`.

    Raises:
        FormatError: it asks for anything but tensors and plain containers, or is damaged.
        UnsupportedError: its tensors have elements that no DType describes.
    """
    return _Program(path, code).run()
