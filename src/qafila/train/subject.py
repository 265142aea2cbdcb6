"""What is trained: an existing model opened as it is, or a new one made from a shape and a tokenizer."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from qafila.adapt.frozen import PLAIN, FrozenLinear
from qafila.adapt.load import load_base
from qafila.config import GenerationConfig, ModelConfig
from qafila.data.fingerprint import tokenizer_sha256
from qafila.errors import ChatError, UsageError
from qafila.machine import usable_cores
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model, to_torch
from qafila.parameters import parameter_shapes
from qafila.text.chat_format import ChatFormat
from qafila.text.formats import chat_format, detect_format, template_of
from qafila.text.tokenizer import Tokenizer, load_tokenizer
from qafila.train.allocator import keep_freed_memory
from qafila.train.recipe import Recipe
from qafila.train.recompute import recompute_layers
from qafila.train.shape import as_asked, planned_config
from qafila.weights.check import check_tensors
from qafila.weights.hub import resolve
from qafila.weights.load import Checkpoint, hugging_face_template, open_checkpoint


@dataclass(frozen=True)
class Subject:
    """A model to be trained, before it is in memory.

    ``checkpoint`` has its configuration, tokenizer, chat template and generation settings; a new model's has no
    tensors. ``source`` is what the recipe called the base, None for a new model.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    source: str | None

    @property
    def config(self) -> ModelConfig:
        """Shape and arithmetic."""
        return self.checkpoint.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.checkpoint.tokenizer

    @cached_property
    def tokenizer_sha256(self) -> str:
        """What tells the tokenizer from others; it takes a tenth of a second, so it is kept."""
        return tokenizer_sha256(self.tokenizer)

    @cached_property
    def chat(self) -> ChatFormat | None:
        """The chat format: the recipe's, else the checkpoint's own; None where there is none."""
        if self.recipe.model.format is not None:
            return chat_format(self.recipe.model.format, self.tokenizer)
        try:
            return detect_format(self.checkpoint.chat_template, self.tokenizer)
        except ChatError:
            if self.checkpoint.chat_template is not None:
                raise
            return None

    @cached_property
    def chat_template(self) -> str | None:
        """What the trained model carries, so that it opens with the format that it was trained in.

        The checkpoint's own template, unless the recipe names another format, or conversations were learned in one that
        the checkpoint has no template of.
        """
        own, named = self.checkpoint.chat_template, self.recipe.model.format
        if named is None and own is None and self.chat is not None and self.recipe.objective not in ("pretrain", "fim"):
            named = self.chat.name
        return own if named is None else template_of(named, self.tokenizer, own)

    @property
    def generation(self) -> GenerationConfig:
        """What the trained model carries: the checkpoint's settings, and the ends of the format that it learned."""
        if self.chat_template == self.checkpoint.chat_template:
            return self.checkpoint.generation
        return replace(self.checkpoint.generation, stop_ids=self.end_ids)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer or a text."""
        ends = [*self.checkpoint.generation.stop_ids, *(self.chat.stop_ids if self.chat is not None else ())]
        if self.tokenizer.eos_id is not None:
            ends.append(self.tokenizer.eos_id)
        return tuple(dict.fromkeys(ends))

    def build(self, device: torch.device) -> LlamaModel:
        """The model in memory, in training mode: every parameter trainable, or with an adapter only the adapter's.

        On a CPU arithmetic is float32 in any case: most have no instructions for bfloat16, and torch's products are
        several times slower in it. With ``bfloat16`` an adapter's frozen base is held in it all the same; a model that
        is trained whole is its own float32 master weights there, and takes no more memory than both would.
        """
        recipe = self.recipe
        dtype = torch.float32 if recipe.train.precision == "float32" else torch.bfloat16
        widened = device.type == "cpu" and dtype is torch.bfloat16
        if widened and recipe.adapter is None and recipe.train.precision == "bfloat16":
            dtype = torch.float32
        tensors, source = self.checkpoint.tensors, self.checkpoint.path
        if recipe.adapter is not None:
            from qafila.adapt.apply import apply_adapter

            model = load_base(self.config, tensors, base=recipe.adapter.base, device=device, dtype=dtype, source=source)
            apply_adapter(model, recipe.adapter, save=recipe.adapter.save, seed=recipe.train.seed)
            if widened:
                _compute_in_float32(model)
            return self._prepared(model.train(), device)
        if self.source is None:
            model = new_model(self.config, recipe.model.init_std, recipe.train.seed, dtype=dtype, device=device)
        else:
            model = load_model(self.config, tensors, device=device, dtype=dtype, source=source)
        return self._prepared(model.requires_grad_(True).train(), device)

    def outline(self, device: torch.device) -> LlamaModel:
        """The model as `build` gives it, but without memory: for who lays it over processes, a part on each.

        Nobody need have room for it whole: `initial` gives one parameter at a time. ``device`` is where it will be.

        Raises:
            FormatError: the checkpoint has not the tensors of its configuration.
        """
        assert self.recipe.adapter is None
        if self.source is not None:
            check_tensors(self.config, self.checkpoint.tensors, source=self.checkpoint.path)
        with torch.device("meta"):
            model = LlamaModel(self.config)
        # Sharded weights are their own float32 masters, and are gathered in bfloat16.
        stochastic = self.recipe.train.precision == "bfloat16-stochastic"
        return self._prepared(model.to(torch.bfloat16 if stochastic else torch.float32).train(), device)

    def initial(self, name: str) -> Tensor:
        """The value of a parameter before training, float32, on the CPU; what an objective has added begins at zero."""
        shape = self._shapes.get(name)
        if shape is None:
            return torch.zeros(1, self.config.dim)
        if self.source is None:
            return new_weight(self.config, name, shape, self.recipe.model.init_std, self.recipe.train.seed)
        return to_torch(self.checkpoint.tensors[name].read(), dtype=torch.float32)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return parameter_shapes(self.config)

    def _prepared(self, model: LlamaModel, device: torch.device) -> LlamaModel:
        """The model with what ``train`` says of how it is computed."""
        how = self.recipe.train
        if how.float8:
            if device.type != "cuda":
                raise UsageError("train.float8: needs a GPU that has float8; leave it out here")
            from torchao.float8 import convert_to_float8_training

            # The head stays: the loss reads its weight, and its precision counts most (torchao's own advice).
            convert_to_float8_training(model, module_filter_fn=lambda module, name: name != "lm_head")
        if how.checkpoint_activations:
            recompute_layers(model)
        if how.compile:
            for layer in model.model.layers:
                layer.compile()
        return model


def _compute_in_float32(model: LlamaModel) -> None:
    """Let a frozen bfloat16 model compute in float32: activations begin as such, matrices are widened one at a time."""
    model.model.embed_tokens.register_forward_hook(lambda module, arguments, output: output.float())
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and path != "lm_head":
            weight = module.weight.detach()
            model.set_submodule(path, FrozenLinear(module.in_features, module.out_features, PLAIN, (weight,)))


def start_device(recipe: Recipe, processes: int = 1) -> torch.device:
    """Where a run computes: the GPU where there is one, else the CPU, with the threads that the recipe gives it.

    Without a word of the recipe the machine's cores are shared out over its ``processes``.
    """
    keep_freed_memory()
    torch.set_num_threads(recipe.train.threads or max(1, usable_cores() // processes))
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_subject(recipe: Recipe, folder: Path) -> Subject:
    """Open what ``recipe`` trains; paths are looked for in ``folder`` (the recipe's own) first.

    Raises:
        QafilaError: it is not there, is damaged, or its shape and tokenizer do not go together.
    """
    model = recipe.model
    if model.base is not None:
        source = beside(model.base, folder)
        checkpoint = open_checkpoint(resolve(source))
        return Subject(recipe, replace(checkpoint, config=as_asked(checkpoint.config, model)), source)
    return Subject(recipe, _new_checkpoint(recipe, folder), None)


def beside(name: str, folder: Path) -> str:
    """``name`` as it is, or, where it is a path that exists in ``folder``, that path."""
    if name.startswith("hf:") or Path(name).is_absolute():
        return name
    there = folder / name
    return str(there) if there.exists() else name


def _new_checkpoint(recipe: Recipe, folder: Path) -> Checkpoint:
    model = recipe.model
    assert model.tokenizer is not None
    path = Path(beside(model.tokenizer, folder))
    template: str | None = None
    generation: GenerationConfig | None = None
    if path.is_dir() and (path / "tokenizer.json").is_file() and not (path / "config.json").is_file():
        tokenizer = load_tokenizer(path)
        template = hugging_face_template(path)
    elif path.suffix in (".model", ".json") and path.is_file():
        tokenizer = load_tokenizer(path)
    else:
        donor = open_checkpoint(resolve(str(path)))
        tokenizer, template, generation = donor.tokenizer, donor.chat_template, donor.generation
    if generation is None:
        stops = (tokenizer.eos_id,) if tokenizer.eos_id is not None else ()
        generation = GenerationConfig(tokenizer.bos_id, stops, tokenizer.pad_id)
    config = planned_config(recipe, tokenizer.vocab_size)
    assert config is not None  # only a base may be unknown
    return Checkpoint(
        path=path,
        format="hf",
        config=config,
        generation=generation,
        tensors={},
        load_tokenizer=lambda: tokenizer,
        chat_template=template,
        details={"general.name": recipe.name},
    )


def new_model(config: ModelConfig, std: float, seed: int, *, dtype: torch.dtype, device: torch.device) -> LlamaModel:
    """A model with fresh weights, the same for the same seed on every device (`new_weight`)."""
    with torch.device("meta"):
        model = LlamaModel(config)
    state = {
        name: new_weight(config, name, shape, std, seed).to(device, dtype)
        for name, shape in parameter_shapes(config).items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    return model


def new_weight(config: ModelConfig, name: str, shape: tuple[int, ...], std: float, seed: int) -> Tensor:
    """A fresh parameter, float32 on the CPU, which depends on its name and the seed alone: any process can make it.

    Matrices are normal with deviation ``std``, those back into the residual with ``std / sqrt(2 L)`` (GPT-2's rule, as
    in torchtitan's Llama); norms are one, gates of cross-attention zero.
    """
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("_gate"):
        return torch.zeros(shape)
    residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    deviation = std / math.sqrt(2 * config.n_layers) if residual else std
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)
