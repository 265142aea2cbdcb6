"""What was trained in torch answers the same in the native engine, beside its base and merged into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_models import CONFIG, MIXED, Options, shake
from step_driver import Sequence_, run_step

from qafila.adapt.apply import adapter_of, apply_adapter
from qafila.adapt.load import load_base
from qafila.adapt.merge import merge_adapter
from qafila.config import GenerationConfig, ModelConfig
from qafila.engine.native_runner import NativeRunner
from qafila.engine.runner import Runner
from qafila.errors import ModelNotFoundError
from qafila.model.llama import LlamaModel
from qafila.model.load import to_torch
from qafila.model.random_weights import random_tensors
from qafila.quant.dtypes import DType
from qafila.text.tokenizer import Tokenizer
from qafila.weights.adapter import read_adapter, write_adapter
from qafila.weights.export import as_type
from qafila.weights.load import Checkpoint, open_checkpoint
from qafila.weights.merge import exact_f32, merge
from qafila.weights.tensor import LazyTensor

CLOSE = 0.1  # the design's "equal tokens": a first difference falls where the reference's top two are nearer than this


def checkpoint_of(config: ModelConfig, tensors: dict[str, LazyTensor]) -> Checkpoint:
    def no_tokenizer() -> Tokenizer:
        raise ModelNotFoundError("random weights have no tokenizer")

    return Checkpoint(Path("random"), "hf", config, GenerationConfig(), tensors, no_tokenizer)


def native_tokens(runner: Runner, prompt: list[int], count: int, adapter: int = 0) -> list[int]:
    sequence = Sequence_(list(prompt), list(range(16)), adapter=adapter)
    run_step(runner, [(sequence, len(prompt))])
    for _ in range(count - 1):
        sequence.ids = [*sequence.ids, int(np.argmax(sequence.logits[-1]))]
        run_step(runner, [(sequence, 1)])
    return [*sequence.ids[len(prompt) :], int(np.argmax(sequence.logits[-1]))]


@torch.inference_mode()
def assert_equal_tokens(model: LlamaModel, prompt: list[int], found: list[int]) -> None:
    """Greedy tokens of ``model``, read off one pass over what was found."""
    logits = model(torch.tensor([prompt + found[:-1]]))[0, len(prompt) - 1 :]
    for row, token in zip(logits, found, strict=True):
        best = row.topk(2)
        if token != best.indices[0]:
            assert best.values[0] - best.values[1] < CLOSE
            return


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["dense", "mixture"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("base", ["plain", "stored"])
def test_tokens_are_equal_beside_the_base_and_merged(config: ModelConfig, kind: str, base: str, tmp_path: Path) -> None:
    tensors = random_tensors(config, 0)
    if base == "stored":
        for name in tensors:
            if "proj" in name:
                tensors[name] = as_type(tensors[name], DType.Q8_0)
    model = load_base(config, tensors, base="stored" if base == "stored" else "plain")
    prompt = [5, 17, 60, 3, 3, 41]
    options = Options(kind=kind, rslora=True)
    without = model(torch.tensor([prompt]))
    shake(apply_adapter(model, options))
    assert (model(torch.tensor([prompt])) - without).abs().max() > 0.5
    write_adapter(tmp_path, adapter_of(model, options), "base")
    if kind == "lora":
        runner = NativeRunner(config, tensors, threads=1, kv_tokens=256)
        assert_equal_tokens(model, prompt, native_tokens(runner, prompt, 40, runner.load_adapter(tmp_path)))
        runner.close()
    merged = merge(checkpoint_of(config, tensors), read_adapter(tmp_path), exact_f32)
    in_memory = merge_adapter(model).state_dict()
    for name in read_adapter(tmp_path).modules:
        found = to_torch(merged.tensors[name].read(), dtype=torch.float32)
        torch.testing.assert_close(found, in_memory[name], atol=1e-6, rtol=1e-6)
    runner = NativeRunner(config, merged.tensors, threads=1, kv_tokens=256)
    assert_equal_tokens(model, prompt, native_tokens(runner, prompt, 40))
    runner.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_default_model_trained_in_its_blocks_answers_the_same(
    kind: str, default_gguf: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(default_gguf)
    model = load_base(checkpoint.config, checkpoint.tensors, base="stored")
    ids = checkpoint.tokenizer.encode("The caravan crossed the desert at night, because the camels were thirsty.")
    options = Options(kind=kind, rank=8, alpha=16.0)
    parameters = apply_adapter(model, options)
    optimiser = torch.optim.Adam(parameters, lr=2e-3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    write_adapter(tmp_path, adapter_of(model, options), "default")
    prompt = ids[:4]
    merged = merge(checkpoint, read_adapter(tmp_path))
    if kind == "lora":
        runner = NativeRunner.of(checkpoint, threads=2, kv_tokens=256)
        assert_equal_tokens(model, prompt, native_tokens(runner, prompt, 24, runner.load_adapter(tmp_path)))
        runner.close()
    runner = NativeRunner.of(merged, threads=2, kv_tokens=256)
    assert_equal_tokens(model, prompt, native_tokens(runner, prompt, 24))
    runner.close()
