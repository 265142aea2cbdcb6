"""Where the torch runner's model goes, and in which type: ``device`` and ``dtype``, checked before weights are read."""

from __future__ import annotations

import warnings
from math import prod
from typing import TYPE_CHECKING

from qafila.errors import QafilaError, UsageError
from qafila.machine import this_machine
from qafila.weights.load import Checkpoint

if TYPE_CHECKING:
    from qafila.model.llama import LlamaModel


def load_model_on(checkpoint: Checkpoint, device: str, dtype: str | None) -> LlamaModel:
    """The checkpoint's model on a torch device; see `qafila.Llama.load` for the two options.

    Raises:
        UsageError: torch is not installed, or the device or type is none that it has here.
        FormatError: the weights are not those of the configuration. QafilaError: they do not fit the memory.
    """
    try:
        import torch
    except ImportError:
        raise UsageError(f"device {device!r:.40} needs torch: pip install 'qafila[gpu]'") from None

    from qafila.model.load import load_model
    from qafila.model.out_of_memory import is_out_of_memory

    if device.split(":")[0] == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r}: torch sees no CUDA device here")
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    if name not in types:
        raise UsageError(f"dtype {name!r}: choose from {', '.join(types)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's notes about kinds of device that it gave up
            target = torch.device(device)
            torch.ones(1, device=target).cpu()  # fails on a device that this torch, or this machine, does not have
    except (RuntimeError, ImportError, AssertionError):
        raise UsageError(f"device {device!r}: torch knows no such device here") from None
    needed = sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()) * types[name].itemsize
    machine = this_machine()
    if target.type == "cpu" and needed > machine.total:
        raise QafilaError(
            f"{checkpoint.path}: its weights take {needed / 1e9:.1f} GB as {name} and there are "
            f"{machine.total / 1e9:.1f} GB ({machine.limited_by}); try --dtype bfloat16 or a smaller model"
        )
    try:
        return load_model(
            checkpoint.config, checkpoint.tensors, device=target, dtype=types[name], source=checkpoint.path
        )
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise QafilaError(
                f"{checkpoint.path}: does not fit the memory of {device!r} as {name}; `qafila info` says what it needs"
            ) from None
        raise
