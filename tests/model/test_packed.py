"""Packed documents give the hidden states that each gives alone, and nothing flows between them."""

from __future__ import annotations

import pytest
import torch

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model
from qafila.model.packed import PackedDocuments
from qafila.model.random_weights import random_tensors

DENSE = ModelConfig(dim=48, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=80, vocab_size=97)
LLAMA4 = ModelConfig(
    dim=48,
    n_layers=4,
    n_heads=6,
    n_kv_heads=2,
    head_dim=8,
    ffn_dim=80,
    vocab_size=97,
    rope_interleaved=True,
    moe=MixtureOfExperts(n_experts=4, top_k=1, ffn_dim=32, layer_step=2),
    no_rope_layers=(3,),
    attention_chunk=5,
    qk_norm=True,
    temperature=AttentionTemperature(floor_scale=4.0),
)
DOCUMENTS = (7, 1, 12, 12, 3)


def model_of(config: ModelConfig) -> LlamaModel:
    return load_model(config, random_tensors(config, seed=1))


@pytest.mark.parametrize("config", [DENSE, LLAMA4], ids=["dense", "llama4"])
def test_each_document_is_as_it_is_alone(config: ModelConfig) -> None:
    model = model_of(config)
    ids = torch.randint(97, (1, sum(DOCUMENTS)), generator=torch.Generator().manual_seed(3))
    packed = model.hidden(ids, DOCUMENTS)
    start = 0
    for length in DOCUMENTS:
        alone = model.model(ids[:, start : start + length], None, None, None)
        torch.testing.assert_close(packed[:, start : start + length], alone, rtol=1e-5, atol=1e-5)
        start += length


@pytest.mark.parametrize("config", [DENSE, LLAMA4], ids=["dense", "llama4"])
def test_gradients_stay_inside_the_document(config: ModelConfig) -> None:
    model = model_of(config)
    ids = torch.randint(97, (1, sum(DOCUMENTS)), generator=torch.Generator().manual_seed(3))
    embedded: list[torch.Tensor] = []

    def keep(module: object, args: object, output: torch.Tensor) -> None:
        output.requires_grad_().retain_grad()
        embedded.append(output)

    model.model.embed_tokens.register_forward_hook(keep)
    model.hidden(ids, DOCUMENTS)[:, 8:20].square().sum().backward()
    grad = embedded[0].grad
    assert grad is not None
    reached = grad[0].abs().sum(-1) > 0
    assert reached[8:20].all()
    assert not reached[:8].any()
    assert not reached[20:].any()


def test_chunks_are_cut_inside_each_document() -> None:
    pattern = PackedDocuments.of(LLAMA4, (7, 12))
    assert pattern.spans == {"full": (7, 12), "chunked": (5, 2, 5, 5, 2)}
    assert pattern.positions_T.tolist() == [*range(7), *range(12)]
