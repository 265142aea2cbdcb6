"""A training state as flat tensors and plain values: what torch.distributed.checkpoint stores, and what JSON can hold.

A state is nested dicts and lists with tensors (sharded ones too) and plain Python values in them. Each tensor gets its
path as a name; each part without tensors is stored as JSON, whole, so that it comes back as it was even where the
receiving state is differently filled (an empty loader).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

import numpy as np
import torch
from torch import Tensor

_TUPLE: Final = "__tuple__"
_ITEMS: Final = "__items__"


def split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain parts by path.

    Raises:
        TypeError: something is neither; names where.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            tensors[path] = value.detach()
        elif isinstance(value, dict) and (_has_tensor(value) or not path):
            for key, item in value.items():
                walk(item, f"{path}/{_key(key, path)}" if path else _key(key, path))
        elif isinstance(value, list | tuple) and _has_tensor(value):
            for index, item in enumerate(value):
                walk(item, f"{path}/[{index}]")
        else:
            plain[path] = encode(value, path)

    walk(dict(state), "")
    return tensors, plain


def put_plain(state: dict[str, Any], plain: Mapping[str, Any]) -> None:
    """Set the plain parts of ``state`` to the stored ones; its tensors stay."""
    for path, value in plain.items():
        _put(state, path, decode(value))


def put_tensor(state: dict[str, Any], path: str, tensor: Tensor) -> None:
    """Add a tensor that the receiving state has no place for yet (an optimiser that has taken no step)."""
    _put(state, path, tensor)


def _put(state: dict[str, Any], path: str, value: Any) -> None:
    keys = path.split("/")
    place: Any = state
    for key in keys[:-1]:
        name = _name(key)
        if isinstance(place, dict) and name not in place:
            place[name] = {}
        place = place[name]
    place[_name(keys[-1])] = value


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, dict):
        return any(_has_tensor(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_has_tensor(item) for item in value)


def _key(key: object, path: str) -> str:
    if isinstance(key, str):
        return quote(key, safe=" .,:@=+-()") or "%"
    if type(key) is int:
        return f"#{key}"
    raise TypeError(f"checkpoint: the key {key!r:.60} under {path or 'the state'} is neither a text nor a number")


def _name(key: str) -> str | int:
    if key.startswith("#"):
        return int(key[1:])
    if key.startswith("["):
        return int(key[1:-1])
    return "" if key == "%" else unquote(key)


def encode(value: Any, path: str = "") -> Any:
    """A plain value as JSON can hold it; tuples and keys that are no texts are marked.

    Raises:
        TypeError: a value that is none of None, bool, int, float, str, list, tuple and dict; names where.
    """
    if value is None or isinstance(value, bool | int | float | str):
        if isinstance(value, np.generic):
            return value.item()
        return value
    if isinstance(value, np.integer | np.floating | np.bool_):
        return value.item()
    if isinstance(value, tuple):
        return {_TUPLE: [encode(item, path) for item in value]}
    if isinstance(value, list):
        return [encode(item, path) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not {_TUPLE, _ITEMS} & value.keys():
            return {key: encode(item, f"{path}/{key}") for key, item in value.items()}
        return {_ITEMS: [[encode(key, path), encode(item, f"{path}/{key}")] for key, item in value.items()]}
    raise TypeError(f"checkpoint: {path} is a {type(value).__name__}, which is neither a tensor nor a plain value")


def decode(value: Any) -> Any:
    """The value that `encode` was given."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if _TUPLE in value:
            return tuple(decode(item) for item in value[_TUPLE])
        if _ITEMS in value:
            return {decode(key): decode(item) for key, item in value[_ITEMS]}
        return {key: decode(item) for key, item in value.items()}
    return value


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors' values now, on the CPU, in memory of their own; sharded ones stay sharded."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def random_state() -> dict[str, Any]:
    """The state of every random number generator that is global: torch's, each GPU's, Python's and NumPy's."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [state.numpy().tobytes().hex() for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
        "python": random.getstate(),
        "numpy": (str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Take what `random_state` gave; states of GPUs that are not here are left out."""
    torch.set_rng_state(_bytes(state["torch"]))
    for index, text in enumerate(state["cuda"][: torch.cuda.device_count()] if torch.cuda.is_available() else ()):
        torch.cuda.set_rng_state(_bytes(text), index)
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, np.uint32), position, has_gauss, gauss))


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8).clone()


def model_state(model: torch.nn.Module, *, trained_only: bool = False) -> dict[str, Any]:
    """The parameters by name, sharded where the model is; ``trained_only`` leaves a frozen base out."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    keep: Callable[[str], bool] = (lambda name: name in trained) if trained_only else (lambda name: True)
    return {name: tensor for name, tensor in model.state_dict().items() if keep(name)}
