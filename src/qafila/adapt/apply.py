"""Put an adapter on a model, take it off as PEFT's files hold it, and look past it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from qafila.adapt.frozen import FrozenLinear
from qafila.adapt.lora import LoraFrozenLinear, LoraLinear, LoraShape, LowRank
from qafila.config import ModelConfig
from qafila.errors import FormatError, UsageError
from qafila.model.llama import LlamaModel
from qafila.model.load import to_torch
from qafila.parameters import EMBEDDING, LM_HEAD
from qafila.quant.dtypes import DType
from qafila.weights.adapter import Adapter, LoraModule
from qafila.weights.names import hugging_face_rules
from qafila.weights.tensor import LazyTensor
from qafila.weights.tensor import Tensor as WeightTensor

_TYPES: Final = {
    torch.float32: DType.F32,
    torch.float64: DType.F64,
    torch.float16: DType.F16,
    torch.bfloat16: DType.BF16,
}
# What torch.compile and activation checkpointing put into names when they wrap a layer.
_WRAPPERS: Final = re.compile(r"(_orig_mod|_checkpoint_wrapped_module)\.")


class AdapterOptions(Protocol):
    """What a recipe's section ``adapter`` says."""

    @property
    def kind(self) -> str:
        """``lora`` or ``dora``."""

    @property
    def rank(self) -> int:
        """r."""

    @property
    def alpha(self) -> float:
        """The update is scaled by alpha / r."""

    @property
    def rslora(self) -> bool:
        """Scale by alpha / sqrt(r) instead."""

    @property
    def dropout(self) -> float:
        """Of A's input."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Last parts of the names of linear layers that get an adapter."""


def apply_adapter(
    model: LlamaModel,
    options: AdapterOptions,
    *,
    save: Sequence[str] = (),
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> list[nn.Parameter]:
    """Freeze ``model`` and put a new adapter on it, which changes nothing until it is trained.

    Args:
        model: layers are replaced in place; frozen weights keep their names and memory.
        options: rank, targets and so on.
        save: last parts of the names of modules trained whole besides (PEFT's ``modules_to_save``), such as
            ``embed_tokens`` after the vocabulary has grown.
        seed: of A.
        dtype: of the adapter's parameters; float32 by default, whatever the model's: they are their own master weights,
            and products are computed in the type of the activations.

    Returns:
        The trainable parameters, in the order of the model's.

    Raises:
        UsageError: a name that no layer of this model has, or a layer that cannot be adapted.
    """
    model.requires_grad_(False)
    if any(isinstance(module, LowRank) for module in model.modules()):
        raise UsageError("the model has an adapter already; merge it before another one is put on it")
    shape = LoraShape(options.rank, options.alpha, options.rslora, options.dropout, options.kind == "dora")
    dtype = dtype or (torch.float64 if model.dtype is torch.float64 else torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for path in _targets(model, options.targets):
        _adapt(model, path).add_adapter(shape, dtype=dtype, generator=generator)
    _train_whole(model, save)
    return trainable(model)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def load_adapter(model: LlamaModel, adapter: Adapter, *, dtype: torch.dtype | None = None) -> list[nn.Parameter]:
    """Put an adapter from its files on ``model``, in place of the one that is there; everything else is frozen.

    Args:
        model: layers are replaced in place.
        adapter: as `qafila.weights.adapter.read_adapter` opens it.
        dtype: of the adapter's parameters; float32 by default.

    Returns:
        The trainable parameters.

    Raises:
        FormatError: the adapter was made for another model.
    """
    model.requires_grad_(False)
    for path, _ in [*adapters(model)]:
        model.set_submodule(path, _without(model.get_submodule(path)))
    dtype = dtype or (torch.float64 if model.dtype is torch.float64 else torch.float32)
    for name, module in adapter.modules.items():
        path = name.removesuffix(".weight")
        shape = (module.b.shape[0], module.a.shape[1])
        found = _submodule(model, path)
        if not isinstance(found, nn.Linear | FrozenLinear) or path == LM_HEAD.removesuffix(".weight"):
            raise FormatError("the adapter", f"changes {name:.80}, which is no linear layer of this model")
        if (found.out_features, found.in_features) != shape:
            has = [found.out_features, found.in_features]
            raise FormatError("the adapter", f"changes {name:.80} as {list(shape)}, the model has {has}")
        parts = [
            None if lazy is None else to_torch(lazy.read(), dtype=dtype, device=model.device)
            for lazy in (module.a, module.b, module.magnitude)
        ]
        assert parts[0] is not None
        assert parts[1] is not None
        made = LoraShape(module.rank, module.alpha, adapter.rslora, adapter.dropout, adapter.dora)
        _adapt(model, path).set_adapter(made, parts[0], parts[1], parts[2])
    parameters = dict(model.named_parameters())
    for name, lazy in adapter.saved.items():
        if name == LM_HEAD and model.config.tie_embeddings and _is_head(lazy, adapter.saved.get(EMBEDDING), model):
            continue
        if name not in parameters or parameters[name].shape != lazy.shape:
            there = str(list(parameters[name].shape)) if name in parameters else "none"
            raise FormatError("the adapter", f"replaces {name:.80} by {list(lazy.shape)}, the model has {there}")
        parameters[name].data.copy_(to_torch(lazy.read(), dtype=parameters[name].dtype))
        parameters[name].requires_grad_(True)
    return trainable(model)


def adapters(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """The adapted layers by name, wrappers of torch left out of it."""
    for path, module in model.named_modules():
        if isinstance(module, LowRank):
            yield _WRAPPERS.sub("", path), module


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within it the model is its frozen base: the reference of DPO, without a second model.

    Raises:
        UsageError: the adapter trains whole modules too, of which the frozen ones are not kept.
    """
    found = [module for _, module in adapters(model)]
    own = {id(parameter) for module in found for parameter in module.parameters(recurse=False)}
    if any(id(parameter) not in own for parameter in trainable(model)):
        raise UsageError("adapter.save: modules trained whole leave no frozen base to compare with; leave it empty")
    before = [module.enabled for module in found]
    try:
        for module in found:
            module.enabled = False
        yield
    finally:
        for module, enabled in zip(found, before, strict=True):
            module.enabled = enabled


def adapter_of(model: LlamaModel, options: AdapterOptions | None = None, *, base_name: str | None = None) -> Adapter:
    """What was trained, for `qafila.weights.adapter.write_adapter`; tensors are copied when they are read.

    Sharded parameters are gathered when they are read, so every process must write, or none.

    Args:
        model: with an adapter on it.
        options: its ``targets`` name the layers in the file; by default they are taken from the model.
        base_name: what the adapter belongs on.

    Raises:
        UsageError: there is no adapter on the model.
    """
    found = dict(adapters(model))
    own = {id(parameter) for module in found.values() for parameter in module.parameters(recurse=False)}
    saved = {
        _WRAPPERS.sub("", name): _lazy(parameter, name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in own
    }
    if not found:
        raise UsageError("the model has no adapter; save it as a model")
    if model.config.tie_embeddings and EMBEDDING in saved:
        # PEFT puts a copy in the embedding's place, which the head does not follow: the file holds the head's too.
        saved[LM_HEAD] = _lazy(model.head_weight(), LM_HEAD)
    shapes = Counter((module.shape.rank, module.shape.alpha) for module in found.values())
    (rank, alpha), _ = shapes.most_common(1)[0]
    first = next(iter(found.values())).shape
    paths = _file_names(model.config)
    modules = {}
    for path, module in found.items():
        magnitude = module.lora_magnitude
        modules[f"{path}.weight"] = LoraModule(
            rank=module.shape.rank,
            alpha=module.shape.alpha,
            scaling=module.shape.scaling,
            a=_lazy(module.lora_a, f"{path}.lora_a"),
            b=_lazy(module.lora_b, f"{path}.lora_b"),
            magnitude=None if magnitude is None else _lazy(magnitude, f"{path}.lora_magnitude"),
            path=paths[f"{path}.weight"].removesuffix(".weight"),
        )
    differing = {path: module.shape for path, module in found.items()}
    return Adapter(
        rank=rank,
        alpha=alpha,
        modules=modules,
        target_modules=_target_names(model, found) if options is None else tuple(options.targets),
        saved=saved,
        rslora=first.rslora,
        dora=first.dora,
        dropout=first.dropout,
        rank_pattern={re.escape(path): s.rank for path, s in differing.items() if s.rank != rank},
        alpha_pattern={re.escape(path): s.alpha for path, s in differing.items() if s.alpha != alpha},
        base_model_name=base_name,
    )


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """What can be adapted: every linear layer but the head, whose product is the loss's own."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | FrozenLinear) and path.rsplit(".", 1)[-1] != "lm_head"
    }


def _targets(model: LlamaModel, names: Sequence[str]) -> list[str]:
    layers = _linear_layers(model)
    known = sorted({path.rsplit(".", 1)[-1] for path in layers})
    for name in names:
        if name in ("lm_head", "embed_tokens"):
            raise UsageError(f"adapter.targets: {name} is trained whole or not at all; name it in adapter.save")
        if name not in known:
            raise UsageError(f"adapter.targets: no linear layer is called {name!r:.80}; there are {', '.join(known)}")
    return [path for path in layers if path.rsplit(".", 1)[-1] in names]


def _train_whole(model: LlamaModel, names: Sequence[str]) -> None:
    for name in names:
        if name == "lm_head" and model.config.tie_embeddings:
            raise UsageError("adapter.save: this model's lm_head is its embedding; name embed_tokens")
        found = [module for path, module in model.named_modules() if path.rsplit(".", 1)[-1] == name]
        parameters = [p for module in found if not isinstance(module, LowRank) for p in module.parameters()]
        if not parameters:
            raise UsageError(f"adapter.save: no module with weights to train is called {name!r:.80}")
        for parameter in parameters:
            parameter.requires_grad_(True)


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _adapt(model: nn.Module, path: str) -> LowRank:
    linear = model.get_submodule(path)
    layer: LowRank
    if isinstance(linear, FrozenLinear):
        layer = LoraFrozenLinear(linear)
    else:
        assert isinstance(linear, nn.Linear)
        layer = LoraLinear(linear)
    layer.train(linear.training)
    model.set_submodule(path, layer)
    return layer


def _without(module: nn.Module) -> nn.Module:
    """The layer as it was before an adapter came on it."""
    if isinstance(module, LoraFrozenLinear):
        return FrozenLinear(module.in_features, module.out_features, module.form, module.stored())
    assert isinstance(module, LoraLinear)
    with torch.device("meta"):
        linear = nn.Linear(module.in_features, module.out_features, bias=False)
    linear.weight = module.weight
    return linear


def _file_names(config: ModelConfig) -> dict[str, str]:
    """Canonical names of weights to transformers' names, under which PEFT finds the modules."""
    prefix = "language_model." if config.vision is not None else ""
    return {
        rule.canonical[0]: prefix + rule.foreign[0] for rule in hugging_face_rules(config) if len(rule.canonical) == 1
    }


def _is_head(head: LazyTensor, embedding: LazyTensor | None, model: LlamaModel) -> bool:
    """Whether a saved head is the saved embedding, as in the model."""
    if embedding is None or head.shape != tuple(model.head_weight().shape) or head.dtype is not embedding.dtype:
        return False
    data = head.read().data
    return bool(np.array_equal(data, embedding.read().data[: data.size]))


def _target_names(model: nn.Module, found: dict[str, LowRank]) -> tuple[str, ...]:
    """Last parts of names where all layers of that name are adapted, else whole names."""
    layers = {_WRAPPERS.sub("", path) for path in _linear_layers(model)}
    last = {path.rsplit(".", 1)[-1] for path in found}
    if all(path in found for path in layers if path.rsplit(".", 1)[-1] in last):
        return tuple(sorted(last))
    return tuple(found)


def _lazy(parameter: Tensor, name: str) -> LazyTensor:
    dtype, shape = _TYPES[parameter.dtype], tuple(parameter.shape)

    def read() -> WeightTensor:
        # A DTensor of torch.distributed is gathered from all processes.
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        data = whole.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        return WeightTensor(dtype, shape, np.array(data))

    return LazyTensor(dtype, shape, name, read)
