"""Write a checkpoint in any format, with everything that makes it open elsewhere: the inverse of `qafila.weights.load`.

Tensors are converted and written one at a time. A folder is filled beside its destination and moved into place when it
is whole, so that nothing half-written is ever seen.
"""

from __future__ import annotations

import errno
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from qafila.config import ModelConfig
from qafila.errors import FormatError, ModelNotFoundError, StorageError, TokenizerError, UsageError
from qafila.parameters import EMBEDDING, LM_HEAD
from qafila.quant import dequantise, quantise
from qafila.quant.dtypes import DType
from qafila.text.tokenizer import Tokenizer
from qafila.weights.gguf_config import ROPE_FACTORS, gguf_keys, rope_divisors
from qafila.weights.gguf_values import GgufValue
from qafila.weights.gguf_writer import write_gguf
from qafila.weights.hf_generation import generation_to_hf
from qafila.weights.hf_write import config_to_hf
from qafila.weights.load import Checkpoint, CheckpointFormat
from qafila.weights.meta import meta_params, write_meta
from qafila.weights.names import from_canonical, gguf_rules, hugging_face_rules, meta_rules
from qafila.weights.reward_model import is_reward_folder
from qafila.weights.safetensors import write_safetensors
from qafila.weights.tensor import LazyTensor, Tensor

Progress = Callable[[str, int], None]

# llama.cpp's general.file_type (llama.h, enum llama_ftype): informative only.
_FILE_TYPES = {
    DType.F32: 0,
    DType.F16: 1,
    DType.Q4_0: 2,
    DType.Q4_1: 3,
    DType.Q8_0: 7,
    DType.Q4_K: 15,
    DType.BF16: 32,
}
_PLAIN = (DType.F32, DType.F16, DType.BF16)
_CHUNK_ELEMENTS = 1 << 24


def writable_types(to: CheckpointFormat) -> tuple[DType, ...]:
    """The types ``--quant`` takes for a format."""
    return tuple(_FILE_TYPES) if to == "gguf" else _PLAIN


def as_type(tensor: LazyTensor, dtype: DType) -> LazyTensor:
    """The same weights in another type, converted through float32 when read, some rows at a time."""
    if tensor.dtype is dtype:
        return tensor

    def convert(source: Tensor) -> Tensor:
        rows = source.rows()
        width = source.shape[-1]
        result = np.empty((len(rows), dtype.nbytes((width,))), dtype=np.uint8)
        step = max(1, _CHUNK_ELEMENTS // max(1, width))
        for start in range(0, len(rows), step):
            result[start : start + step] = quantise(dtype, dequantise(source.dtype, rows[start : start + step]))
        return Tensor(dtype, source.shape, result.reshape(-1))

    return tensor.mapped(convert, dtype=dtype)


def gguf_type(name: str, shape: tuple[int, ...], wanted: DType | None, stored: DType) -> DType:
    """The type a parameter gets in a GGUF file.

    Vectors and routers are F32, as llama.cpp demands; embedding and head keep 8 bits when the rest has 4; rows that do
    not divide into blocks fall back to a type they divide into. Without ``wanted`` a weight keeps its own type.
    """
    if len(shape) == 1 or name.endswith("mlp.router.weight"):
        return DType.F32
    if wanted is None:
        return stored if stored.ggml_type >= 0 else DType.F32
    if name in (EMBEDDING, LM_HEAD) and wanted.quantised:
        wanted = DType.Q8_0
    if shape[-1] % wanted.block_size:
        return DType.Q8_0 if shape[-1] % DType.Q8_0.block_size == 0 else DType.F16
    return wanted


def export(
    checkpoint: Checkpoint,
    destination: Path,
    to: CheckpointFormat,
    *,
    dtype: DType | None = None,
    shards: int = 1,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    progress: Progress = lambda name, nbytes: None,
) -> Path:
    """Write ``checkpoint`` to ``destination`` and return the file or folder written.

    Args:
        checkpoint: what to write.
        destination: a folder for ``hf`` and ``meta``; for ``gguf`` a file, or a folder that the file goes into when the
            name does not end in ``.gguf``.
        to: the format.
        dtype: type of the matrices. By default each keeps its own where the format can carry it, and quantised ones
            become F32 where it cannot, which loses nothing.
        shards: Meta only: how many model-parallel files.
        max_shard_bytes: Hugging Face only: the largest file.
        overwrite: replace what is there: a file, or a folder that holds a model and not the source.
        progress: called with each tensor's name and bytes as it is written.

    Raises:
        UsageError: the destination exists, or the format has no such type or option. StorageError: the disk is full.
        UnsupportedError: the format cannot express the model.
    """
    if dtype is not None and dtype not in writable_types(to):
        names = ", ".join(t.name for t in writable_types(to))
        raise UsageError(f"--quant {dtype.name}: {to} takes {names}")
    if shards != 1 and to != "meta":
        raise UsageError(f"--shards {shards}: only meta is written in model-parallel files")
    destination = Path(destination)
    if to == "gguf" and destination.suffix != ".gguf":
        stem = checkpoint.path.resolve().stem if checkpoint.format == "gguf" else checkpoint.path.resolve().name
        destination = destination / f"{stem}{'-' + dtype.name if dtype else ''}.gguf"
    _check_destination(destination, checkpoint.path, to, overwrite)
    try:
        with _parents(destination):
            if to == "gguf":
                _write_gguf(checkpoint, destination, dtype, progress)
            else:
                with _folder(destination) as folder:
                    if to == "hf":
                        _write_hugging_face(checkpoint, folder, dtype, max_shard_bytes, progress)
                    else:
                        _write_meta(checkpoint, folder, dtype, shards, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{destination}: the disk is full; nothing was kept") from error
        raise StorageError(f"{destination}: cannot be written ({error.strerror or error})") from error
    return destination


def _check_destination(destination: Path, source: Path, to: CheckpointFormat, overwrite: bool) -> None:
    """Refuse to write where something is lost that nobody asked to replace."""
    holder = destination.parent if to == "gguf" else destination
    try:
        if holder.is_file() and to == "gguf":
            raise UsageError(f"{holder}: is a file; name a folder, or a file that ends in .gguf")
        if not destination.exists():
            return
        if source.exists() and destination.samefile(source):
            raise UsageError(f"{destination}: source and destination are the same")
        if not destination.is_dir():
            if not overwrite:
                raise UsageError(f"{destination}: already exists; use --force to replace it")
            return
        if destination.resolve() == Path.cwd():
            raise UsageError(f"{destination}: is the current folder, which cannot be replaced; name one inside it")
        if destination.resolve() in source.resolve().parents:
            raise UsageError(f"{destination}: holds the source, {source}; write to another folder")
        content = list(destination.iterdir())
        if content and not overwrite:
            raise UsageError(f"{destination}: already exists; use --force to replace it")
        # A slip of the finger must not cost a home folder.
        known = any((destination / name).is_file() for name in ("config.json", "params.json"))
        others = (path for path in content if path.is_dir() and not path.is_symlink() and not is_reward_folder(path))
        if content and (not known or any(others)):
            raise UsageError(f"{destination}: holds other things than a model, so it is not replaced; name another")
    except OSError as error:
        raise StorageError(f"{destination}: cannot be used ({error.strerror or error})") from error


@contextmanager
def _parents(destination: Path) -> Iterator[None]:
    """The folders that ``destination`` goes into; those that are made for it go again when the block fails."""
    made = [path for path in destination.parents if not path.exists()]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def _folder(named: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of ``named`` when the block ends well and vanishes when it does not."""
    destination = named.resolve()  # behind a symbolic link it is the folder that is replaced, not the link
    token = secrets.token_hex(8)
    staging = destination.with_name(f".qafila-{token}.partial")
    staging.mkdir()
    old: Path | None = None
    try:
        yield staging
        if destination.exists():
            old = destination.with_name(f".qafila-{token}.old")
            destination.replace(old)
        staging.replace(destination)
    except BaseException:
        if old is not None and old.exists() and not destination.exists():
            old.replace(destination)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if old is not None:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def _watched(tensors: Mapping[str, LazyTensor], progress: Progress) -> dict[str, LazyTensor]:
    def watch(name: str, tensor: LazyTensor) -> LazyTensor:
        def report(value: Tensor) -> Tensor:
            progress(name, value.nbytes)
            return value

        return tensor.mapped(report)

    return {name: watch(name, tensor) for name, tensor in tensors.items()}


def _plain(tensor: LazyTensor, dtype: DType | None) -> LazyTensor:
    if dtype is None:
        return as_type(tensor, DType.F32) if tensor.dtype.quantised else tensor
    return as_type(tensor, dtype)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    try:
        return checkpoint.tokenizer
    except ModelNotFoundError:
        return None  # weights alone are converted alone


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_bytes(text.encode())
    except UnicodeEncodeError:
        raise FormatError(path.name, "cannot be written: the source's text for it is no valid Unicode") from None


def _json(value: object) -> str:
    """JSON as the field writes its configuration files: two spaces, UTF-8, a final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _config_of(checkpoint: Checkpoint) -> ModelConfig:
    """The configuration to write: without its image tower where the tower's weights are not there."""
    if checkpoint.vision_tensors:
        return checkpoint.config
    return checkpoint.config.with_changes(vision=None)


def _write_hugging_face(
    checkpoint: Checkpoint, folder: Path, dtype: DType | None, max_shard_bytes: int, progress: Progress
) -> None:
    config = _config_of(checkpoint)
    canonical = {name: _plain(tensor, dtype) for name, tensor in checkpoint.tensors.items()}
    tensors = from_canonical(hugging_face_rules(config), canonical)
    if config.vision is not None:
        tensors = {("" if k.startswith("language_model.") else "language_model.") + k: v for k, v in tensors.items()}
        tensors |= checkpoint.vision_tensors
    main_type = next((t.dtype for n, t in canonical.items() if n == EMBEDDING), DType.F32)
    names = {DType.F32: "float32", DType.F16: "float16", DType.BF16: "bfloat16"}
    settings = config_to_hf(config, checkpoint.generation, dtype=names.get(main_type, "float32"))
    _write_text(folder / "config.json", _json(settings))
    _write_text(folder / "generation_config.json", _json(generation_to_hf(checkpoint.generation)))
    tokenizer = _tokenizer(checkpoint)
    if tokenizer is not None:
        _write_tokenizer(tokenizer, folder, config)
    if checkpoint.chat_template is not None:
        _write_text(folder / "chat_template.jinja", checkpoint.chat_template)
    write_safetensors(folder, _watched(tensors, progress), max_shard_bytes=max_shard_bytes)


def _write_tokenizer(tokenizer: Tokenizer, folder: Path, config: ModelConfig) -> None:
    _write_text(folder / "tokenizer.json", _json(tokenizer.to_tokenizer_json()))
    settings = tokenizer.to_tokenizer_config()
    settings.setdefault("model_max_length", config.context_length)
    _write_text(folder / "tokenizer_config.json", _json(settings))


def _write_meta_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """``tokenizer.model`` where Meta's formats can hold the vocabulary, else Hugging Face's own files."""
    tokenizer = _tokenizer(checkpoint)
    if tokenizer is None:
        return
    for write in (tokenizer.to_tiktoken, tokenizer.to_sentencepiece):
        with suppress(TokenizerError):
            (folder / "tokenizer.model").write_bytes(write())
            break
    else:
        _write_tokenizer(tokenizer, folder, checkpoint.config)
    if checkpoint.chat_template is not None:
        _write_text(folder / "chat_template.jinja", checkpoint.chat_template)


def _write_meta(checkpoint: Checkpoint, folder: Path, dtype: DType | None, shards: int, progress: Progress) -> None:
    canonical = {name: _plain(tensor, dtype) for name, tensor in checkpoint.tensors.items()}
    tensors = from_canonical(meta_rules(checkpoint.config), canonical)
    _write_meta_tokenizer(checkpoint, folder)
    write_meta(folder, meta_params(checkpoint.config), _watched(tensors, progress), shards=shards)


def _gguf_tokens(checkpoint: Checkpoint, path: Path) -> dict[str, object]:
    tokenizer = _tokenizer(checkpoint)
    if tokenizer is None:
        raise FormatError(checkpoint.path, f"has no tokenizer, which {path.name} needs; put its files into the folder")
    values = tokenizer.to_gguf()
    generation = checkpoint.generation
    # Some checkpoints pad with, or stop at, ids that they do not have; GGUF readers refuse those.
    stops = [stop for stop in generation.stop_ids if stop < tokenizer.vocab_size]
    eos = values.get("tokenizer.ggml.eos_token_id")
    if stops and eos not in stops:
        values["tokenizer.ggml.eos_token_id"] = eos = stops[0]
    others = [stop for stop in stops if stop != eos]
    for key, stop in zip(("eot", "eom"), others, strict=False):
        values.setdefault(f"tokenizer.ggml.{key}_token_id", stop)
    if generation.pad_id is not None and generation.pad_id < tokenizer.vocab_size:
        values["tokenizer.ggml.padding_token_id"] = generation.pad_id
    if checkpoint.chat_template is not None:
        values["tokenizer.chat_template"] = checkpoint.chat_template
    sampling = {
        "temp": generation.temperature,
        "top_k": generation.top_k,
        "top_p": generation.top_p,
        "min_p": generation.min_p,
        "penalty_repeat": generation.repetition_penalty,
    }
    values |= {f"general.sampling.{key}": value for key, value in sampling.items() if value is not None}
    return values


def _typed(value: object) -> GgufValue:
    """A plain value with the GGUF type that llama.cpp expects of its kind."""
    if isinstance(value, bool):
        return GgufValue.boolean(value)
    if isinstance(value, int):
        return GgufValue.uint32(value)
    if isinstance(value, float):
        return GgufValue.float32(value)
    if isinstance(value, str):
        return GgufValue.string(value)
    assert isinstance(value, list | tuple)
    if all(isinstance(item, str) for item in value):
        return GgufValue.strings(value)
    if all(isinstance(item, int) for item in value):
        return GgufValue.int32s(value)
    return GgufValue.float32s(value)


def _write_gguf(checkpoint: Checkpoint, path: Path, dtype: DType | None, progress: Progress) -> None:
    config = _config_of(checkpoint)
    keys = gguf_keys(config, path)
    metadata = keys | dict(checkpoint.details) | keys | {"general.quantization_version": 2}
    canonical = {
        name: as_type(tensor, gguf_type(name, tensor.shape, dtype, tensor.dtype))
        for name, tensor in checkpoint.tensors.items()
    }
    main = next(t.dtype for name, t in canonical.items() if name.endswith("down_proj.weight"))
    if main in _FILE_TYPES:
        metadata["general.file_type"] = _FILE_TYPES[main]
    metadata |= _gguf_tokens(checkpoint, path)
    tensors = from_canonical(gguf_rules(config), canonical)
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind != "linear":
        divisors = rope_divisors(scaling, config.rope_theta, config.head_dim)
        factors = Tensor(DType.F32, divisors.shape, divisors.astype("<f4").view(np.uint8))
        tensors = {ROPE_FACTORS: LazyTensor.of(factors), **tensors}
    write_gguf(path, {key: _typed(value) for key, value in metadata.items()}, _watched(tensors, progress))


def dtype_named(name: str) -> DType:
    """The type called ``name`` (any case).

    Raises:
        UsageError: there is none; the message lists them.
    """
    try:
        return DType[name.upper()]
    except KeyError:
        known = ", ".join(t.name for t in _FILE_TYPES)
        raise UsageError(f"--quant {name}: no such type (choose from {known})") from None
