"""The trained model out of torch, as a checkpoint that every other part of Qafila opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qafila.model.llama import LlamaModel
from qafila.quant.dtypes import DType
from qafila.train.run_folder import write_whole
from qafila.train.subject import Subject
from qafila.weights.export import export
from qafila.weights.hf_generation import generation_to_hf
from qafila.weights.load import Checkpoint
from qafila.weights.reward_model import RewardHead, write_reward_model
from qafila.weights.tensor import LazyTensor
from qafila.weights.tensor import Tensor as WeightTensor

_TYPES = {torch.float32: DType.F32, torch.float16: DType.F16, torch.bfloat16: DType.BF16}


def save_model(subject: Subject, trained: Mapping[str, Tensor], folder: Path) -> None:
    """Leave the parameters that were trained in the run's folder: a Hugging Face model, or a PEFT adapter of its base.

    Every file is written beside its place and moved; the configuration, by which a folder is known to be a model, last.
    A reward model leaves its head in a folder of its own besides (`qafila.weights.reward_model`).
    """
    if subject.recipe.adapter is not None:
        _save_adapter(subject, trained, folder)
        return
    staged = folder / ".model"
    kept = {name: tensor for name, tensor in trained.items() if not name.startswith("reward_head.")}
    export(checkpoint_of(subject, kept), staged, "hf", overwrite=True)
    for file in sorted(staged.iterdir(), key=lambda f: f.name == "config.json"):
        file.replace(folder / file.name)
    staged.rmdir()
    if subject.recipe.objective == "reward":
        score = lazy_tensor("score", trained["reward_head.score"])
        pad = subject.generation.pad_id
        write_reward_model(RewardHead(score, None if pad in subject.end_ids else pad), folder)


def _save_adapter(subject: Subject, trained: Mapping[str, Tensor], folder: Path) -> None:
    from qafila.adapt.apply import adapter_of, apply_adapter
    from qafila.weights.adapter import write_adapter

    options = subject.recipe.adapter
    assert options is not None
    assert subject.source is not None
    with torch.device("meta"):  # the frozen base is not written, so none is opened
        model = LlamaModel(subject.config)
    apply_adapter(model, options, save=options.save)
    unknown = model.load_state_dict(dict(trained), strict=False, assign=True).unexpected_keys
    assert not unknown, unknown
    source = subject.source
    if source != "default" and not source.startswith("hf:"):
        path = Path(source)
        if path.exists():
            source = str(path.resolve())
    if subject.chat_template is not None and subject.chat_template != subject.checkpoint.chat_template:
        write_whole(folder / "chat_template.jinja", subject.chat_template)
        settings = json.dumps(generation_to_hf(subject.generation), indent=2) + "\n"
        write_whole(folder / "generation_config.json", settings)
    adapter = adapter_of(model, options, base_name=source)
    write_adapter(folder, adapter, source)


def checkpoint_of(subject: Subject, state: Mapping[str, Tensor]) -> Checkpoint:
    """The checkpoint of trained weights, with the subject's tokenizer, template and settings."""
    tensors = {name: lazy_tensor(name, tensor) for name, tensor in state.items()}
    return replace(
        subject.checkpoint,
        tensors=tensors,
        vision_tensors={},
        format="hf",
        chat_template=subject.chat_template,
        generation=subject.generation,
    )


def lazy_tensor(name: str, tensor: Tensor) -> LazyTensor:
    """A view of a torch tensor's bytes."""

    def read() -> WeightTensor:
        whole = tensor.detach().to("cpu").contiguous()
        data = whole.view(torch.uint8).numpy().reshape(-1) if whole.numel() else np.zeros(0, np.uint8)
        return WeightTensor(_TYPES[whole.dtype], tuple(whole.shape), data)

    return LazyTensor(_TYPES[tensor.dtype], tuple(tensor.shape), name, read)
