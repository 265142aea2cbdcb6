"""Linear layers with a low-rank adapter: LoRA (arXiv 2106.09685), rsLoRA (2312.03732) and DoRA (2402.09353).

    y = x W^T + s (x A^T) B^T        s = alpha / r, with rank stabilisation alpha / sqrt(r)

The frozen ``weight`` keeps its canonical name; ``lora_a`` ``[r, in]``, ``lora_b`` ``[out, r]`` and DoRA's
``lora_magnitude`` ``[out]`` stand beside it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qafila.adapt.dora import row_lengths
from qafila.adapt.frozen import PLAIN, FrozenLinear, dense, frozen_product
from qafila.adapt.product import low_rank_product
from qafila.weights.adapter import lora_scaling

_TINY: Final = 1e-30  # a row of zeros has length 0, and stays zero


@dataclass(frozen=True)
class LoraShape:
    """How an adapter is made: rank, alpha, rank stabilisation, dropout of A's input, and whether it is a DoRA."""

    rank: int
    alpha: float
    rslora: bool = False
    dropout: float = 0.0
    dora: bool = False

    @property
    def scaling(self) -> float:
        """s."""
        return lora_scaling(self.rank, self.alpha, rslora=self.rslora)


class LowRank(nn.Module, ABC):
    """What adapted layers share; a layer with any kind of frozen weight inherits from it and from that weight's class.

    ``enabled`` turned off leaves the frozen layer: that is the reference model of DPO, for nothing.
    """

    in_features: int
    out_features: int
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_magnitude: nn.Parameter | None

    @abstractmethod
    def frozen(self) -> tuple[str, tuple[Tensor, ...]]:
        """Form and parts of the frozen weight, as :func:`qafila.adapt.frozen.dense` takes them."""

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """The frozen weight, ``[out, in]``."""
        form, stored = self.frozen()
        return dense(form, stored, (self.out_features, self.in_features), dtype)

    def add_adapter(self, shape: LoraShape, *, dtype: torch.dtype, generator: torch.Generator | None = None) -> None:
        """Put a new adapter on the frozen weight: A uniform within ``1 / sqrt(in)``, B zero, magnitude ``|W|``.

        That is PEFT's beginning (Kaiming uniform with a = sqrt(5)). Drawn on the CPU in float32, so that it is the same
        on every device.
        """
        self.shape, self.enabled = shape, True
        device = self.frozen()[1][0].device
        drawn = torch.empty(shape.rank, self.in_features)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.lora_a = nn.Parameter(drawn.to(device, dtype))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, shape.rank, dtype=dtype, device=device))
        self.lora_magnitude = None
        if shape.dora:
            self.lora_magnitude = nn.Parameter(self._row_lengths(torch.float32).to(dtype))

    def set_adapter(self, shape: LoraShape, a: Tensor, b: Tensor, magnitude: Tensor | None) -> None:
        """Put a known adapter on the frozen weight: ``a`` ``[r, in]``, ``b`` ``[out, r]``, ``magnitude`` ``[out]``."""
        self.shape, self.enabled = shape, True
        self.lora_a, self.lora_b = nn.Parameter(a), nn.Parameter(b)
        self.lora_magnitude = nn.Parameter(magnitude) if magnitude is not None else None

    def _row_lengths(self, dtype: torch.dtype) -> Tensor:
        return row_lengths(self.dense_weight(dtype), self.lora_a, self.lora_b, self.shape.scaling)

    def adapted(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, in the type of ``x``."""
        form, stored = self.frozen()
        if not self.enabled:
            return frozen_product(x, form, (self.out_features, self.in_features), stored)
        dropped = F.dropout(x, self.shape.dropout) if self.training and self.shape.dropout else None
        y = low_rank_product(x, dropped, self.lora_a, self.lora_b, self.shape.scaling, form, stored)
        if self.lora_magnitude is None:
            return y
        lengths = self._row_lengths(x.dtype).clamp_min(_TINY)
        return y * (self.lora_magnitude / lengths).to(y.dtype)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """``W + s B A``, for DoRA with the learned row lengths, ``[out, in]``: float32 (float64 for float64)."""
        _, stored = self.frozen()
        dtype = torch.float64 if stored[0].dtype is torch.float64 else torch.float32
        weight = self.dense_weight(dtype) + (self.lora_b.to(dtype) @ self.lora_a.to(dtype)) * self.shape.scaling
        if self.lora_magnitude is not None:
            lengths = torch.linalg.vector_norm(weight, dim=1).clamp_min(_TINY)
            weight *= (self.lora_magnitude.to(dtype) / lengths)[:, None]
        return weight

    def extra_repr(self) -> str:
        """What printing the model says."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.shape}"


class LoraLinear(LowRank, nn.Linear):
    """An adapted ``nn.Linear`` without bias; ``weight`` is frozen and is the given layer's own."""

    def __init__(self, linear: nn.Linear) -> None:
        assert linear.bias is None
        with torch.device("meta"):
            nn.Linear.__init__(self, linear.in_features, linear.out_features, bias=False)
        self.weight = linear.weight.requires_grad_(False)

    def frozen(self) -> tuple[str, tuple[Tensor, ...]]:
        """The matrix as it is."""
        return PLAIN, (self.weight,)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return self.adapted(input)


class LoraFrozenLinear(LowRank, FrozenLinear):
    """An adapted :class:`FrozenLinear` (QLoRA); its buffers are the given layer's own."""

    def __init__(self, linear: FrozenLinear) -> None:
        FrozenLinear.__init__(self, linear.in_features, linear.out_features, linear.form, linear.stored())

    def frozen(self) -> tuple[str, tuple[Tensor, ...]]:
        """The blocks, or the parts of NF4."""
        return self.form, self.stored()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return self.adapted(x)
