"""The name table is a bijection, and its row orders are those of the published converters."""

from __future__ import annotations

import numpy as np
import pytest

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig
from qafila.errors import FormatError, UnsupportedError
from qafila.parameters import parameter_shapes
from qafila.quant.dtypes import DType
from qafila.weights.names import from_canonical, gguf_rules, hugging_face_rules, meta_rules, to_canonical
from qafila.weights.tensor import LazyTensor, Tensor

DENSE = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, vocab_size=48, tie_embeddings=True
)
MIXTURE = ModelConfig(
    dim=32,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    ffn_dim=64,
    vocab_size=48,
    rope_interleaved=True,
    moe=MixtureOfExperts(n_experts=4, top_k=1, ffn_dim=24, layer_step=2),
    no_rope_layers=(3,),
    attention_chunk=8192,
    qk_norm=True,
    temperature=AttentionTemperature(),
)
VISION = ModelConfig(
    dim=32,
    n_layers=5,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    ffn_dim=64,
    vocab_size=48,
    cross_attention_layers=(1, 3),
    extra_embeddings=8,
)


def random_tensors(config: ModelConfig, dtype: DType = DType.F16, seed: int = 0) -> dict[str, LazyTensor]:
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        kind = dtype if len(shape) == 2 and shape[-1] % dtype.block_size == 0 else DType.F16
        tensors[name] = LazyTensor.of(Tensor(kind, shape, rng.integers(0, 256, kind.nbytes(shape), dtype=np.uint8)))
    return tensors


@pytest.mark.parametrize(
    ("config", "rules"),
    [
        (DENSE, hugging_face_rules),
        (DENSE, gguf_rules),
        (DENSE, meta_rules),
        (MIXTURE, hugging_face_rules),
        (MIXTURE, gguf_rules),
        (MIXTURE, meta_rules),
        (VISION, hugging_face_rules),
        (VISION, meta_rules),
    ],
)
def test_there_and_back_is_bit_identical(config, rules):
    tensors = random_tensors(config)
    foreign = from_canonical(rules(config), tensors)
    assert all(tensor.read().shape == tensor.shape for tensor in foreign.values())
    again = to_canonical(config, rules(config), foreign, "memory")
    assert list(again) == list(parameter_shapes(config))
    for name, tensor in tensors.items():
        back = again[name].read()
        assert back.shape == tensor.shape, name
        assert back.dtype is tensor.dtype
        assert np.array_equal(back.data, tensor.read().data), name


def test_quantised_rows_move_whole():
    tensors = random_tensors(DENSE, DType.Q4_0)
    again = to_canonical(DENSE, gguf_rules(DENSE), from_canonical(gguf_rules(DENSE), tensors), "memory")
    assert all(np.array_equal(again[name].read().data, tensors[name].read().data) for name in tensors)


@pytest.mark.parametrize("rules", [gguf_rules, meta_rules])
def test_rotary_rows_stand_where_the_published_converters_put_them(rules):
    tensors = random_tensors(DENSE)
    foreign = from_canonical(rules(DENSE), tensors)
    names = [
        next(n for n in foreign if n.endswith(end))
        for end in (("attn_q.weight", "wq.weight"), ("attn_k.weight", "wk.weight"))
    ]
    for name, part, heads in zip(names, "qk", (4, 2), strict=True):
        canonical = tensors[f"model.layers.0.self_attn.{part}_proj.weight"].read().data.view("<u2").reshape(-1, 32)
        stored = foreign[name].read().data.view("<u2").reshape(-1, 32)
        for head in range(heads):
            for i in range(4):
                assert np.array_equal(stored[head * 8 + 2 * i], canonical[head * 8 + i])
                assert np.array_equal(stored[head * 8 + 2 * i + 1], canonical[head * 8 + 4 + i])


def test_interleaved_families_move_no_rows():
    tensors = random_tensors(MIXTURE)
    for rules, name in ((gguf_rules, "blk.0.attn_q.weight"), (meta_rules, "layers.0.attention.wq.weight")):
        stored = from_canonical(rules(MIXTURE), tensors)[name].read().data
        assert np.array_equal(stored, tensors["model.layers.0.self_attn.q_proj.weight"].read().data)


def test_vision_layers_are_numbered_apart_in_metas_files():
    foreign = from_canonical(meta_rules(VISION), random_tensors(VISION))
    assert "text_model.cross_attention_layers.1.attention.q_norm.weight" in foreign
    assert "text_model.layers.2.attention.wq.weight" in foreign
    assert "text_model.layers.3.attention.wq.weight" not in foreign
    assert foreign["text_model.learnable_embedding.weight"].shape == (8, 32)


def test_a_missing_an_extra_and_a_misshapen_tensor_are_named():
    foreign = from_canonical(gguf_rules(DENSE), random_tensors(DENSE))
    rest = {k: v for k, v in foreign.items() if k != "blk.1.ffn_up.weight"}
    with pytest.raises(FormatError, match=r"m\.gguf: tensor 'blk\.1\.ffn_up\.weight' is missing"):
        to_canonical(DENSE, gguf_rules(DENSE), rest, "m.gguf")
    with pytest.raises(FormatError, match=r"'blk\.9\.extra' is not part of this model"):
        to_canonical(DENSE, gguf_rules(DENSE), {**foreign, "blk.9.extra": foreign["output_norm.weight"]}, "m.gguf")
    wrong = {**foreign, "blk.0.attn_q.weight": foreign["blk.0.attn_k.weight"]}
    with pytest.raises(FormatError, match=r"'blk\.0\.attn_q\.weight' has shape \[16, 32\]"):
        to_canonical(DENSE, gguf_rules(DENSE), wrong, "m.gguf")


@pytest.mark.parametrize(
    ("config", "rules", "name"),
    [
        (MIXTURE, hugging_face_rules, "model.layers.1.feed_forward.experts.down_proj"),
        (MIXTURE, hugging_face_rules, "model.layers.1.feed_forward.experts.gate_up_proj"),
        (MIXTURE, meta_rules, "layers.1.feed_forward.router_DE"),
        (VISION, meta_rules, "text_model.learnable_embedding.weight"),
        (VISION, meta_rules, "text_model.tok_embeddings.weight"),
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (5, 0)])
def test_a_tensor_of_too_few_dimensions_is_refused(config, rules, name, shape):
    foreign = from_canonical(rules(config), random_tensors(config))
    assert name in foreign
    data = np.zeros(DType.F16.nbytes(shape), dtype=np.uint8)
    foreign[name] = LazyTensor.of(Tensor(DType.F16, shape, data))
    with pytest.raises(FormatError):
        to_canonical(config, rules(config), foreign, "memory")


def test_whole_numbers_are_no_weights():
    foreign = from_canonical(gguf_rules(DENSE), random_tensors(DENSE))
    foreign["blk.0.attn_q.weight"] = LazyTensor.of(Tensor(DType.I8, (32, 32), np.zeros(1024, dtype=np.uint8)))
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_q\.weight' is I8"):
        to_canonical(DENSE, gguf_rules(DENSE), foreign, "memory")
