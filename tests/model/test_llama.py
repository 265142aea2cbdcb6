"""Logits equal transformers' own classes on random small configurations of every family (float32, 1e-4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MllamaForCausalLM,
    PreTrainedModel,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.parameters import parameter_shapes

TOLERANCE = 1e-4

BASE = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4}
LLAMA = ModelConfig(dim=48, n_layers=4, n_heads=6, n_kv_heads=6, head_dim=8, ffn_dim=80, vocab_size=97)


def llama(config: ModelConfig, rope: dict[str, object] | None = None) -> PreTrainedModel:
    rope_parameters = {"rope_type": "default", **(rope or {}), "rope_theta": config.rope_theta}
    return LlamaForCausalLM(
        LlamaConfig(
            **BASE,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            max_position_embeddings=config.context_length,
            rope_parameters=rope_parameters,
            tie_word_embeddings=config.tie_embeddings,
        )
    )


def llama4(config: ModelConfig, rope: dict[str, object] | None = None) -> PreTrainedModel:
    assert config.moe is not None
    base = {**BASE, "intermediate_size": config.moe.ffn_dim, "num_hidden_layers": config.n_layers}
    temperature = config.temperature or AttentionTemperature()
    return Llama4ForCausalLM(
        Llama4TextConfig(
            **base,
            intermediate_size_mlp=config.ffn_dim,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", **(rope or {}), "rope_theta": config.rope_theta},
            num_local_experts=config.moe.n_experts,
            num_experts_per_tok=config.moe.top_k,
            interleave_moe_layer_step=config.moe.layer_step,
            use_qk_norm=config.qk_norm,
            no_rope_layers=[int(i not in config.no_rope_layers) for i in range(config.n_layers)],
            attention_chunk_size=config.attention_chunk,
            attn_temperature_tuning=config.temperature is not None,
            floor_scale=int(temperature.floor_scale),
            attn_scale=temperature.attn_scale,
        )
    )


def mllama(config: ModelConfig, rope: dict[str, object] | None = None) -> PreTrainedModel:
    return MllamaForCausalLM(
        MllamaTextConfig(
            **{**BASE, "num_hidden_layers": config.n_layers},
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", **(rope or {}), "rope_theta": config.rope_theta},
            cross_attention_layers=list(config.cross_attention_layers),
            pad_token_id=0,
        )
    )


def scaled(factor: float) -> tuple[RopeScaling, dict[str, object]]:
    """The same scaling for us and for transformers; a short original context makes all three bands occur."""
    ours = RopeScaling(kind="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64)
    theirs = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return ours, theirs


Reference = Callable[..., PreTrainedModel]

SCALED_8, HF_SCALED_8 = scaled(8.0)
SCALED_32, HF_SCALED_32 = scaled(32.0)

LLAMA_4 = ModelConfig(
    dim=48,
    n_layers=4,
    n_heads=6,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=80,
    vocab_size=97,
    rope_theta=5e5,
    rope_interleaved=True,
    moe=MixtureOfExperts(n_experts=4, top_k=1, ffn_dim=40),
    no_rope_layers=(3,),
    attention_chunk=8,
    qk_norm=True,
    temperature=AttentionTemperature(floor_scale=4.0, attn_scale=0.5),
)
VISION = LLAMA.with_changes(n_layers=5, n_kv_heads=2, cross_attention_layers=(1, 3), extra_embeddings=8)

CASES: dict[str, tuple[Reference, ModelConfig, dict[str, object] | None]] = {
    "llama-1": (llama, LLAMA.with_changes(norm_eps=1e-6), None),
    "llama-2-gqa": (llama, LLAMA.with_changes(n_kv_heads=2), None),
    "multi-query": (llama, LLAMA.with_changes(n_kv_heads=1), None),
    # An epsilon that shows: the real ones vanish below the tolerance.
    "large-epsilon": (llama, LLAMA.with_changes(norm_eps=0.1), None),
    "code-llama-theta": (llama, LLAMA.with_changes(rope_theta=1e6), None),
    "linear-scaling": (
        llama,
        LLAMA.with_changes(rope_scaling=RopeScaling(kind="linear", factor=4.0)),
        {"rope_type": "linear", "factor": 4.0},
    ),
    "llama-3.1": (llama, LLAMA.with_changes(n_kv_heads=3, rope_theta=5e5, rope_scaling=SCALED_8), HF_SCALED_8),
    "llama-3.2-tied": (
        llama,
        LLAMA.with_changes(n_kv_heads=2, rope_theta=5e5, rope_scaling=SCALED_32, tie_embeddings=True),
        HF_SCALED_32,
    ),
    "wide-heads": (llama, LLAMA.with_changes(n_heads=4, n_kv_heads=2, head_dim=20), None),
    "llama-4-scout": (llama4, LLAMA_4, None),
    "llama-4-scout-scaled": (llama4, LLAMA_4.with_changes(rope_scaling=SCALED_8), HF_SCALED_8),
    "llama-4-maverick": (
        llama4,
        LLAMA_4.with_changes(moe=MixtureOfExperts(n_experts=4, top_k=1, ffn_dim=40, layer_step=2), qk_norm=False),
        None,
    ),
    "llama-4-top-2": (
        llama4,
        LLAMA_4.with_changes(moe=MixtureOfExperts(n_experts=5, top_k=2, ffn_dim=40), temperature=None),
        None,
    ),
    "llama-4-large-epsilon": (llama4, LLAMA_4.with_changes(norm_eps=0.1), None),
    "llama-4-nope-first": (llama4, LLAMA_4.with_changes(no_rope_layers=(0, 2)), None),
    "llama-3.2-vision": (mllama, VISION, None),
}


def canonical(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A transformers state dict under canonical names, experts split; written apart from weights/names.py."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.replace(".feed_forward.", ".mlp.")
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.transpose(1, 2).chunk(2, dim=1)
            stem = name.removesuffix("gate_up_proj")
            out[f"{stem}gate_proj.weight"], out[f"{stem}up_proj.weight"] = gate.contiguous(), up.contiguous()
        elif name.endswith("experts.down_proj"):
            out[f"{name}.weight"] = tensor.transpose(1, 2).contiguous()
        elif not (name == "lm_head.weight" and config.tie_embeddings):
            out[name] = tensor
    return out


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Weights large enough that an error anywhere shows in the logits (the initialisers' own are tiny)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(noise / 7 if parameter.dim() > 1 else 1 + 0.2 * noise)


def pair(case: str, seed: int = 0) -> tuple[PreTrainedModel, LlamaModel]:
    build, config, rope = CASES[case]
    reference = build(config, rope).eval()
    randomise(reference, seed)
    model = LlamaModel(config).eval()
    model.load_state_dict(canonical(reference.state_dict(), config), strict=True)
    return reference, model


def random_ids(batch: int, tokens: int, vocab: int = 97) -> Tensor:
    return torch.randint(1, vocab, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_logits_equal_transformers(case: str) -> None:
    reference, model = pair(case)
    ids_BT = random_ids(2, 29)
    expected = reference(ids_BT, use_cache=False).logits
    actual = model(ids_BT)
    assert actual.dtype == torch.float32
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_cache_changes_nothing(case: str) -> None:
    """Token by token, and in chunks that straddle attention chunks, equal the whole at once."""
    _, model = pair(case)
    ids_BT = random_ids(2, 29)
    whole = model(ids_BT)
    for sizes in ([1] * 29, [13, 1, 7, 8], [28, 1]):
        cache = model.new_cache(batch=2, capacity=4)
        parts = [model(part, cache=cache) for part in ids_BT.split(sizes, dim=1)]
        assert cache.length == 29
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_the_canonical_ones(case: str) -> None:
    config = CASES[case][1]
    state = LlamaModel(config).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == parameter_shapes(config)


@torch.inference_mode()
def test_llama_4_chunks_matter() -> None:
    """Without the chunks the logits differ after the first chunk only, so the equality above tests something."""
    config = LLAMA_4
    chunked = load_model(config, random_tensors(config, 1))
    full = load_model(config.with_changes(attention_chunk=None), random_tensors(config, 1))
    ids_BT = random_ids(1, 24)
    difference = (chunked(ids_BT) - full(ids_BT)).abs().amax(dim=(0, 2))
    assert difference[:8].max() < 1e-5
    assert difference[8:].min() > 1e-3


@torch.inference_mode()
def test_cross_attention_equals_transformers_with_image_states() -> None:
    reference, model = pair("llama-3.2-vision")
    ids_BT = random_ids(2, 11)
    image_BID = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(3))
    # Without a mask transformers would attend causally here.
    mask = torch.zeros(2, 1, 11, 5)
    expected = reference(ids_BT, cross_attention_states=image_BID, cross_attention_mask=mask, use_cache=False).logits
    actual = model(ids_BT, image_BID=image_BID)
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)
    assert (actual - model(ids_BT)).abs().max() > 0.1


@torch.inference_mode()
def test_positions_may_be_given() -> None:
    reference, model = pair("llama-3.1")
    positions_T = torch.arange(4096, 4096 + 20)
    ids_BT = random_ids(1, 20)
    expected = reference(ids_BT, position_ids=positions_T[None], use_cache=False).logits
    torch.testing.assert_close(model(ids_BT, positions_T), expected, atol=TOLERANCE, rtol=0)
    assert (model(ids_BT, 3 * positions_T) - expected).abs().max() > 0.1


@torch.inference_mode()
def test_chunks_lie_at_absolute_positions() -> None:
    """Rotary attention sees distances only: a shift by whole chunks changes nothing, any other shift moves borders."""
    config = LLAMA_4.with_changes(temperature=None)
    model = load_model(config, random_tensors(config, 5))
    ids_BT = random_ids(1, 20)
    near = model(ids_BT)
    torch.testing.assert_close(model(ids_BT, torch.arange(80, 100)), near, atol=1e-3, rtol=0)
    assert (model(ids_BT, torch.arange(83, 103)) - near).abs().max() > 0.01


@torch.inference_mode()
def test_temperature_counts_absolute_positions() -> None:
    config = LLAMA_4.with_changes(no_rope_layers=(0, 1, 2, 3))
    model = load_model(config, random_tensors(config, 5))
    ids_BT = random_ids(1, 3)
    near = model(ids_BT)
    torch.testing.assert_close(model(ids_BT, torch.arange(4, 7))[:, 0], near[:, 0], atol=1e-5, rtol=0)
    assert (model(ids_BT, torch.arange(4, 7)) - near)[:, 1:].abs().max() > 0.01


@torch.inference_mode()
def test_last_only_gives_the_last_position() -> None:
    _, model = pair("llama-2-gqa")
    ids_BT = random_ids(2, 9)
    last = model(ids_BT, last_only=True)
    assert last.shape == (2, 1, 97)
    torch.testing.assert_close(last, model(ids_BT)[:, -1:], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_tied_head_leaves_out_the_extra_embeddings() -> None:
    config = VISION.with_changes(tie_embeddings=True)
    model = load_model(config, random_tensors(config, 0))
    assert model(torch.tensor([[3, 104]])).shape == (1, 2, 97)


@torch.inference_mode()
def test_bfloat16_stays_near_float32() -> None:
    config = LLAMA_4
    exact = load_model(config, random_tensors(config, 2, scale=0.5))
    rounded = load_model(config, random_tensors(config, 2, scale=0.5), dtype=torch.bfloat16)
    ids_BT = random_ids(1, 16)
    assert rounded.dtype == torch.bfloat16
    logits = rounded(ids_BT, cache=rounded.new_cache())
    assert logits.dtype == torch.float32
    expected = exact(ids_BT)
    assert (logits - expected).abs().mean() < 0.05 * expected.std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["llama-1", "llama-3.1", "llama-4-scout", "llama-4-maverick", "llama-3.2-vision"])
@torch.inference_mode()
def test_half_precision_is_as_good_as_transformers(case: str, dtype: torch.dtype) -> None:
    """Held to medians, because a router's near tie may flip here and not there."""
    reference, model = pair(case)
    ids_BT = random_ids(2, 29)
    exact = reference(ids_BT, use_cache=False).logits
    theirs = (reference.to(dtype)(ids_BT, use_cache=False).logits.float() - exact).abs().median()
    ours = (model.to(dtype)(ids_BT) - exact).abs().median()
    assert 0 < theirs < 0.02 * exact.std()
    assert ours < 1.5 * theirs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("case", ["llama-3.1", "llama-4-scout", "llama-3.2-vision"])
@torch.inference_mode()
def test_cuda_equals_cpu(case: str) -> None:
    config = CASES[case][1]
    ids_BT = random_ids(1, 24)
    expected = load_model(config, random_tensors(config, 4))(ids_BT)
    on_gpu = load_model(config, random_tensors(config, 4), device="cuda")
    cache = on_gpu.new_cache()
    parts = [on_gpu(part.cuda(), cache=cache).cpu() for part in ids_BT.split([20, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-3, rtol=0)
    in_bf16 = load_model(config, random_tensors(config, 4), device="cuda", dtype=torch.bfloat16)
    logits = in_bf16(ids_BT.cuda()).cpu()
    # Routing may flip on a near tie in bf16, so only the bulk is held.
    assert (logits - expected).abs().median() < 0.1 * expected.std()
