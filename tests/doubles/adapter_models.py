"""Small models with random weights, ours and transformers' with the same numbers, for tests of adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qafila.config import MixtureOfExperts, ModelConfig
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = ModelConfig(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, vocab_size=80, context_length=256
)
MIXED = CONFIG.with_changes(moe=MixtureOfExperts(n_experts=3, top_k=1, ffn_dim=96, layer_step=2), ffn_dim=128)


@dataclass(frozen=True)
class Options:
    """A recipe's section ``adapter``, as far as adapters know it."""

    kind: str = "lora"
    rank: int = 4
    alpha: float = 8.0
    rslora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = ALL


def ours(config: ModelConfig = CONFIG, seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaModel:
    return load_model(config, random_tensors(config, seed), dtype=dtype)


def theirs(config: ModelConfig = CONFIG, seed: int = 0) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            vocab_size=config.vocab_size,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="sdpa",
        )
    )
    state: dict[str, Any] = dict(ours(config, seed).state_dict())
    model.load_state_dict(state, strict=not config.tie_embeddings)
    return model.eval()


def shake(parameters: list[torch.nn.Parameter], seed: int = 1, size: float = 0.1) -> None:
    """Move parameters as training would, so that B is no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data += size * torch.randn(parameter.shape, generator=generator)


def some_ids(count: int = 24, config: ModelConfig = CONFIG, seed: int = 3) -> torch.Tensor:
    return torch.randint(config.vocab_size, (1, count), generator=torch.Generator().manual_seed(seed))
