"""What llama.cpp makes of our GGUF files (`make interop`)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from qafila.config import AttentionTemperature, GenerationConfig, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.quant.dtypes import DType
from qafila.text.formats import detect_format
from qafila.text.messages import Message
from qafila.weights.export import export
from qafila.weights.load import Checkpoint, open_checkpoint

pytestmark = pytest.mark.interop
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make interop")

PROMPT = "The caravan crossed the desert at night because"


def their_logits(path: Path, ids: list[int]) -> np.ndarray:
    """llama.cpp's logits ``[T, V]``, float32 cache."""
    with contextlib.closing(
        llama_cpp.Llama(
            str(path),
            n_ctx=256,
            logits_all=True,
            verbose=False,
            n_threads=2,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            flash_attn=False,
        )
    ) as model:
        model.eval(ids)
        return np.array(model.scores[: len(ids)], dtype=np.float32)


def our_logits(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return load_model(checkpoint.config, checkpoint.tensors)(torch.tensor([ids]))[0].numpy()


def divergence(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean KL(ours || theirs) per token, in nats."""
    a = torch.log_softmax(torch.from_numpy(ours).double(), -1)
    b = torch.log_softmax(torch.from_numpy(theirs).double(), -1)
    return float((a.exp() * (a - b)).sum(-1).mean())


@pytest.fixture(scope="module")
def default(default_gguf) -> Checkpoint:
    return open_checkpoint(default_gguf)


# llama.cpp multiplies quantised weights with activations of 8 bits, which is the larger part of the divergence.
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(None, 0.02), (DType.F32, 1e-6), (DType.F16, 1e-4), (DType.BF16, 1e-3), (DType.Q8_0, 0.02), (DType.Q4_K, 0.02)],
)
def test_llama_cpp_computes_what_we_compute(dtype, bound, default, tmp_path):
    path = export(default, tmp_path / "m.gguf", "gguf", dtype=dtype)
    ids = default.tokenizer.encode(PROMPT)
    written = open_checkpoint(path)
    ours, theirs = our_logits(written, ids), their_logits(path, ids)
    assert divergence(ours, theirs) < bound
    for mine, other in zip(ours, theirs, strict=True):
        if mine.argmax() != other.argmax():
            first, second = np.sort(mine)[::-1][:2]
            assert first - second < 0.1


def test_template_tokens_and_stops_are_in_place(default, tmp_path):
    path = export(default, tmp_path / "m.gguf", "gguf")
    question = "What is 2 + 2?"
    with contextlib.closing(llama_cpp.Llama(str(path), n_ctx=256, verbose=False)) as model:
        assert model.metadata["tokenizer.chat_template"] == default.chat_template
        assert model.token_eos() == 2
        for text in ("Hello  world! 12345", "مرحبا بالعالم، كيف الحال؟", "def f(x):\n\treturn x**2  # 🦙", " \n\n  x"):
            theirs = model.tokenize(text.encode(), add_bos=False, special=False)
            assert default.tokenizer.encode(text) == theirs
        answer = model.create_chat_completion([{"role": "user", "content": question}], temperature=0.0, max_tokens=64)
    assert "4" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    chat = detect_format(default.chat_template, default.tokenizer)
    assert answer["usage"]["prompt_tokens"] == len(chat.render([Message("user", question)]).ids)


SCALED = ModelConfig(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=128,
    vocab_size=49152,
    context_length=131_072,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling("llama3", factor=8.0),
)
LINEAR = SCALED.with_changes(rope_theta=10_000.0, rope_scaling=RopeScaling("linear", factor=4.0), tie_embeddings=True)
MIXTURE = SCALED.with_changes(
    n_layers=8,
    rope_scaling=None,
    rope_interleaved=True,
    moe=MixtureOfExperts(n_experts=16, top_k=1, ffn_dim=64, layer_step=2),
    no_rope_layers=(3, 7),
    attention_chunk=8192,
    qk_norm=True,
    temperature=AttentionTemperature(),
)


@pytest.mark.parametrize("config", [SCALED, LINEAR, MIXTURE], ids=["llama3-scaling", "linear-scaling", "llama-4"])
def test_every_family_llama_cpp_knows(config, default, tmp_path):
    checkpoint = Checkpoint(
        path=Path("random"),
        format="hf",
        config=config,
        generation=GenerationConfig(bos_id=1, stop_ids=(2,)),
        tensors=random_tensors(config, seed=0),
        load_tokenizer=lambda: default.tokenizer,
    )
    path = export(checkpoint, tmp_path / "m.gguf", "gguf", dtype=DType.F32)
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 49152, 200)]
    ours, theirs = our_logits(checkpoint, ids), their_logits(path, ids)
    assert np.abs(ours - theirs).max() < 2e-3 * np.abs(ours).max()
    assert divergence(ours, theirs) < 1e-6
