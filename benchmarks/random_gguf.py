"""GGUF files with the shape of a published Llama and random valid blocks: what speed and memory depend on.

Codes are random bits; block scales are chosen so that weights have the deviation 1 / sqrt(inputs) and activations stay
finite through all layers. A tied embedding and an output head are Q6_K, as llama.cpp's own quantiser makes them beside
4-bit matrices. The tokenizer is Llama 3's, which llama.cpp needs before it opens the file.

    python benchmarks/random_gguf.py llama-3.2-1b Q4_0 out.gguf [--tokenizer tokenizer.model]
"""

from __future__ import annotations

import argparse
import os
import zlib
from pathlib import Path

import numpy as np

from qafila.config import GenerationConfig
from qafila.parameters import EMBEDDING, LM_HEAD, parameter_shapes
from qafila.presets import preset
from qafila.quant.dtypes import DType
from qafila.text.tokenizer import load_tokenizer
from qafila.weights.export import export
from qafila.weights.load import Checkpoint
from qafila.weights.tensor import LazyTensor, Tensor

#: For each type: where its f16 scales lie (offset, factor), the deviation of a random block's values at factor 1, and
#: its fields follow ggml's block layouts. The second scale of Q4_1 and Q4_K centres the values on zero.
_SCALES: dict[DType, tuple[tuple[tuple[int, float], ...], float]] = {
    DType.Q8_0: (((0, 1.0),), 73.9),
    DType.Q4_0: (((0, 1.0),), 4.6),
    DType.Q4_1: (((0, 1.0), (2, -7.5)), 4.6),
    DType.Q4_K: (((0, 1.0), (2, 7.5)), 260.0),
    DType.Q6_K: (((208, 1.0),), 1365.0),
}


def random_blocks(dtype: DType, shape: tuple[int, ...], seed: int) -> Tensor:
    """A tensor of random codes whose values have the deviation ``1 / sqrt(shape[-1])``; the same for the same seed."""
    rng = np.random.default_rng(seed)
    if len(shape) == 1:
        return Tensor(DType.F32, shape, np.ones(shape, "<f4").view(np.uint8))
    scales, deviation = _SCALES[dtype]
    blocks = dtype.nbytes(shape) // dtype.block_bytes
    data = np.frombuffer(bytearray(rng.bytes(blocks * dtype.block_bytes)), dtype=np.uint8)
    rows = data.reshape(blocks, dtype.block_bytes)
    # Scales differ a little from block to block, as real ones do.
    unit = (rng.random(blocks, dtype=np.float32) * 0.2 + 0.9) / (deviation * np.sqrt(shape[-1]))
    for offset, factor in scales:
        rows[:, offset : offset + 2] = (unit * factor).astype("<f2").view(np.uint8).reshape(-1, 2)
    return Tensor(dtype, shape, data)


def write_random(name: str, dtype: DType, path: Path, tokenizer: Path) -> Path:
    """Write the preset ``name`` with matrices of ``dtype`` to ``path``; nothing is done where it is there already."""
    if path.is_file():
        return path
    config = preset(name)
    tensors = {}
    for parameter, shape in parameter_shapes(config).items():
        head = parameter == LM_HEAD or (parameter == EMBEDDING and config.tie_embeddings)
        stored = DType.F32 if len(shape) == 1 else DType.Q6_K if head else dtype
        seed = zlib.crc32(parameter.encode())
        tensors[parameter] = LazyTensor(
            stored, shape, "random", lambda stored=stored, shape=shape, seed=seed: random_blocks(stored, shape, seed)
        )
    words = load_tokenizer(tokenizer)
    checkpoint = Checkpoint(
        path=Path("random"),
        format="hf",
        config=config,
        generation=GenerationConfig(bos_id=words.bos_id, stop_ids=() if words.eos_id is None else (words.eos_id,)),
        tensors=tensors,
        load_tokenizer=lambda: words,
        details={"general.name": f"random {name}"},
    )
    return export(checkpoint, path, "gguf")


def llama3_tokenizer() -> Path:
    """Where the tests keep Llama 3's ``tokenizer.model`` (out of the wheel llama-models)."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "qafila-tests/llama-models-0.3.0/llama_models/llama3/tokenizer.model"


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", help="llama-3.2-1b, llama-3.1-8b, ...")
    parser.add_argument("type", choices=[dtype.name for dtype in _SCALES])
    parser.add_argument("path", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=llama3_tokenizer())
    options = parser.parse_args()
    if not options.tokenizer.is_file():
        parser.error(f"--tokenizer {options.tokenizer}: no such file")
    print(write_random(options.preset, DType[options.type], options.path, options.tokenizer))


if __name__ == "__main__":
    main()
