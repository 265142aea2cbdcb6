from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from qafila.config import MixtureOfExperts, ModelConfig
from qafila.errors import FormatError, UnsupportedError
from qafila.model import load
from qafila.model.load import load_model, to_torch
from qafila.model.random_weights import random_tensors
from qafila.quant.dtypes import DType
from qafila.weights.tensor import LazyTensor, Tensor

CONFIG = ModelConfig(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    ffn_dim=64,
    vocab_size=50,
    moe=MixtureOfExperts(n_experts=3, top_k=1, ffn_dim=64, layer_step=2),
)


def tensor(dtype: DType, values: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    return Tensor(dtype, shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def test_every_parameter_gets_its_tensor() -> None:
    tensors = random_tensors(CONFIG, 0)
    model = load_model(CONFIG, tensors)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, parameter in model.state_dict().items():
        assert parameter.device.type == "cpu"
        expected = tensors[name].read().data.view(np.float32).reshape(tensors[name].shape)
        np.testing.assert_array_equal(parameter.numpy(), expected)


def test_random_tensors_depend_on_the_seed() -> None:
    first, same, other = (random_tensors(CONFIG, seed)["lm_head.weight"].read().data for seed in (1, 1, 2))
    assert (first == same).all()
    assert (first != other).any()


def test_weights_are_the_models_own_memory() -> None:
    """Changing a loaded model never writes into a mapped file."""
    tensors = random_tensors(CONFIG, 0)
    data = tensors["lm_head.weight"].read().data
    before = data.copy()
    data.flags.writeable = False
    load_model(CONFIG, tensors).lm_head.weight.data.zero_()
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize("portion", [1, 100, 1 << 24])
def test_plain_types_are_read_exactly(portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_PORTION", portion)
    values = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    for dtype, numpy_type in ((DType.F32, "<f4"), (DType.F16, "<f2"), (DType.F64, "<f8")):
        stored = values.astype(numpy_type)
        out = to_torch(tensor(dtype, stored, values.shape), dtype=torch.float32)
        np.testing.assert_array_equal(out.numpy(), stored.astype(np.float32))
    bf16 = torch.from_numpy(values).bfloat16()
    words = bf16.view(torch.int16).numpy()
    out = to_torch(tensor(DType.BF16, words, values.shape), dtype=torch.bfloat16)
    assert torch.equal(out, bf16)


def test_mapped_read_only_bytes_load_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(np.arange(12, dtype="<f4").tobytes())
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    out = to_torch(Tensor(DType.F32, (3, 4), np.asarray(mapped)), dtype=torch.float32)
    np.testing.assert_array_equal(out.numpy(), np.arange(12).reshape(3, 4))


@pytest.mark.parametrize("portion", [1, 1 << 24])
@pytest.mark.parametrize(
    ("dtype", "oracle"),
    [
        (DType.Q4_1, gguf.GGMLQuantizationType.Q4_1),
        (DType.Q8_0, gguf.GGMLQuantizationType.Q8_0),
    ],
)
def test_quantised_types_equal_gguf(
    dtype: DType, oracle: gguf.GGMLQuantizationType, portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_PORTION", portion)
    values = np.random.default_rng(1).standard_normal((2, 3, 64)).astype(np.float32)
    blocks = gguf.quantize(values, oracle)
    out = to_torch(tensor(dtype, blocks, values.shape), dtype=torch.float32)
    np.testing.assert_allclose(out.numpy(), gguf.dequantize(blocks, oracle), rtol=1e-6, atol=0)


def test_missing_tensor_is_named() -> None:
    tensors = random_tensors(CONFIG, 0)
    del tensors["model.layers.1.mlp.router.weight"]
    with pytest.raises(FormatError, match=r"^m\.gguf: tensor model\.layers\.1\.mlp\.router\.weight is missing"):
        load_model(CONFIG, tensors, source="m.gguf")
    del tensors["lm_head.weight"]
    with pytest.raises(FormatError, match=r"2 tensors \(lm_head\.weight, \.\.\.\) are missing"):
        load_model(CONFIG, tensors)


def test_extra_tensor_is_named() -> None:
    tensors = random_tensors(CONFIG, 0)
    tied = CONFIG.with_changes(tie_embeddings=True)
    with pytest.raises(FormatError, match=r"tensor lm_head\.weight is not part of the model"):
        load_model(tied, tensors)


def test_wrong_shape_is_named_before_anything_is_read() -> None:
    tensors = random_tensors(CONFIG, 0)

    def explode() -> Tensor:
        raise AssertionError("read")

    tensors = {name: replace(lazy, read=explode) for name, lazy in tensors.items()}
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = LazyTensor(DType.F32, (32, 64), "x.safetensors", explode)
    with pytest.raises(FormatError, match=r"^x\.safetensors: .*up_proj\.weight has shape \[32, 64\].*\[64, 32\]$"):
        load_model(CONFIG, tensors)


def test_integers_are_no_weights() -> None:
    tensors = random_tensors(CONFIG, 0)
    name = "model.norm.weight"
    tensors[name] = LazyTensor.of(Tensor(DType.I32, (32,), np.zeros(128, np.uint8)), "x.gguf")
    with pytest.raises(UnsupportedError, match=r"^x\.gguf: model\.norm\.weight is I32"):
        load_model(CONFIG, tensors)
