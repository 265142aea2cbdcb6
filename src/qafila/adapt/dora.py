"""DoRA (arXiv 2402.09353): the direction of a weight learned by LoRA, the length of its rows learned apart.

``W' = m / |W + s B A| * (W + s B A)`` row by row. The length in the denominator follows A and B but hands them no
gradient (section 4.3 of the paper).
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def row_lengths(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """``|W + s B A|`` of every row, ``[out]``, float32 (float64 for a float64 ``weight``).

    Expanded as ``|W|^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B``, so that no second ``[out, in]`` is filled.

    Args:
        weight: ``[out, in]``. a: ``[r, in]``. b: ``[out, r]``.
        scaling: s.
    """
    dtype = torch.float64 if weight.dtype is torch.float64 else torch.float32
    a, b = a.to(dtype), b.to(dtype)
    crossed = (weight @ a.to(weight.dtype).T).to(dtype)
    squares = torch.linalg.vector_norm(weight, dim=1, dtype=dtype).square()
    mixed = 2 * scaling * crossed + scaling**2 * (b @ (a @ a.T))
    lengths: Tensor = (squares + (mixed * b).sum(dim=1)).clamp_min(0).sqrt()
    return lengths
