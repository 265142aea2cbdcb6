"""Model-parallel shards of Meta's checkpoints: tensors put together from their parts, and taken apart.

Shards are what fairscale's parallel layers hold: the rows of a column-parallel matrix and the columns of a row-parallel
one are divided among the ranks, norms, gates and routers are repeated in each. Sources: llama-models
``models/checkpoint.py``, ``models/llama3/multimodal/model.py``, ``models/llama4/model.py``, ``ffn.py`` and ``moe.py``
(their ``load_hook`` functions list the fused and renamed forms that published files have).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from qafila.errors import FormatError, UsageError
from qafila.weights.storage import quoted
from qafila.weights.tensor import LazyTensor, Tensor

# What is in published files and is no weight of the text model: precomputed frequencies, statistics, image towers.
_IGNORED: Final = re.compile(
    r".*(rope\.freqs|freqs?_cis|\._extra_state|gate_stats_3E|expert_activation_DE)"
    r"|(vision_model|vision_embeddings|vision_projection)\..*"
)

# Other names under which published files and Meta's modules have the same tensor.
_RENAMED: Final = (
    (".attention.wqkv.layer_norm_weight", ".attention_norm.weight"),
    (".attention.wq.layer_norm_weight", ".attention_norm.weight"),
    (".attention.inner_attention.q_norm.weight", ".attention.q_norm.weight"),
    (".attention.inner_attention.k_norm.weight", ".attention.k_norm.weight"),
    (".feed_forward.mlp.layer_norm_weight", ".ffn_norm.weight"),
    (".feed_forward.mlp.layer_norm.weight", ".ffn_norm.weight"),
    (".feed_forward.norm.weight", ".ffn_norm.weight"),
    (".feed_forward.mlp.fc2_weight", ".feed_forward.w2.weight"),
    (".feed_forward.mlp.fc2.weight", ".feed_forward.w2.weight"),
    (".feed_forward.shared_expert.w1.weight", ".feed_forward.w_in_shared_FD.weight"),
    (".feed_forward.shared_expert.w2.weight", ".feed_forward.w_out_shared_DF.weight"),
    (".feed_forward.shared_expert.w3.weight", ".feed_forward.w_swiglu_FD.weight"),
    (".feed_forward.experts.w1", ".feed_forward.experts.moe_w_in_eD_F"),
    (".feed_forward.experts.w2", ".feed_forward.experts.moe_w_out_eF_D"),
    (".feed_forward.experts.w3", ".feed_forward.experts.moe_w_swiglu_eD_F"),
)

# Matrices that published files keep one below the other, each shard its own rows of every one.
_FUSED: Final = (
    (".attention.wqkv.weight", (".attention.wq.weight", ".attention.wk.weight", ".attention.wv.weight")),
    (".attention.wkv.weight", (".attention.wk.weight", ".attention.wv.weight")),
    (".feed_forward.mlp.fc1_weight", (".feed_forward.w1.weight", ".feed_forward.w3.weight")),
    (".feed_forward.mlp.fc1.weight", (".feed_forward.w1.weight", ".feed_forward.w3.weight")),
)

_BY_ROWS: Final = re.compile(
    r".*(\.attention\.w[qkv]\.weight|\.feed_forward\.w[13]\.weight|\.w_in_shared_FD\.weight|\.w_swiglu_FD\.weight)"
    r"|(.*\.)?(output|learnable_embedding)\.weight"
)
_BY_COLUMNS: Final = re.compile(
    r".*(\.attention\.wo\.weight|\.feed_forward\.w2\.weight|\.w_out_shared_DF\.weight|\.moe_w_(in|swiglu)_eD_F)"
)
_EXPERT_ROWS: Final = re.compile(r".*\.moe_w_out_eF_D")
EMBEDDING_NAME: Final = re.compile(r"(.*\.)?tok_embeddings\.weight")
_REPEATED: Final = re.compile(r"(.*[._])?norm\.weight|.*\.(gate_attn|gate_ffwd|router_DE)")

# Llama 3's and 4's reference code divides the rows of the embedding among the ranks, that of Llama 1 and 2 its columns.
_LARGE_VOCABULARY = 100_000


def plain_tensors(
    path: Path, tensors: Mapping[str, LazyTensor], params: Mapping[str, Any], shards: int, ignored: list[str]
) -> dict[str, LazyTensor]:
    """One shard's tensors under the plain names, fused ones taken apart; what is no text weight goes to ``ignored``.

    Raises:
        FormatError: a tensor under two names, or a fused one that cannot be taken apart.
    """
    plain: dict[str, LazyTensor] = {}

    def add(name: str, tensor: LazyTensor) -> None:
        if name in plain:
            raise FormatError(path, f"tensor {quoted(name)} is there under two names")
        if ".experts.moe_w_" in name and len(tensor.shape) == 3:
            flat = (tensor.shape[0] * tensor.shape[1], tensor.shape[2])
            tensor = tensor.mapped(lambda read: Tensor(read.dtype, flat, read.data), flat)
        plain[name] = tensor

    for name, tensor in tensors.items():
        if _IGNORED.fullmatch(name):
            ignored.append(name)
            continue
        for suffix, separate in _FUSED:
            if name.endswith(suffix):
                rows = _fused_rows(path, name, tensor, len(separate), params, shards)
                for own, (start, stop) in zip(separate, rows, strict=True):
                    add(name.removesuffix(suffix) + own, _rows(tensor, start, stop))
                break
        else:
            new = next((name.removesuffix(old) + other for old, other in _RENAMED if name.endswith(old)), name)
            add(new, tensor)
    return plain


def _fused_rows(
    path: Path, name: str, tensor: LazyTensor, count: int, params: Mapping[str, Any], shards: int
) -> list[tuple[int, int]]:
    """Where the rows of each fused matrix start and stop in this shard."""
    rows = tensor.shape[0] if len(tensor.shape) == 2 else 0
    first = rows // 2 if count == 2 else params["n_heads"] * head_dim(params) // shards
    rest = (rows - first) // (count - 1)
    if rows <= 0 or rest <= 0 or first + rest * (count - 1) != rows:
        raise FormatError(path, f"{quoted(name)} of shape {list(tensor.shape)} does not divide into {count} matrices")
    stops = [first + rest * i for i in range(count)]
    return list(zip([0, *stops], stops, strict=False))


def head_dim(params: Mapping[str, Any]) -> int:
    """Width of one attention head."""
    return int(params.get("head_dim") or params["dim"] // params["n_heads"])


def _rows(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Rows ``start`` to ``stop`` of a matrix, no copy."""
    shape = (stop - start, *tensor.shape[1:])

    def cut(whole: Tensor) -> Tensor:
        width = whole.dtype.nbytes(shape[1:])
        return Tensor(whole.dtype, shape, whole.data[start * width : stop * width])

    return tensor.mapped(cut, shape)


def _columns(tensor: LazyTensor, groups: int, start: int, stop: int, shape: tuple[int, ...]) -> LazyTensor:
    """With the elements of ``tensor`` as ``[groups, width]``: columns ``start`` to ``stop``, as ``shape``."""

    def cut(whole: Tensor) -> Tensor:
        size = whole.dtype.block_bytes
        data = whole.data.reshape(groups, -1)[:, start * size : stop * size]
        return Tensor(whole.dtype, shape, np.ascontiguousarray(data).reshape(-1))

    return tensor.mapped(cut, shape)


def merged(folder: Path, name: str, parts: Sequence[LazyTensor], params: Mapping[str, Any]) -> LazyTensor:
    """The whole tensor of which every shard has its part, key/value heads once each.

    Raises:
        FormatError: the parts disagree, or the tensor is not one that shards divide.
    """
    first = parts[0]
    for number, part in enumerate(parts):
        if (part.dtype, part.shape) != (first.dtype, first.shape):
            raise FormatError(
                folder,
                f"{quoted(name)} is {first.dtype.name} {list(first.shape)} in shard 00 "
                f"and {part.dtype.name} {list(part.shape)} in shard {number:02d}",
            )
    if 0 in first.shape:
        raise FormatError(folder, f"{quoted(name)} of shape {list(first.shape)} is empty")
    whole = first if len(parts) == 1 else _joined(folder, name, parts, params)
    if name.endswith((".attention.wk.weight", ".attention.wv.weight")) and len(whole.shape) == 2:
        expected = (params.get("n_kv_heads") or params["n_heads"]) * head_dim(params)
        repeats, rest = divmod(whole.shape[0], expected)
        if repeats > 1 and not rest:
            return _without_repeats(whole, expected, repeats, head_dim(params))
    return whole


def _joined(folder: Path, name: str, parts: Sequence[LazyTensor], params: Mapping[str, Any]) -> LazyTensor:
    first, count = parts[0], len(parts)
    if _REPEATED.fullmatch(name):

        def read_one() -> Tensor:
            tensor = first.read()
            for number, part in enumerate(parts):
                if not np.array_equal(part.read().data, tensor.data):
                    raise FormatError(folder, f"{quoted(name)} differs between shards 00 and {number:02d}")
            return tensor

        return LazyTensor(first.dtype, first.shape, first.origin, read_one)
    axis = _split_axis(name, first.shape, count, params)
    if axis is None or len(first.shape) != 2:
        raise FormatError(folder, f"tensor {quoted(name)} is not part of a Llama: it cannot be put together")
    groups, shape = _division(name, first.shape, params, axis)
    whole = (shape[0] * count, shape[1]) if axis == 0 else (shape[0], shape[1] * count)
    if groups <= 0 or first.shape[0] % groups:
        raise FormatError(folder, f"{quoted(name)} has {first.shape[0]} rows, not a multiple of {groups} experts")

    def read() -> Tensor:
        data = np.concatenate([part.read().data.reshape(groups, -1) for part in parts], axis=1)
        return Tensor(first.dtype, whole, data.reshape(-1))

    return LazyTensor(first.dtype, whole, first.origin, read)


def _split_axis(name: str, shape: tuple[int, ...], shards: int, params: Mapping[str, Any]) -> int | None:
    """The dimension that is divided among the ranks; ``shape`` is one rank's (only the embedding's matters)."""
    if _BY_ROWS.fullmatch(name) or _EXPERT_ROWS.fullmatch(name):
        return 0
    if _BY_COLUMNS.fullmatch(name):
        return 1
    if EMBEDDING_NAME.fullmatch(name):
        return 1 if shape[-1:] == (params["dim"] // shards,) else 0
    return None


def _division(name: str, shape: tuple[int, ...], params: Mapping[str, Any], axis: int) -> tuple[int, tuple[int, ...]]:
    """In how many groups a matrix of ``shape`` is divided, each into one piece a rank, and the shape again."""
    if axis == 1:
        return shape[0], shape
    if _EXPERT_ROWS.fullmatch(name):
        moe = params.get("moe_args") or {}
        return int(moe.get("num_experts") or 0), shape
    return 1, shape


def _without_repeats(tensor: LazyTensor, rows: int, repeats: int, size: int) -> LazyTensor:
    """Every ``repeats``-th head of a matrix in which each head stands ``repeats`` times."""
    shape = (rows, *tensor.shape[1:])

    def keep(whole: Tensor) -> Tensor:
        heads = whole.data.reshape(rows // size, repeats, -1)
        if not np.array_equal(heads, np.broadcast_to(heads[:, :1], heads.shape)):
            raise FormatError(tensor.origin, f"holds {repeats} times the rows that n_kv_heads says, not copies of them")
        return Tensor(whole.dtype, shape, np.ascontiguousarray(heads[:, 0]).reshape(-1))

    return tensor.mapped(keep, shape)


def divided(params: Mapping[str, Any], tensors: Mapping[str, LazyTensor], shards: int) -> list[dict[str, LazyTensor]]:
    """Every rank's part of every tensor; tensors that are one object stay one object where they are divided alike.

    Raises:
        UsageError: the model does not divide into so many shards.
    """
    if shards < 1:
        raise UsageError(f"--shards {shards}: at least one")
    if shards == 1:
        return [dict(tensors)]
    kv_heads = params.get("n_kv_heads") or params["n_heads"]
    if kv_heads % shards:
        raise UsageError(f"--shards {shards}: the model's {kv_heads} key/value heads do not divide into so many")
    ranks: list[dict[str, LazyTensor]] = [{} for _ in range(shards)]
    cache: dict[tuple[int, int, int], list[LazyTensor]] = {}
    for name, tensor in tensors.items():
        if _REPEATED.fullmatch(name):
            pieces = [tensor] * shards
        else:
            if EMBEDDING_NAME.fullmatch(name):
                axis: int | None = 0 if tensor.shape[0] >= _LARGE_VOCABULARY else 1
            else:
                axis = _split_axis(name, tensor.shape, shards, params)
            if axis is None or len(tensor.shape) != 2:
                raise UsageError(f"--shards {shards}: nobody knows how to divide tensor {quoted(name)}")
            groups, _ = _division(name, tensor.shape, params, axis)
            key = (id(tensor), axis, groups)
            if key not in cache:
                cache[key] = list(_pieces(name, tensor, groups, axis, shards))
            pieces = cache[key]
        for rank, piece in zip(ranks, pieces, strict=True):
            rank[name] = piece
    return ranks


def _pieces(name: str, tensor: LazyTensor, groups: int, axis: int, shards: int) -> Iterator[LazyTensor]:
    rows, columns = tensor.shape
    size = (rows, columns)[axis]
    if size % (shards * (groups if axis == 0 else 1)):
        raise UsageError(f"--shards {shards}: {name} of shape {[rows, columns]} does not divide into so many")
    shape = (rows // shards, columns) if axis == 0 else (rows, columns // shards)
    width = rows * columns // groups // shards  # elements of one piece of one group
    for rank in range(shards):
        if axis == 0 and groups == 1:
            yield _rows(tensor, rank * shape[0], (rank + 1) * shape[0])
        else:
            yield _columns(tensor, groups, rank * width, (rank + 1) * width, shape)
