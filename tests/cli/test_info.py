"""`qafila info`, as a person and as a script see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from qafila.cli.info import Subject, _lines, command, describe, open_subject, storable
from qafila.errors import ConfigError, ModelNotFoundError, UsageError
from qafila.machine import Machine
from qafila.memory import AS_STORED, TORCH_CPU
from qafila.presets import preset, preset_names
from qafila.quant.dtypes import DType
from qafila.weights.hf_write import config_to_hf
from qafila.weights.tensor import LazyTensor

BIG = Machine(1 << 50, 1 << 50, "physical memory")


def _run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def _json(*arguments: str) -> dict[str, Any]:
    result = _run(*arguments, "--json")
    assert result.exception is None, result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_json_of_a_preset() -> None:
    found = _json("llama-3-8b")
    assert found["parameters"] == found["active_parameters"] == found["total_parameters"] == 8_030_261_248
    assert found["kv_bytes_per_token"] == 131_072
    assert found["weights_bytes"] == 16_060_522_496
    assert found["weights_types"] == {"BF16": 16_060_522_496}
    assert isinstance(found["fits"], bool)
    assert "free" in found["reason"]
    assert (found["layers"], found["context_length"], found["context"], found["train"]) == (32, 8192, 4096, None)


def test_json_of_a_mixture_with_a_tower() -> None:
    found = _json("llama-4-scout")
    assert found["parameters"] == 107_769_861_120
    assert found["active_parameters"] == 17_172_894_720
    assert found["vision_parameters"] == 871_932_416
    assert found["vision_parts"]["encoder"] == 811_115_008
    assert found["total_parameters"] == 108_641_793_536
    assert (found["experts"], found["expert_layers"]) == (16, 48)
    assert found["attention_layers"] == {"chunked": 36, "full": 12}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_described(name: str) -> None:
    found = describe(Subject(name, "preset", preset(name)), BIG, train="full")
    assert found["fits"] is True
    assert found["run"]["bytes"] == sum(found["run"]["parts"].values())
    assert found["train"]["bytes"] == sum(found["train"]["parts"].values())


def test_json_of_the_default_model_counts_its_own_types(default_gguf: Path) -> None:
    found = _json(str(default_gguf))
    assert found["format"] == "gguf"
    assert found["parameters"] == 134_515_008
    assert set(found["weights_types"]) == {"Q4_1", "Q8_0", "F32"}
    size = default_gguf.stat().st_size
    assert 0 < size - found["weights_bytes"] < 3_000_000
    assert found["fits"] is True


def test_a_file_is_not_read(default_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qafila.weights.tensor import LazyTensor

    subject = open_subject(str(default_gguf))
    assert subject.tensors is not None

    def fail(*_: object) -> None:
        raise AssertionError("weights were read")

    unread = {name: LazyTensor(t.dtype, t.shape, t.origin, fail) for name, t in subject.tensors.items()}  # type: ignore[arg-type]
    assert describe(Subject("x", "gguf", subject.config, unread), BIG)["weights_bytes"] > 90_000_000


def test_context_batch_and_type_change_the_answer() -> None:
    subject = Subject("llama-3-8b", "preset", preset("llama-3-8b"))
    machine = Machine(24_000_000_000, 20_000_000_000, "physical memory")
    plain = describe(subject, machine, runner=AS_STORED)
    assert plain["fits"] is True
    longer = describe(subject, machine, context=8192, batch=8, runner=AS_STORED)
    assert longer["run"]["parts"]["KV cache"] == 131_072 * 8192 * 8
    assert longer["fits"] is False
    small = describe(subject, machine, context=8192, batch=8, quant=DType.Q4_0)
    assert small["weights_types"] == {"Q4_0": small["weights_bytes"]}
    assert small["fits"] is True
    assert small["weights_held_as"] == "stored"


def test_a_shorter_context_is_named_when_that_is_all_it_takes() -> None:
    subject = Subject("llama-3.1-8b", "preset", preset("llama-3.1-8b"))
    machine = Machine(24_000_000_000, 20_000_000_000, "physical memory")
    found = describe(subject, machine, context=131072, runner=AS_STORED)
    assert found["fits"] is False
    assert found["reason"].endswith(f"; a context of {found['longest_context']} would fit")
    assert describe(subject, machine, context=found["longest_context"], runner=AS_STORED)["fits"] is True


def test_the_native_engine_is_what_fits_is_about() -> None:
    machine = Machine(24_000_000_000, 20_000_000_000, "physical memory")
    found = describe(Subject("llama-3-8b", "preset", preset("llama-3-8b")), machine)
    assert found["weights_held_as"] == "stored"
    assert found["run"]["parts"]["KV cache"] == 131_072 * 4096
    assert found["fits"] is True


def test_what_only_torch_runs_is_measured_so() -> None:
    found = describe(Subject("x", "preset", preset("llama-3.2-11b-vision")), BIG)
    assert found["weights_held_as"] == "F32"
    found = describe(
        Subject("llama-3-8b", "preset", preset("llama-3-8b")), Machine(24 * 10**9, 20 * 10**9, "x"), runner=TORCH_CPU
    )
    assert found["fits"] is False
    assert "weights in BF16 would need 17.0 GB and fit" in found["reason"]


def test_types_that_are_converted_are_named(default_gguf: Path) -> None:
    subject = open_subject(str(default_gguf))
    assert subject.tensors is not None
    assert describe(subject, BIG)["weights_converted"] == {}
    shape = (64, 256)
    change = LazyTensor(DType.Q2_K, shape, "x", lambda: None)  # type: ignore[arg-type, return-value]
    found = describe(Subject("x", "gguf", subject.config, {"a": change}), BIG)
    assert found["weights_converted"] == {"Q2_K": "Q8_0"}
    assert found["run"]["parts"]["weights"] == DType.Q8_0.nbytes(shape) > found["weights_bytes"]
    assert any("Q2_K becomes Q8_0" in text for _, text in _lines(found))
    assert describe(subject, BIG, quant=DType.Q2_K)["weights_converted"] == {"Q2_K": "Q8_0"}


def test_what_training_holds_is_told_with_its_types() -> None:
    """The optimiser's 12 bytes are not moments alone, and `qafila train` on one GPU has wider gradients."""
    full = " ".join(_run("llama-3.2-1b", "--train", "full").stdout.split())
    assert "gradients 2.5 GB + optimizer 14.8 GB" in full
    assert "gradients in bfloat16 (2 bytes a trained parameter); optimizer: AdamW's two moments (8) and master " in full
    assert "on one GPU qafila train adds gradients up in float32: 2.5 GB more" in full
    lora = " ".join(_run("llama-3.2-1b", "--train", "lora").stdout.split())
    assert "two moments (8) and master weights (4) in float32" in lora
    assert "2.5 GB more" not in lora
    assert "two moments" not in _run("llama-3.2-1b").stdout


def test_training_decides_when_it_is_asked_for() -> None:
    subject = Subject("llama-3.2-1b", "preset", preset("llama-3.2-1b"))
    machine = Machine(12_000_000_000, 10_000_000_000, "physical memory")
    full = describe(subject, machine, train="full")
    assert (full["run"]["fits"], full["train"]["fits"], full["fits"]) == (True, False, False)
    assert "; --train lora would need " in full["reason"]
    assert full["train"]["parts"]["optimizer"] == 12 * 1_235_814_400
    lora = describe(subject, machine, train="lora")
    assert lora["fits"] is True
    assert (lora["train"]["method"], lora["train"]["context"]) == ("lora", 2048)


def test_table_for_people() -> None:
    result = _run("llama-3.2-11b-vision", "--train", "qlora", "--context", "200000")
    assert result.exit_code == 0, result.exception
    text = " ".join(result.stdout.split())
    for part in (
        "published as 10.6B",
        "10,629,184,035 in all",
        "8 cross, 32 full layers",
        "beyond the context",
        "qlora",
    ):
        assert part in text
    assert text.count("because it needs") == 2


def test_mixture_in_the_table() -> None:
    text = " ".join(_run("llama-4-maverick").stdout.split())
    assert "17,184,691,200 per token" in text
    assert "128 in 24 layers, 1 per token, and a shared one" in text


def test_unknown_names_get_close_ones() -> None:
    with pytest.raises(ModelNotFoundError, match=r"llama-3\.2-2b.*did you mean.*llama-3\.2-3b"):
        open_subject("llama-3.2-2b")
    with pytest.raises(ModelNotFoundError, match=r"nowhere/model\.gguf"):
        open_subject("nowhere/model.gguf")


def test_options_are_checked() -> None:
    assert storable("q4_k") is DType.Q4_K
    for name in ("Q4_K_M", "I8", "nothing"):
        with pytest.raises(UsageError, match=f"--quant '{name}': choose from F32, F16, Q4_0"):
            storable(name)
    error = _run("llama-7b", "--train", "half").exception
    assert isinstance(error, UsageError)
    assert "choose from full, lora, qlora" in str(error)
    assert _run("llama-7b", "--context", "0").exit_code == 2
    assert _run("llama-7b", "--batch", "-1").exit_code == 2


def test_a_folder_whose_config_is_wrong_names_the_file(tmp_path: Path) -> None:
    raw = config_to_hf(preset("llama-3.2-1b")) | {"surprise": 1}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=r"config\.json: unknown key surprise"):
        open_subject(str(tmp_path))


def test_presets_need_neither_torch_nor_loaders() -> None:
    program = (
        "import sys\n"
        "from qafila.cli.info import Subject, describe, open_subject\n"
        "from qafila.machine import this_machine\n"
        "describe(open_subject('llama-4-scout'), this_machine())\n"
        "loaded = {'torch', 'transformers', 'tokenizers', 'qafila.weights.load'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
