"""Open any checkpoint: say what it is, what it needs and where its bytes lie, without reading the weights.

GGUF file ─┐
HF folder ─┼─ container reader ─ names ─▶ Checkpoint(config, tensors, tokenizer, chat template, generation)
Meta folder┘

A folder with an adapter opens as its base with the adapter merged (`adapter_model`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qafila.config import GenerationConfig, ModelConfig
from qafila.errors import FormatError, ModelNotFoundError, QafilaError
from qafila.parameters import LM_HEAD
from qafila.text.tokenizer import Tokenizer
from qafila.weights.gguf import GgufFile, read_gguf
from qafila.weights.gguf_config import ROPE_FACTORS, config_from_gguf, decimal, shown
from qafila.weights.names import gguf_rules, hugging_face_rules, meta_rules, to_canonical
from qafila.weights.tensor import LazyTensor

CheckpointFormat = Literal["gguf", "hf", "meta"]

# Names of end-of-turn and end-of-text tokens; a GGUF file names only one of its model's several stop tokens by id.
_STOP_NAMES = (
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|im_end|>",
    "<|endoftext|>",
)
_WHOLE_MODEL = ("model.safetensors", "model.safetensors.index.json", "params.json")
_VISION_PREFIXES = ("vision_model.", "multi_modal_projector.", "model.vision_model.", "model.multi_modal_projector.")
_TEXT_PREFIXES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: the file or folder it was opened from.
        format: ``gguf``, ``hf`` or ``meta``.
        config: shape and arithmetic.
        generation: stop ids and default sampling the checkpoint states.
        tensors: canonical parameter name to weights not yet read, all present, shapes checked.
        chat_template: the checkpoint's own Jinja source, if it has one.
        vision_tensors: an image tower's weights under their own names, carried along but not run.
        details: descriptive metadata (name, licence, ...) under GGUF's ``general.*`` keys.
    """

    path: Path
    format: CheckpointFormat
    config: ModelConfig
    generation: GenerationConfig
    tensors: Mapping[str, LazyTensor]
    load_tokenizer: Callable[[], Tokenizer]
    chat_template: str | None = None
    vision_tensors: Mapping[str, LazyTensor] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, loaded when first asked for."""
        tokenizer = self.load_tokenizer()
        if tokenizer.vocab_size > self.config.vocab_size + self.config.extra_embeddings:
            raise FormatError(
                self.path,
                f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {self.config.vocab_size}; "
                "they do not belong together",
            )
        return tokenizer

    @property
    def weights_bytes(self) -> int:
        """Bytes of all parameters in their stored types."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def sniff_format(path: Path) -> CheckpointFormat | Literal["adapter"]:
    """Which format a file or folder is in, from its name and content; ``adapter`` for one that needs its base.

    Raises:
        ModelNotFoundError: nothing is there. FormatError: nothing in it is a checkpoint.
    """
    if path.is_dir():
        # Some adapters come with their base's config.json; weights of a whole model come with no adapter's.
        if (path / "adapter_config.json").is_file() and not any((path / name).is_file() for name in _WHOLE_MODEL):
            return "adapter"
        if (path / "config.json").is_file():
            return "hf"
        if (path / "params.json").is_file():
            return "meta"
        if len(list(path.glob("*.gguf"))) == 1:
            return "gguf"
        if (path / "checkpoints").is_dir():
            raise FormatError(path, "is a run that has left no model yet; train it to its end, or resume it")
        raise FormatError(path, "has no config.json, params.json or single .gguf file, so it is no checkpoint")
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return "gguf"
        if path.suffix == ".gguf":
            return "gguf"  # its reader says what is wrong with it
        if path.name in ("config.json", "params.json") or path.suffix in (".safetensors", ".pth"):
            raise FormatError(path, "is one file of a checkpoint; name its folder instead")
        raise FormatError(path, "is not a checkpoint (expected a .gguf file or a folder)")
    if path.exists():
        raise FormatError(path, "is neither a regular file nor a folder")
    raise ModelNotFoundError(f"{path}: no such file or folder")


def open_checkpoint(path: Path | str, *, depth: int = 0) -> Checkpoint:
    """Open a GGUF file, a Hugging Face folder, a Meta folder, or an adapter's folder; no weights are read.

    An adapter's base is opened with it, and merged when tensors are read (`qafila.weights.adapter_model` opens both
    apart); ``depth`` is how many adapters are on top already.

    Raises:
        QafilaError: something is missing, damaged or not supported; the message names the file.
    """
    path = Path(path)
    openers: dict[CheckpointFormat, Callable[[Path], Checkpoint]] = {
        "gguf": _open_gguf,
        "hf": _open_hugging_face,
        "meta": _open_meta,
    }
    try:
        form = sniff_format(path)
        if form == "adapter":
            from qafila.weights.adapter_model import open_adapter_model

            return open_adapter_model(path, depth=depth).merged()
        return openers[form](path)
    except OSError as error:
        raise FormatError(path, f"cannot be read ({error.strerror or error})") from error


def gguf_file(path: Path) -> Path:
    """The GGUF file that ``path`` names: itself, or the only one in a folder."""
    return next(iter(sorted(path.glob("*.gguf")))) if path.is_dir() else path


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside a GGUF file."""
    return _gguf_tokenizer(read_gguf(path))


def _gguf_tokenizer(file: GgufFile) -> Tokenizer:
    from qafila.text.tokenizer import tokenizer_from_gguf

    return tokenizer_from_gguf(plain_metadata(file))


def plain_metadata(file: GgufFile) -> dict[str, object]:
    """A GGUF file's metadata as plain Python values; arrays of numbers are lists."""
    plain: dict[str, object] = {}
    for key, entry in file.metadata.items():
        plain[key] = entry.value.tolist() if isinstance(entry.value, np.ndarray) else entry.value
    return plain


def _open_gguf(path: Path) -> Checkpoint:
    path = gguf_file(path)
    file = read_gguf(path)
    metadata = plain_metadata(file)
    config = config_from_gguf(metadata, file.tensors, path)
    tensors = to_canonical(config, gguf_rules(config), file.tensors, path, ignore=lambda name: name == ROPE_FACTORS)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise FormatError(path, f"tokenizer.chat_template must be a text, not {shown(template)}")
    return Checkpoint(
        path=path,
        format="gguf",
        config=config,
        generation=_gguf_generation(metadata, path),
        tensors=tensors,
        load_tokenizer=lambda: _gguf_tokenizer(file),
        chat_template=template,
        details={k: v for k, v in metadata.items() if k.startswith("general.") and isinstance(v, str)},
    )


def _gguf_generation(metadata: Mapping[str, object], path: Path) -> GenerationConfig:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list | tuple):
        raise FormatError(path, "metadata key 'tokenizer.ggml.tokens' is missing or not a list")

    def token(key: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None or (type(value) is int and value in (-1, 0xFFFF_FFFF)):  # writers put these for "none"
            return None
        if type(value) is not int or not 0 <= value < len(tokens):
            raise FormatError(path, f"tokenizer.ggml.{key}_token_id is {shown(value)}, which is not a token")
        return value

    def number(key: str, least: float, most: float) -> float | None:
        value = metadata.get(f"general.sampling.{key}")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise FormatError(path, f"general.sampling.{key} must be from {least:g} to {most:g}, not {shown(value)}")
        return decimal(value)

    named = {key: token(key) for key in ("bos", "eos", "eot", "eom", "padding")}
    stops = [named["eos"], named["eot"], named["eom"]]
    names = set(_STOP_NAMES)
    stops += [i for i, text in enumerate(tokens) if text in names]
    top_k = number("top_k", -1, 1 << 24)
    return GenerationConfig(
        bos_id=named["bos"],
        stop_ids=tuple(dict.fromkeys(i for i in stops if i is not None)),
        pad_id=named["padding"],
        temperature=number("temp", 0, 1000),
        top_k=max(0, int(top_k)) if top_k is not None else None,  # llama.cpp: 0 and less is the whole vocabulary
        top_p=number("top_p", 1e-6, 1),
        min_p=number("min_p", 0, 1),
        repetition_penalty=number("penalty_repeat", 1e-3, 1000),
    )


def _open_hugging_face(path: Path) -> Checkpoint:
    # What one kind of checkpoint needs is imported when one comes: starting up counts.
    from qafila.weights.hf_config import config_from_hf
    from qafila.weights.hf_generation import generation_from_hf
    from qafila.weights.json_object import read_json
    from qafila.weights.safetensors import read_safetensors

    raw = read_json(path / "config.json")
    config = config_from_hf(raw, path=path / "config.json")
    generation_file = path / "generation_config.json"
    stated = read_json(generation_file) if generation_file.is_file() else None
    generation = generation_from_hf(stated, raw, path=generation_file, config_path=path / "config.json")
    found = read_safetensors(path).tensors
    text: dict[str, LazyTensor] = {}
    vision: dict[str, LazyTensor] = {}
    for name, tensor in found.items():
        if name.startswith(_VISION_PREFIXES) and config.vision is not None:
            vision[name] = tensor
            continue
        for prefix, canonical in _TEXT_PREFIXES:
            if name.startswith(prefix):
                name = canonical + name.removeprefix(prefix)
                break
        if name in text:
            raise FormatError(path, f"tensor {name!r} is there twice, under two prefixes")
        text[name] = tensor

    def inert(name: str) -> bool:
        # Old exports keep the rotary table, and tied ones sometimes a copy of the embedding.
        return name.endswith(".rotary_emb.inv_freq") or (config.tie_embeddings and name == LM_HEAD)

    return Checkpoint(
        path=path,
        format="hf",
        config=config,
        generation=generation,
        tensors=to_canonical(config, hugging_face_rules(config), text, path, ignore=inert),
        load_tokenizer=lambda: _folder_tokenizer(path),
        chat_template=hugging_face_template(path),
        vision_tensors=vision,
        details={"general.name": path.resolve().name},
    )


def _folder_tokenizer(path: Path) -> Tokenizer:
    from qafila.text.tokenizer import load_tokenizer

    return load_tokenizer(path)


def hugging_face_template(folder: Path) -> str | None:
    """The chat template of a Hugging Face folder, from whichever of its three places holds it.

    Raises:
        FormatError: the place is there and holds no template.
    """
    from qafila.weights.json_object import read_json

    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(jinja, "is not UTF-8 text") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        template: Any = read_json(file).get("chat_template")
        if isinstance(template, list):  # several named templates: the one called default, as transformers takes it
            template = next(
                (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
            )
        if isinstance(template, str):
            return template
        if template is not None:
            raise FormatError(file, "chat_template is neither a text nor a list of named templates")
    return None


def _open_meta(path: Path) -> Checkpoint:
    from qafila.weights.meta import read_meta
    from qafila.weights.params import meta_config

    meta = read_meta(path)
    config = meta_config(meta.params, meta.tensors, path=path / "params.json")

    @cache  # it is asked for now, for its stop tokens, and again when the model is used
    def tokenizer() -> Tokenizer:
        file = next((f for f in (path / "tokenizer.model", path / "tokenizer.json") if f.is_file()), None)
        if file is None:
            raise ModelNotFoundError(f"{path}: has no tokenizer.model; copy it here from the model's release")
        return _folder_tokenizer(path if file.suffix == ".json" else file)

    return Checkpoint(
        path=path,
        format="meta",
        config=config,
        generation=_meta_generation(tokenizer),
        tensors=to_canonical(config, meta_rules(config), meta.tensors, path, ignore=lambda name: name == "rope.freqs"),
        load_tokenizer=tokenizer,
        chat_template=hugging_face_template(path),
        details={"general.name": path.resolve().name},
    )


def _meta_generation(load: Callable[[], Tokenizer]) -> GenerationConfig:
    """Meta's folders say nothing about stopping: it follows from the tokenizer's own special tokens."""
    try:
        tokenizer = load()
    except QafilaError:
        return GenerationConfig()
    stops = [tokenizer.eos_id, *(tokenizer.special_tokens.get(name) for name in _STOP_NAMES)]
    return GenerationConfig(
        bos_id=tokenizer.bos_id,
        stop_ids=tuple(dict.fromkeys(i for i in stops if i is not None)),
        pad_id=tokenizer.pad_id,
    )
