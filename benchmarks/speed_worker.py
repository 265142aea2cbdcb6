"""One contender of `engine_speed.py` in a process of its own: a JSON request a line in, a JSON answer a line out.

python benchmarks/speed_worker.py qafila|llama_cpp|reference MODEL [unmapped]
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


class Reference:
    """The torch model on dequantised weights, float32 throughout."""

    def __init__(self, path: Path) -> None:
        import torch

        from qafila.model.load import load_model
        from qafila.weights.load import open_checkpoint

        checkpoint = open_checkpoint(path)
        self._torch = torch
        self._model = load_model(checkpoint.config, checkpoint.tensors)

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits after each of the tokens, ``[T, V]``."""
        with self._torch.inference_mode():
            return np.asarray(self._model(self._torch.tensor([ids]))[0].numpy())

    def close(self) -> None:
        """Nothing to free."""


def peak_memory() -> int:
    """Most bytes this process ever had resident (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def answer(contender: Any, request: dict[str, Any]) -> Any:
    """What a request asks for."""
    call = request.pop("call")
    if call == "peak":
        return peak_memory()
    if call == "logits":
        target = request.pop("to")
        np.save(target, contender.logits(**request))
        return target
    return getattr(contender, call)(**request)


def main() -> None:
    """Serve until the input ends."""
    side, path, *rest = sys.argv[1:]
    # Whatever a library prints goes to standard error.
    replies, sys.stdout = sys.stdout, sys.stderr
    if side == "reference":
        contender: Any = Reference(Path(path))
    else:
        module = importlib.import_module(f"speed_{side}")
        contender = module.Contender(Path(path), **({"mapped": False} if "unmapped" in rest else {}))
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps({"value": answer(contender, json.loads(line))}), file=replies, flush=True)
    contender.close()


if __name__ == "__main__":
    main()
