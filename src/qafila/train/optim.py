"""Optimisers: which parameters decay, in what type the weights are kept, and the state that a checkpoint needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qafila.train.recipe import OptimizerSection
from qafila.train.rounding import round_stochastically

Precision = Literal["float32", "bfloat16", "bfloat16-stochastic"]

_UNDECAYED: Final = ("embed_tokens.weight", "lm_head.weight")
_HEADS: Final = ("embed_tokens.weight", "lm_head.weight")


def make_optimizer(
    named: Sequence[tuple[str, nn.Parameter]], section: OptimizerSection, precision: Precision
) -> Optimizer:
    """The optimiser of a recipe over the parameters that are trained.

    Args:
        named: canonical names and parameters.
        section: which optimiser, with what.
        precision: ``bfloat16`` keeps float32 master weights of bfloat16 parameters, ``bfloat16-stochastic`` rounds
            updates at random (right on average) and keeps none.
    """
    return Optimizer(named, section, stochastic=precision == "bfloat16-stochastic")


class Optimizer:
    """Torch's optimisers over float32 weights, whatever type the model computes with.

    Vectors and embeddings do not decay. With Muon, matrices inside the layers are its own and the rest is AdamW's.
    """

    def __init__(
        self, named: Sequence[tuple[str, nn.Parameter]], section: OptimizerSection, *, stochastic: bool
    ) -> None:
        self._named = list(named)
        self._stochastic = stochastic
        # A parameter in bfloat16 is moved as float32: a master weight, or with random rounding a passing copy.
        self._masters: dict[str, Tensor] = {}
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._named:
            if parameter.dtype is torch.bfloat16 or parameter.dtype is torch.float16:
                self._masters[name] = parameter.detach().float()
                if not stochastic:
                    # Gradients of many micro-batches are added up in float32 (Llama 3, arXiv 2407.21783).
                    parameter.grad_dtype = torch.float32
            tensors[name] = self._masters.get(name, parameter)
        self._groups = _groups(tensors, section)
        if stochastic:  # each copy is there for as long as its weight moves, so each has an optimiser of its own
            self._groups = [(kind, {n: t}, decay) for kind, group, decay in self._groups for n, t in group.items()]
        self._optimizers = [_make(kind, list(group.values()), decay, section) for kind, group, decay in self._groups]
        self._rates = [group["lr"] for o in self._optimizers for group in o.param_groups]
        if stochastic:
            self.state_dict()  # moments, while the copies have their shapes
            for copy in self._masters.values():
                copy.data = copy.data.new_empty(0)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move the weights with the learning rates times ``factor``."""
        parameters = dict(self._named)
        rates = iter(self._rates)
        for (_, tensors, _), optimizer in zip(self._groups, self._optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = next(rates) * factor
            kept = {name: master for name, master in self._masters.items() if name in tensors}
            for name, master in kept.items():
                if self._stochastic:
                    master.data = parameters[name].detach().float()
                gradient = parameters[name].grad
                master.grad = None if gradient is None else gradient.float()
            optimizer.step()
            for name, master in kept.items():
                if self._stochastic:
                    _put(parameters[name], round_stochastically(_local(master)))
                    master.data = master.data.new_empty(0)
                else:
                    parameters[name].copy_(master)
                master.grad = None

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for _, parameter in self._named:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments and master weights by parameter name."""
        state: dict[str, Any] = {} if self._stochastic else {"masters": dict(self._masters)}
        for (_, group, _), optimizer in zip(self._groups, self._optimizers, strict=True):
            for name, tensor in group.items():
                if tensor not in optimizer.state:
                    for key, value in _fresh(optimizer, tensor).items():
                        optimizer.state[tensor][key] = value
                state[name] = dict(optimizer.state[tensor])
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave."""
        for name, master in state.get("masters", {}).items():
            self._masters[name].copy_(master)
        for (_, group, _), optimizer in zip(self._groups, self._optimizers, strict=True):
            for name, tensor in group.items():
                own = optimizer.state[tensor]
                own.clear()
                own.update(state[name])

    def memory_bytes(self) -> int:
        """Bytes of moments and master weights."""
        held = sum(t.nbytes for t in self._masters.values())
        for optimizer in self._optimizers:
            held += sum(v.nbytes for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))
        return held


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _put(parameter: Tensor, local: Tensor) -> None:
    _local(parameter.detach()).copy_(local)


def _groups(tensors: Mapping[str, Tensor], section: OptimizerSection) -> list[tuple[str, dict[str, Tensor], float]]:
    """Kind of optimiser, parameters by name, weight decay."""
    groups: dict[tuple[str, float], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        matrix = tensor.ndim >= 2 and not name.endswith(_UNDECAYED)
        kind = section.name
        if kind == "muon" and not (tensor.ndim >= 2 and not name.endswith(_HEADS) and "router" not in name):
            kind = "adamw"
        groups.setdefault((kind, section.weight_decay if matrix else 0.0), {})[name] = tensor
    return [(kind, group, decay) for (kind, decay), group in groups.items()]


def _make(kind: str, tensors: list[Tensor], decay: float, section: OptimizerSection) -> torch.optim.Optimizer:
    if kind == "muon":
        from qafila.train.muon import Muon

        return Muon(tensors, lr=section.muon_lr, weight_decay=decay)
    if kind == "adamw8bit":
        from qafila.train.adam8bit import AdamW8bit

        return AdamW8bit(tensors, lr=section.lr, betas=section.betas, eps=section.eps, weight_decay=decay)
    return torch.optim.AdamW(
        tensors, lr=section.lr, betas=section.betas, eps=section.eps, weight_decay=decay, fused=True
    )


def _fresh(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    """The state before the first step, so that a checkpoint has the same form at any step."""
    if hasattr(optimizer, "fresh_state"):
        made: dict[str, Tensor] = optimizer.fresh_state(tensor)
        return made
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(tensor),
        "exp_avg_sq": torch.zeros_like(tensor),
    }
