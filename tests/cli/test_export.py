"""`qafila export`, and a run's folder as a model: the same answers beside the base, merged, and in other formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from qafila.chat.llama import Llama
from qafila.chat.local import LocalClient
from qafila.cli.main import main
from qafila.errors import UsageError
from qafila.quant.dtypes import DType
from qafila.server.sources import local_entries
from qafila.weights.adapter import Adapter, LoraModule, write_adapter
from qafila.weights.load import open_checkpoint
from qafila.weights.tensor import LazyTensor, Tensor

PROMPTS = ("Name three colours.", "What is a caravan?")
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def run_folder(default_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a LoRA run on the default model leaves: an adapter large enough to change answers."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    rng = np.random.default_rng(0)

    def lazy(*shape: int) -> LazyTensor:
        values = (rng.standard_normal(shape) * 0.03).astype("<f4")
        return LazyTensor.of(Tensor(DType.F32, shape, values.reshape(-1).view(np.uint8)))

    modules = {
        name: LoraModule(8, 16.0, 2.0, lazy(8, tensor.shape[1]), lazy(tensor.shape[0], 8))
        for name, tensor in open_checkpoint(default_gguf).tensors.items()
        if name.endswith("_proj.weight")
    }
    write_adapter(folder, Adapter(8, 16.0, modules, SEVEN), str(default_gguf))
    return folder


def greedy(llama: Llama, prompt: str) -> tuple[list[int], list[int]]:
    done = llama.chat([{"role": "user", "content": prompt}], temperature=0, max_tokens=24, seed=0)
    return list(done.prompt_ids), list(done.ids)


def assert_equal_tokens(reference: list[int], other: list[int], logits: np.ndarray, start: int) -> None:
    """Equal, or first different where the reference's top two are within 0.1 (the design's "equal tokens")."""
    for index, (one, two) in enumerate(zip(reference, other, strict=False)):
        if one != two:
            top = np.sort(logits[start + index - 1])[-2:]
            assert top[1] - top[0] < 0.1, (index, one, two, top)
            return
    assert len(reference) == len(other)


def test_a_run_answers_beside_its_base_merged_and_exported(run_folder: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", str(run_folder), str(tmp_path / "hf"), "--to", "hf", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "Q4_1" in told["note"]
    assert main(["export", str(run_folder), str(tmp_path / "g" / "small.gguf"), "--to", "gguf"]) == 0
    said = capsys.readouterr()
    assert "210 merged matrices are written as F16, not in the base's Q4_1" in said.err
    assert (tmp_path / "g" / "small.README.md").is_file()
    assert "Apache-2.0" in (tmp_path / "hf" / "README.md").read_text()
    types = {tensor.dtype for n, tensor in open_checkpoint(tmp_path / "g").tensors.items() if n.endswith("proj.weight")}
    assert types == {DType.F16}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    with Llama.load(run_folder) as own, Llama.load(tmp_path / "g" / "small.gguf") as gguf:
        assert own.adapter == "default"
        for prompt in PROMPTS:
            ids, answer = greedy(own, prompt)
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == ids
            with torch.no_grad():
                made = theirs.generate(
                    torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=24
                )[0, len(ids) :].tolist()
                logits = theirs(torch.tensor([ids + made])).logits[0].numpy()
            for other in (answer, greedy(gguf, prompt)[1]):
                stops = own.checkpoint.generation.stop_ids
                assert_equal_tokens([i for i in made if i not in stops], other_without(other, stops), logits, len(ids))


def other_without(ids: list[int], stops: tuple[int, ...]) -> list[int]:
    return [i for i in ids if i not in stops]


def test_merging_by_hand_is_what_the_engine_does_beside(run_folder: Path, default_gguf: Path) -> None:
    with Llama.load(run_folder) as own, Llama.load(default_gguf, adapter=run_folder) as given:
        assert np.array_equal(own.logits([1, 5, 9]), given.logits([1, 5, 9]))
        client = LocalClient(own, "small")
        assert client._adapter == "default"
    with Llama.load(default_gguf) as plain, Llama.load(run_folder, device="cpu") as torches:
        merged = torches.logits([1, 5, 9])
        assert np.abs(merged - plain.logits([1, 5, 9])).max() > 0.1
        assert torches.adapter is None


def test_commands_open_a_run(run_folder: Path, capsys) -> None:
    for args in (
        ["run", str(run_folder), "Hello", "-n", "3", "--temperature", "0"],
        ["info", str(run_folder)],
        ["bench", str(run_folder), "--prompt", "8", "--generate", "2", "--repeat", "1"],
        ["tokenize", str(run_folder), "Hello"],
    ):
        assert main(args) == 0, args
        assert capsys.readouterr().out


def test_a_small_export_says_what_it_loses(run_folder: Path, capsys) -> None:
    assert main(["export", str(run_folder), "--to", "gguf", "--quant", "Q8_0"]) == 0
    assert "rounded to Q8_0" in capsys.readouterr().err
    made = run_folder.with_name("small-gguf")
    assert sorted(path.name for path in made.iterdir()) == ["README.md", "small-Q8_0.gguf"]
    assert main(["export", str(run_folder), "--to", "gguf", "--quant", "Q8_0"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["export", "default", "--to", "gguf"]) == 2
    assert "say where to" in capsys.readouterr().err


def test_an_adapter_is_served_with_no_other_on_top(run_folder: Path) -> None:
    assert list(local_entries([str(run_folder)], [], {})) == ["small"]
    with pytest.raises(UsageError, match="an adapter itself"):
        local_entries([str(run_folder)], [f"x={run_folder}"], {})
