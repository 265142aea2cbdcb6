"""Memory of one training process, part by part, for a recipe and the layout of its processes. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

from qafila.config import LayerPlan, ModelConfig
from qafila.memory import Estimate
from qafila.parameters import EMBEDDING, Shape, layer_shapes
from qafila.train.parallel.layout import Layout
from qafila.train.recipe import Recipe

NF4_BITS: Final = 4.127
"""Bits of a weight in NF4 with double quantisation (arXiv 2305.14314)."""
_BLOCK_BITS: Final = 4.5  # of Q4_0 and its like, where nobody says what the base is stored in
_PROCESS: Final = {False: 300_000_000, True: 1_500_000_000}  # torch alone; with a CUDA context and its libraries
_LOGITS: Final = {False: 256 * 49152, True: 1 << 27}  # logits that exist at once: train/loss.py
_WIDTH: Final = {"float32": 4, "bfloat16": 2, "bfloat16-stochastic": 2}


@dataclass(frozen=True, slots=True)
class _Part:
    """What one process of a pipeline holds: bytes need the layers, embedding and head apart."""

    layers: tuple[LayerPlan, ...]
    embeds: bool
    heads: bool
    in_flight: float  # micro-batches whose activations are kept at once, of all its layers


def footprint(
    recipe: Recipe,
    config: ModelConfig,
    layout: Layout | None = None,
    *,
    on_gpu: bool = False,
    stored_bits: float | None = None,
) -> Estimate:
    """Memory of the process that needs the most.

    Bytes a trained parameter: weights and gradients as wide as the precision, and the optimiser: AdamW's moments 8 (4
    with ``bfloat16-stochastic``), in 8 bits 2; Muon's matrices 4. With ``bfloat16`` gradients are float32, and so are
    master weights: beside the bfloat16 ones on one GPU (18 bytes with AdamW), and under FSDP or on a CPU in their place
    (16 bytes); under FSDP gathered layers are bfloat16: two of them at a time, or all with
    ``reshard_after_forward = false``. An adapter and its gradients are float32 in any case.

    Activations: a layer keeps 4D + 2HN + 2KN + 3F values for each of its T tokens, as wide as the arithmetic (the
    precision; on a CPU float32): inputs and outputs of norms, projections and the gated product (F of a mixture: the
    experts that a token uses). With ``checkpoint_activations`` only the layer's input, TD, and one layer at a time
    beside it. Tensor parallelism divides them (with sequence parallelism, as here), context parallelism divides T, a
    pipeline multiplies by the micro-batches in flight (1F1B: as many as stages are ahead). Good to about a quarter of
    their size.

    Args:
        recipe: what is trained and how.
        config: the model.
        layout: of the processes; None: one.
        on_gpu: whether the process holds a CUDA context.
        stored_bits: bits of a weight of the base's file, for ``adapter.base = "stored"``.
    """
    layout = layout or Layout()
    micro_batches = max(1, recipe.train.batch // (recipe.train.micro_batch * layout.data))
    parts = [
        _memory(recipe, config, layout, part, on_gpu, stored_bits)
        for part in _pipeline_parts(config, layout, micro_batches)
    ]
    return max(parts, key=lambda estimate: estimate.total)


def trained_parameters(recipe: Recipe, config: ModelConfig) -> int:
    """How many parameters move: the adapter's, or all, with a reward model's head instead of the vocabulary's."""
    return sum(_trained(recipe, config, part) for part in _pipeline_parts(config, Layout(), 1))


def _pipeline_parts(config: ModelConfig, layout: Layout, micro_batches: int) -> list[_Part]:
    stages = layout.stage_layers(config.n_layers)
    parts = []
    for rank in range(layout.pipeline):
        mine = range(rank, layout.stages, layout.pipeline)
        layers = tuple(config.layers[i] for stage in mine for i in stages[stage])
        ahead = layout.pipeline - rank
        if layout.virtual > 1:
            # Megatron's interleaved schedule: warm-up steps of one of V stages each, and the one under way.
            ahead_steps = 2 * (layout.pipeline - rank - 1) + (layout.virtual - 1) * layout.pipeline + 1
            in_flight = min(micro_batches, ahead_steps / layout.virtual)
        else:
            in_flight = min(micro_batches, ahead)
        parts.append(_Part(layers, rank == 0, rank == layout.pipeline - 1, max(1.0, in_flight)))
    return parts


def _memory(
    recipe: Recipe, config: ModelConfig, layout: Layout, part: _Part, on_gpu: bool, stored_bits: float | None
) -> Estimate:
    width = _WIDTH[recipe.train.precision]
    computed = width if on_gpu else 4
    adapted, split = recipe.adapter is not None, layout.shard * layout.context * layout.tensor
    held = _parameters(recipe, config, part) / layout.tensor
    trained = _trained(recipe, config, part) / split
    sharded = layout.shard * layout.context > 1
    parts: dict[str, float] = {}
    masters = recipe.train.precision == "bfloat16"
    if adapted:
        parts["weights"] = _frozen(recipe, config, part, width, stored_bits) / split
        parts["adapter"], parts["gradients"] = 4 * trained, 4 * trained
    elif masters and (sharded or not on_gpu):
        parts["weights"], parts["gradients"] = 4 * trained, 4 * trained
    else:
        parts["weights"] = width * trained
        if masters:
            parts["master weights"] = 4 * trained
        # Those of many micro-batches are added up in float32, but with random rounding (`qafila.train.optim`).
        parts["gradients"] = (4 if masters else width) * trained
    parts["optimizer"] = _moments(recipe, config, part) / split
    if recipe.objective == "dpo" and not adapted:
        parts["reference"] = width * held / (layout.shard * layout.context)
    if sharded:
        layers = [sum(prod(shape) for _, shape in layer_shapes(config, plan)) for plan in part.layers]
        edge = held - sum(layers) / layout.tensor
        gathered = edge + (2 * max(layers, default=0) if recipe.parallel.reshard_after_forward else sum(layers)) / (
            layout.tensor
        )
        parts["gathered layers"] = width * min(gathered, held)
    if adapted and recipe.adapter is not None and recipe.adapter.base != "plain":
        matrices = [prod(shape) for plan in part.layers for _, shape in _targets(recipe, config, plan)]
        parts["one matrix decoded"] = computed * max(matrices, default=0)
    tokens = recipe.train.micro_batch * recipe.data.sequence / layout.context
    widths = [computed * tokens * _layer_width(config, plan) / layout.tensor for plan in part.layers]
    if recipe.train.checkpoint_activations:
        kept = computed * tokens * config.dim * len(part.layers) / layout.tensor
        parts["activations"] = kept * part.in_flight + 2 * max(widths, default=0)
    else:
        parts["activations"] = sum(widths) * part.in_flight
    if layout.context > 1:
        gathered_kv = 2 * config.n_kv_heads * config.head_dim * recipe.train.micro_batch * recipe.data.sequence
        parts["gathered keys and values"] = 2 * computed * gathered_kv / layout.tensor
    if part.heads and recipe.objective != "reward":
        rows = min(tokens, max(16, _LOGITS[on_gpu] / config.vocab_size))
        parts["logits"] = 10 * rows * config.vocab_size / layout.tensor
        if not on_gpu and width == 2:
            parts["logits"] += 4 * config.vocab_size * config.dim  # the head in float32: faster there
    parts["process"] = _PROCESS[on_gpu]
    return Estimate({name: int(size) for name, size in parts.items()})


def _parameters(recipe: Recipe, config: ModelConfig, part: _Part) -> int:
    """Parameters of the layers, and of embedding and head where they lie."""
    total = sum(prod(shape) for plan in part.layers for _, shape in layer_shapes(config, plan))
    table = (config.vocab_size + config.extra_embeddings) * config.dim
    if part.embeds or (part.heads and config.tie_embeddings):
        total += table
    if part.heads:
        total += config.dim
        if recipe.objective == "reward":
            total += config.dim
        elif not config.tie_embeddings:
            total += config.vocab_size * config.dim
    return total


def _targets(recipe: Recipe, config: ModelConfig, plan: LayerPlan) -> list[tuple[str, Shape]]:
    """The layer's matrices that an adapter goes on."""
    wanted = recipe.adapter.targets if recipe.adapter is not None else ()
    names = [(name, shape) for name, shape in layer_shapes(config, plan) if len(shape) > 1]
    return [(name, shape) for name, shape in names if name.removesuffix(".weight").rsplit(".", 1)[-1] in wanted]


def _trained(recipe: Recipe, config: ModelConfig, part: _Part) -> int:
    if recipe.adapter is None:
        return _parameters(recipe, config, part)
    total = 0
    for plan in part.layers:
        for _, shape in _targets(recipe, config, plan):
            total += prod(shape[:-2]) * recipe.adapter.rank * (shape[-2] + shape[-1])
            total += prod(shape[:-1]) if recipe.adapter.kind == "dora" else 0
    return total + _saved(recipe, config, part)


def _saved(recipe: Recipe, config: ModelConfig, part: _Part) -> int:
    """Parameters of embedding and head, where an adapter trains them whole besides."""
    saved = recipe.adapter.save if recipe.adapter is not None else ()
    total = 0
    if "embed_tokens" in saved and (part.embeds or (part.heads and config.tie_embeddings)):
        total += (config.vocab_size + config.extra_embeddings) * config.dim
    if "lm_head" in saved and part.heads and not config.tie_embeddings:
        total += config.vocab_size * config.dim
    return total


def _frozen(recipe: Recipe, config: ModelConfig, part: _Part, width: int, stored_bits: float | None) -> float:
    assert recipe.adapter is not None
    total = _parameters(recipe, config, part)
    if recipe.adapter.base == "plain":
        return width * total
    linear = sum(
        prod(shape)
        for plan in part.layers
        for name, shape in layer_shapes(config, plan)
        if len(shape) == 2 and "router" not in name
    )
    bits = NF4_BITS if recipe.adapter.base == "nf4" else (stored_bits or _BLOCK_BITS)
    return width * (total - linear) + linear * bits / 8


def _moments(recipe: Recipe, config: ModelConfig, part: _Part) -> float:
    trained = _trained(recipe, config, part)
    wide = 2 if recipe.train.precision == "bfloat16-stochastic" else 4
    if recipe.optimizer.name == "adamw8bit":
        return 2.03 * trained
    if recipe.optimizer.name == "muon":
        matrices = sum(
            prod(shape)
            for plan in part.layers
            for name, shape in layer_shapes(config, plan)
            if len(shape) > 1 and name != EMBEDDING
        )
        matrices = min(matrices, trained) if recipe.adapter is None else trained
        return wide * matrices + 2 * wide * (trained - matrices)
    return 2 * wide * trained


def _layer_width(config: ModelConfig, plan: LayerPlan) -> int:
    used = plan.ffn_dim
    if plan.mixture and config.moe is not None:
        used *= config.moe.top_k + 1  # the routed experts of a token, and the shared one
    attention = 2 * config.n_heads * config.head_dim + 2 * config.n_kv_heads * config.head_dim
    return 4 * config.dim + attention + 3 * used
