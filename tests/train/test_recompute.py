"""Layers that are computed again give the same gradients, and keep less in between."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from qafila.config import ModelConfig
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.train.recompute import recompute_layers

CONFIG = ModelConfig(
    dim=48, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=80, vocab_size=97, tie_embeddings=True
)
DOCUMENTS = (7, 1, 12)


def build() -> LlamaModel:
    return load_model(CONFIG, random_tensors(CONFIG, seed=1)).requires_grad_(True).train()


def gradients(model: LlamaModel) -> tuple[list[Tensor], int]:
    """Gradients of every parameter, and how many elements the forward pass kept for them."""
    ids = torch.randint(97, (1, sum(DOCUMENTS)), generator=torch.Generator().manual_seed(3))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.hidden(ids, DOCUMENTS).square().sum()
    held = sum(kept.values())
    return list(torch.autograd.grad(loss, list(model.parameters()))), held


def test_gradients_are_the_same_and_less_is_kept() -> None:
    plain, again = build(), build()
    for model in (plain, again):  # dropout must be drawn again as it was
        for layer in model.model.layers:
            layer.mlp.register_forward_hook(lambda module, args, out: torch.dropout(out, 0.3, True))
    recompute_layers(again)
    wanted, much = gradients(plain)
    found, little = gradients(again)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert little < much / 3


def test_names_stay_and_a_copy_recomputes_its_own_layers() -> None:
    model = build()
    names = [name for name, _ in model.named_parameters()]
    recompute_layers(model)
    twin = copy.deepcopy(model)
    assert [name for name, _ in twin.named_parameters()] == names
    before, _ = gradients(twin)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    after, _ = gradients(twin)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert any(bool(gradient.any()) for gradient in after)
