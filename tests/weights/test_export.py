"""Exports open elsewhere, and load → export → load gives back every bit the format can carry."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFReader

from qafila.config import AttentionTemperature, GenerationConfig, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.errors import FormatError, StorageError, UnsupportedError, UsageError
from qafila.model.load import load_model
from qafila.parameters import parameter_shapes
from qafila.quant.dtypes import DType
from qafila.weights.export import as_type, dtype_named, export
from qafila.weights.load import Checkpoint, gguf_tokenizer, open_checkpoint
from qafila.weights.tensor import LazyTensor, Tensor

DENSE = ModelConfig(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=256,
    vocab_size=49152,
    context_length=4096,
    tie_embeddings=True,
)
SCALED = DENSE.with_changes(
    tie_embeddings=False,
    rope_theta=500_000.0,
    context_length=131_072,
    rope_scaling=RopeScaling("llama3", factor=8.0),
)
MIXTURE = DENSE.with_changes(
    tie_embeddings=False,
    n_layers=4,
    rope_theta=500_000.0,
    rope_interleaved=True,
    moe=MixtureOfExperts(n_experts=4, top_k=1, ffn_dim=64, layer_step=2),
    no_rope_layers=(3,),
    attention_chunk=8192,
    qk_norm=True,
    temperature=AttentionTemperature(),
    context_length=1_048_576,
)


@pytest.fixture(scope="session")
def tokenizer(default_gguf):
    return gguf_tokenizer(default_gguf)


def checkpoint_of(config: ModelConfig, tokenizer, dtype: DType = DType.BF16) -> Checkpoint:
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        values = (rng.standard_normal(shape) * 0.1).astype("<f4").reshape(-1)
        whole = LazyTensor.of(Tensor(DType.F32, shape, values.view(np.uint8)))
        tensors[name] = as_type(whole, dtype)
    return Checkpoint(
        path=Path("small"),
        format="hf",
        config=config,
        generation=GenerationConfig(bos_id=1, stop_ids=(2, 0), pad_id=2),
        tensors=tensors,
        load_tokenizer=lambda: tokenizer,
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )


def assert_same_weights(first: Checkpoint, second: Checkpoint) -> None:
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        other = second.tensors[name]
        assert other.dtype is tensor.dtype, name
        assert np.array_equal(tensor.read().data, other.read().data), name


@pytest.mark.parametrize("config", [DENSE, SCALED, MIXTURE], ids=["dense", "scaled", "mixture"])
@pytest.mark.parametrize("to", ["hf", "meta"])
def test_there_and_back(config, to, tokenizer, tmp_path):
    source = checkpoint_of(config, tokenizer)
    written = export(source, tmp_path / "out", to)
    again = open_checkpoint(written)
    assert again.config == config
    assert_same_weights(source, again)
    assert again.chat_template == source.chat_template
    assert set(again.generation.stop_ids) == {0, 2}
    text = "Hello  world! 123 مرحبا <|im_start|>"
    assert again.tokenizer.encode(text) == tokenizer.encode(text)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("config", [DENSE, SCALED, MIXTURE], ids=["dense", "scaled", "mixture"])
def test_there_and_back_as_gguf(config, tokenizer, tmp_path):
    source = checkpoint_of(config, tokenizer, DType.F32)
    again = open_checkpoint(export(source, tmp_path / "m.gguf", "gguf"))
    assert again.config == config
    assert_same_weights(source, again)
    assert again.chat_template == source.chat_template
    assert set(again.generation.stop_ids) == {0, 2}
    assert again.tokenizer.encode("Hello  123 مرحبا") == tokenizer.encode("Hello  123 مرحبا")


def test_shards(tokenizer, tmp_path):
    source = checkpoint_of(SCALED, tokenizer)
    hf = export(source, tmp_path / "hf", "hf", max_shard_bytes=2_000_000)
    assert (hf / "model.safetensors.index.json").is_file()
    assert_same_weights(source, open_checkpoint(hf))
    meta = export(source, tmp_path / "meta", "meta", shards=2)
    assert sorted(p.name for p in meta.glob("*.pth")) == ["consolidated.00.pth", "consolidated.01.pth"]
    assert_same_weights(source, open_checkpoint(meta))


@pytest.mark.parametrize("dtype", [DType.F16, DType.Q8_0, DType.Q4_0, DType.Q4_1, DType.Q4_K])
def test_quantised_gguf_keeps_vectors_and_head_precise(dtype, tokenizer, tmp_path):
    path = export(checkpoint_of(SCALED, tokenizer), tmp_path / "m.gguf", "gguf", dtype=dtype)
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert types["blk.0.attn_norm.weight"] == types["rope_freqs.weight"] == "F32"
    assert types["blk.0.ffn_down.weight"] == dtype.name
    assert types["output.weight"] == ("Q8_0" if dtype.quantised else dtype.name)
    # Rows of 64 do not divide into blocks of 256.
    assert types["blk.0.attn_q.weight"] == ("Q8_0" if dtype is DType.Q4_K else dtype.name)


def test_llama_3_2_vision_has_no_gguf(tokenizer, tmp_path):
    config = DENSE.with_changes(cross_attention_layers=(1,), extra_embeddings=8, tie_embeddings=False)
    with pytest.raises(UnsupportedError, match="cross-attention"):
        export(checkpoint_of(config, tokenizer), tmp_path / "m.gguf", "gguf")
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_before_anything_is(tokenizer, tmp_path):
    source = checkpoint_of(DENSE, tokenizer)
    with pytest.raises(UsageError, match="hf takes F32, F16, BF16"):
        export(source, tmp_path / "x", "hf", dtype=DType.Q4_0)
    with pytest.raises(UsageError, match="no such type"):
        dtype_named("Q9")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(UsageError, match="already exists"):
        export(source, tmp_path / "full", "hf")
    (tmp_path / "full" / "params.json").write_text("{}")
    export(source, tmp_path / "full", "hf", overwrite=True)
    assert not (tmp_path / "full" / "file").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    with pytest.raises(UsageError, match="--shards 2"):
        export(source, tmp_path / "x", "hf", shards=2)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match="is a file"):
        export(source, tmp_path / "file", "gguf", overwrite=True)


def test_force_replaces_models_and_nothing_else(tokenizer, tmp_path, monkeypatch):
    source = checkpoint_of(DENSE, tokenizer)
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    (home / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="other things than a model"):
        export(source, home, "hf", overwrite=True)
    (home / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="other things than a model"):
        export(source, home, "hf", overwrite=True)
    assert (home / "letter.txt").read_text() == "dear"
    held = tmp_path / "models"
    stored = export(source, held / "m.gguf", "gguf", dtype=DType.Q8_0)
    for to in ("hf", "meta"):
        with pytest.raises(UsageError, match="holds the source"):
            export(open_checkpoint(stored), held, to, overwrite=True)
    with pytest.raises(UsageError, match="the same"):
        export(open_checkpoint(stored), stored, "gguf", overwrite=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="current folder"):
        export(source, Path(), "hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "home", "models"]


def test_a_symbolic_link_stays_and_its_folder_is_replaced(tokenizer, tmp_path):
    source = checkpoint_of(DENSE, tokenizer)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("later")
    for name in ("link", "link", "dangling"):
        written = export(source, tmp_path / name, "hf", overwrite=True)
        assert written == tmp_path / name
        assert written.is_symlink()
        assert_same_weights(source, open_checkpoint(written))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "later", "link", "real"]


def test_folders_made_for_an_export_that_fails_go_again(tokenizer, tmp_path):
    config = DENSE.with_changes(cross_attention_layers=(1,), extra_embeddings=8, tie_embeddings=False)
    with pytest.raises(UnsupportedError):
        export(checkpoint_of(config, tokenizer), tmp_path / "a" / "b", "gguf")
    assert not any(tmp_path.iterdir())


def test_a_template_that_is_no_text_leaves_nothing_behind(tokenizer, tmp_path):
    source = replace(checkpoint_of(DENSE, tokenizer), chat_template="\udcff")
    for to in ("hf", "meta"):
        with pytest.raises(FormatError, match="chat_template"):
            export(source, tmp_path / "out", to)
    assert not any(tmp_path.iterdir())


def test_ids_beyond_the_vocabulary_do_not_make_a_gguf_that_nobody_opens(tokenizer, tmp_path):
    source = replace(
        checkpoint_of(DENSE, tokenizer), generation=GenerationConfig(bos_id=1, stop_ids=(60_000, 2), pad_id=49152)
    )
    again = open_checkpoint(export(source, tmp_path / "m.gguf", "gguf", dtype=DType.Q8_0))
    assert 2 in again.generation.stop_ids
    assert again.generation.pad_id != 49152


@pytest.mark.parametrize("to", ["hf", "gguf", "meta"])
def test_a_failure_leaves_nothing_behind(to, tokenizer, tmp_path):
    source = checkpoint_of(DENSE, tokenizer)

    def full(name: str, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="disk is full"):
        export(source, tmp_path / "out.gguf", to, progress=full)
    assert not any(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing_behind_and_the_old_in_place(tokenizer, tmp_path):
    source = checkpoint_of(DENSE, tokenizer)
    export(source, tmp_path / "out", "hf")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def stop(name: str, nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out", "hf", overwrite=True, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_an_image_tower_goes_along(tmp_path):
    text = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "intermediate_size_mlp": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "head_dim": 8,
        "interleave_moe_layer_step": 1,
        "pad_token_id": 0,
    }
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
    torch.manual_seed(0)
    theirs = transformers.Llama4ForConditionalGeneration(
        transformers.Llama4Config(text_config=text, vision_config=vision)
    )
    theirs.save_pretrained(tmp_path / "in")
    source = open_checkpoint(tmp_path / "in")
    # The folder has no tokenizer, so only the weights are compared.
    written = export(source, tmp_path / "out", "hf")
    again = transformers.Llama4ForConditionalGeneration.from_pretrained(written)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    text_only = export(replace(source, vision_tensors={}), tmp_path / "text", "hf")
    assert json.loads((text_only / "config.json").read_text())["architectures"] == ["Llama4ForCausalLM"]
    ids = torch.arange(10).reshape(1, -1)
    with torch.inference_mode():
        alone = transformers.Llama4ForCausalLM.from_pretrained(text_only)(input_ids=ids).logits
        assert torch.allclose(alone, theirs.eval().language_model(input_ids=ids).logits, atol=1e-4)


def test_the_default_model_as_gguf_keeps_every_bit(default_gguf, tmp_path):
    source = open_checkpoint(default_gguf)
    written = export(source, tmp_path, "gguf")
    assert written.name == default_gguf.name
    again = open_checkpoint(written)
    assert_same_weights(source, again)
    assert again.config == source.config
    assert again.chat_template == source.chat_template
    theirs = {t.name: bytes(t.data.reshape(-1).view(np.uint8)) for t in GGUFReader(default_gguf).tensors}
    ours = {t.name: bytes(t.data.reshape(-1).view(np.uint8)) for t in GGUFReader(written).tensors}
    assert ours == theirs


def test_the_default_model_opens_in_transformers(default_gguf, tmp_path):
    source = open_checkpoint(default_gguf)
    folder = export(source, tmp_path / "out", "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France? وعاصمة مصر؟"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    from qafila.text.formats import detect_format
    from qafila.text.messages import Message

    chat = detect_format(source.chat_template, source.tokenizer)
    assert chat.render([Message("user", messages[0]["content"])]).ids == ids
    ours = load_model(source.config, source.tensors)
    with torch.inference_mode():
        expected = theirs(input_ids=torch.tensor([ids])).logits
        assert torch.allclose(ours(torch.tensor([ids])), expected, atol=1e-4)
        assert torch.equal(ours(torch.tensor([ids])).argmax(-1), expected.argmax(-1))
    assert theirs.generation_config.eos_token_id in (2, [2, 0])
