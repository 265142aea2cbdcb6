"""One two-way table of parameter names: canonical ↔ Hugging Face, GGUF and Meta, with the RoPE row order in it.

A `Rule` ties the canonical names to one tensor of a file and holds both directions. Row orders: canonical query and
key rows are Hugging Face's. Up to Llama 3.3 those keep a head's rotary pairs half a head apart while Meta's files
and GGUF keep them side by side, so rows are moved; Llama 4 keeps them side by side everywhere
(``ModelConfig.rope_interleaved``) and nothing moves. Rows are moved as bytes, which works for quantised blocks too,
since blocks lie along a row. Sources: ``permute`` in transformers' ``convert_llama_weights_to_hf.py`` and in
llama.cpp's ``conversion/llama.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from qafila.config import ModelConfig
from qafila.errors import FormatError, UnsupportedError
from qafila.parameters import EMBEDDING, FINAL_NORM, LM_HEAD, parameter_shapes
from qafila.weights.tensor import LazyTensor, Tensor

Tensors = Mapping[str, LazyTensor]
Change = Callable[[LazyTensor], LazyTensor]
Group = tuple[LazyTensor, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A file's tensors ``foreign`` hold the parameters ``canonical``; ``read`` and ``write`` convert."""

    canonical: tuple[str, ...]
    foreign: tuple[str, ...]
    read: Callable[[Group], Group]
    write: Callable[[Group], Group]


def _one(canonical: str, foreign: str, read: Change, write: Change) -> Rule:
    return Rule((canonical,), (foreign,), lambda group: (read(group[0]),), lambda group: (write(group[0]),))


def _same(canonical: str, foreign: str) -> Rule:
    return _one(canonical, foreign, lambda tensor: tensor, lambda tensor: tensor)


def pairs_to_halves(tensor: Tensor, heads: int) -> Tensor:
    """Reorder rows ``[heads * N, D]`` from pairs side by side (2i, 2i+1) to pairs half a head apart (i, i + N/2)."""
    rows = tensor.rows()
    moved = rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2)
    return Tensor(tensor.dtype, tensor.shape, np.ascontiguousarray(moved).reshape(-1))


def halves_to_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Reorder rows ``[heads * N, D]`` from pairs half a head apart (i, i + N/2) to pairs side by side (2i, 2i+1)."""
    rows = tensor.rows()
    moved = rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2)
    return Tensor(tensor.dtype, tensor.shape, np.ascontiguousarray(moved).reshape(-1))


def _rotary(canonical: str, foreign: str, heads: int) -> Rule:
    return _one(
        canonical,
        foreign,
        lambda tensor: tensor.mapped(partial(pairs_to_halves, heads=heads)),
        lambda tensor: tensor.mapped(partial(halves_to_pairs, heads=heads)),
    )


def _elements(tensor: Tensor) -> npt.NDArray[Any]:
    if tensor.dtype.quantised:
        raise FormatError("expert weights", f"{tensor.dtype.name} blocks cannot be transposed; use an unquantised type")
    return tensor.data.view(np.dtype(f"u{tensor.dtype.block_bytes}")).reshape(tensor.shape)


def _from_elements(tensor: Tensor, values: npt.NDArray[Any]) -> Tensor:
    return Tensor(tensor.dtype, values.shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def transpose_last(tensor: Tensor) -> Tensor:
    """Swap the last two dimensions of an unquantised tensor."""
    return _from_elements(tensor, _elements(tensor).swapaxes(-1, -2))


def _swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2])


def _transposed(canonical: str, foreign: str) -> Rule:
    def swap(tensor: LazyTensor) -> LazyTensor:
        if len(tensor.shape) < 2:
            raise FormatError(tensor.origin, f"shape {list(tensor.shape)}, expected at least two dimensions")
        return tensor.mapped(transpose_last, _swapped(tensor.shape))

    return _one(canonical, foreign, swap, swap)


def _fused_experts(gate: str, up: str, foreign: str) -> Rule:
    """Hugging Face's ``gate_up_proj`` ``[E, D, 2F]`` holds gate and up side by side, transposed."""

    def half(tensor: Tensor, index: int) -> Tensor:
        values = _elements(tensor)
        width = values.shape[-1] // 2
        return _from_elements(tensor, values[..., index * width : (index + 1) * width].swapaxes(-1, -2))

    def read(group: Group) -> Group:
        tensor = group[0]
        if len(tensor.shape) != 3 or tensor.shape[2] % 2:
            raise FormatError(tensor.origin, f"shape {list(tensor.shape)}, expected [experts, model, 2 x feed-forward]")
        shape = (tensor.shape[0], tensor.shape[2] // 2, tensor.shape[1])
        return tensor.mapped(partial(half, index=0), shape), tensor.mapped(partial(half, index=1), shape)

    def write(group: Group) -> Group:
        first, second = group
        E, F, D = first.shape

        def join() -> Tensor:
            a, b = first.read(), second.read()
            return _from_elements(a, np.concatenate([_elements(a), _elements(b)], axis=1).swapaxes(-1, -2))

        return (LazyTensor(first.dtype, (E, D, 2 * F), first.origin, join),)

    return Rule((gate, up), (foreign,), read, write)


def _flattened_experts(canonical: str, foreign: str, target: tuple[int, ...]) -> Rule:
    """Meta's experts ``[E * in, out]``: one after the other, input-major; canonical is ``[E, out, in]``."""
    E, wide, narrow = target
    flat = (E * narrow, wide)

    def unflatten(tensor: Tensor) -> Tensor:
        return transpose_last(Tensor(tensor.dtype, (E, narrow, wide), tensor.data))

    def flatten(tensor: Tensor) -> Tensor:
        return Tensor(tensor.dtype, flat, transpose_last(tensor).data)

    def read(tensor: LazyTensor) -> LazyTensor:
        if tensor.shape != flat:
            raise FormatError(tensor.origin, f"shape {list(tensor.shape)}, expected {list(flat)}")
        return tensor.mapped(unflatten, target)

    return _one(canonical, foreign, read, lambda tensor: tensor.mapped(flatten, flat))


def _stacked_rows(canonical: str, foreign: tuple[str, str], rows: int) -> Rule:
    """Two matrices of a file that are one canonical matrix, the second's rows below the first's ``rows``."""

    def read(group: Group) -> Group:
        first, second = group
        alike = first.dtype is second.dtype and first.shape[1:] == second.shape[1:]
        if not alike or not first.shape or not second.shape:
            raise FormatError(second.origin, f"does not continue {foreign[0]}: another type or width")
        shape = (first.shape[0] + second.shape[0], *first.shape[1:])

        def join() -> Tensor:
            return Tensor(first.dtype, shape, np.concatenate([first.read().data, second.read().data]))

        return (LazyTensor(first.dtype, shape, first.origin, join),)

    def part(tensor: Tensor, start: int, stop: int) -> Tensor:
        data = np.ascontiguousarray(tensor.rows()[start:stop]).reshape(-1)
        return Tensor(tensor.dtype, (stop - start, *tensor.shape[1:]), data)

    def write(group: Group) -> Group:
        tensor = group[0]
        total, width = tensor.shape[0], tensor.shape[1:]
        return (
            tensor.mapped(partial(part, start=0, stop=rows), (rows, *width)),
            tensor.mapped(partial(part, start=rows, stop=total), (total - rows, *width)),
        )

    return Rule((canonical,), foreign, read, write)


def hugging_face_rules(config: ModelConfig) -> Iterator[Rule]:
    """Hugging Face's names. Families that mix experts call the feed-forward part ``feed_forward``."""
    for name in parameter_shapes(config):
        foreign = name
        if config.moe is not None:
            foreign = foreign.replace(".mlp.", ".feed_forward.")
        if name.endswith(".experts.up_proj.weight"):
            continue
        if name.endswith(".experts.gate_proj.weight"):
            up = name.replace("gate_proj", "up_proj")
            yield _fused_experts(name, up, foreign.replace("gate_proj.weight", "gate_up_proj"))
        elif name.endswith(".experts.down_proj.weight"):
            yield _transposed(name, foreign.removesuffix(".weight"))
        else:
            yield _same(name, foreign)


_GGUF_PARTS = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.router.weight": "ffn_gate_inp.weight",
    "mlp.experts.gate_proj.weight": "ffn_gate_exps.weight",
    "mlp.experts.up_proj.weight": "ffn_up_exps.weight",
    "mlp.experts.down_proj.weight": "ffn_down_exps.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
}
_GGUF_WHOLE = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", LM_HEAD: "output.weight"}


def _rule(config: ModelConfig, canonical: str, foreign: str) -> Rule:
    if not config.rope_interleaved and canonical.endswith(".self_attn.q_proj.weight"):
        return _rotary(canonical, foreign, config.n_heads)
    if not config.rope_interleaved and canonical.endswith(".self_attn.k_proj.weight"):
        return _rotary(canonical, foreign, config.n_kv_heads)
    return _same(canonical, foreign)


def _layer_part(name: str) -> tuple[int, str] | None:
    if not name.startswith("model.layers."):
        return None
    index, part = name.removeprefix("model.layers.").split(".", 1)
    return int(index), part


def gguf_rules(config: ModelConfig) -> Iterator[Rule]:
    """llama.cpp's names for architectures ``llama`` and ``llama4``."""
    for name in parameter_shapes(config):
        layer = _layer_part(name)
        if layer is None:
            yield _same(name, _GGUF_WHOLE[name])
        else:
            yield _rule(config, name, f"blk.{layer[0]}.{_GGUF_PARTS[layer[1]]}")


_META_PARTS = {
    "input_layernorm.weight": "attention_norm.weight",
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "cross_attn.q_proj.weight": "attention.wq.weight",
    "cross_attn.k_proj.weight": "attention.wk.weight",
    "cross_attn.v_proj.weight": "attention.wv.weight",
    "cross_attn.o_proj.weight": "attention.wo.weight",
    "cross_attn.q_norm.weight": "attention.q_norm.weight",
    "cross_attn.k_norm.weight": "attention.k_norm.weight",
    "cross_attn_attn_gate": "gate_attn",
    "cross_attn_mlp_gate": "gate_ffwd",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.router.weight": "feed_forward.router_DE",
    "mlp.experts.gate_proj.weight": "feed_forward.experts.moe_w_in_eD_F",
    "mlp.experts.up_proj.weight": "feed_forward.experts.moe_w_swiglu_eD_F",
    "mlp.experts.down_proj.weight": "feed_forward.experts.moe_w_out_eF_D",
    "mlp.shared_expert.gate_proj.weight": "feed_forward.w_in_shared_FD.weight",
    "mlp.shared_expert.up_proj.weight": "feed_forward.w_swiglu_FD.weight",
    "mlp.shared_expert.down_proj.weight": "feed_forward.w_out_shared_DF.weight",
}
_META_WHOLE = {EMBEDDING: "tok_embeddings.weight", FINAL_NORM: "norm.weight", LM_HEAD: "output.weight"}


def meta_rules(config: ModelConfig) -> Iterator[Rule]:
    """Meta's names, as in llama-models' modules; Llama 3.2 Vision numbers its cross-attention layers apart."""
    prefix = "text_model." if config.cross_attention_layers else ""
    crossing = {index: order for order, index in enumerate(config.cross_attention_layers)}
    for name, shape in parameter_shapes(config).items():
        layer = _layer_part(name)
        if layer is None:
            foreign = prefix + _META_WHOLE[name]
            if name == EMBEDDING and config.extra_embeddings:
                yield _stacked_rows(name, (foreign, f"{prefix}learnable_embedding.weight"), config.vocab_size)
            else:
                yield _same(name, foreign)
            continue
        index, part = layer
        if index in crossing:
            yield _same(name, f"{prefix}cross_attention_layers.{crossing[index]}.{_META_PARTS[part]}")
            continue
        index -= sum(other < index for other in crossing)
        foreign = f"{prefix}layers.{index}.{_META_PARTS[part]}"
        if part.startswith("mlp.experts."):
            yield _flattened_experts(name, foreign, shape)
        elif part == "mlp.router.weight":
            yield _transposed(name, foreign)
        else:
            yield _rule(config, name, foreign)


def to_canonical(
    config: ModelConfig,
    rules: Iterable[Rule],
    tensors: Tensors,
    source: object,
    *,
    ignore: Callable[[str], bool] = lambda name: False,
) -> dict[str, LazyTensor]:
    """Rename a file's tensors to canonical names, nothing read yet.

    Args:
        config: says which parameters must be there, and their shapes.
        rules: one of the tables of this module.
        tensors: the file's tensors under its own names.
        source: the file or folder, for error messages.
        ignore: foreign names that may be there and are not weights of this model.

    Raises:
        FormatError: a tensor is missing, is not known, or has another shape. UnsupportedError: it holds no weights
        but whole numbers.
    """
    shapes = parameter_shapes(config)
    found: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for rule in rules:
        for name in rule.foreign:
            if name not in tensors:
                raise FormatError(source, f"tensor {name!r} is missing")
        group = tuple(tensors[name] for name in rule.foreign)
        used.update(rule.foreign)
        for name, value in zip(rule.canonical, rule.read(group), strict=True):
            if value.shape != shapes[name]:
                raise FormatError(
                    source,
                    f"tensor {rule.foreign[0]!r} has shape {list(group[0].shape)}, "
                    f"which does not fit {name} {list(shapes[name])}",
                )
            if not (value.dtype.floating or value.dtype.quantised):
                raise UnsupportedError(
                    source, f"tensor {rule.foreign[0]!r} is {value.dtype.name}, which is no type of weights"
                )
            found[name] = value
    unknown = [name for name in tensors if name not in used and not ignore(name)]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise FormatError(source, f"tensor {unknown[0]!r} is not part of this model{more}")
    return {name: found[name] for name in shapes}


def from_canonical(rules: Iterable[Rule], tensors: Tensors) -> dict[str, LazyTensor]:
    """Rename canonical parameters to a file's own names, nothing read yet; the inverse of `to_canonical`."""
    renamed: dict[str, LazyTensor] = {}
    for rule in rules:
        group = rule.write(tuple(tensors[name] for name in rule.canonical))
        renamed.update(zip(rule.foreign, group, strict=True))
    return renamed
