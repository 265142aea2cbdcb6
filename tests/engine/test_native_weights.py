"""The native forward on every stored type and with adapters, against the torch model on the same values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from step_driver import Sequence_, run_alone, run_step

from qafila.config import MixtureOfExperts, ModelConfig
from qafila.engine.native_runner import NativeRunner
from qafila.engine.native_weights import NATIVE_TYPES, convert, stored_as
from qafila.engine.runner import BLOCK_TOKENS, Float32
from qafila.errors import FormatError, UnsupportedError
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.native import _native
from qafila.quant.codec import dequantise, quantise
from qafila.quant.dtypes import DType
from qafila.weights.adapter import Adapter, LoraModule, write_adapter
from qafila.weights.tensor import LazyTensor, Tensor

CONFIG = ModelConfig(
    dim=256, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, ffn_dim=512, vocab_size=300, context_length=512
)
MIXTURE = CONFIG.with_changes(moe=MixtureOfExperts(n_experts=3, top_k=1, ffn_dim=256), tie_embeddings=True)

# Where the f16 scales of a block lie (byte, size of the value): random bytes elsewhere are valid blocks, and weights
# come out near 1/16, as their columns ask for.
SCALES = {
    DType.Q5_0: [(0, 0.007)],
    DType.Q5_1: [(0, 0.007), (2, -0.1)],
    DType.Q2_K: [(80, 0.006), (82, 0.009)],
    DType.Q3_K: [(108, 0.002)],
    DType.Q5_K: [(0, 1.2e-4), (2, 1.9e-3)],
    DType.Q6_K: [(208, 6e-5)],
    DType.IQ4_NL: [(0, 0.001)],
}
# Root mean square of the logits' difference over that of the logits: activations are rounded to 8 bits in blocks of
# 32, or to bfloat16, before every product.
BOUNDS = {DType.F32: 1e-4, DType.F16: 1e-4, DType.F64: 1e-4, DType.BF16: 0.01}
INT8_BOUND = 0.03


def in_type(values: LazyTensor, dtype: DType, seed: int) -> LazyTensor:
    """A matrix in ``dtype``: the values quantised where there is a quantiser, else random blocks."""
    if len(values.shape) < 2:
        return values
    tensor = values.read()
    if dtype is DType.F64:
        data = tensor.data.view("<f4").astype("<f8").view(np.uint8)
    elif dtype in SCALES:
        generator = np.random.default_rng(seed)
        blocks = generator.integers(0, 256, (dtype.nbytes(values.shape) // dtype.block_bytes, dtype.block_bytes))
        blocks = blocks.astype(np.uint8)
        for place, size in SCALES[dtype]:
            blocks[:, place : place + 2] = np.full((len(blocks), 1), size, "<f2").view(np.uint8)
        data = blocks.reshape(-1)
    else:
        data = quantise(dtype, tensor.data.view("<f4").reshape(-1, values.shape[-1])).reshape(-1)
    return LazyTensor.of(Tensor(dtype, values.shape, np.ascontiguousarray(data)))


def stored(config: ModelConfig, dtype: DType) -> dict[str, LazyTensor]:
    return {name: in_type(lazy, dtype, i) for i, (name, lazy) in enumerate(random_tensors(config, 7).items())}


def reference(config: ModelConfig, tensors: dict[str, LazyTensor], ids: list[int]) -> Float32:
    model = load_model(config, tensors)
    with torch.inference_mode():
        logits: Float32 = model(torch.tensor([ids]), cache=model.new_cache(dtype=torch.float16))[0].numpy()
    return logits


def relative(found: Float32, want: Float32) -> float:
    return float(np.sqrt(((found - want) ** 2).mean() / (want**2).mean()))


TYPES = [*sorted(NATIVE_TYPES, key=lambda dtype: dtype.name), *(t for t in SCALES if t not in NATIVE_TYPES), DType.F64]
IDS = [int(i) for i in np.random.default_rng(0).integers(0, 300, 40)]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.name)
def test_every_stored_type(dtype: DType) -> None:
    tensors = stored(CONFIG, dtype)
    want = reference(CONFIG, tensors, IDS)
    # Where the weights are rounded to Q8_0 as well, twice as much may be lost.
    bound = BOUNDS.get(dtype, INT8_BOUND if dtype in NATIVE_TYPES else 2 * INT8_BOUND)
    for isa in _native.instruction_sets():
        runner = NativeRunner(CONFIG, tensors, threads=2, kv_tokens=64, isa=isa)
        assert relative(run_alone(runner, IDS), want) < bound


@pytest.mark.parametrize("dtype", [DType.Q4_K, DType.BF16, DType.Q4_0], ids=lambda dtype: dtype.name)
def test_experts_and_a_tied_head_of_every_kind(dtype: DType) -> None:
    tensors = stored(MIXTURE, dtype)
    # Rounded activations would send tokens to other experts than the reference's.
    tensors |= {name: lazy for name, lazy in random_tensors(MIXTURE, 7).items() if "router" in name}
    want = reference(MIXTURE, tensors, IDS)
    runner = NativeRunner(MIXTURE, tensors, threads=2, kv_tokens=64)
    rows = np.sort(np.sqrt(((run_alone(runner, IDS) - want) ** 2).mean(1) / (want**2).mean(1)))
    assert rows[len(rows) * 3 // 4] < BOUNDS.get(dtype, INT8_BOUND)


@pytest.mark.parametrize("dtype", [DType.Q4_1, DType.Q6_K, DType.BF16], ids=lambda dtype: dtype.name)
def test_bits_of_quantised_weights_depend_on_nothing(dtype: DType) -> None:
    tensors = stored(CONFIG, dtype)
    runners = [NativeRunner(CONFIG, tensors, threads=threads, kv_tokens=512, max_rows=512) for threads in (1, 3)]
    ids = (IDS * 10)[:330]
    want = run_alone(runners[0], ids)
    for runner in runners:
        for cuts in ([1, 2, 3, 11, 256, 300], [329]):
            assert np.array_equal(run_alone(runner, ids, cuts=cuts), want)


def test_the_int8_cache_stays_close_and_keeps_its_bits() -> None:
    tensors = random_tensors(CONFIG, 1)
    ids = (IDS * 10)[:300]
    runner = NativeRunner(CONFIG, tensors, threads=2, kv_tokens=512, max_rows=512, kv_type="int8")
    found = run_alone(runner, ids)
    assert relative(found, reference(CONFIG, tensors, ids)) < 0.02
    assert np.array_equal(run_alone(runner, ids, cuts=[7, 100, 299], first_block=10), found)


def test_what_types_are_held_in() -> None:
    assert all(stored_as(dtype) is dtype for dtype in NATIVE_TYPES)
    assert stored_as(DType.Q2_K) is stored_as(DType.IQ4_NL) is DType.Q8_0
    assert stored_as(DType.F64) is DType.F32
    with pytest.raises(UnsupportedError, match="I32"):
        stored_as(DType.I32)
    tensor = stored(CONFIG, DType.Q3_K)["model.layers.0.mlp.up_proj.weight"].read()
    values = dequantise(DType.Q3_K, tensor.rows())
    held = convert(tensor)
    assert relative(dequantise(held.dtype, held.rows()), values) < 0.01


def lora(seed: int, rank: int, modules: list[str], config: ModelConfig = CONFIG) -> Adapter:
    generator = np.random.default_rng(seed)
    shapes = {name: lazy.shape for name, lazy in random_tensors(config, 0).items()}

    def matrix(rows: int, columns: int) -> LazyTensor:
        values = generator.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(columns))
        return LazyTensor.of(Tensor(DType.F32, (rows, columns), values.reshape(-1).view(np.uint8)))

    found = {}
    for layer in range(config.n_layers):
        for module in modules:
            name = f"model.layers.{layer}.{module}.weight"
            out, columns = shapes[name][-2:]
            found[name] = LoraModule(rank, 6.0, 6.0 / rank, matrix(rank, columns), matrix(out, rank))
    return Adapter(rank, 6.0, found, tuple(sorted({name.rsplit(".", 1)[-1] for name in modules})))


def merged(tensors: dict[str, LazyTensor], adapter: Adapter) -> dict[str, LazyTensor]:
    changed = dict(tensors)
    for name, module in adapter.modules.items():
        weight, a, b = (
            dequantise(lazy.dtype, lazy.read().data).reshape(lazy.shape) for lazy in (tensors[name], module.a, module.b)
        )
        values = (weight + np.float32(module.scaling) * (b @ a)).astype("<f4")
        changed[name] = LazyTensor.of(Tensor(DType.F32, weight.shape, values.reshape(-1).view(np.uint8)))
    return changed


ALL = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]


def test_adapters_equal_merged_models_alone_and_together(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG, 2)
    runner = NativeRunner(CONFIG, tensors, threads=2, kv_tokens=1024)
    plain = run_alone(runner, IDS)
    adapters = [lora(1, 5, ALL), lora(2, 40, ["self_attn.v_proj", "mlp.down_proj"])]
    names, alone = [0], [plain]
    for i, adapter in enumerate(adapters):
        write_adapter(tmp_path / str(i), adapter)
        names.append(runner.load_adapter(tmp_path / str(i)))
        alone.append(run_alone(runner, IDS, adapter=names[-1]))
        assert relative(alone[-1], reference(CONFIG, merged(tensors, adapter), IDS)) < 2e-4
        assert relative(alone[-1], plain) > 0.1
    assert np.array_equal(run_alone(runner, IDS), plain)
    sequences = [Sequence_(IDS, range(4 * i, 4 * i + 3), name) for i, name in enumerate([*names, 0, names[1]])]
    for counts in ([3, 1, 5, 2, 4], [20, 20, 20, 20, 20], [17, 19, 15, 18, 16]):
        run_step(runner, list(zip(sequences, counts, strict=True)))
    for sequence, want in zip(sequences, [*alone, plain, alone[1]], strict=True):
        assert np.array_equal(np.stack(sequence.logits), want)
    runner.unload_adapter(names[1])
    with pytest.raises(ValueError, match="not loaded"):
        run_alone(runner, IDS, adapter=names[1])
    assert np.array_equal(run_alone(runner, IDS, cuts=[7], adapter=names[2]), alone[2])


def test_an_adapter_of_quantised_weights_sees_the_float_input(tmp_path: Path) -> None:
    tensors = stored(CONFIG, DType.Q4_0)
    adapter = lora(3, 8, ALL)
    write_adapter(tmp_path, adapter)
    runner = NativeRunner(CONFIG, tensors, threads=2, kv_tokens=64)
    found = run_alone(runner, IDS, adapter=runner.load_adapter(tmp_path))
    assert relative(found, reference(CONFIG, merged(tensors, adapter), IDS)) < INT8_BOUND


def test_adapters_that_cannot_be_applied_are_refused_by_name(tmp_path: Path) -> None:
    runner = NativeRunner(CONFIG, random_tensors(CONFIG, 2), threads=1, kv_tokens=BLOCK_TOKENS)
    good = lora(1, 4, ["self_attn.q_proj"])
    module = next(iter(good.modules.values()))
    for name, problem in (
        ("lm_head.weight", "adapts lm_head"),
        ("model.layers.9.self_attn.q_proj.weight", r"model\.layers\.9\."),
        ("model.layers.0.self_attn.k_proj.weight", "another shape"),
    ):
        write_adapter(tmp_path / name, replace(good, modules={name: module}))
        with pytest.raises(FormatError, match=problem):
            runner.load_adapter(tmp_path / name)
    assert np.isfinite(run_alone(runner, IDS[:4])).all()


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_the_default_models_greedy_answer_is_the_references(default_gguf: Path, isa: str) -> None:
    from qafila.weights.load import open_checkpoint

    checkpoint = open_checkpoint(default_gguf)
    ids = checkpoint.tokenizer.encode("The three primary colours are red, yellow and")
    runner = NativeRunner.of(checkpoint, threads=1, kv_tokens=64, isa=isa)
    sequence = Sequence_(list(ids), range(4))
    run_step(runner, [(sequence, len(ids))])
    for _ in range(8):
        sequence.ids = [*sequence.ids, int(sequence.logits[-1].argmax())]
        run_step(runner, [(sequence, 1)])
    want = reference(checkpoint.config, dict(checkpoint.tensors), list(sequence.ids))
    # Equal greedy tokens, or the reference's top two lie closer than 0.1.
    for row, token in zip(want[len(ids) - 1 :], sequence.ids[len(ids) :], strict=False):
        assert row.max() - row[token] < 0.1
