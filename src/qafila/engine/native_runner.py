"""The native runner: weights in panels, a paged KV cache and a team of threads, all in C++; no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from qafila.config import ModelConfig
from qafila.engine.native_weights import ROLES, fill, held_bytes
from qafila.engine.runner import BLOCK_TOKENS, Float32, Step
from qafila.errors import FormatError, QafilaError, UnsupportedError, UsageError
from qafila.machine import this_machine, usable_cores
from qafila.native import _native
from qafila.parameters import layer_shapes
from qafila.quant.codec import dequantise
from qafila.weights.check import check_tensors
from qafila.weights.load import Checkpoint
from qafila.weights.tensor import LazyTensor

if TYPE_CHECKING:
    from qafila.weights.adapter import LoraModule

KVType = Literal["f16", "int8"]

# Attention keeps a head's values in registers and scratch memory of fixed size.
_MAX_HEAD_DIM = 512


class NativeRunner:
    """A `Runner` on this machine's processors; see `qafila.engine.runner` for what it does.

    Args:
        config: the model.
        tensors: canonical names to weights, exactly those of `qafila.parameters.parameter_shapes`.
        source: the file or folder the tensors came from, for messages.
        threads: of the team, the calling thread included; None for one a physical core this process may use.
        cpus: processors that the threads are pinned to, in turn; the calling thread too.
        isa: ``portable``, ``avx2``, ``avxvnni`` or ``avx512``; None for the environment's ``QAFILA_ISA``, or the best.
        num_blocks: blocks of `BLOCK_TOKENS` tokens in the KV cache.
        kv_tokens: the same in tokens; with neither, the model's context, or what fits half of the free memory.
        kv_type: ``f16``, or ``int8`` with a scale for each token and head.
        max_tokens: most tokens of a step. max_rows: most wanted tokens of a step.

    Raises:
        UnsupportedError: image towers, cross-attention, or shapes there is no kernel for.
        UsageError: an option that makes no sense here. QafilaError: it does not fit the memory.
        FormatError: the weights are not those of the configuration.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, LazyTensor],
        *,
        source: object = "weights",
        threads: int | None = None,
        cpus: Sequence[int] = (),
        isa: str | None = None,
        num_blocks: int | None = None,
        kv_tokens: int | None = None,
        kv_type: KVType = "f16",
        max_tokens: int = 512,
        max_rows: int | None = None,
    ) -> None:
        check_supported(config, source)
        check_tensors(config, tensors, source=source)
        if kv_type not in ("f16", "int8"):
            raise UsageError(f"kv_type {kv_type!r:.40}: choose from f16, int8")
        for name, value in (("threads", threads), ("num_blocks", num_blocks), ("kv_tokens", kv_tokens)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} must be a whole number, 1 or more, not {value!r:.40}")
        self.config = config
        self.max_tokens = max_tokens
        self.max_rows = min(max_tokens, 128) if max_rows is None else max_rows
        self.kv_type: KVType = kv_type
        self.num_blocks = _blocks(config, tensors, num_blocks, kv_tokens, kv_type)
        isa = isa or os.environ.get("QAFILA_ISA", "")
        if isa and isa not in _native.instruction_sets():
            raise UsageError(f"instruction set {isa!r:.40}: this machine runs {', '.join(_native.instruction_sets())}")
        self._check_memory(tensors, source)
        try:
            self._opened: _native.Model | None = _native.Model(
                dim=config.dim,
                heads=config.n_heads,
                kv_heads=config.n_kv_heads,
                head_dim=config.head_dim,
                vocabulary=config.vocab_size,
                embedding_rows=config.vocab_size + config.extra_embeddings,
                eps=config.norm_eps,
                interleaved=config.rope_interleaved,
                tied=config.tie_embeddings,
                inverse_frequencies=config.inverse_frequencies,
                layers=_plans(config),
                threads=threads or usable_cores(),
                cpus=list(cpus),
                isa=isa,
            )
            weights = fill(self._model, config, tensors)
            self._model.start(
                blocks=self.num_blocks, int8=kv_type == "int8", max_tokens=max_tokens, max_rows=self.max_rows
            )
        except MemoryError:
            raise QafilaError(f"{source}: does not fit the memory; `qafila info` says what it needs") from None
        self.threads: int = self._model.threads
        self.isa: str = self._model.isa
        self.fingerprint = f"{weights}-{self.isa}-{kv_type}"
        self._adapters = 0

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        *,
        threads: int | None = None,
        cpus: Sequence[int] = (),
        isa: str | None = None,
        num_blocks: int | None = None,
        kv_tokens: int | None = None,
        kv_type: KVType = "f16",
        max_tokens: int = 512,
        max_rows: int | None = None,
    ) -> NativeRunner:
        """The runner of an opened checkpoint; arguments as above."""
        return cls(
            checkpoint.config,
            checkpoint.tensors,
            source=checkpoint.path,
            threads=threads,
            cpus=cpus,
            isa=isa,
            num_blocks=num_blocks,
            kv_tokens=kv_tokens,
            kv_type=kv_type,
            max_tokens=max_tokens,
            max_rows=max_rows,
        )

    @property
    def kv_bytes(self) -> int:
        """Bytes of the whole KV cache."""
        return self.num_blocks * self._model.block_bytes

    def logits(self, step: Step) -> Float32:
        """Logits after each wanted token: ``[R, V]``, the runner's own buffer, good until the next call."""
        return self._step(step, logits=True)

    def hidden(self, step: Step) -> Float32:
        """Normed last hidden states of the wanted tokens: ``[R, D]``, good until the next call."""
        return self._step(step, logits=False)

    def _step(self, step: Step, *, logits: bool) -> Float32:
        temperature = self.config.temperature
        return self._model.step(
            logits=logits,
            ids=step.token_ids,
            positions=step.positions,
            starts=step.starts,
            blocks=np.ascontiguousarray(step.blocks),
            adapters=step.adapters,
            wanted=step.wanted,
            query_scales=None if temperature is None else temperature.query_scale(step.positions),
        )

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block's keys and values of all layers."""
        self._model.copy_block(source, target)

    def load_adapter(self, path: Path) -> int:
        """Read a PEFT LoRA adapter; a number above 0 that names it in steps.

        Raises:
            QafilaError: it is damaged, made for another model, or of a kind that is not applied unmerged.
        """
        from qafila.weights.adapter import read_adapter

        adapter = read_adapter(path)
        if adapter.dora:
            raise UnsupportedError(path, "is a DoRA adapter, which cannot be applied unmerged; merge it first")
        if adapter.saved:
            name = next(iter(adapter.saved))
            raise UnsupportedError(path, f"replaces {name} as a whole; merge it into the model first")
        parts = [_low_rank(self.config, path, name, module) for name, module in adapter.modules.items()]
        self._adapters += 1
        self._model.add_adapter(self._adapters, parts)
        return self._adapters

    def unload_adapter(self, adapter: int) -> None:
        """Forget an adapter that no running request uses."""
        self._model.remove_adapter(adapter)

    def close(self) -> None:
        """Free weights, cache and threads (the last logits stay readable as long as somebody holds them)."""
        self._opened = None

    @property
    def _model(self) -> _native.Model:
        if self._opened is None:
            raise UsageError("the runner is closed; load the model again")
        return self._opened

    def _check_memory(self, tensors: Mapping[str, LazyTensor], source: object) -> None:
        weights = held_bytes(self.config, tensors)
        cache = self.num_blocks * BLOCK_TOKENS * _kv_bytes_per_token(self.config, self.kv_type)
        machine = this_machine()
        if machine.available and weights + cache > machine.available:
            raise QafilaError(
                f"{source}: weights take {weights / 1e9:.2f} GB and the KV cache {cache / 1e9:.2f} GB, and "
                f"{machine.available / 1e9:.2f} GB are free ({machine.limited_by}); ask for a shorter context "
                "(kv_tokens) or take a smaller model"
            )


def check_supported(config: ModelConfig, source: object) -> None:
    """Raise :class:`UnsupportedError` for what only the torch model runs."""
    if config.cross_attention_layers:
        raise UnsupportedError(
            source,
            "has cross-attention to images, which the native engine does not run; torch does: --device cpu or cuda "
            "(device= in Python), after pip install 'qafila[gpu]'",
        )
    if config.head_dim > _MAX_HEAD_DIM:
        raise UnsupportedError(source, f"has heads of {config.head_dim}; the native engine runs up to {_MAX_HEAD_DIM}")


def _plans(config: ModelConfig) -> list[tuple[bool, bool, bool, int, int, int, int]]:
    """(rotary, qk_norm, temperature, chunk, ffn_dim, experts, experts a token) of every layer."""
    plans = []
    for plan in config.layers:
        # A chunk longer than positions can go hides nothing.
        chunk = config.attention_chunk if plan.attention == "chunked" and config.attention_chunk else 0
        moe = config.moe if plan.mixture else None
        experts, top_k = (moe.n_experts, moe.top_k) if moe else (0, 0)
        chunk = 0 if chunk >= 1 << 31 else chunk
        plans.append((plan.rotary, plan.qk_norm, plan.temperature, chunk, plan.ffn_dim, experts, top_k))
    return plans


def _kv_bytes_per_token(config: ModelConfig, kv_type: KVType) -> int:
    scales = 8 * config.n_layers * config.n_kv_heads if kv_type == "int8" else 0
    return config.kv_bytes_per_token(1 if kv_type == "int8" else 2) + scales


def _blocks(
    config: ModelConfig,
    tensors: Mapping[str, LazyTensor],
    num_blocks: int | None,
    kv_tokens: int | None,
    kv_type: KVType,
) -> int:
    if num_blocks is not None:
        if kv_tokens is not None:
            raise UsageError("num_blocks and kv_tokens say the same; give one of them")
        return num_blocks
    if kv_tokens is None:
        free = (this_machine().available - held_bytes(config, tensors)) // 2
        kv_tokens = max(BLOCK_TOKENS, min(config.context_length, free // _kv_bytes_per_token(config, kv_type)))
    return -(-kv_tokens // BLOCK_TOKENS)


def _low_rank(
    config: ModelConfig, path: Path, name: str, module: LoraModule
) -> tuple[int, int, float, Float32, Float32]:
    """(layer, role, scaling, A, B) of one adapted matrix."""
    prefix, _, rest = name.removesuffix(".weight").partition("model.layers.")
    number, _, part = rest.partition(".")
    role = ROLES.get(part)
    if prefix or role is None or not number.isdecimal():
        raise UnsupportedError(path, f"adapts {name:.80}, which the native engine does not; merge it into the model")
    if role > ROLES["mlp.down_proj"]:
        raise UnsupportedError(path, f"adapts {name:.80}: routers and routed experts are not adapted; merge it instead")
    layer = int(number)
    expected = _shape(config, layer, part)
    if expected is None or (module.b.shape[0], module.a.shape[1]) != expected:
        raise FormatError(path, f"{name:.80} is no matrix of this model, or has another shape there")
    a, b = (
        np.ascontiguousarray(dequantise(lazy.dtype, lazy.read().data).reshape(lazy.shape))
        for lazy in (module.a, module.b)
    )
    return layer, role, module.scaling, a, b


def _shape(config: ModelConfig, layer: int, part: str) -> tuple[int, ...] | None:
    if layer >= config.n_layers:
        return None
    return dict(layer_shapes(config, config.layers[layer])).get(f"model.layers.{layer}.{part}.weight")
