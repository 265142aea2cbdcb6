"""Native kernels of Qafila; types are given as ggml's numbers (``DType.ggml_type``)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def dequantise(ggml_type: int, data: npt.NDArray[np.uint8], out: npt.NDArray[np.float32], threads: int = 0) -> None:
    """Blocks to float32.

    Args:
        ggml_type: the type of ``data``.
        data: one-dimensional and contiguous, a whole number of blocks.
        out: one-dimensional and contiguous, exactly as many values; every one is written.
        threads: at most so many; 0 for one a processor. Results do not depend on it.

    Raises:
        ValueError: sizes that do not fit, or an unknown type; nothing has been touched.
        TypeError: arrays of another type or layout.
    """

def quantise(ggml_type: int, values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8], threads: int = 0) -> None:
    """float32 to blocks; arguments as in :func:`dequantise`.

    Raises:
        ValueError: sizes that do not fit or a type that cannot be written (nothing has been touched), or values that
            are not finite or too large for a block type (``out`` then holds nothing of use).
        TypeError: arrays of another type or layout.
    """

def read_strings(
    data: npt.NDArray[np.uint8], position: int, limit: int, count: int
) -> tuple[tuple[str, ...], int] | None:
    """An array of GGUF strings, and where it ends; None where it runs over ``limit``.

    Args:
        data: one-dimensional and contiguous.
        position: where the first string's length stands.
        limit: no byte from here on is read.
        count: number of strings; a number that cannot be true costs no memory.

    Raises:
        ValueError: ``position`` or ``limit`` is outside ``data``.
    """

def unspell(tokens: Sequence[str]) -> list[bytes | None]:
    """The bytes that each token spells in GPT-2's alphabet; None for one that is not written in it."""

def merge_order(tokens: list[bytes], merges: Sequence[str]) -> tuple[list[int], list[int]] | None:
    """What `qafila.text.bpe_merges.ranked_tokens` says, for the simple case of byte-level vocabularies.

    Args:
        tokens: bytes of every id, empty where it has no ordinary token.
        merges: two parts in GPT-2's alphabet with a space between, best first.

    Returns:
        Ids of the tokens that the merges make, best rank first, and the ids of those that they cannot build. None where
        anything is out of the ordinary (also where it is wrong).
    """

def read_bandwidth(bytes: int, threads: int, passes: int = 3) -> float:
    """Bytes a second that ``threads`` threads together read from memory, each its own part of a fresh buffer.

    Args:
        bytes: of the buffer; more than the processor's caches hold, or it is they that are measured.
        threads: 1 to 1,024.
        passes: how often the buffer is read; the first pass counts too.

    Raises:
        ValueError: an argument out of range. MemoryError: no such buffer.
    """

# The kernel tables one by one, for tests and benchmarks. A weight type is its number in kernels.h's WeightType; an isa
# is one of instruction_sets(). ValueError, before anything is touched, where sizes do not fit.

def instruction_sets() -> list[str]:
    """Names of the kernel tables that this processor runs, the best last."""

def pack(type: int, data: npt.NDArray[np.uint8], rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """A file's rows, one after the other, as panels of 16 rows."""

def unpack_row(type: int, panels: npt.NDArray[np.uint8], columns: int, row: int) -> npt.NDArray[np.float32]:
    """One row of packed weights as float32, as :func:`dequantise` gives it."""

def product(
    isa: str,
    type: int,
    panels: npt.NDArray[np.uint8],
    rows: int,
    x: npt.NDArray[np.float32],
    repeats: int = 1,
    token_begin: int = 0,
    token_end: int = -1,
    panel_begin: int = 0,
    panel_end: int = -1,
) -> npt.NDArray[np.float32]:
    """``[tokens, rows]`` of ``x`` ``[tokens, columns]`` times packed weights, zero outside the ranges asked for.

    ``repeats`` runs the product alone so many times, activations having been converted once.
    """

def quantise_activations(isa: str, x: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.generic]]:
    """``quants``, ``scales``, ``scaled_sums``, ``sums``, ``half_sums`` and ``rounded`` of ``[tokens, columns]``."""

def rms_norm(
    isa: str, x: npt.NDArray[np.float32], weight: npt.NDArray[np.float32] | None, eps: float
) -> npt.NDArray[np.float32]:
    """``x / sqrt(mean(x^2) + eps) * weight`` of one vector."""

def rope(
    isa: str,
    x: npt.NDArray[np.float32],
    cosines: npt.NDArray[np.float32],
    sines: npt.NDArray[np.float32],
    interleaved: bool,
) -> npt.NDArray[np.float32]:
    """One head with its pairs turned; cosines and sines are half as long."""

def silu_mul(isa: str, gate: npt.NDArray[np.float32], up: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``silu(gate) * up``."""

def scale_add(
    isa: str, x: npt.NDArray[np.float32], factor: float, y: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """``y + factor * x``."""

def log_sum_exp(isa: str, x: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The maximum, and ``log(sum(exp(x - maximum)))``."""

# Attention of one KV head, kernel by kernel. A pool is [blocks, kv_bytes] and a table names the blocks of positions
# 0-15, 16-31, ...; partial results are [splits, rows] of splits of 256 positions.

def kv_bytes(head_dim: int, int8: bool) -> int:
    """Bytes of one head's keys and values in one block of 16 positions."""

def kv_store(
    isa: str,
    keys: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    first: int,
    int8: bool,
    table: npt.NDArray[np.int32],
    pool: npt.NDArray[np.uint8],
) -> None:
    """Keys and values ``[tokens, head_dim]`` of positions from ``first`` on into their blocks."""

def attend(
    isa: str,
    queries: npt.NDArray[np.float32],
    first: npt.NDArray[np.int32],
    last: npt.NDArray[np.int32],
    pool: npt.NDArray[np.uint8],
    table: npt.NDArray[np.int32],
    end: int,
    int8: bool,
    maximum: npt.NDArray[np.float32],
    sum: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    repeat: int = 1,
) -> None:
    """Scaled queries ``[rows, head_dim]`` over positions ``first`` to ``last`` of each row; keys end before ``end``.

    ``maximum``, ``sum`` and ``values`` take each split's partial results, ``out`` what they come to together; all is
    done ``repeat`` times.
    """

class SampleSettings:
    """How tokens are chosen: `qafila.sampling.SamplingParams` as numbers."""

    def __init__(
        self,
        temperature: float,
        top_k: int,
        top_p: float,
        log_min_p: float,
        repetition: float,
        presence: float,
        frequency: float,
        bias_ids: npt.NDArray[np.int32],
        biases: npt.NDArray[np.float64],
    ) -> None: ...

class Sampler:
    """Chooses tokens as `qafila.sampling.sample` does. One call at a time.

    Args:
        threads: at most so many; 0 for one a processor. Results do not depend on it.
        isa: ``portable``, ``avx2`` or ``avx512``; empty for the best. Results do not depend on it either.

    Raises:
        ValueError: the processor or the build does not have that instruction set.
    """

    def __init__(self, threads: int = 0, isa: str = "") -> None: ...
    @property
    def isa(self) -> str: ...
    def logprobs(self, logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int32]) -> list[float]:
        """Log-probability of one id for each row of ``[R, V]`` logits; NaN where the logits are not numbers.

        Raises:
            ValueError: sizes that do not fit.
        """
    def choose(
        self,
        logits: npt.NDArray[np.float32],
        rows: list[
            tuple[
                SampleSettings,
                int,
                int,
                int,
                npt.NDArray[np.int32] | None,
                npt.NDArray[np.int32] | None,
                npt.NDArray[np.uint32] | None,
                int,
            ]
        ],
    ) -> list[tuple[int, float, tuple[tuple[int, float], ...]] | int]:
        """For each row id, log-probability and likeliest tokens, or what is wrong.

        Args:
            logits: ``[R, V]``, contiguous.
            rows: settings, seed, position, sample, ids of the tokens so far (each once) and how often each was
                generated (both None where that does not matter), mask or None, how many likeliest tokens to name.

        Returns:
            For a row without an answer 1 (the logits are not numbers) or 2 (the mask leaves nothing).

        Raises:
            ValueError: sizes that do not fit.
        """

class Model:
    """A Llama's forward pass with its weights and KV cache; :mod:`qafila.engine.native_runner` is the way to it.

    Every call raises ValueError, before anything is changed, for arguments that do not fit. A matrix is named by its
    layer (-1: the head), its role and the number of its expert, as in native/model.h.
    """

    isa: str
    threads: int
    weight_bytes: int
    block_bytes: int

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        vocabulary: int,
        embedding_rows: int,
        eps: float,
        interleaved: bool,
        tied: bool,
        inverse_frequencies: npt.NDArray[np.float32],
        layers: Sequence[tuple[bool, bool, bool, int, int, int, int]],
        threads: int,
        cpus: list[int],
        isa: str,
    ) -> None:
        """A model without weights; ``layers`` are (rotary, qk_norm, temperature, chunk, ffn, experts, top_k)."""

    def declare(self, layer: int, role: int, expert: int, ggml_type: int) -> None:
        """Say in which type a matrix comes."""

    def allocate_weights(self) -> None:
        """Map memory for all declared matrices, which must be complete. MemoryError where there is none."""

    def pack(self, layer: int, role: int, expert: int, data: npt.NDArray[np.uint8], mapped: bool) -> None:
        """Take a matrix's rows; ``mapped`` lets the pages of their file be dropped."""

    def set_norm(self, layer: int, ffn: bool, values: npt.NDArray[np.float32]) -> None:
        """A layer's norm before attention or feed-forward, or with layer -1 the last one."""

    def set_embedding(self, ggml_type: int, data: npt.NDArray[np.uint8]) -> None:
        """An untied embedding, which stays where it is and is kept alive."""

    def start(self, blocks: int, int8: bool, max_tokens: int, max_rows: int) -> None:
        """Map the KV cache and the buffers of a step."""

    def step(
        self,
        *,
        logits: bool,
        ids: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        starts: npt.NDArray[np.int32],
        blocks: npt.NDArray[np.int32],
        adapters: npt.NDArray[np.int32],
        wanted: npt.NDArray[np.int32],
        query_scales: npt.NDArray[np.float32] | None,
    ) -> npt.NDArray[np.float32]:
        """Logits or normed hidden states of the wanted tokens: a view, good until the next step."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block of the KV cache."""

    def add_adapter(
        self,
        id: int,
        parts: Sequence[tuple[int, int, float, npt.NDArray[np.float32], npt.NDArray[np.float32]]],
    ) -> None:
        """Add a LoRA adapter: (layer, role, scaling, A, B) of every adapted matrix."""

    def remove_adapter(self, id: int) -> None:
        """Forget an adapter."""
