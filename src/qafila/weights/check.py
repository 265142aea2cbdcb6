"""Are these the weights of that configuration? Names, shapes and types are held to it before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qafila.config import ModelConfig
from qafila.errors import FormatError, UnsupportedError
from qafila.parameters import Shape, parameter_shapes
from qafila.weights.tensor import LazyTensor


def check_tensors(config: ModelConfig, tensors: Mapping[str, LazyTensor], *, source: object) -> None:
    """Hold names, shapes and types of ``tensors`` to ``config``; ``source`` is the file they came from, for messages.

    Raises:
        FormatError: a tensor is missing, is not part of this configuration or has another shape.
        UnsupportedError: a tensor is of a type that no weight has.
    """
    expected = parameter_shapes(config)
    missing = expected.keys() - tensors.keys()
    if missing:
        raise FormatError(
            source, f"{_first(missing)} missing; the file is incomplete or its configuration is not its own"
        )
    extra = tensors.keys() - expected.keys()
    if extra:
        raise FormatError(source, f"{_first(extra)} not part of the model that the configuration describes")
    for name, lazy in tensors.items():
        if lazy.shape != expected[name]:
            raise FormatError(
                lazy.origin, f"{name} has shape {_text(lazy.shape)}; the configuration asks for {_text(expected[name])}"
            )
        if not (lazy.dtype.quantised or lazy.dtype.floating):
            raise UnsupportedError(lazy.origin, f"{name} is {lazy.dtype.name}, which is no type of weights")


def _first(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return f"tensor {ordered[0]} is" if len(ordered) == 1 else f"{len(ordered)} tensors ({ordered[0]}, ...) are"


def _text(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
