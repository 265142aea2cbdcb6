"""A reward model goes along with its model: what `qafila export` writes scores as the run's own folder does."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from qafila.cli.main import main
from qafila.config import GenerationConfig, ModelConfig
from qafila.errors import FormatError, QafilaError, StorageError
from qafila.parameters import parameter_shapes
from qafila.quant.dtypes import DType
from qafila.weights.export import export
from qafila.weights.load import Checkpoint, gguf_tokenizer, open_checkpoint
from qafila.weights.reward_model import RewardHead, is_reward_folder, read_reward_head, write_reward_model
from qafila.weights.tensor import LazyTensor, Tensor

DIM = 32
CONFIG = ModelConfig(
    dim=DIM,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    ffn_dim=64,
    vocab_size=49152,
    context_length=256,
    tie_embeddings=False,
)
IDS = torch.tensor([[5, 9, 300, 41, 2]])


def made_tensor(seed: int, *shape: int) -> LazyTensor:
    values = (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype("<f4").reshape(-1)
    return LazyTensor.of(Tensor(DType.F32, shape, values.view(np.uint8)))


@pytest.fixture(scope="module")
def run(default_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reward run leaves: a model, and the folder ``reward`` in it."""
    folder = tmp_path_factory.mktemp("runs") / "scores"
    tokenizer = gguf_tokenizer(default_gguf)
    tensors = {name: made_tensor(n, *shape) for n, (name, shape) in enumerate(parameter_shapes(CONFIG).items())}
    model = Checkpoint(Path("small"), "hf", CONFIG, GenerationConfig(1, (2,), 0), tensors, lambda: tokenizer)
    export(model, folder, "hf")
    write_reward_model(RewardHead(made_tensor(99, 1, DIM), 0), folder)
    (folder / "run.json").write_text(json.dumps({"recipe": {"objective": "reward"}}))
    return folder


def score(folder: Path) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32).eval()
    with torch.no_grad():
        return float(model(IDS).logits)


def test_an_export_to_hf_scores_as_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    assert main(["export", str(run), str(made)]) == 0
    assert "and a reward model (reward/)" in capsys.readouterr().out
    assert score(made) == score(run) != 0
    assert (made / "reward" / "tokenizer.json").is_file()
    assert json.loads((made / "reward" / "config.json").read_text())["pad_token_id"] == 0
    assert "come from the folder `reward`, which transformers" in (made / "README.md").read_text()
    assert open_checkpoint(made).config.dim == DIM
    # The weights lie on the disk once.
    assert (made / "reward" / "model-00001.safetensors").samefile(made / "model.safetensors")
    # What was exported may be replaced, and exported once more, with its head.
    assert main(["export", str(run), str(made), "--force", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "reward/score.safetensors" in told["files"]
    weights = (made / "model.safetensors").stat().st_size
    assert weights < told["bytes"] < 2 * weights
    assert main(["export", str(made), str(tmp_path / "again")]) == 0
    assert score(tmp_path / "again") == score(run)
    assert not list(tmp_path.rglob(".*"))


def test_the_reward_model_has_the_types_that_were_asked_for(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "half"), "--quant", "F16"]) == 0
    config = json.loads((tmp_path / "half" / "reward" / "config.json").read_text())
    assert "float16" in (config.get("dtype"), config.get("torch_dtype"))
    assert score(tmp_path / "half") == pytest.approx(score(run), rel=0.02)


@pytest.mark.parametrize("to", ["gguf", "meta"])
def test_where_no_head_can_go_that_is_said(
    to: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), str(tmp_path / "made"), "--to", to]) == 0
    assert f"note: the reward head stays behind, since {to} has no place for one; --to hf" in capsys.readouterr().err
    assert not (tmp_path / "made" / "reward").exists()
    assert "in the folder of the run, not from these files" in (tmp_path / "made" / "README.md").read_text()


def test_only_a_reward_folder_is_replaced_with_its_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    assert main(["export", str(run), str(made)]) == 0
    assert is_reward_folder(made / "reward")
    (made / "reward" / "thesis.txt").write_text("the only copy")
    assert main(["export", str(run), str(made), "--force"]) == 2
    assert "holds other things than a model" in capsys.readouterr().err
    assert (made / "reward" / "thesis.txt").is_file()


def test_a_head_of_another_model_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_reward_head(tmp_path, DIM) is None
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    write_reward_model(RewardHead(made_tensor(1, 1, DIM + 1)), copy)
    assert main(["export", str(copy), str(tmp_path / "made")]) == 2
    assert f"score.safetensors: is no reward head of this model: score.weight [1, {DIM}]" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
    write_reward_model(RewardHead(made_tensor(1, 1, DIM)), copy)
    (copy / "reward" / "config.json").write_text('{"pad_token_id": "x"}')
    with pytest.raises(FormatError, match="pad_token_id is no token"):
        read_reward_head(copy, DIM)


def test_a_disk_that_says_no_leaves_no_half_of_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("reward"))

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qafila.weights.reward_model.shutil.copyfile", full)
    with pytest.raises(StorageError, match="reward: cannot be written: No space left on device"):
        write_reward_model(RewardHead(made_tensor(1, 1, DIM)), copy)
    assert not [path for path in copy.iterdir() if path.is_dir()]


@given(
    name=st.sampled_from(["score.safetensors", "config.json"]),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 200),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files_load_or_are_refused(
    run: Path, tmp_path: Path, name: str, edits: list[tuple[int, int]], cut: int | None
) -> None:
    (tmp_path / "reward").mkdir(exist_ok=True)
    for file in ("score.safetensors", "config.json"):
        data = bytearray((run / "reward" / file).read_bytes())
        if file == name:
            for place, value in edits:
                data[place % len(data)] = value
            data = data[:cut]
        (tmp_path / "reward" / file).write_bytes(data)
    with suppress(QafilaError):
        head = read_reward_head(tmp_path, DIM)
        assert head is not None
        assert head.score.shape == (1, DIM)
