"""Folders that transformers wrote open as they are, and the model computes the same logits."""

from __future__ import annotations

import json
from math import prod

import numpy as np
import pytest
import torch
import transformers

from qafila.config import ModelConfig
from qafila.errors import ConfigError, FormatError, ModelNotFoundError, QafilaError
from qafila.model.load import load_model
from qafila.parameters import parameter_shapes
from qafila.quant.dtypes import DType
from qafila.sampling import SamplingParams
from qafila.weights.export import export
from qafila.weights.gguf import GgufType, GgufValue
from qafila.weights.gguf_writer import write_gguf
from qafila.weights.load import hugging_face_template, open_checkpoint
from qafila.weights.names import from_canonical, gguf_rules
from qafila.weights.tensor import LazyTensor, Tensor

SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def tied_llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, tie_word_embeddings=True))


def llama4_text():
    config = transformers.Llama4TextConfig(
        **SMALL,
        intermediate_size_mlp=64,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        head_dim=8,
        attention_chunk_size=16,
    )
    return transformers.Llama4ForCausalLM(config)


def mllama_text():
    config = transformers.models.mllama.configuration_mllama.MllamaTextConfig(
        **SMALL, cross_attention_layers=[1], rope_theta=500000.0
    )
    return transformers.MllamaForCausalLM(config)


@pytest.mark.parametrize("build", [llama, tied_llama, llama4_text, mllama_text])
def test_a_folder_from_transformers_gives_the_same_logits(build, tmp_path):
    torch.manual_seed(0)
    theirs = build().eval()
    theirs.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    ours = load_model(checkpoint.config, checkpoint.tensors)
    ids = torch.arange(40).reshape(1, -1) * 3 % 128
    with torch.inference_mode():
        expected = theirs(input_ids=ids).logits
        assert torch.allclose(ours(ids), expected, atol=1e-4)


def test_an_image_tower_is_carried_along(tmp_path):
    text = {**SMALL, "intermediate_size_mlp": 64, "num_local_experts": 2, "head_dim": 8, "interleave_moe_layer_step": 1}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 16,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
    }
    config = transformers.Llama4Config(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    theirs = transformers.Llama4ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.vision_tensors
    ours = load_model(checkpoint.config, checkpoint.tensors)
    ids = torch.arange(20).reshape(1, -1)
    with torch.inference_mode():
        assert torch.allclose(ours(ids), theirs.language_model(input_ids=ids).logits, atol=1e-4)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_what_is_wrong_is_named(folder, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"no config\.json"):
        open_checkpoint(tmp_path / "empty")
    with pytest.raises(FormatError, match="name its folder instead"):
        open_checkpoint(folder / "model.safetensors")
    note = tmp_path / "note.txt"
    note.write_text("hello")
    with pytest.raises(FormatError, match="is not a checkpoint"):
        open_checkpoint(note)
    with pytest.raises(ModelNotFoundError, match="tokenizer"):
        _ = open_checkpoint(folder).tokenizer


def test_an_adapter_that_is_damaged_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FormatError, match="peft_type"):
        open_checkpoint(tmp_path)


def test_an_unknown_configuration_key_is_refused_by_name(folder):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sliding_mirror": 3}))
    with pytest.raises((ConfigError, FormatError), match="sliding_mirror"):
        open_checkpoint(folder)


def test_a_tokenizer_of_another_model_is_refused(folder, default_gguf):
    from qafila.weights.load import gguf_tokenizer

    tokenizer = gguf_tokenizer(default_gguf)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer.to_tokenizer_json()))
    with pytest.raises(FormatError, match=r"49152 tokens but the model only 128"):
        _ = open_checkpoint(folder).tokenizer


def test_the_three_places_of_a_chat_template(tmp_path):
    assert hugging_face_template(tmp_path) is None
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert hugging_face_template(tmp_path) == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert hugging_face_template(tmp_path) == "J"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": 7}))
    with pytest.raises(FormatError, match="chat_template is neither"):
        hugging_face_template(tmp_path)


def test_the_default_model_opens_without_reading_weights(default_gguf):
    checkpoint = open_checkpoint(default_gguf)
    assert checkpoint.format == "gguf"
    assert checkpoint.config.tie_embeddings
    assert checkpoint.config.norm_eps == 1e-5
    assert checkpoint.generation.stop_ids == (2, 0)
    assert checkpoint.tokenizer.vocab_size == 49152
    assert not checkpoint.tokenizer.add_bos
    assert checkpoint.chat_template is not None
    assert checkpoint.weights_bytes < 98_362_432


def test_a_truncated_default_model_is_refused(default_gguf, tmp_path):
    short = tmp_path / "short.gguf"
    with default_gguf.open("rb") as source, short.open("wb") as target:
        target.write(source.read(20_000_000))
    with pytest.raises(FormatError, match=r"short\.gguf"):
        open_checkpoint(short)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory):
    """A whole GGUF model of a few kilobytes: its metadata and its tensors."""
    parts = [*(f"<0x{byte:02X}>" for byte in range(256)), "a"]
    keys = {
        "general.architecture": GgufValue.string("llama"),
        "general.name": GgufValue.string("small"),
        "llama.block_count": GgufValue.uint32(1),
        "llama.context_length": GgufValue.uint32(64),
        "llama.embedding_length": GgufValue.uint32(8),
        "llama.feed_forward_length": GgufValue.uint32(16),
        "llama.attention.head_count": GgufValue.uint32(2),
        "llama.attention.head_count_kv": GgufValue.uint32(1),
        "llama.attention.layer_norm_rms_epsilon": GgufValue.float32(1e-5),
        "llama.rope.freq_base": GgufValue.float32(10_000.0),
        "tokenizer.ggml.model": GgufValue.string("llama"),
        "tokenizer.ggml.tokens": GgufValue.strings(["<unk>", "<s>", "</s>", *parts]),
        "tokenizer.ggml.scores": GgufValue.float32s([0.0] * 260),
        "tokenizer.ggml.token_type": GgufValue.int32s([2, 3, 3, *[6] * 256, 1]),
        "tokenizer.ggml.bos_token_id": GgufValue.uint32(1),
        "tokenizer.ggml.eos_token_id": GgufValue.uint32(2),
        "tokenizer.chat_template": GgufValue.string("{{ messages[0]['content'] }}"),
    }
    config = ModelConfig(
        dim=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=16, vocab_size=260, tie_embeddings=True
    )
    shapes = {name: Tensor(DType.F32, shape, np.zeros(4 * prod(shape), np.uint8)) for name, shape in
              parameter_shapes(config).items()}  # fmt: skip
    tensors = from_canonical(gguf_rules(config), {name: LazyTensor.of(tensor) for name, tensor in shapes.items()})
    return keys, tensors


def opened(small_gguf, folder, **changes):
    keys, tensors = small_gguf
    write_gguf(folder / "m.gguf", keys | {key.replace("__", "."): value for key, value in changes.items()}, tensors)
    return open_checkpoint(folder / "m.gguf")


ODD_VALUES = (
    GgufValue.string("z" * 100_000),
    GgufValue.string("\udcff"),
    GgufValue.boolean(True),
    GgufValue.uint32(0),
    GgufValue(GgufType.INT64, -1),
    GgufValue(GgufType.UINT64, 2**64 - 1),
    GgufValue.float32(float("nan")),
    GgufValue(GgufType.FLOAT64, 1e300),
    GgufValue.strings(["a", "\udcff"]),
    GgufValue.strings([]),
    GgufValue.int32s([7] * 260),
    GgufValue.float32s([float("nan")] * 260),
)


def test_metadata_of_the_wrong_kind_is_one_line_or_does_no_harm(small_gguf, tmp_path):
    assert opened(small_gguf, tmp_path).tokenizer.vocab_size == 260
    refused = []
    extra = [f"general.sampling.{key}" for key in ("temp", "top_k", "top_p", "min_p", "penalty_repeat")]
    extra += ["llama.rope.scaling.type", "llama.rope.scaling.factor", "tokenizer.ggml.pre", "llama.expert_count"]
    for key in [*small_gguf[0], *extra]:
        for value in ODD_VALUES:
            try:
                checkpoint = opened(small_gguf, tmp_path, **{key: value})
                assert checkpoint.tokenizer.vocab_size > 0
                SamplingParams(
                    temperature=checkpoint.generation.temperature or 0, top_k=checkpoint.generation.top_k or 0
                )
            except QafilaError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert max(map(len, refused)) < 600
    assert not any("\n" in line for line in refused)


@pytest.mark.parametrize(
    ("changes", "divided_by"),
    [
        ({}, 1),
        ({"llama.rope.scaling.factor": 4.0}, 4),  # llama.cpp's kind is linear unless the file says otherwise
        ({"llama.rope.scale_linear": 2.0}, 2),  # the key of early files
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0, "llama.rope.scale_linear": 2.0}, 4),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, 1),
        ({"llama.rope.scaling.factor": 0.0}, 1),
    ],
)
@pytest.mark.parametrize("divisors", [None, [1.0, 1.0], [1.0, 8.0]])
def test_gguf_rope_scaling_and_divisors_multiply(small_gguf, tmp_path, changes, divided_by, divisors):
    keys, tensors = small_gguf
    values = {k: GgufValue.string(v) if isinstance(v, str) else GgufValue.float32(v) for k, v in changes.items()}
    if divisors is not None:
        data = np.array(divisors, dtype="<f4").view(np.uint8)
        tensors = {**tensors, "rope_freqs.weight": LazyTensor.of(Tensor(DType.F32, (2,), data))}
    plain = opened(small_gguf, tmp_path).config.inverse_frequencies
    found = opened((keys, tensors), tmp_path, **values).config
    expected = plain / np.array(divisors or [1.0, 1.0], dtype=np.float32) / divided_by
    np.testing.assert_allclose(found.inverse_frequencies, expected, rtol=1e-6)
    assert divided_by != 1 or divisors == [1.0, 8.0] or found.rope_scaling is None


def test_gguf_values_that_name_no_token(small_gguf, tmp_path):
    none = opened(small_gguf, tmp_path, tokenizer__ggml__padding_token_id=GgufValue(GgufType.INT32, -1))
    assert none.generation.pad_id is None
    none = opened(small_gguf, tmp_path, tokenizer__ggml__padding_token_id=GgufValue.uint32(2**32 - 1))
    assert none.generation.pad_id is None
    with pytest.raises(FormatError, match="padding_token_id is 260"):
        opened(small_gguf, tmp_path, tokenizer__ggml__padding_token_id=GgufValue.uint32(260))


def test_gguf_sampling_defaults(small_gguf, tmp_path):
    stated = {
        "general__sampling__temp": GgufValue.float32(0.6),
        "general__sampling__top_k": GgufValue(GgufType.INT32, -1),
        "general__sampling__top_p": GgufValue.float32(0.9),
    }
    generation = opened(small_gguf, tmp_path, **stated).generation
    assert (generation.temperature, generation.top_k, generation.top_p) == (0.6, 0, 0.9)
    with pytest.raises(FormatError, match=r"general\.sampling\.top_p"):
        opened(small_gguf, tmp_path, general__sampling__top_p=GgufValue.float32(7))
    with pytest.raises(FormatError, match="chat_template must be a text"):
        opened(small_gguf, tmp_path, tokenizer__chat_template=GgufValue.uint32(7))


def test_a_meta_tokenizer_is_read_once(default_gguf, tmp_path, monkeypatch):
    from qafila.weights import load

    export(open_checkpoint(default_gguf), tmp_path / "meta", "meta", dtype=DType.F16)
    calls = []
    read = load._folder_tokenizer
    monkeypatch.setattr(load, "_folder_tokenizer", lambda path: calls.append(path) or read(path))
    assert open_checkpoint(tmp_path / "meta").tokenizer.vocab_size == 49152
    assert len(calls) == 1
