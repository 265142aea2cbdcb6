"""A training recipe: one short TOML or YAML file, validated; unknown keys are refused by name.

Every key has its documentation here, and `docs/recipes.md` is made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qafila.data.forms import check_form
from qafila.errors import UsageError

ObjectiveName = Literal["pretrain", "sft", "fim", "dpo", "reward"]


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, values are not guessed from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class ModelSection(Section):
    """What is trained: an existing model (`base`), or a new one (`preset` or `shape`, with `tokenizer`)."""

    base: str | None = None
    """A model to go on from: `default`, `hf:owner/name`, a path (another run's too), or a pulled name."""
    preset: str | None = None
    """Train from scratch with the shape of a published Llama, as `qafila info` names them."""
    shape: dict[str, Any] | None = None
    """Train from scratch with this shape: the fields of `ModelConfig` (dim, n_layers, n_heads, ...)."""
    tokenizer: str | None = None
    """For a new model: where its tokenizer is (a model, a folder, or a file)."""
    format: str | None = None
    """Chat format by name; by default the checkpoint's own, for a new model `chatml` where its tokens are there.
    The trained model carries it."""
    rope_theta: float | None = Field(default=None, gt=0)
    """Another base of the rotary frequencies (Code Llama's long context: 1e6)."""
    context_length: int | None = Field(default=None, ge=8)
    """Another longest context."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of a new model's weights; projections back into the residual get it / sqrt(2 L)."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        given = [name for name in ("base", "preset", "shape") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of base, preset and shape, not {' and '.join(given) or 'none'}")
        if self.base is None and self.tokenizer is None:
            raise ValueError("a new model needs a tokenizer: set tokenizer, or make one with `qafila tokenizer train`")
        if self.base is not None and self.tokenizer is not None:
            raise ValueError("base brings its own tokenizer: leave tokenizer out")
        return self


class SourceSection(Section):
    """One source of examples."""

    path: str
    """A file, a folder, or a pack made by `qafila data pack`; relative to the recipe's folder."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the mixture, relative to the other sources' weights."""
    form: str = "auto"
    """How records are written: auto, text, messages, sharegpt, alpaca, dolly, prompt or preference."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Fields that the files call otherwise, by the form's own names: `{ chosen = "better", rejected = "worse" }`."""
    license: str | None = None
    """Licence of the data (`cc-by-4.0`), for the model card."""
    name: str | None = None
    """What metrics call this source; by default the file's name."""

    @model_validator(mode="after")
    def _known_form(self) -> SourceSection:
        try:
            check_form(self.form, self.fields)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self


class DataSection(Section):
    """Where tokens come from."""

    train: tuple[SourceSection, ...] = Field(min_length=1)
    """Sources to learn from."""
    validation: tuple[SourceSection, ...] = ()
    """Sources to measure on."""
    validation_share: float = Field(default=0.02, ge=0, lt=0.5)
    """Without validation sources: this share of each raw source's records is held out, the same ones every time."""
    sequence: int = Field(default=512, ge=8)
    """Tokens of a row; documents are packed into rows and never see each other."""
    overlong: Literal["split", "truncate", "skip"] | None = None
    """Examples longer than a row: split (the default for text), truncate (the default for chats), skip."""
    bad_lines: float = Field(default=0.01, ge=0, le=1)
    """Share of malformed records above which the data set is refused."""
    fim_rate: float = Field(default=0.9, ge=0, le=1)
    """fim: share of documents turned into infilling examples (Code Llama: 0.9)."""
    fim_spm: float = Field(default=0.5, ge=0, le=1)
    """fim: share of those in suffix-prefix-middle order (Code Llama: half)."""
    workers: int = Field(default=0, ge=0)
    """Processes that tokenise; 0: one a core."""


class AdapterSection(Section):
    """Train a small part on a frozen base."""

    kind: Literal["lora", "dora"] = "lora"
    """`lora` (arXiv 2106.09685) or `dora` (arXiv 2402.09353)."""
    rank: int = Field(default=16, ge=1)
    """r, the rank of the update."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / r."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead (arXiv 2312.03732)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Last parts of the names of linear layers that get an adapter."""
    save: tuple[str, ...] = ()
    """Last parts of the names of modules trained whole besides: `embed_tokens` after the vocabulary was extended."""
    base: Literal["plain", "stored", "nf4"] = "plain"
    """How the frozen base lies in memory: plain (the model's dtype), stored (its GGUF blocks), nf4 (QLoRA)."""


class OptimizerSection(Section):
    """How weights move."""

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """AdamW, AdamW with 8-bit moments, or Muon for matrices with AdamW for the rest."""
    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    muon_lr: float = Field(default=0.02, gt=0)
    """muon: peak learning rate of the matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's moments (all Llamas: 0.9 and 0.95)."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon (Llama 2: 1e-5)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices; vectors and embeddings get none."""
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0: no clipping."""


class ScheduleSection(Section):
    """How the learning rate changes."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape after warm-up; wsd is warm-up, stable, decay."""
    warmup: float = Field(default=0.03, ge=0)
    """Below 1: share of all steps; else steps."""
    final: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""
    decay: float = Field(default=0.2, gt=0, le=1)
    """wsd: share of the steps in which it decays."""


class TrainSection(Section):
    """How much, in what portions."""

    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; give steps, tokens or epochs."""
    tokens: float | None = Field(default=None, gt=0)
    """Tokens to train on."""
    epochs: float | None = Field(default=None, gt=0)
    """Times the data is gone through (the default: 1)."""
    batch: int = Field(default=8, ge=1)
    """Rows of one optimiser step, over all processes."""
    micro_batch: int = Field(default=4, ge=1)
    """Rows computed at once by one process; the rest of a step is accumulated."""
    precision: Literal["float32", "bfloat16", "bfloat16-stochastic"] = "float32"
    """Weights and arithmetic: float32; bfloat16 with float32 master weights; or bfloat16 alone, rounded at random."""
    checkpoint_activations: bool = False
    """Recompute each layer's inside in the backward pass: less memory, a third more work."""
    compile: bool = False
    """torch.compile each layer."""
    float8: bool = False
    """Matrix products in float8 on GPUs that have it (torchao)."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the data, of new weights and of dropout."""
    threads: int = Field(default=0, ge=0)
    """CPU threads a process; 0: the cores shared out among the processes."""
    longest_first: bool = True
    """Run the largest batch once before the first step, so that too little memory shows at once."""


class DpoSection(Section):
    """Direct preference optimisation (arXiv 2305.18290, Llama 3: arXiv 2407.21783 section 4.1.4)."""

    beta: float = Field(default=0.1, gt=0)
    """How far the policy may leave the reference."""
    nll: float = Field(default=0.2, ge=0)
    """Weight of the negative log-likelihood of the chosen answer (Llama 3: 0.2)."""
    mask_format_tokens: bool = True
    """Leave header and end tokens out of both answers' log-probabilities (Llama 3)."""


class EvaluateSection(Section):
    """What is measured on the way."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0: at the start and at the end."""
    rows: int = Field(default=64, ge=1)
    """Most validation rows an evaluation reads."""
    prompts: tuple[str, ...] = ()
    """Prompts answered at each evaluation, to look at."""
    max_tokens: int = Field(default=64, ge=1)
    """Length of those answers."""


class CheckpointSection(Section):
    """What is kept on the way."""

    every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0: ten over the run."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest are kept; the one with the best validation loss is kept besides."""
    background: bool = True
    """Write while training goes on."""


class ParallelSection(Section):
    """How the model and its batches are laid over processes; applied from outside (torch.distributed)."""

    data: int = Field(default=0, ge=0)
    """Fully sharded data parallel (FSDP2); 0: what the others leave of the processes."""
    replicate: int = Field(default=1, ge=1)
    """Copies of each shard group (hybrid sharding)."""
    tensor: int = Field(default=1, ge=1)
    """Tensor parallel."""
    context: int = Field(default=1, ge=1)
    """Context parallel: sequences cut in 2 x context chunks, K and V gathered (Llama 3, section 3.3.2)."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline stages."""
    pipeline_schedule: Literal["1f1b", "interleaved"] = "1f1b"
    """Order of micro-batches through the stages."""
    virtual_stages: int = Field(default=2, ge=1)
    """interleaved: stages a process holds."""
    expert: int = Field(default=1, ge=1)
    """Expert parallel, inside the data-parallel processes."""
    reshard_after_forward: bool = True
    """Free gathered weights after the forward pass (Llama 3 405B does not)."""


class Recipe(Section):
    """All that a run needs."""

    name: str = Field(pattern=r"^\w[\w.-]{0,99}$")
    """The run's folder is runs/NAME."""
    description: str = ""
    """One line for people, and for the model card."""
    objective: ObjectiveName
    """pretrain, sft, fim, dpo or reward."""
    model: ModelSection
    data: DataSection
    adapter: AdapterSection | None = None
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    train: TrainSection = TrainSection()
    dpo: DpoSection = DpoSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    parallel: ParallelSection = ParallelSection()
    tensorboard: bool = False
    """Write TensorBoard's files beside metrics.jsonl."""
    processor: str = "here"
    """What the run is planned for: A100, H100, H200, RTX 4090, or here for this machine; `--dry-run` answers for it."""
    cost_per_hour: float | None = Field(default=None, ge=0)
    """Price of one processor-hour (GPU or machine), for the estimate."""
    small: dict[str, Any] = Field(default_factory=dict)
    """Keys of this recipe as `--small` changes them: the same recipe at a size that any laptop runs in minutes."""

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        amounts = [n for n in ("steps", "tokens", "epochs") if getattr(self.train, n) is not None]
        if len(amounts) > 1:
            raise ValueError(f"train: give one of steps, tokens and epochs, not {' and '.join(amounts)}")
        if self.adapter is not None and self.model.base is None:
            raise ValueError("adapter: an adapter needs a model.base to sit on")
        if self.adapter is not None and self.objective == "reward":
            raise ValueError("adapter: a reward model is trained whole")
        if "dpo" in self.model_fields_set and self.objective != "dpo":
            raise ValueError(f"dpo: these keys belong to objective dpo, not {self.objective}")
        return self


def read_recipe(path: str | Path, overrides: Sequence[str] = (), *, small: bool = False) -> Recipe:
    """Read a recipe and change keys of it by ``section.key=value`` (values as TOML writes them; bare words are text).

    Where only one of several keys may be given (``model.base``, ``preset`` and ``shape``; ``train.steps``, ``tokens``
    and ``epochs``), a changed one takes the place of the others.

    Args:
        path: the file. overrides: changes, in order.
        small: change first what the recipe's own ``small`` table says.

    Raises:
        UsageError: the file cannot be read, a key is unknown or a value wrong: names file, key and what is allowed.
    """
    path = Path(path)
    raw = _parse(path)
    if small:
        changes = raw.pop("small", None)
        if not isinstance(changes, dict) or not changes:
            raise UsageError(f"{path}: has no small table; leave --small out, or change keys by section.key=value")
        for keys, value in _leaves(changes):
            _set(raw, keys, value, f"small.{'.'.join(keys)}")
    for override in overrides:
        _apply(raw, override)
    return check_recipe(raw, str(path))


def check_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe given as plain values.

    Raises:
        UsageError: names ``where``, the key, and what is wrong.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"{where}: {_told(error)}") from None


def _parse(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    if path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            raw = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"{path}: is no YAML ({' '.join(str(error).split())})") from None
    else:
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path}: is no TOML ({error})") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: must be a table of keys")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    import tomllib

    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"{override!r}: an override is written section.key=value, such as train.steps=100")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word, such as optimizer.name=muon
    _set(raw, parts, parsed, repr(override))


# Of each group one key may be given; a changed one takes the others' place.
_EXCLUSIVE = (("model", ("base", "preset", "shape")), ("train", ("steps", "tokens", "epochs")))


def _set(raw: dict[str, Any], parts: list[str], value: Any, named: str) -> None:
    table: Any = raw
    for depth, part in enumerate(parts[:-1]):
        if isinstance(table, list) and part.isdigit() and int(part) < len(table):
            table = table[int(part)]
            continue
        if not isinstance(table, dict):
            raise UsageError(f"{named}: {'.'.join(parts[:depth])} has no keys")
        if table.get(part) is None:
            table[part] = {}
        table = table[part]
    if not isinstance(table, dict):
        raise UsageError(f"{named}: {'.'.join(parts[:-1])} has no keys")
    for section, keys in _EXCLUSIVE:
        if parts[:-1] == [section] and parts[-1] in keys:
            for key in keys:
                table.pop(key, None)
    if parts == ["model", "base"]:
        table.pop("tokenizer", None)
    table[parts[-1]] = value


def _leaves(changes: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[list[str], Any]]:
    """Keys and values of nested tables; a shape is a value as a whole."""
    for key, value in changes.items():
        path = (*above, str(key))
        if isinstance(value, dict) and path != ("model", "shape"):
            yield from _leaves(value, path)
        else:
            yield list(path), value


def _told(error: ValidationError) -> str:
    """The first problem on one line, with the keys that are allowed where one is unknown."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1])
        return f"unknown key {place}" + (f"; there are {', '.join(known)}" if known else "")
    message = first["msg"].removeprefix("Value error, ")
    more = len(error.errors()) - 1
    return f"{place + ': ' if place else ''}{message}" + (f" (and {more} more)" if more else "")


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    section: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation: Any = section.model_fields[part].annotation
        nested = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        section = next((a for a in nested if issubclass(a, BaseModel)), None)
        if section is None:
            return []
    return list(section.model_fields)
