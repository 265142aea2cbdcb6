from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from adapter_models import CONFIG, MIXED, Options, ours, shake, some_ids

from qafila.adapt import blocks, nf4
from qafila.adapt.apply import adapters, apply_adapter
from qafila.adapt.frozen import FrozenLinear, FrozenStackedLinear
from qafila.adapt.load import load_base
from qafila.config import ModelConfig
from qafila.errors import FormatError
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.quant import DType, dequantise, quantise
from qafila.weights.export import as_type
from qafila.weights.tensor import LazyTensor

IN_TORCH = (DType.Q4_0, DType.Q4_1, DType.Q8_0, DType.Q4_K, DType.Q5_K, DType.Q6_K)
# Appendix E of the paper, written down apart from the source.
PUBLISHED = """
-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""


def random_blocks(dtype: DType, rows: int = 6, width: int = 512) -> np.ndarray:
    """Any bytes are blocks; scales are made finite."""
    generator = np.random.default_rng(0)
    if dtype in (DType.Q5_K, DType.Q6_K):
        data = generator.integers(0, 256, (rows, dtype.nbytes((width,))), dtype=np.uint8)
        each = data.reshape(-1, dtype.block_bytes)
        places = (208,) if dtype is DType.Q6_K else (0, 2)
        for place in places:
            each[:, place : place + 2] = generator.random((len(each), 1)).astype("<f2").view(np.uint8)
        return data
    return quantise(dtype, generator.standard_normal((rows, width), dtype=np.float32))


@pytest.mark.parametrize("dtype", IN_TORCH, ids=lambda dtype: dtype.name)
def test_blocks_are_decoded_to_the_same_bits_in_torch(dtype: DType, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_blocks(dtype)
    want = torch.from_numpy(dequantise(dtype, data))
    for portion in (1, 1 << 24):
        monkeypatch.setattr(blocks, "_PORTION", portion)
        found = blocks.dequantise_in_torch(torch.from_numpy(data), dtype.name, torch.float32)
        assert torch.equal(found, want)
        for to in (torch.float32, torch.bfloat16):
            assert torch.equal(blocks.dequantise(torch.from_numpy(data), dtype.name, to), want.to(to))
    torch.library.opcheck(blocks.dequantise, (torch.from_numpy(data), dtype.name, torch.bfloat16))


def test_what_a_device_keeps() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert blocks.is_kept(DType.Q2_K, cpu)
    assert not blocks.is_kept(DType.Q2_K, cuda)
    assert all(blocks.is_kept(dtype, cuda) for dtype in IN_TORCH)
    assert not blocks.is_kept(DType.F16, cpu)


def test_nf4_levels_are_the_published_ones() -> None:
    levels = [float(text) for text in PUBLISHED.split()]
    assert list(nf4.LEVELS) == levels
    # Section 3: quantiles of the normal distribution, halved apart, scaled to [-1, 1]; offset as in the reference code.
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = 0.9677083
    upper = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    lower = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    derived = torch.cat([upper, lower, torch.zeros(1)]).sort().values
    torch.testing.assert_close(derived / derived.max(), torch.tensor(levels), atol=2e-4, rtol=0)


def slow_nf4(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and the weights that come back, by the formulas alone: block after block, in float64."""
    levels = np.array([float(text) for text in PUBLISHED.split()], np.float32)
    tree = [0.0, 1.0]
    for exponent in range(7):
        fractions = np.linspace(0.1, 1, 2**exponent + 1)
        for low, high in pairwise(fractions):
            tree += [(low + high) / 2 * 10.0 ** (exponent - 6), -(low + high) / 2 * 10.0 ** (exponent - 6)]
    tree = np.sort(tree)
    flat = weight.reshape(-1)
    scales = np.array([np.abs(flat[i : i + 64]).max() for i in range(0, len(flat), 64)])
    codes = np.array([np.abs(levels - value / scales[i // 64]).argmin() for i, value in enumerate(flat)])
    mean = scales.mean(dtype=np.float32)
    kept = np.empty_like(scales)
    for i in range(0, len(scales), 256):
        part = scales[i : i + 256] - mean
        step = np.abs(part).max()
        kept[i : i + 256] = [tree[np.abs(tree - value / step).argmin()] * step + mean for value in part]
    return codes, (levels[codes].reshape(-1, 64)[: len(scales)] * kept[:, None]).reshape(weight.shape)


@pytest.mark.parametrize("shape", [(320, 128), (3, 64)])
def test_nf4_is_what_its_formulas_say(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    stored = nf4.quantise(torch.from_numpy(weight))
    codes, want = slow_nf4(weight)
    assert np.array_equal(np.stack([stored.codes >> 4, stored.codes & 15], axis=1).reshape(-1), codes)
    found = nf4.dequantise(stored, shape, torch.float32)
    np.testing.assert_allclose(found, want, atol=1e-6, rtol=1e-5)
    assert torch.equal(nf4.dequantise(stored, shape, torch.bfloat16), found.bfloat16())
    bits = 8 * sum(part.numel() * part.element_size() for part in stored) / weight.size
    if weight.size > 1 << 14:
        assert bits < 4.13  # section 3: 0.127 bits a parameter for the scales


def test_nf4_takes_any_size_and_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 11)
    found = nf4.dequantise(nf4.quantise(weight), (7, 11), torch.float32)
    assert (found - weight).abs().max() < 0.16 * weight.abs().max()
    zeros = torch.zeros(4, 64)
    assert torch.equal(nf4.dequantise(nf4.quantise(zeros), (4, 64), torch.float32), zeros)
    large = torch.randn(40, 64)
    whole = nf4.dequantise(nf4.quantise(large), (40, 64), torch.float32)
    monkeypatch.setattr(nf4, "_PORTION", 128)
    assert torch.equal(nf4.dequantise(nf4.quantise(large), (40, 64), torch.float32), whole)


def quantised_tensors(config: ModelConfig, dtype: DType) -> dict[str, LazyTensor]:
    """Random tensors whose layers' matrices are in blocks, as a GGUF file has them."""
    tensors = random_tensors(config, 0)
    for name, lazy in tensors.items():
        if len(lazy.shape) > 1 and ".layers." in name and "router" not in name:
            tensors[name] = as_type(lazy, dtype)
    return tensors


def training_step(model: LlamaModel) -> list[torch.Tensor]:
    parameters = apply_adapter(model, Options())
    shake(parameters)
    logits = model(some_ids())
    logits.logsumexp(-1).sum().backward()
    return [logits, *(parameter.grad for parameter in parameters if parameter.grad is not None)]


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["dense", "mixture"])
def test_a_model_in_its_blocks_learns_like_the_dequantised_one(config: ModelConfig) -> None:
    tensors = quantised_tensors(config, DType.Q4_1)
    model = load_base(config, tensors, base="stored")
    frozen = [m for m in model.modules() if isinstance(m, FrozenLinear | FrozenStackedLinear)]
    assert len(frozen) == sum(lazy.dtype is DType.Q4_1 for lazy in tensors.values())
    assert sum(buffer.numel() for buffer in model.buffers()) == sum(
        lazy.nbytes for lazy in tensors.values() if lazy.dtype is DType.Q4_1
    )
    plain = load_base(config, tensors)
    for mine, want in zip(training_step(model), training_step(plain), strict=True):
        torch.testing.assert_close(mine, want)


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["dense", "mixture"])
def test_a_model_in_nf4_learns_like_the_dequantised_one(config: ModelConfig) -> None:
    tensors = random_tensors(config, 0)
    model = load_base(config, tensors, base="nf4")
    plain = load_model(config, tensors)
    replaced = 0
    for path, module in model.named_modules():
        if isinstance(module, FrozenLinear):
            shape = (module.out_features, module.in_features)
            plain.get_submodule(path).weight.data = nf4.dequantise(nf4.Nf4(*module.stored()), shape, torch.float32)
            replaced += 1
        elif isinstance(module, FrozenStackedLinear):
            weight = plain.get_submodule(path).weight
            for i, expert in enumerate(weight):
                weight.data[i] = nf4.dequantise(nf4.quantise(expert), tuple(expert.shape), torch.float32)
            replaced += 1
    assert replaced == len([n for n in tensors if "proj" in n])
    for mine, want in zip(training_step(model), training_step(plain), strict=True):
        torch.testing.assert_close(mine, want)


def test_types_without_blocks_and_other_parts_have_the_given_type() -> None:
    tensors = quantised_tensors(CONFIG, DType.Q8_0)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = random_tensors(CONFIG, 0)[name]
    model = load_base(CONFIG, tensors, base="stored", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.get_submodule("model.layers.0.self_attn.q_proj").weight.shape == (64, 64)
    assert isinstance(model.get_submodule("model.layers.1.self_attn.q_proj"), FrozenLinear)
    assert isinstance(model.lm_head, torch.nn.Linear)
    shake(apply_adapter(model, Options()))
    assert len([*adapters(model)]) == 14
    assert model(some_ids()).isfinite().all()
    del tensors[name]
    with pytest.raises(FormatError, match=r"q_proj\.weight is missing"):
        load_base(CONFIG, tensors, base="stored")


def test_a_quantised_model_is_ours_without_an_adapter() -> None:
    want = ours()(some_ids())
    found = load_base(CONFIG, quantised_tensors(CONFIG, DType.Q8_0), base="stored")(some_ids())
    assert (found - want).square().mean() < 1e-3
