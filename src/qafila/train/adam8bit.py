"""AdamW whose two moments take a byte each instead of four.

Source: 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861): moments are cut into blocks, each scaled by its
largest value, and each value becomes the nearest of 256 levels that are dense near zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

_BLOCK: Final = 256
_SMALLEST: Final = 4096  # smaller tensors keep float32 moments, as the paper's code does


def dynamic_levels(*, signed: bool) -> Tensor:
    """The 256 levels of dynamic quantisation, ascending, between -1 (or 0) and 1.

    Seven decades, each with twice as many linear steps as the one below it (arXiv 2110.02861 section 2.2, appendix F).
    """
    levels = [0.0, 1.0]
    # Of eight bits one is the sign where there is one; decade i spends the rest on its fraction.
    steps = 0 if signed else 1
    for decade in range(7):
        edges = torch.linspace(0.1, 1, (1 << (decade + steps)) + 1, dtype=torch.float64)
        means = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)).tolist()
        levels += means + ([-mean for mean in means] if signed else [])
    return torch.tensor(sorted(levels), dtype=torch.float32)


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) over float32 tensors with block-wise 8-bit moments."""

    def __init__(
        self,
        params: list[Tensor],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._signed, self._unsigned = dynamic_levels(signed=True), dynamic_levels(signed=False)

    def fresh_state(self, tensor: Tensor) -> dict[str, Tensor]:
        """The state before the first step."""
        state = {"step": torch.zeros((), dtype=torch.float32)}
        if tensor.numel() < _SMALLEST:
            return state | {"exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor)}
        blocks = -(-tensor.numel() // _BLOCK)
        for name, levels in (("exp_avg", self._signed), ("exp_avg_sq", self._unsigned)):
            zero = int(torch.searchsorted(levels, torch.zeros(())))
            state[name] = torch.full((blocks, _BLOCK), zero, dtype=torch.uint8, device=tensor.device)
            state[f"{name}_scale"] = torch.zeros(blocks, dtype=torch.float32, device=tensor.device)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move the weights."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return None

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(self.fresh_state(parameter))
        state["step"] += 1
        steps = float(state["step"])
        beta1, beta2 = group["betas"]
        gradient = parameter.grad
        assert gradient is not None
        mean = self._read(state, "exp_avg", self._signed, parameter).lerp_(gradient, 1 - beta1)
        square = self._read(state, "exp_avg_sq", self._unsigned, parameter)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**steps))
        self._write(state, "exp_avg", self._signed, mean)
        self._write(state, "exp_avg_sq", self._unsigned, square)

    @staticmethod
    def _read(state: dict[str, Tensor], name: str, levels: Tensor, like: Tensor) -> Tensor:
        stored = state[name]
        if stored.dtype is not torch.uint8:
            return stored
        values = levels.to(stored.device)[stored.long()] * state[f"{name}_scale"][:, None]
        return values.flatten()[: like.numel()].view_as(like)

    @staticmethod
    def _write(state: dict[str, Tensor], name: str, levels: Tensor, values: Tensor) -> None:
        stored = state[name]
        if stored.dtype is not torch.uint8:
            stored.copy_(values)
            return
        flat = torch.zeros(stored.numel(), dtype=torch.float32, device=stored.device)
        flat[: values.numel()] = values.flatten()
        blocks = flat.view_as(stored)
        scale = blocks.abs().amax(1)
        state[f"{name}_scale"].copy_(scale)
        levels = levels.to(stored.device)
        middles = (levels[1:] + levels[:-1]) / 2
        stored.copy_(torch.bucketize(blocks / scale.clamp_min(1e-30)[:, None], middles).to(torch.uint8))
