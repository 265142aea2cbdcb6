"""AdamW whose two moments take a byte each instead of four.

Source: 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861): moments are cut into blocks, each scaled by its
largest value, and each value becomes the nearest of 256 levels that are dense near zero. Two things differ. The second
moment is kept as its square root, and never as zero: a first moment that is still there over a second one that became
zero would throw its weight far away. And blocks lie within rows, so that a sharded tensor has the same blocks as a
whole one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_LARGEST_BLOCK: Final = 256
_SMALLEST_BLOCK: Final = 32
_SMALLEST: Final = 4096  # smaller tensors keep float32 moments, as the paper's code does
_SLAB: Final = {"cpu": 1 << 18, "cuda": 1 << 25}  # elements that are float32 at a time: in a CPU's cache they are fast


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


class Codebook:
    """The levels, and for every float16 between -1 and 1 the number of its nearest: a search is one look into a table.

    Rounding to float16 first moves a value by 0.05%, or by 3e-8; levels are 1% apart, or 6e-7.
    """

    def __init__(self, *, signed: bool, device: torch.device) -> None:
        levels = dynamic_levels(signed=signed)
        patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
        middles = (levels[1:] + levels[:-1]) / 2
        numbers = torch.bucketize(patterns.float().nan_to_num(0.0).clamp(-1, 1), middles)
        self.zero = int((levels == 0).nonzero())
        self.smallest = float(levels[levels > 0][0])
        self._levels, self._numbers = levels.to(device), numbers.to(torch.uint8).to(device)

    def read(self, numbers: Tensor, scale: Tensor) -> Tensor:
        """Values of blocks ``[blocks, block]``."""
        return self._levels.index_select(0, numbers.flatten().int()).view_as(numbers).mul_(scale[:, None])

    def write(self, values: Tensor, numbers: Tensor, scale: Tensor, least: float = -1.0) -> None:
        """Fill ``numbers`` and ``scale`` with what is nearest to ``values``; shares below ``least`` become it."""
        scale.copy_(values.abs().amax(1))
        shares = (values / scale.clamp_min(1e-38)[:, None]).clamp_(least, 1)
        patterns = shares.to(torch.float16).view(torch.int16).flatten().int() & 0xFFFF
        numbers.copy_(self._numbers.index_select(0, patterns).view_as(numbers))


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) over float32 tensors with block-wise 8-bit moments (sharded where those are)."""

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
        self._codebooks: dict[torch.device, tuple[Codebook, Codebook]] = {}

    def fresh_state(self, tensor: Tensor) -> dict[str, Tensor]:
        """The state before the first step."""
        state = {"step": torch.zeros((), dtype=torch.float32)}
        block = block_of(tensor)
        if block is None:
            return state | {
                "exp_avg": torch.zeros_like(tensor, dtype=torch.float32),
                "exp_avg_sq": torch.zeros_like(tensor, dtype=torch.float32),
            }
        local = _local(tensor)
        scales = torch.zeros((*local.shape[:-1], local.shape[-1] // block), dtype=torch.float32, device=local.device)
        for name, codebook in zip(("exp_avg", "exp_avg_sq"), self._books(local.device), strict=True):
            numbers = torch.full(local.shape, codebook.zero, dtype=torch.uint8, device=local.device)
            state[name] = _sharded_like(tensor, numbers, 1)
            state[f"{name}_scale"] = _sharded_like(tensor, scales.clone(), block)
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
        assert parameter.grad is not None
        whole, gradients = _local(parameter), _local(parameter.grad)
        weights = whole.contiguous()
        moments = {name: _local(value) for name, value in state.items() if name != "step"}
        first, second = self._books(weights.device)
        eight = "exp_avg_scale" in moments
        width = weights.shape[-1] // moments["exp_avg_scale"].shape[-1] if eight else max(1, weights.numel())
        views = [t.reshape(-1, width) for t in (weights, gradients, moments["exp_avg"], moments["exp_avg_sq"])]
        views += [moments[f"{name}_scale"].view(-1) for name in ("exp_avg", "exp_avg_sq")] if eight else []
        for slab in _slabs(views[0]):
            weight, gradient, mean, root = (view[slab] for view in views[:4])
            gradient = gradient.float()
            if eight:
                numbers, scales = (mean, root), (views[4][slab], views[5][slab])
                mean = first.read(numbers[0], scales[0])
                square = second.read(numbers[1], scales[1]).square_()
            else:
                square = root
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            deviation = square.sqrt()
            denominator = (deviation / math.sqrt(1 - beta2**steps)).add_(group["eps"])
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**steps))
            if eight:
                first.write(mean, numbers[0], scales[0])
                second.write(deviation, numbers[1], scales[1], least=second.smallest)
        if weights is not whole:
            whole.copy_(weights)

    def _books(self, device: torch.device) -> tuple[Codebook, Codebook]:
        """The levels of the first and of the second moment."""
        if device not in self._codebooks:
            made = Codebook(signed=True, device=device), Codebook(signed=False, device=device)
            self._codebooks[device] = made
        return self._codebooks[device]


def block_of(tensor: Tensor) -> int | None:
    """Elements of a block: the largest divisor of a row's length up to 256; None where moments stay float32.

    That is for small tensors and for rows that no block of 32 or more divides. A row cut over processes counts as its
    parts.
    """
    if tensor.numel() < _SMALLEST:
        return None
    length = tensor.shape[-1]
    if isinstance(tensor, DTensor):
        for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
            cut = getattr(placement, "dim", None)  # of any kind of Shard
            if cut is not None and cut % tensor.ndim == tensor.ndim - 1:
                if length % size:
                    return None
                length //= size
    sizes = (size for size in range(min(_LARGEST_BLOCK, length), _SMALLEST_BLOCK - 1, -1) if length % size == 0)
    return next(sizes, None)


def _slabs(blocks: Tensor) -> Iterator[slice]:
    rows = max(1, _SLAB.get(blocks.device.type, 1 << 25) // blocks.shape[1])
    for start in range(0, blocks.shape[0], rows):
        yield slice(start, start + rows)


def _local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that is here; it shares memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    assert not any(p.is_partial() for p in tensor.placements), "a gradient was not reduced"
    return tensor.to_local()


def _sharded_like(tensor: Tensor, local: Tensor, block: int) -> Tensor:
    """``local`` as this process's part of a tensor cut as ``tensor`` is, with rows ``block`` times shorter."""
    if not isinstance(tensor, DTensor):
        return local
    shape = torch.Size((*tensor.shape[:-1], tensor.shape[-1] // block))
    stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return DTensor.from_local(local, tensor.device_mesh, tensor.placements, run_check=False, shape=shape, stride=stride)
