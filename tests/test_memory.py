"""The estimator: exact where it can be, held to measurements where it cannot; and what a container may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from qafila.config import ModelConfig
from qafila.machine import Machine, this_machine
from qafila.memory import (
    AS_STORED,
    TORCH_CPU,
    Estimate,
    gigabytes,
    judge,
    longest_context,
    memory_to_run,
    memory_to_train,
    run_alternatives,
    tensor_bytes,
    train_alternatives,
    weight_bytes,
)
from qafila.parameters import text_parameters
from qafila.presets import preset, preset_names
from qafila.quant.dtypes import DType

GIB = 1 << 30


def _machine(free: float) -> Machine:
    return Machine(int(free * 1.2), int(free), "physical memory")


@pytest.mark.parametrize("name", preset_names())
def test_plain_weights_are_parameters_times_bytes(name: str) -> None:
    config = preset(name)
    assert weight_bytes(config, DType.BF16) == 2 * text_parameters(config)
    assert weight_bytes(config, DType.F32) == 4 * text_parameters(config)


def test_quantised_weights_keep_vectors_in_f32_and_odd_rows_in_f16() -> None:
    assert tensor_bytes((4096, 4096), DType.Q4_0) == 4096 * 4096 // 32 * 18
    assert tensor_bytes((4096,), DType.Q4_0) == 4096 * 4
    assert tensor_bytes((16, 100), DType.Q8_0) == 16 * 100 * 2
    assert tensor_bytes((16, 576), DType.Q4_K) == 16 * 576 * 2
    assert tensor_bytes((4, 64, 32), DType.Q8_0) == 4 * 64 * 34


def test_weights_in_the_default_models_types_are_its_file(default_gguf: Path) -> None:
    config = preset("smollm2-135m")
    embedding = tensor_bytes((config.vocab_size, config.dim), DType.Q8_0)
    rest = weight_bytes(config, DType.Q4_1) - tensor_bytes((config.vocab_size, config.dim), DType.Q4_1)
    file = default_gguf.stat().st_size
    # Beside the weights the file holds the tokenizer and names.
    assert 0 < file - (embedding + rest) < 3_000_000


def test_cache_is_exact_and_grows_with_context_and_batch() -> None:
    config = preset("llama-3-8b")
    stored = weight_bytes(config, DType.BF16)
    run = memory_to_run(config, stored, context=8192, batch=3)
    assert run.parts["weights"] == 16_060_522_496
    assert run.parts["KV cache"] == 131_072 * 8192 * 3
    assert run.total == sum(run.parts.values())
    twice = memory_to_run(config, stored, context=16384, batch=3)
    assert twice.total - run.total == 131_072 * 8192 * 3


def test_the_torch_runner_holds_float32_whatever_is_stored() -> None:
    config = preset("smollm2-135m")
    run = memory_to_run(config, weight_bytes(config, DType.Q4_0), context=1024, runner=TORCH_CPU)
    assert run.parts["weights"] == 4 * 134_515_008
    assert run.parts["KV cache"] == 2 * 23_040 * 1024


def test_a_mixture_works_on_few_experts_but_stores_all() -> None:
    scout = preset("llama-4-scout")
    run = memory_to_run(scout, weight_bytes(scout, DType.BF16), context=512)
    assert run.parts["weights"] == 2 * 107_769_861_120
    # 512 tokens through the shared and one routed expert of 8192: not through sixteen.
    assert run.parts["workspace"] < 512 * 4 * (3 * 5120 + 2 * 5120 + 2 * 1024 + 2 * 3 * 8192) + 4 * 202048


def test_full_training_takes_sixteen_bytes_a_parameter() -> None:
    config = preset("llama-2-7b")
    need = memory_to_train(config, "full", context=512)
    held = need.parts["weights"] + need.parts["gradients"] + need.parts["optimizer"]
    assert held == 16 * text_parameters(config)
    # LLaMA-Factory's table: 120 GB for 7B with bf16 and float32 masters, 16 for LoRA, 6 for QLoRA in four bits.
    assert need.total == pytest.approx(120e9, rel=0.15)
    assert memory_to_train(config, "lora", context=512).total == pytest.approx(16e9, rel=0.15)
    assert memory_to_train(config, "qlora", context=512).total == pytest.approx(6e9, rel=0.15)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_counted_as_peft_counts_them() -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from qafila.weights.hf_write import config_to_hf

    config = ModelConfig(dim=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, vocab_size=128)
    raw = config_to_hf(config)
    del raw["architectures"]
    targets = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules=targets))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    need = memory_to_train(config, "lora", context=8, rank=16)
    assert need.parts["adapters"] == need.parts["gradients"] == 2 * trained
    assert need.parts["optimizer"] == 12 * trained


# torchtune's README, Llama 3.2 3B on one A100, batch 2 of 4096 tokens, packed: GiB measured.
@pytest.mark.parametrize(
    ("options", "measured", "tolerance"),
    [
        ({"checkpointing": False, "chunked_loss": False}, 60.0, 0.15),
        ({"checkpointing": False}, 42.9, 0.1),
        ({}, 24.9, 0.15),
    ],
)
def test_full_training_against_measurements(options: dict[str, bool], measured: float, tolerance: float) -> None:
    need = memory_to_train(preset("llama-3.2-3b"), "full", context=4096, batch=2, optimizer_bytes=4, **options)
    assert need.total / GIB == pytest.approx(measured, rel=tolerance)


@pytest.mark.parametrize(("method", "measured"), [("lora", 8.5), ("qlora", 4.6)])
def test_adapter_training_is_not_underestimated(method: str, measured: float) -> None:
    need = memory_to_train(preset("llama-3.2-3b"), method, context=4096, batch=2)  # type: ignore[arg-type]
    assert measured <= need.total / GIB <= 1.5 * measured


def test_methods_get_lighter() -> None:
    for name in ("smollm2-135m", "llama-3.1-8b", "llama-4-scout"):
        config = preset(name)
        sizes = [memory_to_train(config, m, context=1024).total for m in ("full", "lora", "qlora")]  # type: ignore[arg-type]
        assert sizes == sorted(sizes, reverse=True)
        assert list(train_alternatives(config, "full", context=1024, batch=1)) == ["--train lora", "--train qlora"]


def test_verdicts_say_why() -> None:
    config = preset("llama-3.1-405b")
    stored = weight_bytes(config, DType.BF16)
    run = memory_to_run(config, stored, context=4096, runner=AS_STORED)
    others = run_alternatives(config, context=4096, batch=1, runner=AS_STORED)
    small = judge(run, _machine(23e9), others)
    assert not small.fits
    assert small.reason.startswith("needs 814 GB, this machine has 23.0 GB free; even weights in Q2_K would need ")
    large = judge(run, _machine(300e9), others)
    assert not large.fits
    assert "; weights in Q4_0 would need 231 GB and fit" in large.reason
    assert judge(run, _machine(2e12), others).reason == "needs 814 GB, this machine has 2.0 TB free"
    assert judge(run, _machine(run.total), others).fits
    assert "tight" in judge(run, _machine(run.total), others).reason
    assert not judge(run, _machine(run.total - 1)).fits
    assert "this container has" in judge(run, Machine(9, 9, "container limit")).reason


def test_longest_context_is_the_last_that_fits() -> None:
    config = preset("llama-3-8b")
    stored = weight_bytes(config, DType.Q8_0)
    machine = _machine(9.5e9)
    longest = longest_context(config, stored, machine, batch=2, runner=AS_STORED)
    assert 512 < longest < config.context_length
    assert judge(memory_to_run(config, stored, context=longest, batch=2), machine).fits
    assert not judge(memory_to_run(config, stored, context=longest + 1, batch=2), machine).fits
    assert longest_context(config, stored, _machine(1e9), batch=1, runner=AS_STORED) == 0
    assert longest_context(config, stored, _machine(1e15), batch=1, runner=AS_STORED) == 8192


def test_gigabytes() -> None:
    sizes = (512e3, 96.6e6, 16.06e9, 811.7e9, 1.6e12)
    assert [gigabytes(size) for size in sizes] == ["512 kB", "96.6 MB", "16.1 GB", "812 GB", "1.6 TB"]
    assert Estimate({"a": 1, "b": 2}).total == 3


MEMINFO = "MemTotal:       24684084 kB\nMemFree:        20000000 kB\nMemAvailable:   22000000 kB\n"


def _system(root: Path, cgroup: str, files: dict[str, str]) -> Machine:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(MEMINFO)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "cg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return this_machine(root / "proc", root / "cg")


FREE = Machine(24684084 * 1024, 22000000 * 1024, "physical memory")


def test_no_control_group_limit(tmp_path: Path) -> None:
    v1 = {"memory/a/memory.limit_in_bytes": "9223372036854771712", "memory/a/memory.usage_in_bytes": "7"}
    v2 = {"b/memory.max": "max\n", "b/memory.current": "7"}
    assert _system(tmp_path, "4:memory:/a\n0::/b\n", v1 | v2) == FREE


def test_control_group_v2_counts_its_page_cache_as_free(tmp_path: Path) -> None:
    files = {
        "pod/memory.max": str(4 << 30),
        "pod/memory.current": str(3 << 30),
        "pod/memory.stat": f"anon 5\ninactive_file {2 << 30}\n",
        "pod/box/memory.max": "max",
        "pod/box/memory.current": "5",
    }
    assert _system(tmp_path, "0::/pod/box\n", files) == Machine(4 << 30, 3 << 30, "container limit")


def test_control_group_v1_seen_from_inside_a_container(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": str(2 << 30),
        "memory/memory.usage_in_bytes": str(1 << 30),
        "memory/memory.stat": "total_inactive_file 0\n",
    }
    found = _system(tmp_path, "9:memory:/docker/0123\n2:cpu,cpuacct:/\n", files)
    assert found == Machine(2 << 30, 1 << 30, "container limit")


def test_a_group_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    files = {"memory.max": "1000", "memory.current": "5000"}
    assert _system(tmp_path, "0::/\n", files).available == 0


def test_a_limit_above_physical_memory_changes_nothing(tmp_path: Path) -> None:
    assert _system(tmp_path, "0::/\n", {"memory.max": str(1 << 50), "memory.current": "5"}) == FREE


def test_odd_files_are_survived(tmp_path: Path) -> None:
    assert _system(tmp_path, "nonsense\n0::/\n", {"memory.max": "many", "memory.current": "x"}) == FREE
    (tmp_path / "proc" / "meminfo").write_text("what\n")
    found = this_machine(tmp_path / "proc", tmp_path / "cg")
    assert found.total == found.available > 0


def test_this_machine() -> None:
    found = this_machine()
    assert 0 < found.available <= found.total
