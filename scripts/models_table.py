"""docs/models.md: every preset, its figures as computed from its shape, beside what is published.

`scripts/pages.py` writes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qafila.memory import weight_bytes
from qafila.parameters import active_parameters, text_parameters
from qafila.presets import PUBLISHED, preset, preset_names
from qafila.quant.dtypes import DType
from qafila.vision import vision_parameters

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"

INTRODUCTION = """\
# Models

<!-- Written by scripts/models_table.py from src/qafila/presets.py: change those, not this page. -->

Every name below works with `qafila info NAME`. Counts are computed from the shapes, and tests hold each to the
published figure. They are of the text model (image towers: see below); "published" is the size that the paper or model
card prints. "KV bytes" is what one token adds to the cache in 16 bits. Gigabytes are powers of 1000.
"""

VISION = """
## Image towers

Described and counted, not run yet; text without an image runs. Llama 3.2 Vision is counted at 560 px, with
cross-attention layers numbered as Hugging Face does (3, 8, 13, ...) and counted with the text model.
"""

NOTES = """
Hugging Face's files of Llama 3.2 Vision hold 41,036,800 numbers more than Meta's, which the totals above count: Meta
keeps the tile position tables per rows and columns of tiles (4 x 4), Hugging Face per aspect ratio (9 x 4).
Llama 3.2 90B Vision comes out 0.3% under the 88.8B its card prints.

## Published figures that are wrong elsewhere

- llama-stack's `sku_list.py` gives Llama 2 7B and 13B 8 KV heads and a base frequency of 500000: they have as many KV
  heads as query heads, and 10000.
- The 405B checkpoint for 16 ranks lists 16 KV heads: each of the 8 is stored twice.
- Llama 3.2 1B and 3B scale RoPE by 32 (Hugging Face); Meta's reference code has 8 for every model.
- Code Llama 34B has a vocabulary of 32000, the other sizes 32016.
- Llama 3.2 1B and 3B tie the output to the embedding: their published sizes are right only so.

## How memory is estimated

`qafila info` computes, and loads nothing. Exact: weights by type (of a file: as stored in it), KV cache, gradients,
optimizer. By formula (stated in `src/qafila/memory.py`), good to about a quarter of their size: activations.

- To run: weights as they are held, KV cache for the context and batch, one layer's activations for up to 512 tokens of
  each sequence, the process. The native engine holds weights as they are stored (types without kernels in Q8_0, which
  `qafila info` says) and a 16-bit cache; what only PyTorch runs (Llama 3.2 Vision) is counted in float32.
  `--quant TYPE` answers for weights held in TYPE.
- To train: bf16 weights and gradients, AdamW with float32 master weights and moments (12 bytes for each trained
  parameter), activations recomputed layer by layer, logits of 1024 tokens at a time. `lora` trains adapters of rank 16
  on every linear layer; `qlora` keeps those layers in 4.5 bits.
- What is free: `MemAvailable`, or less where a container's control group says so; its page cache counts as free.
"""


def row(cells: Iterable[object]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def billions(size: float) -> str:
    """A count or byte count in powers of 1000."""
    return f"{size / 1e9:,.2f}" if size < 100e9 else f"{size / 1e9:,.1f}"


def page() -> str:
    """The whole page."""
    shape = ["name", "dim", "layers", "heads", "KV", "FFN", "vocabulary", "context"]
    heads = [*shape, "parameters", "published", "active", "KV bytes", "BF16 GB", "Q4_0 GB"]
    lines = [INTRODUCTION, row(heads), row(["---"] + ["---:"] * (len(heads) - 1))]
    for name in preset_names():
        config, published = preset(name), PUBLISHED[name]
        active = active_parameters(config)
        ffn = config.ffn_dim if config.moe is None else f"{config.moe.n_experts} x {config.moe.ffn_dim}"
        numbers = (config.dim, config.n_layers, config.n_heads, config.n_kv_heads, ffn, config.vocab_size)
        parameters = text_parameters(config)
        counts = (f"{parameters:,}", published.card, "" if active == parameters else f"{active:,}")
        sizes = [billions(weight_bytes(config, dtype)) for dtype in (DType.BF16, DType.Q4_0)]
        kv = f"{config.kv_bytes_per_token():,}"
        lines.append(row((f"`{name}`", *numbers, config.context_length, *counts, kv, *sizes)))
    lines += [VISION, row(("name", "text", "image tower", "total", "published")), row(["---"] + ["---:"] * 4)]
    for name in preset_names():
        config = preset(name)
        tower = sum(vision_parameters(config).values())
        if tower:
            text = text_parameters(config)
            lines.append(row((f"`{name}`", f"{text:,}", f"{tower:,}", f"{text + tower:,}", PUBLISHED[name].card)))
    return "\n".join(lines) + "\n" + NOTES
