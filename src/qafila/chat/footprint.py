"""How much memory a model will take, asked before any of its weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from qafila.chat.placement import kv_tokens
from qafila.engine.native_weights import held_bytes
from qafila.engine.runner import BLOCK_TOKENS
from qafila.machine import this_machine
from qafila.memory import PREFILL_TOKENS, memory_to_run
from qafila.weights.adapter import read_adapter
from qafila.weights.adapter_model import open_for_engine
from qafila.weights.hub import resolve
from qafila.weights.load import Checkpoint

_TORCH_BYTES = {None: 4, "float32": 4, "bfloat16": 2, "float16": 2}


def model_bytes(source: str | Path, options: Mapping[str, Any]) -> int:
    """Bytes that `qafila.Llama.load` will take with these options: weights as they are held, the whole KV cache, and
    what one step of computation needs; the draft model's too.

    The native engine's weights are counted as `qafila.engine.native_runner` does before it loads them; torch's from
    the number of parameters, wherever the device keeps them.

    Raises:
        QafilaError: there is no such model, it is damaged, or an option makes no sense.
    """
    total = 0
    for each in (source, options.get("draft")):
        if each is not None:
            apart = each is source and options.get("device") is None and options.get("adapter") is None
            checkpoint, adapter = open_for_engine(resolve(str(each)), merge_adapter=not apart)
            total += _checkpoint_bytes(checkpoint, options) + (adapter_bytes(adapter) if adapter is not None else 0)
    return total


def _checkpoint_bytes(checkpoint: Checkpoint, options: Mapping[str, Any]) -> int:
    config = checkpoint.config
    context = options.get("context")
    tokens = kv_tokens(config, context)
    if options.get("device") is not None:
        width = _TORCH_BYTES.get(options.get("dtype"), 4)
        weights = width * sum(prod(lazy.shape) for lazy in checkpoint.tensors.values())
        each = config.kv_bytes_per_token(width)
    else:
        weights = held_bytes(config, checkpoint.tensors)
        each = config.kv_bytes_per_token(1 if options.get("kv_type") == "int8" else 2)
        if options.get("kv_type") == "int8":
            each += 8 * config.n_layers * config.n_kv_heads  # scales
        if context is None and each:
            # As `placement` does: what nobody asked for by number takes half of the free memory at most.
            most = this_machine().available // 2 // each // BLOCK_TOKENS * BLOCK_TOKENS
            tokens = min(tokens, max(most, BLOCK_TOKENS))
    return weights + each * tokens + memory_to_run(config, 0, context=PREFILL_TOKENS).parts["workspace"]


def adapter_bytes(path: str | Path) -> int:
    """Bytes that an adapter (PEFT) takes beside its base: the engine holds its matrices in float32.

    Raises:
        QafilaError: it is not there or damaged.
    """
    modules = read_adapter(Path(path)).modules.values()
    return sum(4 * (prod(module.a.shape) + prod(module.b.shape)) for module in modules)
