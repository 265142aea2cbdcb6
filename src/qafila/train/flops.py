"""How much arithmetic training is, how fast processors do it, and what that takes in hours and energy. No torch.

Sources: torchtitan's ``benchmarks/`` (the MFU convention, and the peaks it divides by), LLaMA (arXiv 2302.13971)
section 6 (energy and carbon), Llama 3 (arXiv 2407.21783) section 3.3.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from qafila.config import ModelConfig
from qafila.errors import UsageError
from qafila.parameters import active_parameters

PUE: Final = 1.1
"""Power of a whole data centre for each watt of its processors, as Meta's papers take it."""
CARBON: Final = 0.385
"""Kilograms of CO2 equivalent for each kilowatt-hour (US average of the LLaMA paper)."""
_EAGER: Final = 0.337 / 0.390
"""Speed without torch.compile (torchtitan, Llama 3.1 8B on 8 H100: 5,762 of 6,667 tokens/s)."""
_FLOAT8: Final = 8532 / 6667
"""Speed with float8 products (the same table)."""


@dataclass(frozen=True, slots=True)
class Processor:
    """A GPU as estimates see it.

    ``memory`` in bytes, ``peak`` in dense bfloat16 FLOP/s, ``mfu`` the share of it that training a large dense model
    with torch.compile was seen to use, ``watts`` of one board, ``float8`` whether it multiplies in float8.
    """

    name: str
    memory: int
    peak: float
    mfu: float
    watts: int
    float8: bool


#: Peaks as torchtitan has them; RTX 4090 from NVIDIA's Ada white paper. MFU: H100 and H200 torchtitan's 8B rows, A100
#: the middle of LLaMA's and Llama 2's published hours, RTX 4090 torchtune's 8B row (1,650 tokens/s).
PROCESSORS: Final[Mapping[str, Processor]] = MappingProxyType(
    {
        "A100": Processor("A100", 80 * 2**30, 312e12, 0.45, 400, float8=False),
        "H100": Processor("H100", 80 * 2**30, 989e12, 0.39, 700, float8=True),
        "H200": Processor("H200", 141 * 10**9, 989e12, 0.39, 700, float8=True),
        "RTX 4090": Processor("RTX 4090", 24 * 2**30, 165e12, 0.48, 450, float8=True),
    }
)


def processor(name: str) -> Processor:
    """A processor of the table by its name, or by what its driver calls it (``NVIDIA H100 80GB HBM3``).

    Raises:
        UsageError: it is not in the table.
    """
    wanted = name.upper()
    for known, found in PROCESSORS.items():
        if known in wanted:
            return found
    raise UsageError(f"processor {name!r}: choose from {', '.join(PROCESSORS)}, or here for this machine")


def attention_flops(config: ModelConfig, sequence: float, *, causal: bool = False) -> float:
    """Attention's share of :func:`flops_per_token`: ``12 · L · H · N · T``, by half with ``causal``.

    Layers that look at chunks see no more than a chunk; cross-attention does not grow with the text.
    """
    total = 0.0
    for plan in config.layers:
        if plan.attention == "cross":
            continue
        seen = min(sequence, config.attention_chunk or sequence) if plan.attention == "chunked" else sequence
        total += 12 * config.n_heads * config.head_dim * seen
    return total / 2 if causal else total


def flops_per_token(config: ModelConfig, sequence: float, *, causal: bool = False) -> float:
    """Floating-point operations that training takes for one token, forward and backward.

    ``6 · (N - V·D) + 12 · L · H · Q · T``: N parameters that a token uses (of a mixture, its experts), without the
    embedding, of which it only reads a row. That is torchtitan's convention, by which MFU is reported: it counts the
    whole square of attention and nothing that is computed twice.

    Args:
        config: the model.
        sequence: T, tokens that see one another: the row, or the mean document of a packed one.
        causal: count the half of attention's square that is really needed, as Llama 3's figures do.
    """
    table = 0 if config.tie_embeddings else (config.vocab_size + config.extra_embeddings) * config.dim
    return 6.0 * (active_parameters(config) - table) + attention_flops(config, sequence, causal=causal)


def mfu(config: ModelConfig, sequence: int, tokens_per_second: float, peak: float) -> float:
    """Model FLOPs utilisation of one processor that trains ``tokens_per_second`` tokens."""
    return flops_per_token(config, sequence) * tokens_per_second / peak


def assumed_mfu(unit: Processor, *, compile: bool, float8: bool) -> float:
    """Share of the bfloat16 peak that training is expected to use; above 1 is possible in float8 only."""
    return unit.mfu * (1.0 if compile else _EAGER) * (_FLOAT8 if float8 and unit.float8 else 1.0)


def energy(processor_hours: float, watts: float, pue: float = PUE) -> float:
    """Kilowatt-hours: ``hours · W · PUE / 1000`` (LLaMA, section 6)."""
    return processor_hours * watts * pue / 1000


def carbon(kilowatt_hours: float, factor: float = CARBON) -> float:
    """Tonnes of CO2 equivalent: ``MWh · 0.385`` (LLaMA, section 6)."""
    return kilowatt_hours * factor / 1000


def time_products(seconds: float = 0.2, size: int = 512, *, timings: int = 5, pause: float = 0.1) -> float:
    """FLOP/s that this machine reaches in float32 matrix products: the best of those computed in about ``seconds``.

    Args:
        seconds: of computing, in all.
        size: rows and columns of the matrices.
        timings: in how many stretches; a machine that is busy in one of them may be free in the next.
        pause: seconds between two stretches.
    """
    import numpy as np

    a = np.full((size, size), 0.5, dtype=np.float32)
    best = math.inf
    for number in range(timings):
        if number:
            time.sleep(pause)
        a @ a  # wakes the library's threads
        started = time.perf_counter()
        while True:
            begun = time.perf_counter()
            a @ a
            ended = time.perf_counter()
            best = min(best, ended - begun)
            if ended >= started + seconds / timings:
                break
    return 2.0 * size**3 / max(best, 1e-9)
