"""An extended checkpoint: old rows as they were, new ones the mean of what they replace, and it opens elsewhere."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from qafila.chat.llama import Llama
from qafila.config import GenerationConfig, ModelConfig
from qafila.errors import UnsupportedError, UsageError
from qafila.model.load import load_model
from qafila.parameters import EMBEDDING, LM_HEAD, parameter_shapes
from qafila.quant import dequantise
from qafila.quant.dtypes import DType
from qafila.text.extend_tokenizer import extend_tokenizer
from qafila.text.text_sources import Mixture, TextSource
from qafila.text.train_tokenizer import train_tokenizer
from qafila.weights.export import as_type, export
from qafila.weights.extend import extend_checkpoint
from qafila.weights.load import Checkpoint, open_checkpoint
from qafila.weights.tensor import LazyTensor, Tensor

ENGLISH = "the caravan went on through the desert and the camels carried what they could carry all the way "
ARABIC = "سارت القافلة في الصحراء وحملت الجمال ما لم يحمله المسافرون من المتاع في الطريق إلى المدينة "
SMALL = ModelConfig(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=128,
    vocab_size=320,
    tie_embeddings=True,
)


def text(sentence: str) -> TextSource:
    draw = random.Random(1)
    words = sentence.split()
    return TextSource("t", lambda: iter([" ".join(draw.choice(words) for _ in range(3000))]))


@pytest.fixture(scope="module")
def extension():
    old = train_tokenizer([text(ENGLISH)], 300, specials="chatml").tokenizer
    return extend_tokenizer(old, Mixture([text(ARABIC)]), 50)


def checkpoint_of(config: ModelConfig, tokenizer, dtype: DType = DType.F32) -> Checkpoint:
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        values = (rng.standard_normal(shape) * 0.1 + (len(shape) == 1)).astype("<f4").reshape(-1)
        whole = LazyTensor.of(Tensor(DType.F32, shape, values.view(np.uint8)))
        tensors[name] = as_type(whole, dtype if len(shape) == 2 else DType.F32)
    return Checkpoint(
        path=Path("small"),
        format="hf",
        config=config,
        generation=GenerationConfig(stop_ids=(tokenizer.eos_id,), pad_id=tokenizer.pad_id),
        tensors=tensors,
        load_tokenizer=lambda: tokenizer,
        chat_template="{{ messages }}",
    )


def rows(tensor: LazyTensor) -> np.ndarray:
    read = tensor.read()
    return dequantise(read.dtype, read.rows())


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.Q8_0, DType.Q4_1])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocab_size", [300, 320, 400])
def test_rows(extension, dtype, tied, vocab_size):
    before = checkpoint_of(SMALL.with_changes(vocab_size=vocab_size, tie_embeddings=tied), extension.old, dtype)
    after = extend_checkpoint(before, extension)
    assert after.config.vocab_size == max(350, vocab_size)
    assert parameter_shapes(after.config) == {name: tensor.shape for name, tensor in after.tensors.items()}
    for name in (EMBEDDING, *(() if tied else (LM_HEAD,))):
        old, new = before.tensors[name].read(), after.tensors[name].read()
        assert new.dtype is dtype
        assert np.array_equal(new.rows()[:300], old.rows()[:300])
        assert np.array_equal(new.rows()[350:], old.rows()[350:])
        # Slow and obvious, in float64; a 4-bit block of 32 values between a and b is exact to (b - a) / 30.
        plain = rows(before.tensors[name]).astype(np.float64)
        expected = np.array([sum(plain[i] for i in ids) / len(ids) for ids in extension.replaces])
        bound = {DType.F32: 1e-7, DType.BF16: 2e-3, DType.Q8_0: 3e-3, DType.Q4_1: 3e-2}[dtype]
        assert np.abs(rows(after.tensors[name])[300:350] - expected).max() < bound
    untouched = [name for name in before.tensors if name not in (EMBEDDING, LM_HEAD)]
    assert all(after.tensors[name] is before.tensors[name] for name in untouched)
    assert before.config.vocab_size == vocab_size


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("tied", [True, False])
def test_it_opens_in_transformers_and_here_with_equal_tokens_and_logits(extension, tied, tmp_path):
    source = checkpoint_of(SMALL.with_changes(vocab_size=300, tie_embeddings=tied), extension.old)
    folder = export(extend_checkpoint(source, extension), tmp_path / "out", "hf")
    again = open_checkpoint(folder)
    assert again.config.vocab_size == 350
    assert again.generation == source.generation
    assert again.chat_template == source.chat_template
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_model(again.config, again.tensors)
    plain = load_model(source.config, source.tensors)
    for line in (ENGLISH, ARABIC, f"{ENGLISH[:20]}«{ARABIC}» 12"):
        ids = again.tokenizer.encode(line)
        assert ids == theirs(line).input_ids
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits
            assert torch.allclose(ours(torch.tensor([ids])), expected, atol=1e-4)
            if line is ENGLISH:  # what the model thought of old tokens it still thinks
                assert torch.equal(ours(torch.tensor([ids]))[..., :300], plain(torch.tensor([ids])))


def test_the_engine_runs_it_and_gguf_holds_it(extension, tmp_path):
    source = checkpoint_of(SMALL.with_changes(vocab_size=300), extension.old, DType.Q8_0)
    after = extend_checkpoint(source, extension)
    gguf = export(after, tmp_path / "m.gguf", "gguf")
    again = open_checkpoint(gguf)
    assert again.tokenizer.encode(ARABIC) == extension.new.encode(ARABIC)
    assert np.array_equal(again.tensors[EMBEDDING].read().data, after.tensors[EMBEDDING].read().data)
    answers = []
    for path in (gguf, export(after, tmp_path / "hf", "hf")):
        with Llama.load(path) as llama:
            answers.append(llama.complete(ARABIC, max_tokens=8, temperature=0))
    assert answers[0].ids == answers[1].ids


def test_what_does_not_belong_together_is_refused(extension):
    other = train_tokenizer([text(ENGLISH)], 290, specials="chatml").tokenizer
    with pytest.raises(UsageError, match="290 tokens, but the one that was extended 300"):
        extend_checkpoint(checkpoint_of(SMALL, other), extension)
    source = checkpoint_of(SMALL, extension.old)
    with pytest.raises(UnsupportedError, match="8 embeddings behind its vocabulary"):
        extend_checkpoint(replace(source, config=SMALL.with_changes(extra_embeddings=8)), extension)
