"""The default model, dequantised, against transformers with the same weights, read by the `gguf` package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from qafila.config import ModelConfig
from qafila.model.generate import generate
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model
from qafila.sampling import GREEDY

TOLERANCE = 1e-4

CONFIG = ModelConfig(
    dim=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    ffn_dim=1536,
    vocab_size=49152,
    norm_eps=1e-5,
    context_length=8192,
    rope_theta=1e5,
    tie_embeddings=True,
)

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order, which puts each rotary pair's rows side by side."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


@pytest.fixture(scope="module")
def reader(default_gguf: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(default_gguf)


@pytest.fixture(scope="module")
def state(reader: gguf.GGUFReader) -> dict[str, Tensor]:
    state = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in OUTER:
            name = OUTER[tensor.name]
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{NAMES[part]}.weight"
            if part in ("attn_q", "attn_k"):
                values = half_split(values, CONFIG.n_heads if part == "attn_q" else CONFIG.n_kv_heads)
        state[name] = torch.tensor(values)
    return state


@pytest.fixture(scope="module")
def prompt_ids(reader: gguf.GGUFReader) -> list[int]:
    pieces = reader.fields["tokenizer.ggml.tokens"].contents()
    return [pieces.index(piece) for piece in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]


@pytest.fixture(scope="module")
def model(state: dict[str, Tensor]) -> LlamaModel:
    with torch.device("meta"):
        model = LlamaModel(CONFIG)
    model.load_state_dict(state, assign=True)
    return model.eval()


@torch.inference_mode()
def test_logits_equal_transformers(model: LlamaModel, state: dict[str, Tensor], prompt_ids: list[int]) -> None:
    hugging_face = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        reference = LlamaForCausalLM(hugging_face)
    reference.load_state_dict(state, strict=False, assign=True)
    reference.tie_weights()
    # The rotary table is no weight, so it is still on the meta device.
    reference.model.rotary_emb = type(reference.model.rotary_emb)(hugging_face)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.cat([torch.tensor([prompt_ids]), torch.randint(0, 49152, (1, 59), generator=generator)], dim=1)
    expected = reference.eval()(ids_BT, use_cache=False).logits
    torch.testing.assert_close(model(ids_BT), expected, atol=TOLERANCE, rtol=0)


def test_it_knows_a_capital(model: LlamaModel, reader: gguf.GGUFReader, prompt_ids: list[int]) -> None:
    """Both models could agree on nonsense; this one cannot."""
    pieces = reader.fields["tokenizer.ggml.tokens"].contents()
    assert pieces[next(generate(model, prompt_ids, params=GREEDY)).id] == "ĠParis"


def test_our_own_loader_gives_the_same_weights(default_gguf: Path, state: dict[str, Tensor]) -> None:
    from qafila.weights.load import open_checkpoint

    checkpoint = open_checkpoint(default_gguf)
    assert checkpoint.config == CONFIG
    loaded = load_model(checkpoint.config, checkpoint.tensors, source=checkpoint.path).state_dict()
    assert loaded.keys() == state.keys()
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, state[name], atol=0, rtol=1e-6)
