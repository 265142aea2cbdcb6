from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.errors import ConfigError, FormatError, ModelNotFoundError, QafilaError, StorageError, UsageError
from qafila.parameters import parameter_shapes
from qafila.presets import preset, preset_names
from qafila.quant.dtypes import DType
from qafila.weights.meta import meta_config, meta_params, read_meta, write_meta
from qafila.weights.names import from_canonical, meta_rules, to_canonical
from qafila.weights.params import check_params
from qafila.weights.tensor import LazyTensor, Tensor

BASE: dict[str, Any] = {
    "dim": 64,
    "n_layers": 4,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 8,
    "ffn_dim": 96,
    "vocab_size": 80,
}
CONFIGS = {
    "Llama 2": ModelConfig(**BASE, context_length=4096),
    "Llama 3.1": ModelConfig(**BASE, rope_theta=5e5, rope_scaling=RopeScaling("llama3", factor=8.0)),
    "Llama 3.2": ModelConfig(
        **BASE, rope_theta=5e5, rope_scaling=RopeScaling("llama3", factor=32.0), tie_embeddings=True
    ),
    "Llama 3.2 Vision": ModelConfig(
        **{**BASE, "n_layers": 5}, rope_theta=5e5, cross_attention_layers=(3,), extra_embeddings=8
    ),
    "Llama 4": ModelConfig(
        **BASE,
        rope_theta=5e5,
        rope_interleaved=True,
        moe=MixtureOfExperts(n_experts=4, top_k=1, ffn_dim=48, layer_step=2),
        no_rope_layers=(3,),
        attention_chunk=16,
        qk_norm=True,
        temperature=AttentionTemperature(),
    ),
}


def weights(config: ModelConfig, seed: int = 0) -> dict[str, LazyTensor]:
    """Random bytes as BF16 parameters, canonical names."""
    rng = np.random.default_rng(seed)
    return {
        name: LazyTensor.of(Tensor(DType.BF16, shape, rng.integers(0, 256, 2 * int(np.prod(shape)), dtype=np.uint8)))
        for name, shape in parameter_shapes(config).items()
    }


def meta_named(config: ModelConfig, canonical: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    if config.tie_embeddings:
        canonical = {**canonical, "lm_head.weight": canonical["model.embed_tokens.weight"]}
        config = config.with_changes(tie_embeddings=False)
    return from_canonical(meta_rules(config), canonical)


def written(folder: Path, name: str, shards: int = 1) -> dict[str, LazyTensor]:
    config = CONFIGS[name]
    canonical = weights(config)
    write_meta(folder, meta_params(config), meta_named(config, canonical), shards=shards)
    return canonical


def bits(tensor: LazyTensor) -> bytes:
    return tensor.read().data.tobytes()


def torch_tensor(tensor: LazyTensor) -> torch.Tensor:
    return torch.frombuffer(bytearray(bits(tensor)), dtype=torch.bfloat16).reshape(tensor.shape)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trips_are_bit_identical(tmp_path: Path, name: str, shards: int) -> None:
    config = CONFIGS[name]
    canonical = written(tmp_path / "out", name, shards)
    meta = read_meta(tmp_path / "out")
    assert meta.shards == shards
    assert meta_config(meta.params, meta.tensors, path=tmp_path) == config
    found = to_canonical(config, meta_rules(config), meta.tensors, tmp_path)
    assert found.keys() == canonical.keys()
    for key, tensor in canonical.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[key]) == bits(tensor), key
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [*(f"consolidated.{i:02d}.pth" for i in range(shards)), "params.json"]


@pytest.mark.parametrize("name", ["Llama 2", "Llama 4"])
def test_shards_are_what_fairscale_layers_hold(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    canonical = weights(config)
    named = meta_named(config, canonical)
    write_meta(tmp_path, meta_params(config), named, shards=2)
    ranks = [torch.load(tmp_path / f"consolidated.0{i}.pth", weights_only=True) for i in range(2)]
    whole = {key: torch_tensor(tensor) for key, tensor in named.items()}

    def joined(key: str, dim: int) -> bool:
        return torch.equal(
            torch.cat([rank[key] for rank in ranks], dim=dim).view(torch.int16), whole[key].view(torch.int16)
        )

    assert ranks[0].keys() == whole.keys()
    for key in ("layers.0.attention.wq", "layers.0.attention.wk", "layers.2.attention.wv", "output"):
        assert joined(f"{key}.weight", 0)
    assert joined("layers.0.attention.wo.weight", 1)
    assert joined("layers.0.feed_forward.w1.weight", 0)
    assert joined("layers.0.feed_forward.w2.weight", 1)
    assert joined("tok_embeddings.weight", 1)  # a small vocabulary: Llama 1 and 2 divide the columns
    for rank in ranks:
        key = "layers.1.ffn_norm.weight"
        assert torch.equal(rank[key].view(torch.int16), whole[key].view(torch.int16))
    if config.moe:
        E, D, F = config.moe.n_experts, config.dim, config.moe.ffn_dim
        for part in ("moe_w_in_eD_F", "moe_w_swiglu_eD_F"):
            assert joined(f"layers.1.feed_forward.experts.{part}", 1)
        key = "layers.1.feed_forward.experts.moe_w_out_eF_D"
        halves = [rank[key].view(E, F // 2, D) for rank in ranks]
        assert torch.equal(torch.cat(halves, dim=1).view(torch.int16), whole[key].view(E, F, D).view(torch.int16))
        assert joined("layers.1.feed_forward.w_out_shared_DF.weight", 1)


def save(folder: Path, params: Mapping[str, Any], *shards: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    for number, shard in enumerate(shards):
        torch.save(dict(shard), folder / f"consolidated.{number:02d}.pth")
    return folder


def small(shards: int = 1, **changes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """A Llama of one layer (dim 16, 4 heads, feed-forward 48) as Meta would divide it."""
    torch.manual_seed(0)
    whole: dict[str, tuple[torch.Tensor, int | None]] = {
        "tok_embeddings.weight": (torch.randn(32, 16), 0),
        "norm.weight": (torch.randn(16), None),
        "output.weight": (torch.randn(32, 16), 0),
        "layers.0.attention.wq.weight": (torch.randn(16, 16), 0),
        "layers.0.attention.wk.weight": (torch.randn(8, 16), 0),
        "layers.0.attention.wv.weight": (torch.randn(8, 16), 0),
        "layers.0.attention.wo.weight": (torch.randn(16, 16), 1),
        "layers.0.feed_forward.w1.weight": (torch.randn(48, 16), 0),
        "layers.0.feed_forward.w2.weight": (torch.randn(16, 48), 1),
        "layers.0.feed_forward.w3.weight": (torch.randn(48, 16), 0),
        "layers.0.attention_norm.weight": (torch.randn(16), None),
        "layers.0.ffn_norm.weight": (torch.randn(16), None),
    }
    for name, tensor in changes.items():
        whole[name] = (tensor, whole[name][1])
    return [
        {k: v if dim is None else v.chunk(shards, dim)[rank].clone() for k, (v, dim) in whole.items()}
        for rank in range(shards)
    ]


PARAMS = {"dim": 16, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 32, "multiple_of": 48}


def values(tensor: LazyTensor) -> torch.Tensor:
    return torch.frombuffer(bytearray(bits(tensor)), dtype=torch.float32).reshape(tensor.shape)


@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_both_divisions_of_the_embedding_are_told_apart(tmp_path: Path, embedding_dim: int) -> None:
    ranks = small(2)
    embedding = torch.randn(32, 16)
    for rank, part in zip(ranks, embedding.chunk(2, embedding_dim), strict=True):
        rank["tok_embeddings.weight"] = part.clone()
        rank["rope.freqs"] = torch.ones(2)
    meta = read_meta(save(tmp_path / "m", {**PARAMS, "vocab_size": -1}, *ranks))
    assert torch.equal(values(meta.tensors["tok_embeddings.weight"]), embedding)
    assert meta_config(meta.params, meta.tensors).vocab_size == 32
    assert meta.ignored == ("rope.freqs",)
    assert "rope.freqs" not in meta.tensors


def test_repeated_heads_are_kept_once(tmp_path: Path) -> None:
    # The 405B checkpoint for sixteen ranks: n_kv_heads 16, each of the 8 heads twice.
    torch.manual_seed(1)
    heads = {letter: torch.randn(8, 2, 32) for letter in "kv"}
    params = {"dim": 32, "n_layers": 1, "n_heads": 16, "n_kv_heads": 16, "vocab_size": 32, "multiple_of": 64}
    shapes = parameter_shapes(meta_config(params))
    ranks: list[dict[str, torch.Tensor]] = []
    query = torch.randn(32, 32)
    for rank in range(16):
        ranks.append(
            {
                "tok_embeddings.weight": torch.randn(2, 32),
                "norm.weight": torch.ones(32),
                "output.weight": torch.randn(2, 32),
                "layers.0.attention.wq.weight": query[2 * rank : 2 * rank + 2].clone(),
                "layers.0.attention.wk.weight": heads["k"][rank // 2].clone(),
                "layers.0.attention.wv.weight": heads["v"][rank // 2].clone(),
                "layers.0.attention.wo.weight": torch.randn(32, 2),
                "layers.0.feed_forward.w1.weight": torch.randn(
                    shapes["model.layers.0.mlp.gate_proj.weight"][0] // 16, 32
                ),
                "layers.0.feed_forward.w2.weight": torch.randn(
                    32, shapes["model.layers.0.mlp.gate_proj.weight"][0] // 16
                ),
                "layers.0.feed_forward.w3.weight": torch.randn(
                    shapes["model.layers.0.mlp.gate_proj.weight"][0] // 16, 32
                ),
                "layers.0.attention_norm.weight": torch.ones(32),
                "layers.0.ffn_norm.weight": torch.ones(32),
            }
        )
    for said in (16, 8):  # as published, and with the true number in params.json
        meta = read_meta(save(tmp_path / "m", {**params, "n_kv_heads": said}, *ranks))
        assert meta.params["n_kv_heads"] == 8
        for letter in "kv":
            assert torch.equal(
                values(meta.tensors[f"layers.0.attention.w{letter}.weight"]), heads[letter].reshape(16, 32)
            )
        config = meta_config(meta.params, meta.tensors)
        assert config.n_kv_heads == 8
        to_canonical(config, meta_rules(config), meta.tensors, tmp_path)
    # Sixteen heads that differ are sixteen heads.
    ranks[3]["layers.0.attention.wk.weight"] += 1
    assert read_meta(save(tmp_path / "m", params, *ranks)).params["n_kv_heads"] == 16
    meta = read_meta(save(tmp_path / "m", {**params, "n_kv_heads": 8}, *ranks))
    with pytest.raises(FormatError, match="not copies"):
        meta.tensors["layers.0.attention.wk.weight"].read()


@pytest.mark.parametrize("shards", [1, 2])
def test_fused_forms_of_published_files_are_taken_apart(tmp_path: Path, shards: int) -> None:
    plain = small(shards)
    fused = []
    for rank in plain:
        parts = {k.removeprefix("layers.0."): v for k, v in rank.items()}
        fused.append(
            {
                "tok_embeddings.weight": parts["tok_embeddings.weight"],
                "norm.weight": parts["norm.weight"],
                "output.weight": parts["output.weight"],
                "layers.0.attention.wqkv.weight": torch.cat([parts[f"attention.w{i}.weight"] for i in "qkv"]),
                "layers.0.attention.wqkv.layer_norm_weight": parts["attention_norm.weight"],
                "layers.0.attention.wqkv._extra_state": None,
                "layers.0.attention.wo.weight": parts["attention.wo.weight"],
                "layers.0.feed_forward.mlp.fc1_weight": torch.cat([parts[f"feed_forward.w{i}.weight"] for i in "13"]),
                "layers.0.feed_forward.mlp.fc2_weight": parts["feed_forward.w2.weight"],
                "layers.0.feed_forward.mlp.layer_norm_weight": parts["ffn_norm.weight"],
                "vision_embeddings.vision_encoder.class_embedding": torch.ones(3),
            }
        )
    expected = read_meta(save(tmp_path / "plain", PARAMS, *plain))
    found = read_meta(save(tmp_path / "fused", PARAMS, *fused))
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert bits(found.tensors[name]) == bits(tensor), name
    assert found.ignored == ("vision_embeddings.vision_encoder.class_embedding",)


@pytest.mark.parametrize("shards", [1, 2])
def test_experts_in_three_dimensions_and_module_names(tmp_path: Path, shards: int) -> None:
    config = CONFIGS["Llama 4"]
    assert config.moe
    canonical = weights(config)
    named = meta_named(config, canonical)
    write_meta(tmp_path / "a", meta_params(config), named, shards=shards)
    E, D = config.moe.n_experts, config.dim
    ranks = []
    for rank in range(shards):
        loaded = torch.load(tmp_path / "a" / f"consolidated.{rank:02d}.pth", weights_only=True)
        changed = {}
        for name, tensor in loaded.items():
            for old, new in (("moe_w_in_eD_F", "w1"), ("moe_w_swiglu_eD_F", "w3"), ("moe_w_out_eF_D", "w2")):
                if name.endswith(old):
                    tensor = tensor.view(E, D, -1) if new != "w2" else tensor.view(E, -1, D)
                    name = name.replace(old, new)
            for old, new in (("w_in_shared_FD", "w1"), ("w_out_shared_DF", "w2"), ("w_swiglu_FD", "w3")):
                name = name.replace(old, f"shared_expert.{new}")
            changed[name] = tensor
        ranks.append(changed)
    params = {"model": json.loads((tmp_path / "a" / "params.json").read_text())}
    meta = read_meta(save(tmp_path / "b", params, *ranks))
    for name, tensor in named.items():
        assert meta.tensors[name].shape == tensor.shape
        assert bits(meta.tensors[name]) == bits(tensor), name


def test_tied_heads_share_their_bytes(tmp_path: Path) -> None:
    config = CONFIGS["Llama 3.2"]
    canonical = weights(config)
    named = meta_named(config, canonical)
    del named["output.weight"]
    write_meta(tmp_path, meta_params(config), named)
    opened = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    assert opened["output.weight"].data_ptr() == opened["tok_embeddings.weight"].data_ptr()
    meta = read_meta(tmp_path)
    assert "output.weight" not in meta.tensors
    assert meta_config(meta.params, meta.tensors).tie_embeddings


def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"params\.json"):
        read_meta(tmp_path)
    folder = save(tmp_path / "m", PARAMS)
    with pytest.raises(ModelNotFoundError, match=r"consolidated\.00\.pth"):
        read_meta(folder)
    ranks = small(4)
    save(folder, PARAMS, *ranks)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(FormatError, match=r"consolidated\.01\.pth is missing"):
        read_meta(folder)
    save(folder, PARAMS, *ranks)
    (folder / "consolidated.03.pth").unlink()
    with pytest.raises(FormatError, match="3 shards hold 12 of 16 rows"):
        read_meta(folder)
    save(folder, PARAMS, *ranks[:3], {**ranks[3], "extra.weight": torch.ones(1)})
    with pytest.raises(FormatError, match=r"consolidated\.03\.pth: tensor 'extra.weight' is in one of"):
        read_meta(folder)
    save(folder, PARAMS, *ranks[:3], {**ranks[3], "norm.weight": torch.ones(16)})
    meta = read_meta(folder)
    with pytest.raises(FormatError, match=r"'norm.weight' differs between shards 00 and 03"):
        meta.tensors["norm.weight"].read()
    save(folder, PARAMS, *ranks[:3], {**ranks[3], "norm.weight": torch.ones(16).half()})
    with pytest.raises(FormatError, match=r"'norm.weight' is F32 .* in shard 00 and F16 .* in shard 03"):
        read_meta(folder)
    save(folder, PARAMS, *[{**rank, "mystery.weight": torch.ones(2, 2)} for rank in ranks])
    with pytest.raises(FormatError, match=r"'mystery.weight' is not part of a Llama"):
        read_meta(folder)


def test_writing_says_what_does_not_divide_and_keeps_what_is_there(tmp_path: Path) -> None:
    config = CONFIGS["Llama 2"]
    named = meta_named(config, weights(config))
    params = meta_params(config)
    with pytest.raises(UsageError, match="--shards 8: the model's 4 key/value heads"):
        write_meta(tmp_path / "a", params, named, shards=8)
    with pytest.raises(UsageError, match="--shards 0"):
        write_meta(tmp_path / "a", params, named, shards=0)
    assert not (tmp_path / "a").exists()
    write_meta(tmp_path / "a", params, named, shards=2)
    with pytest.raises(StorageError, match=r"consolidated\.01\.pth of another checkpoint"):
        write_meta(tmp_path / "a", params, named)

    def fail() -> Tensor:
        raise FormatError("source", "broken")

    broken = {**named, "norm.weight": LazyTensor(DType.BF16, (64,), "source", fail)}
    with pytest.raises(FormatError, match="broken"):
        write_meta(tmp_path / "b", params, broken)
    assert not list((tmp_path / "b").iterdir())


@pytest.mark.parametrize("name", preset_names())
def test_params_of_every_published_model(name: str) -> None:
    config = preset(name)
    params = json.loads(json.dumps(meta_params(config)))
    text = config.with_changes(vision=None, tie_embeddings=False)
    assert meta_config(params) == text


PUBLISHED = {
    # params.json as published.
    "llama-2-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1},
    "llama-2-70b": {
        "dim": 8192,
        "multiple_of": 4096,
        "ffn_dim_multiplier": 1.3,
        "n_heads": 64,
        "n_kv_heads": 8,
        "n_layers": 80,
        "norm_eps": 1e-05,
        "vocab_size": -1,
    },
    "llama-3.1-8b": {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "vocab_size": 128256,
        "ffn_dim_multiplier": 1.3,
        "multiple_of": 1024,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_params_are_read_and_written_alike(name: str) -> None:
    config = preset(name)
    embedding = {"tok_embeddings.weight": config.vocab_size, "output.weight": config.vocab_size}
    tensors = {
        key: LazyTensor(DType.BF16, (rows, config.dim), key, lambda: pytest.fail("read"))
        for key, rows in embedding.items()
    }
    published = PUBLISHED[name]
    assert meta_config(published, tensors) == config
    ours = meta_params(config)
    assert {key: ours[key] for key in published if key != "vocab_size"} == {
        key: value for key, value in published.items() if key != "vocab_size"
    }
    assert not ours.keys() - published.keys() - {"n_kv_heads", "rope_theta"}


def test_llama_4_says_its_constants_only_when_they_differ() -> None:
    scout = meta_params(preset("llama-4-scout"))
    assert scout["moe_args"] == {
        "num_experts": 16,
        "top_k": 1,
        "interleave_moe_layer_step": 1,
        "capacity_factor": 1.0,
        "auto_scale_F": True,
    }
    assert (scout["ffn_exp"], scout["ffn_dim_multiplier"], scout["multiple_of"]) == (4.0, 1.2, 2048)
    assert "rope_scaling_factor" not in scout
    base = preset("llama-4-scout").with_changes(
        rope_scaling=RopeScaling("llama3", factor=8.0, high_freq_factor=4.0), context_length=262_144, vision=None
    )
    params = meta_params(base)
    assert (params["rope_scaling_factor"], params["rope_high_freq_factor"]) == (8.0, 4.0)
    assert meta_config(params) == base


def test_small_llama_3_2_models_are_scaled_as_hugging_face_does() -> None:
    params = meta_params(preset("llama-3.2-1b"))
    scaling = meta_config(params).rope_scaling
    assert scaling
    assert scaling.factor == 32.0
    as_meta = meta_config(params, rope_scale_factor=8.0).rope_scaling
    assert as_meta
    assert as_meta.factor == 8.0
    assert meta_config(params, context_length=4096).context_length == 4096


@given(
    dim=st.integers(1, 200).map(lambda n: 8 * n),
    ffn=st.integers(1, 4000),
    expert=st.none() | st.integers(1, 4000),
)
def test_every_width_can_be_expressed(dim: int, ffn: int, expert: int | None) -> None:
    config = ModelConfig(
        **{**BASE, "dim": dim, "n_heads": 4, "head_dim": dim // 4, "ffn_dim": ffn},
        rope_interleaved=expert is not None,
        moe=MixtureOfExperts(2, 1, expert) if expert else None,
    )
    assert meta_config(json.loads(json.dumps(meta_params(config)))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 4096}, "sliding_window"),
        ({"dim": -1}, "dim"),
        ({"dim": "16"}, "dim"),
        ({"dim": 10**30}, "dim"),
        ({"n_heads": None}, "n_heads"),
        ({"n_heads": 3}, "n_heads"),
        ({"n_kv_heads": 3}, "n_kv_heads"),
        ({"norm_eps": 0}, "norm_eps"),
        ({"use_scaled_rope": 1}, "use_scaled_rope"),
        ({"vocab_size": 100}, "vocab_size is 100, but"),
        ({"multiple_of": 32}, "feed-forward width of 64, but layers.0.feed_forward.w1.weight has the shape .48, 16."),
        ({"moe_args": {"num_experts": 2, "gate": 1}}, "gate"),
        ({"moe_args": {"num_experts": 2, "top_k": 5}}, "per token"),
        ({"moe_args": 5}, "moe_args"),
        ({"quantization_args": {"scheme": "int4"}}, "quantization_args"),
        ({"vision_num_cross_attention_layers": 5}, "vision_num_cross_attention_layers"),
    ],
)
def test_wrong_params_name_their_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = save(tmp_path / "m", {**PARAMS, **changes}, *small())

    def open_it() -> ModelConfig:
        meta = read_meta(folder)
        return meta_config(meta.params, meta.tensors, path=folder / "params.json")

    with pytest.raises(QafilaError, match=message) as caught:
        open_it()
    assert str(caught.value).startswith(f"{folder}/params.json: ")
    assert "\n" not in str(caught.value)


def test_keys_given_twice_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", PARAMS, *small())
    (folder / "params.json").write_text('{"dim": 16, "dim": 32, "n_layers": 1, "n_heads": 4}')
    with pytest.raises(FormatError, match=r"'dim'.*twice"):
        read_meta(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 16}, "head_dim"),
        ({"rope_scaling": RopeScaling("linear", factor=2.0)}, "rope scaling"),
        ({"rope_interleaved": True, "no_rope_layers": (1, 2)}, "no_rope_layers"),
        ({"cross_attention_layers": (0, 1)}, "cross_attention_layers"),
        ({"qk_norm": True}, "side by side"),
    ],
)
def test_what_meta_cannot_express_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        meta_params(CONFIGS["Llama 2"].with_changes(**changes))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(
            [*PARAMS, "head_dim", "ffn_dim_multiplier", "norm_eps", "rope_theta", "moe_args", "vocab_size"]
        ),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just({"num_experts": 2}),
        max_size=4,
    )
)
def test_params_at_random_give_a_config_or_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    def outcome() -> str:
        try:
            meta_config(check_params({**PARAMS, **changes}, "params.json"))
        except QafilaError as error:
            return str(error)
        return ""

    assert "\n" not in outcome()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(
        st.sampled_from([*small()[0], "layers.0.attention.wqkv.weight", "layers.0.feed_forward.experts.w1"]),
        st.lists(st.integers(0, 33), max_size=3),
        min_size=1,
        max_size=3,
    ),
    shards=st.sampled_from([1, 2]),
)
def test_tensors_of_any_shape_load_or_get_one_line(tmp_path: Path, changes: dict[str, list[int]], shards: int) -> None:
    ranks = small(shards)
    for rank in ranks:
        rank |= {name: torch.zeros(shape) for name, shape in changes.items()}
    folder = save(tmp_path / "fuzz", PARAMS, *ranks)
    for extra in folder.glob(f"consolidated.0[{shards}-9].pth"):
        extra.unlink()

    def outcome() -> str:
        try:
            meta = read_meta(folder)
            config = meta_config(meta.params, meta.tensors)
            for tensor in to_canonical(config, meta_rules(config), meta.tensors, folder).values():
                tensor.read()
        except QafilaError as error:
            return str(error)
        return ""

    assert "\n" not in outcome()
