"""Put an adapter into the weights of a model in memory; files are merged by `qafila.weights.merge`."""

from __future__ import annotations

import torch
from torch import nn

from qafila.adapt.apply import adapters
from qafila.model.llama import LlamaModel


def merge_adapter(model: LlamaModel) -> LlamaModel:
    """Replace every adapted layer by a plain one; the same model comes back, frozen.

    Each weight is computed in float32, from the dequantised blocks where the base has blocks, and rounded once to the
    model's type: a quantised layer becomes a plain one.
    """
    dtype = model.dtype
    for path, layer in list(adapters(model)):
        with torch.device("meta"):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = nn.Parameter(layer.merged_weight().to(dtype), requires_grad=False)
        model.set_submodule(path, plain.train(layer.training))
    return model.requires_grad_(False)
