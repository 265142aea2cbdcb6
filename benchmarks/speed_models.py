"""The model files that `engine_speed.py` measures; made when first asked for."""

from __future__ import annotations

from pathlib import Path

from random_gguf import llama3_tokenizer, write_random

from qafila.quant.dtypes import DType
from qafila.weights.export import export
from qafila.weights.hub import resolve
from qafila.weights.load import open_checkpoint

#: Random blocks in a published shape.
SHAPES = {"1B": "llama-3.2-1b", "8B": "llama-3.1-8b"}


def model_file(name: str, folder: Path, tokenizer: Path | None = None) -> Path:
    """The file of ``default``, ``135M Q4_0``, ``1B Q4_0``, ``8B Q4_K`` and the like."""
    if name == "default":
        return resolve("default")
    shape, kind = name.split()
    path = folder / f"{shape}-{kind}.gguf"
    if shape in SHAPES:
        words = tokenizer or llama3_tokenizer()
        if not words.is_file():
            raise SystemExit(f"error: --tokenizer {words}: no such file (Llama 3's tokenizer.model is needed)")
        return write_random(SHAPES[shape], DType[kind], path, words)
    if not path.is_file():
        export(open_checkpoint(resolve("default")), path, "gguf", dtype=DType[kind])
    return path
