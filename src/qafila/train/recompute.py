"""Recompute each layer's inside in the backward pass: only its input is kept, for a third more work."""

from __future__ import annotations

from functools import partial
from itertools import chain

from torch.utils.checkpoint import checkpoint

from qafila.model.llama import LlamaModel


def recompute_layers(model: LlamaModel) -> None:
    """Let every layer of ``model`` forget what it computed until the backward pass needs it (arXiv 1604.06174).

    Nothing else changes: names of parameters, results, and dropout, which is drawn again as it was. Call it before
    layers are compiled or sharded.
    """
    for layer in chain(model.model.layers):
        # A bound method inside a partial, and no closure: a copy of the model must recompute its own layers.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
