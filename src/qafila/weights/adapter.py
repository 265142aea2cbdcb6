"""LoRA adapters in PEFT's files: ``adapter_config.json`` with ``adapter_model.safetensors`` (or ``.bin``), both ways.

A LoRA adds ``scaling * B @ A`` to a weight ``[out, in]``, with A ``[r, in]`` and B ``[out, r]``; ``scaling`` is
``alpha / r``, or ``alpha / sqrt(r)`` with rank stabilisation. DoRA adds a magnitude ``[out]``. Sources: LoRA
(arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353); names as in peft ``tuners/lora/layer.py`` and
``utils/save_and_load.py``.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from qafila.errors import FormatError, ModelNotFoundError, StorageError, UnsupportedError
from qafila.weights.json_object import Fields, read_json, show
from qafila.weights.pickles import read_pth
from qafila.weights.safetensors import read_safetensors, write_safetensors
from qafila.weights.storage import quoted, staging
from qafila.weights.tensor import LazyTensor

CONFIG_FILE: Final = "adapter_config.json"
TENSOR_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")

_PREFIX: Final = "base_model.model."
_MATRIX: Final = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_MAGNITUDE: Final = re.compile(r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_SAVED: Final = re.compile(r"(.+?)(?:\.modules_to_save(?:\.default)?)?\.weight")
_RESIZED: Final = ("embed_tokens", "lm_head")  # PEFT saves these whole when the vocabulary has grown

# Keys that steer training or say where the adapter comes from; the tensors are what they are.
_INERT: Final = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_ga_config",
        "megatron_core",
        "merge_weights",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    }
)
# Variants with another formula: handled only where they are off.
_OFF: Final[Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "alora_invocation_tokens": ([],),
        "arrow_config": ({},),
        "bias": ("none",),
        "enable_lora": (False,),
        "fan_in_fan_out": (False,),
        "kasa_config": ({},),
        "layer_replication": ([],),
        "lora_bias": (False,),
        "megatron_config": ({},),
        "monteclora_config": ({},),
        "target_parameters": ([],),
        "trainable_token_indices": ([], {}),
        "use_bdlora": (False, {}),
        "use_qalora": (False,),
        "velora_config": ({},),
    }
)
# These initialisations change the base model's weights too: what was trained does not belong on the published ones.
_RESIDUAL: Final = re.compile(r"(pissa|corda).*|olora|loftq|lora_ga", re.IGNORECASE)
_MAX_RANK = 1 << 16
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The adapter of one weight: ``a`` ``[r, in]``, ``b`` ``[out, r]``, for DoRA ``magnitude`` ``[out]``.

    ``path`` is the module's own name in PEFT's files, where it differs from the canonical one.
    """

    rank: int
    alpha: float
    scaling: float
    a: LazyTensor
    b: LazyTensor
    magnitude: LazyTensor | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter.

    ``modules`` and ``saved`` (whole weights that replace the base model's) are keyed by canonical parameter name, for
    example ``model.layers.0.self_attn.q_proj.weight``. ``rank_pattern`` and ``alpha_pattern`` override ``rank`` and
    ``alpha`` where the regular expression matches the end of a module's name; the modules have them applied.
    ``target_modules`` is for PEFT: the last parts of module names, or one regular expression.
    """

    rank: int
    alpha: float
    modules: Mapping[str, LoraModule]
    target_modules: tuple[str, ...] | str
    saved: Mapping[str, LazyTensor] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model_name: str | None = None
    task_type: str | None = "CAUSAL_LM"

    @property
    def scaling(self) -> float:
        """What ``B @ A`` is multiplied by where no pattern says otherwise."""
        return lora_scaling(self.rank, self.alpha, rslora=self.rslora)


def lora_scaling(rank: int, alpha: float, *, rslora: bool) -> float:
    """``alpha / rank``, or ``alpha / sqrt(rank)`` with rank stabilisation."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def read_adapter(folder: str | Path) -> Adapter:
    """Open a folder with a LoRA adapter; tensors are read when asked for.

    Raises:
        ModelNotFoundError: a file is not there. ConfigError: the configuration has an unknown key or a wrong value.
        UnsupportedError: not a LoRA, or one of a variant with another formula (named).
        FormatError: the tensors are damaged or disagree with the configuration.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    fields = Fields(read_json(path), path)
    kind = fields.text("peft_type")
    if kind != "LORA":
        raise UnsupportedError(path, f"peft_type is {show(kind)}; Qafila applies LORA adapters only")
    start = fields.value("init_lora_weights")
    if isinstance(start, str) and _RESIDUAL.fullmatch(start):
        raise UnsupportedError(
            path,
            f"init_lora_weights is {show(start)}, which changes the base model; save it as a plain LoRA with peft's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    targets = fields.value("target_modules")
    adapter = Adapter(
        rank=fields.integer("r", 8, least=1, most=_MAX_RANK),
        alpha=_alpha(fields, "lora_alpha", fields.number("lora_alpha", 8.0)),
        modules={},
        target_modules=targets if isinstance(targets, str) else _names(fields, "target_modules"),
        rslora=fields.boolean("use_rslora", False),
        dora=fields.boolean("use_dora", False),
        dropout=fields.number("lora_dropout", 0.0),
        rank_pattern=_patterns(fields, "rank_pattern", int),
        alpha_pattern=_patterns(fields, "alpha_pattern", float),
        base_model_name=fields.text("base_model_name_or_path"),
        task_type=fields.text("task_type"),
    )
    saved = _names(fields, "modules_to_save")
    fields.fixed(_OFF)
    fields.finish(_INERT)
    return _with_tensors(folder, adapter, saved)


def _alpha(fields: Fields, key: str, value: float) -> float:
    if not 0 < abs(value) < 1e12:
        raise fields.error(key, f"must be a number other than 0, not {show(value)}")
    return value


def _names(fields: Fields, key: str) -> tuple[str, ...]:
    value = fields.value(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise fields.error(key, f"must be a list of module names, not {show(value)}")
    return tuple(value)


def _patterns(fields: Fields, key: str, kind: type[int] | type[float]) -> dict[str, Any]:
    """Regular expressions for module names with the rank or alpha there, checked to be harmless."""
    section = fields.section(key)
    if section is None:
        return {}
    found: dict[str, Any] = {}
    for pattern in section.raw:
        # Python's matcher can take exponential time; what module names need cannot be made to.
        if (
            not re.fullmatch(r"[\w.^$|()\[\]\\*+?-]{1,200}", pattern)
            or re.search(r"\)[*+?]|\[\[|--|\|\|", pattern)
            or len(re.findall(r"[*+?]", pattern)) > 2
            or pattern.count("(") > 2
        ):
            raise UnsupportedError(
                fields.path, f"{key} has the pattern {quoted(pattern)}, too involved for a module name"
            )
        try:
            re.compile(pattern)
        except re.error:
            raise fields.error(key, f"has the pattern {quoted(pattern)}, which is no regular expression") from None
        if kind is int:
            found[pattern] = section.integer(pattern, least=1, most=_MAX_RANK)
        else:
            found[pattern] = _alpha(section, pattern, section.number(pattern))
    return found


def _matching(patterns: Mapping[str, Any], module: str) -> Any:
    """The value of the first pattern that matches the end of the module's name, as PEFT's ``get_pattern_key`` does."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return None


def canonical_name(module: str) -> str:
    """The canonical parameter name of the weight of a module, by its name in PEFT's or transformers' files."""
    return re.sub(r"(^|\.)language_model\.", r"\1", module).replace(".feed_forward.", ".mlp.") + ".weight"


def _tensors(folder: Path) -> tuple[Path, Mapping[str, LazyTensor]]:
    safe, pickled = (folder / name for name in TENSOR_FILES)
    if safe.is_file():
        return safe, read_safetensors(safe).tensors
    if pickled.is_file():
        return pickled, read_pth(pickled)
    raise ModelNotFoundError(f"{folder}: has {CONFIG_FILE} but no {TENSOR_FILES[0]}")


def _with_tensors(folder: Path, adapter: Adapter, saved_modules: tuple[str, ...]) -> Adapter:
    path, tensors = _tensors(folder)
    pieces: dict[str, dict[str, LazyTensor]] = {}
    saved: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(_PREFIX):
            raise FormatError(path, f"tensor {quoted(name)} is not named as PEFT names them ({_PREFIX}...)")
        if not tensor.dtype.floating:
            raise FormatError(path, f"tensor {quoted(name)} is {tensor.dtype.name}, not a floating-point type")
        bare = name.removeprefix(_PREFIX)
        if len(bare) > _MAX_NAME:
            raise FormatError(path, f"tensor {quoted(name)}: the name is too long")
        if match := _MATRIX.fullmatch(bare):
            module, part = match[1], match[2].lower()
        elif match := _MAGNITUDE.fullmatch(bare):
            module, part = match[1], "magnitude"
        elif ".lora_" in bare:
            raise UnsupportedError(path, f"tensor {quoted(name)}: adapters of embeddings and of biases are not handled")
        elif match := _SAVED.fullmatch(bare):
            module = match[1]
            last = module.rsplit(".", 1)[-1]
            if last not in _RESIZED and not any(f".{one}." in f".{module}." for one in saved_modules):
                raise FormatError(path, f"tensor {quoted(name)} is neither of a LoRA nor in modules_to_save")
            saved[canonical_name(module)] = tensor
            continue
        else:
            raise FormatError(path, f"tensor {quoted(name)} is neither of a LoRA nor in modules_to_save")
        if part in pieces.setdefault(module, {}):
            raise FormatError(path, f"tensor {quoted(name)} is there under two names")
        pieces[module][part] = tensor
    modules = {canonical_name(module): _module(path, adapter, module, parts) for module, parts in pieces.items()}
    if len(modules) != len(pieces):
        raise FormatError(path, "two modules are of one weight")
    if not modules and not saved:
        raise FormatError(path, "holds no adapter")
    changes = {name: getattr(adapter, name) for name in Adapter.__slots__} | {"modules": modules, "saved": saved}
    return Adapter(**changes)


def _module(path: Path, adapter: Adapter, module: str, parts: Mapping[str, LazyTensor]) -> LoraModule:
    where = quoted(module)
    if "a" not in parts or "b" not in parts:
        raise FormatError(path, f"{where} has only one of lora_A and lora_B")
    a, b, magnitude = parts["a"], parts["b"], parts.get("magnitude")
    rank = _matching(adapter.rank_pattern, module) or adapter.rank
    alpha = _matching(adapter.alpha_pattern, module) or adapter.alpha
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise FormatError(path, f"{where}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not share a rank")
    if a.shape[0] != rank:
        raise FormatError(path, f"{where}: rank is {a.shape[0]}, but {CONFIG_FILE} says {rank}")
    if adapter.dora != (magnitude is not None):
        raise FormatError(path, f"{where}: use_dora is {adapter.dora} in {CONFIG_FILE}, the tensors say otherwise")
    if magnitude is not None and magnitude.shape != b.shape[:1]:
        raise FormatError(path, f"{where}: magnitude {list(magnitude.shape)} does not fit lora_B {list(b.shape)}")
    scaling = lora_scaling(rank, alpha, rslora=adapter.rslora)
    return LoraModule(rank, alpha, scaling, a, b, magnitude, module)


def write_adapter(folder: str | Path, adapter: Adapter, base_model_name: str | None = None) -> tuple[Path, Path]:
    """Write an adapter that ``peft.PeftModel.from_pretrained`` opens as its own.

    Args:
        folder: made if it is not there.
        adapter: what to write; modules without a ``path`` get their canonical name.
        base_model_name: what the adapter belongs on, instead of the name the adapter carries.

    Returns:
        The configuration and the tensor file.

    Raises:
        StorageError: the disk is full or the folder cannot be written. UnsupportedError: a quantised tensor.
    """
    folder = Path(folder)
    tensors: dict[str, LazyTensor] = {}
    for name, module in adapter.modules.items():
        path = _PREFIX + (module.path or name.removesuffix(".weight"))
        tensors[f"{path}.lora_A.weight"] = module.a
        tensors[f"{path}.lora_B.weight"] = module.b
        if module.magnitude is not None:
            tensors[f"{path}.lora_magnitude_vector"] = module.magnitude
    tensors |= {_PREFIX + name: tensor for name, tensor in adapter.saved.items()}
    saved = sorted({name.removesuffix(".weight").rsplit(".", 1)[-1] for name in adapter.saved})
    config = {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": base_model_name or adapter.base_model_name,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": adapter.target_modules
        if isinstance(adapter.target_modules, str)
        else [*adapter.target_modules],
        "modules_to_save": saved or None,
        "rank_pattern": dict(adapter.rank_pattern),
        "alpha_pattern": dict(adapter.alpha_pattern),
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    target = folder / TENSOR_FILES[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".qafila-", dir=folder) as beside:
            (written,) = write_safetensors(Path(beside), tensors, max_shard_bytes=1 << 62)
            with staging(folder) as stage:
                with stage.open(CONFIG_FILE) as write:
                    write(json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")
                written.replace(target)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return folder / CONFIG_FILE, target
