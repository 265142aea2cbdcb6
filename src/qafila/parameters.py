"""Every parameter of a configuration, by its canonical name, with its shape: the source of all counts and checks.

Canonical names are Hugging Face's, with two exceptions that make every weight a plain ``[out, in]`` matrix: the
feed-forward part is ``mlp`` in every family, and the stacked experts are three tensors ``mlp.experts.gate_proj.weight``
``[E, F, D]``, ``mlp.experts.up_proj.weight`` ``[E, F, D]`` and ``mlp.experts.down_proj.weight`` ``[E, D, F]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from qafila.config import LayerPlan, ModelConfig

Shape = tuple[int, ...]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


def layer_shapes(config: ModelConfig, plan: LayerPlan) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of one layer's parameters, in file order."""
    D, H, K, N, F = config.dim, config.n_heads, config.n_kv_heads, config.head_dim, plan.ffn_dim
    prefix = f"model.layers.{plan.index}"
    attention = "cross_attn" if plan.attention == "cross" else "self_attn"
    yield f"{prefix}.input_layernorm.weight", (D,)
    yield f"{prefix}.{attention}.q_proj.weight", (H * N, D)
    yield f"{prefix}.{attention}.k_proj.weight", (K * N, D)
    yield f"{prefix}.{attention}.v_proj.weight", (K * N, D)
    yield f"{prefix}.{attention}.o_proj.weight", (D, H * N)
    if plan.attention == "cross":
        yield f"{prefix}.cross_attn.q_norm.weight", (N,)
        yield f"{prefix}.cross_attn.k_norm.weight", (N,)
        yield f"{prefix}.cross_attn_attn_gate", (1,)
        yield f"{prefix}.cross_attn_mlp_gate", (1,)
    yield f"{prefix}.post_attention_layernorm.weight", (D,)
    if plan.mixture:
        assert config.moe is not None
        E = config.moe.n_experts
        yield f"{prefix}.mlp.router.weight", (E, D)
        yield f"{prefix}.mlp.experts.gate_proj.weight", (E, F, D)
        yield f"{prefix}.mlp.experts.up_proj.weight", (E, F, D)
        yield f"{prefix}.mlp.experts.down_proj.weight", (E, D, F)
    dense = f"{prefix}.mlp.shared_expert" if plan.mixture else f"{prefix}.mlp"
    yield f"{dense}.gate_proj.weight", (F, D)
    yield f"{dense}.up_proj.weight", (F, D)
    yield f"{dense}.down_proj.weight", (D, F)


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every text parameter of ``config``: canonical name to shape. The image tower is not among them."""
    shapes: dict[str, Shape] = {EMBEDDING: (config.vocab_size + config.extra_embeddings, config.dim)}
    for plan in config.layers:
        shapes.update(layer_shapes(config, plan))
    shapes[FINAL_NORM] = (config.dim,)
    if not config.tie_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, config.dim)
    return shapes


def text_parameters(config: ModelConfig) -> int:
    """How many text parameters there are (a tied head counts once)."""
    return sum(prod(shape) for shape in parameter_shapes(config).values())


def active_parameters(config: ModelConfig) -> int:
    """How many text parameters one token uses: of each mixture only ``top_k`` routed experts."""
    total = text_parameters(config)
    if config.moe is None:
        return total
    expert = 3 * config.moe.ffn_dim * config.dim
    idle = config.moe.n_experts - config.moe.top_k
    return total - sum(idle * expert for plan in config.layers if plan.mixture)
