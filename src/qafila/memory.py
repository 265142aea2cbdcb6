"""Will it fit: bytes to store, to run and to train a Llama, part by part, and against this machine.

Everything is computed from shapes; nothing is loaded. Bytes are exact for weights, KV cache, gradients and optimizer;
activations follow the formulas stated at each function and are good to about a quarter of their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from qafila.config import LayerPlan, ModelConfig
from qafila.machine import Machine
from qafila.parameters import Shape, layer_shapes, parameter_shapes
from qafila.quant.dtypes import DType

TrainMethod = Literal["full", "lora", "qlora"]

PREFILL_TOKENS = 512  # tokens of a sequence that go through the layers at once
_LOGIT_TOKENS = 1024  # tokens whose logits exist at once when the loss is computed in portions
_QLORA_TYPE = DType.Q4_0  # 4.5 bits; NF4 with double quantisation takes 4.13


@dataclass(frozen=True, slots=True)
class Runner:
    """How a way of running holds a model in memory.

    ``weights`` is the type all weights are converted to when loaded (``None``: each stays in its own), ``kv_bytes`` the
    bytes of one cached key or value, ``fixed`` what the process takes before any model.
    """

    weights: DType | None
    kv_bytes: int
    fixed: int


#: The PyTorch model on a CPU: float32 throughout; the process was measured at 235 MB with torch 2.13 imported.
TORCH_CPU = Runner(weights=DType.F32, kv_bytes=4, fixed=300_000_000)
#: An engine that computes on the weights as they are stored, with an f16 cache and without torch.
AS_STORED = Runner(weights=None, kv_bytes=2, fixed=100_000_000)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by part, in the order in which they are worth reading."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it fits, and one sentence that says why."""

    fits: bool
    reason: str


def tensor_bytes(shape: Shape, dtype: DType) -> int:
    """Bytes of one parameter stored as ``dtype``.

    Quantised files keep vectors in F32, and in F16 the matrices whose rows do not divide into whole blocks.
    """
    if dtype.quantised and len(shape) < 2:
        dtype = DType.F32
    elif dtype.quantised and shape[-1] % dtype.block_size:
        dtype = DType.F16
    return dtype.nbytes(shape)


def weight_bytes(config: ModelConfig, dtype: DType) -> int:
    """Bytes of all text weights with every matrix in ``dtype`` (real quantised files mix types: measure those)."""
    return sum(tensor_bytes(shape, dtype) for shape in parameter_shapes(config).values())


def memory_to_run(
    config: ModelConfig, stored: int, *, context: int, batch: int = 1, runner: Runner = AS_STORED
) -> Estimate:
    """Memory to generate with ``batch`` sequences of ``context`` tokens each.

    Args:
        config: the model.
        stored: bytes of its weights as stored.
        context: tokens per sequence, all of them cached (chunked attention too: its layers keep the whole sequence).
        batch: sequences at a time.
        runner: how weights and cache are held.

    The workspace is one layer's activations in float32 for the tokens in flight, T = batch · min(context, 512):
    4T·(3D + 2HN + 2KN + 2F) bytes with F the feed-forward width a token uses, and the logits, 4·batch·V.
    Attention is computed in tiles and keeps no T × context matrix.
    """
    held = stored if runner.weights is None else weight_bytes(config, runner.weights)
    tokens = batch * min(context, PREFILL_TOKENS)
    widest = max(_layer_width(config, plan, 3, 2) for plan in config.layers)
    return Estimate(
        {
            "weights": held,
            "KV cache": config.kv_bytes_per_token(runner.kv_bytes) * context * batch,
            "workspace": 4 * (tokens * widest + batch * config.vocab_size),
            "process": runner.fixed,
        }
    )


def memory_to_train(
    config: ModelConfig,
    method: TrainMethod,
    *,
    context: int,
    batch: int = 1,
    rank: int = 16,
    optimizer_bytes: int = 12,
    checkpointing: bool = True,
    chunked_loss: bool = True,
) -> Estimate:
    """Memory of one training process, without sharding.

    - ``full``: every parameter is trained: bf16 weights and gradients, 2 + 2 bytes each, and ``optimizer_bytes`` each
      (12: AdamW with float32 master weights and two float32 moments; 4: bf16 moments, no master; 2: 8-bit moments).
    - ``lora``: bf16 weights frozen; on every linear layer [out, in] an adapter of ``rank``·(in + out) parameters, with
      gradients and optimizer as above.
    - ``qlora``: as ``lora``, with the layers' matrices in 4.5 bits (Q4_0) and one of them dequantised at a time;
      embedding and head stay in bf16.

    Activations are bf16, T = batch · context tokens. A layer keeps 2T·(4D + 2HN + 2KN + 3F) bytes: inputs and outputs
    of both norms, of the projections and of the gated product. With ``checkpointing`` only each layer's input is kept,
    2TD, and one layer at a time is recomputed beside its gradients. The logits take 10 bytes each (bf16, float32 and
    gradient) for all T tokens, or with ``chunked_loss`` for 1024 of them.
    """
    shapes = parameter_shapes(config)
    total = sum(prod(shape) for shape in shapes.values())
    adapters = [shape for plan in config.layers for shape in _linear_shapes(config, plan)]
    parts: dict[str, int] = {}
    if method == "full":
        trained = total
        parts["weights"] = 2 * total
    else:
        trained = sum(prod(shape[:-2]) * rank * (shape[-2] + shape[-1]) for shape in adapters)
        parts["weights"] = 2 * total
        if method == "qlora":
            linear = sum(prod(shape) for shape in adapters)
            parts["weights"] = 2 * (total - linear) + sum(tensor_bytes(shape, _QLORA_TYPE) for shape in adapters)
            parts["one layer dequantised"] = 2 * max(prod(shape) for shape in adapters)
        parts["adapters"] = 2 * trained
    parts["gradients"] = 2 * trained
    parts["optimizer"] = optimizer_bytes * trained
    tokens = batch * context
    widths = [2 * tokens * _layer_width(config, plan, 4, 3) for plan in config.layers]
    if checkpointing:
        parts["activations"] = 2 * tokens * config.dim * config.n_layers + 2 * max(widths)
    else:
        parts["activations"] = sum(widths)
    parts["logits"] = 10 * config.vocab_size * (min(tokens, _LOGIT_TOKENS) if chunked_loss else tokens)
    parts["process"] = TORCH_CPU.fixed
    return Estimate(parts)


def _layer_width(config: ModelConfig, plan: LayerPlan, dims: int, ffns: int) -> int:
    """Values per token in one layer: ``dims``·D, queries and attention output, keys and values, ``ffns``·F."""
    used = plan.ffn_dim
    if plan.mixture and config.moe is not None:
        used *= config.moe.top_k + 1  # the routed experts of a token, and the shared one
    attention = 2 * config.n_heads * config.head_dim + 2 * config.n_kv_heads * config.head_dim
    return dims * config.dim + attention + ffns * used


def _linear_shapes(config: ModelConfig, plan: LayerPlan) -> list[Shape]:
    """The layer's linear layers that adapters go on: all matrices but the router."""
    return [shape for name, shape in layer_shapes(config, plan) if len(shape) > 1 and "router" not in name]


def judge(need: Estimate, machine: Machine, alternatives: Mapping[str, int] | None = None) -> Verdict:
    """Whether ``need`` fits in the memory ``machine`` has available.

    ``alternatives`` are other ways (label to bytes, best first): a "no" names the first of them that fits, or says how
    much the least of them would take.
    """
    total, free = need.total, machine.available
    where = "this container" if machine.limited_by == "container limit" else "this machine"
    if total <= free:
        tight = "; that is tight" if total > 0.9 * free else ""
        return Verdict(True, f"needs {gigabytes(total)}, {where} has {gigabytes(free)} free{tight}")
    reason = f"needs {gigabytes(total)}, {where} has {gigabytes(free)} free"
    for label, size in (alternatives or {}).items():
        if size <= free:
            return Verdict(False, f"{reason}; {label} would need {gigabytes(size)} and fit")
    if alternatives:
        label, least = min(alternatives.items(), key=lambda item: item[1])
        if least < total:
            reason += f"; even {label} would need {gigabytes(least)}"
    return Verdict(False, reason)


def longest_context(config: ModelConfig, stored: int, machine: Machine, *, batch: int, runner: Runner) -> int:
    """The longest context, up to the model's own, for which running fits; 0 when not even a short one does."""
    short = memory_to_run(config, stored, context=PREFILL_TOKENS, batch=batch, runner=runner)
    room = machine.available - (short.total - short.parts["KV cache"])
    per_token = max(1, config.kv_bytes_per_token(runner.kv_bytes) * batch)
    return min(config.context_length, max(0, room // per_token))


def run_alternatives(config: ModelConfig, *, context: int, batch: int, runner: Runner) -> dict[str, int]:
    """Total memory with the weights held in other types: for :func:`judge`."""
    found: dict[str, int] = {}
    for dtype in (DType.BF16, DType.Q8_0, DType.Q4_0, DType.Q2_K):
        stored = weight_bytes(config, dtype)
        held = Runner(None, min(runner.kv_bytes, 2), runner.fixed)
        need = memory_to_run(config, stored, context=context, batch=batch, runner=held)
        found[f"weights in {dtype.name}"] = need.total
    return found


def train_alternatives(config: ModelConfig, method: TrainMethod, *, context: int, batch: int) -> dict[str, int]:
    """Total memory of the lighter ways to train: for :func:`judge`."""
    order: tuple[TrainMethod, ...] = ("full", "lora", "qlora")
    found: dict[str, int] = {}
    for lighter in order[order.index(method) + 1 :]:
        found[f"--train {lighter}"] = memory_to_train(config, lighter, context=context, batch=batch).total
    if batch > 1:
        found[f"--train {order[-1]} --batch 1"] = memory_to_train(config, order[-1], context=context).total
    return found


def gigabytes(size: float) -> str:
    """Bytes as people compare them with a machine: powers of 1000, three figures."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            value = size / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"
