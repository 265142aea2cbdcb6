"""The native forward against the torch model, and a token's bits against everything that may not change them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from step_driver import Sequence_, run_alone, run_step

from qafila.config import AttentionTemperature, MixtureOfExperts, ModelConfig, RopeScaling
from qafila.engine.native_runner import NativeRunner
from qafila.engine.runner import BLOCK_TOKENS, Float32, Step
from qafila.errors import QafilaError, UnsupportedError, UsageError
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.native import _native
from qafila.weights.tensor import LazyTensor

# Float32 against float32 means 1e-4. But the cache holds f16 on both sides, and a key at the border of two of its
# values can fall either way: that moves later logits by some 1e-4, so the bound is for their root mean square.
TOLERANCE = 1e-4
WORST = 1e-3

SMALL = ModelConfig(
    dim=48, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=80, vocab_size=97, context_length=1024
)
LLAMA4 = SMALL.with_changes(
    n_layers=4,
    rope_interleaved=True,
    moe=MixtureOfExperts(n_experts=5, top_k=1, ffn_dim=40, layer_step=2),
    no_rope_layers=(3,),
    attention_chunk=24,
    qk_norm=True,
    temperature=AttentionTemperature(floor_scale=16.0, attn_scale=0.1),
)
CONFIGS = {
    "grouped queries": SMALL,
    "tied": SMALL.with_changes(tie_embeddings=True),
    "tied, extra embeddings": SMALL.with_changes(tie_embeddings=True, extra_embeddings=8),
    "untied, extra embeddings": SMALL.with_changes(extra_embeddings=8),
    "interleaved": SMALL.with_changes(rope_interleaved=True),
    "linear scaling": SMALL.with_changes(rope_scaling=RopeScaling("linear", factor=4.0)),
    "llama3 scaling": SMALL.with_changes(
        rope_scaling=RopeScaling("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32)
    ),
    "odd sizes": SMALL.with_changes(dim=30, n_heads=5, n_kv_heads=5, head_dim=6, ffn_dim=37, vocab_size=101),
    "large heads": SMALL.with_changes(n_heads=2, n_kv_heads=1, head_dim=160),
    "chunked attention": SMALL.with_changes(attention_chunk=24, no_rope_layers=(1,)),
    "query and key norm": SMALL.with_changes(qk_norm=True),
    "no rope, temperature": SMALL.with_changes(
        no_rope_layers=(0, 2), temperature=AttentionTemperature(floor_scale=8.0, attn_scale=0.3)
    ),
    "experts": SMALL.with_changes(moe=MixtureOfExperts(n_experts=4, top_k=1, ffn_dim=64)),
    "two experts a token": SMALL.with_changes(moe=MixtureOfExperts(n_experts=6, top_k=2, ffn_dim=33, layer_step=2)),
    "llama 4": LLAMA4,
}
ISAS = _native.instruction_sets()


def prompt(config: ModelConfig, count: int, seed: int = 0) -> list[int]:
    rows = config.vocab_size + config.extra_embeddings
    return [int(i) for i in np.random.default_rng(seed).integers(0, rows, count)]


def reference(config: ModelConfig, tensors: dict[str, LazyTensor], ids: list[int]) -> Float32:
    """The torch model's logits ``[T, V]``, its keys and values kept in f16 as the runner keeps them."""
    model = load_model(config, tensors)
    with torch.inference_mode():
        logits: Float32 = model(torch.tensor([ids]), cache=model.new_cache(dtype=torch.float16))[0].numpy()
    return logits


def assert_close(found: Float32, want: Float32) -> None:
    difference = np.abs(found - want)
    assert np.sqrt((difference**2).mean()) < TOLERANCE
    assert difference.max() < WORST


@pytest.fixture(scope="module")
def small() -> Iterator[NativeRunner]:
    runner = NativeRunner(SMALL, random_tensors(SMALL, 1), threads=2, kv_tokens=2048, max_tokens=512, max_rows=512)
    yield runner
    runner.close()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CONFIGS)
def test_float32_equals_the_torch_model(name: str, isa: str) -> None:
    config = CONFIGS[name]
    tensors = random_tensors(config, 3)
    ids = prompt(config, 70)
    runner = NativeRunner(config, tensors, threads=2, kv_tokens=128, isa=isa)
    assert_close(run_alone(runner, ids), reference(config, tensors, ids))


@pytest.mark.parametrize("name", ["grouped queries", "odd sizes", "llama 4", "two experts a token"])
def test_bits_do_not_depend_on_cuts_threads_or_blocks(name: str) -> None:
    config = CONFIGS[name]
    tensors = random_tensors(config, 4)
    ids = prompt(config, 600)
    runners = [NativeRunner(config, tensors, threads=threads, kv_tokens=2048, max_rows=512) for threads in (1, 2, 3)]
    want = run_alone(runners[0], ids, cuts=[512])
    for runner in runners:
        for cuts in ([512], [300], [1, 2, 5, 17, 255, 256, 257, 513, 514, 520, 599], range(100, 600, 50)):
            assert np.array_equal(run_alone(runner, ids, cuts=list(cuts), first_block=40), want)


def test_bits_do_not_depend_on_the_batch(small: NativeRunner) -> None:
    prompts = [prompt(SMALL, count, seed) for seed, count in enumerate((1, 40, 300, 17, 33))]
    alone = [run_alone(small, ids) for ids in prompts]
    blocks = np.random.default_rng(5).permutation(small.num_blocks)
    sequences = [
        Sequence_(ids, blocks[20 * i : 20 * i + -(-len(ids) // BLOCK_TOKENS)].tolist()) for i, ids in enumerate(prompts)
    ]
    while left := [s for s in sequences if s.done < len(s.ids)]:
        run_step(small, [(s, min(1 + 29 * i, len(s.ids) - s.done)) for i, s in enumerate(left)])
    for sequence, want in zip(sequences, alone, strict=True):
        assert np.array_equal(np.stack(sequence.logits), want)


def test_a_shared_prefix_gives_the_same_bits(small: NativeRunner) -> None:
    ids = prompt(SMALL, 90)
    want = run_alone(small, ids)
    # The first 48 tokens' blocks come from another sequence; the block after them is a copy.
    other = Sequence_(ids[:60], list(range(100, 104)))
    run_step(small, [(other, 60)])
    small.copy_block(103, 7)
    mine = Sequence_(ids, [100, 101, 102, 7, 8, 9], done=60)
    run_step(small, [(mine, 30)])
    assert np.array_equal(np.stack(mine.logits), want[60:])


def test_hidden_states_are_those_before_the_head(small: NativeRunner) -> None:
    ids = prompt(SMALL, 20)
    sequence = Sequence_(ids, [0, 1])
    run_step(small, [(sequence, 20)], hidden=True)
    model = load_model(SMALL, random_tensors(SMALL, 1))
    with torch.inference_mode():
        want = model.model(torch.tensor([ids]), None, model.new_cache(dtype=torch.float16), None)[0].numpy()
    assert_close(np.stack(sequence.logits), want)


def step(**changes: object) -> Step:
    good = {
        "token_ids": np.array([1, 2, 3], np.int32),
        "positions": np.array([0, 1, 2], np.int32),
        "starts": np.array([0, 3], np.int32),
        "blocks": np.array([[0]], np.int32),
        "adapters": np.array([0], np.int32),
        "wanted": np.array([2], np.int32),
    }
    arrays = {name: np.array(value, np.int32) for name, value in changes.items()}
    return Step(**{**good, **arrays})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"token_ids": [1, 2, 97]}, "token 97"),
        ({"token_ids": [1, -1, 2]}, "token -1"),
        ({"positions": [0, 1, 3]}, "consecutive"),
        ({"positions": [-1, 0, 1]}, "negative"),
        ({"positions": [14, 15, 16]}, "beyond the block table"),
        ({"positions": [0, 1]}, "do not fit"),
        ({"starts": [0, 2]}, "starts"),
        ({"starts": [0, 3, 3], "blocks": [[0], [1]], "adapters": [0, 0]}, "no token"),
        ({"blocks": [[-1]]}, "block -1"),
        ({"blocks": [[128]]}, "block 128"),
        ({"adapters": [7]}, "adapter 7"),
        ({"wanted": [3]}, "wanted"),
        ({"wanted": [1, 1]}, "wanted"),
        ({"starts": [0, 2, 3], "positions": [0, 1, 2], "blocks": [[5], [5]], "adapters": [0, 0]}, "two parts"),
        ({"starts": [0, 2, 3], "positions": [0, 1, 16], "blocks": [[5, 6], [5, 7]], "adapters": [0, 0]}, "read and"),
    ],
)
def test_a_bad_step_is_refused_and_the_model_stays_usable(
    small: NativeRunner, changes: dict[str, object], problem: str
) -> None:
    want = small.logits(step()).copy()
    with pytest.raises(ValueError, match=problem):
        small.logits(step(**changes))
    assert np.array_equal(small.logits(step()), want)


def test_no_wanted_rows_give_no_logits(small: NativeRunner) -> None:
    assert small.logits(step(wanted=[])).shape == (0, 97)


def test_what_the_native_engine_does_not_run_is_refused() -> None:
    crossing = SMALL.with_changes(cross_attention_layers=(1,))
    with pytest.raises(UnsupportedError, match="cross-attention"):
        NativeRunner(crossing, random_tensors(crossing, 0))
    wide = SMALL.with_changes(head_dim=514, n_heads=1, n_kv_heads=1)
    with pytest.raises(UnsupportedError, match="514"):
        NativeRunner(wide, {})
    tensors = random_tensors(SMALL, 0)
    with pytest.raises(UsageError, match="instruction set"):
        NativeRunner(SMALL, tensors, isa="sse9")
    with pytest.raises(UsageError, match="kv_type"):
        NativeRunner(SMALL, tensors, kv_type="f8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="threads"):
        NativeRunner(SMALL, tensors, threads=0)
    with pytest.raises(QafilaError, match="free"):
        NativeRunner(SMALL, tensors, num_blocks=1 << 30)
    del tensors["model.norm.weight"]
    with pytest.raises(QafilaError, match=r"model\.norm\.weight is missing"):
        NativeRunner(SMALL, tensors)


def test_the_fingerprint_names_weights_and_arithmetic(small: NativeRunner) -> None:
    same = NativeRunner(SMALL, random_tensors(SMALL, 1), threads=1, kv_tokens=64)
    other = NativeRunner(SMALL, random_tensors(SMALL, 2), threads=1, kv_tokens=64)
    smaller = NativeRunner(SMALL, random_tensors(SMALL, 1), threads=1, kv_tokens=64, kv_type="int8")
    rotated = dataclasses.replace(SMALL, rope_theta=20_000.0)
    turned = NativeRunner(rotated, random_tensors(SMALL, 1), threads=1, kv_tokens=64)
    assert small.fingerprint == same.fingerprint
    assert len({runner.fingerprint for runner in (same, other, smaller, turned)}) == 4


def test_a_closed_runner_says_so_and_its_last_logits_stay() -> None:
    runner = NativeRunner(SMALL, random_tensors(SMALL, 1), threads=2, kv_tokens=64)
    logits = runner.logits(step())
    want = logits.copy()
    runner.close()
    runner.close()
    assert np.array_equal(logits, want)
    with pytest.raises(UsageError, match="closed"):
        runner.logits(step())
