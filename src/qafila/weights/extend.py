"""A checkpoint with an extended vocabulary: rows for the new ids, each the mean of the rows of what it replaces.

The mean is what the model saw where it read the same letters in pieces, so a new piece begins with a meaning instead of
noise (the usual start of vocabulary extension; Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
Models", shows why it does no harm to the old text's probabilities).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from qafila.errors import UnsupportedError, UsageError
from qafila.parameters import EMBEDDING, LM_HEAD
from qafila.quant import dequantise, quantise
from qafila.text.extend_tokenizer import Extension
from qafila.weights.load import Checkpoint
from qafila.weights.tensor import LazyTensor, Tensor


def extend_checkpoint(checkpoint: Checkpoint, extension: Extension) -> Checkpoint:
    """The checkpoint with the extension's tokenizer, and with a row for each new id in embedding and untied head.

    Old rows keep their very bytes; new ones are computed in float32 and stored in the matrix's own type. Rows beyond
    the tokenizer, which some checkpoints have as padding, are the first to be used. Nothing is read before a tensor is.

    Args:
        checkpoint: what is extended; it stays as it is.
        extension: of this checkpoint's tokenizer.

    Raises:
        UsageError: the extension is of another tokenizer. UnsupportedError: the model keeps rows of its own behind
            the vocabulary (image tokens).
    """
    config, old, new = checkpoint.config, extension.old, extension.new
    if checkpoint.tokenizer.vocab_size != old.vocab_size:
        raise UsageError(
            f"{checkpoint.path}: its tokenizer has {checkpoint.tokenizer.vocab_size} tokens, but the one that was"
            f" extended {old.vocab_size}; they do not belong together"
        )
    if config.extra_embeddings:
        raise UnsupportedError(
            checkpoint.path, f"has {config.extra_embeddings} embeddings behind its vocabulary, so it cannot be extended"
        )
    size = max(config.vocab_size, new.vocab_size)
    tensors = dict(checkpoint.tensors)
    for name in (EMBEDDING, LM_HEAD):
        if name in tensors:
            tensors[name] = _with_rows(tensors[name], extension, size)
    return replace(
        checkpoint,
        config=config.with_changes(vocab_size=size),
        tensors=tensors,
        load_tokenizer=lambda: new,
    )


def _with_rows(matrix: LazyTensor, extension: Extension, size: int) -> LazyTensor:
    """A matrix ``[old size, D]`` as one of ``[size, D]``."""
    first = extension.old.vocab_size
    width = matrix.shape[1]

    def extended(source: Tensor) -> Tensor:
        old = source.rows()
        means = mean_rows(source, extension.replaces)
        rows = np.empty((size, old.shape[1]), dtype=np.uint8)
        rows[: len(old)] = old
        rows[first : first + len(means)] = quantise(source.dtype, means)
        return Tensor(source.dtype, (size, width), rows.reshape(-1))

    return matrix.mapped(extended, shape=(size, width))


def mean_rows(matrix: Tensor, groups: tuple[tuple[int, ...], ...]) -> npt.NDArray[np.float32]:
    """The mean of some rows of a matrix for each group of row numbers: float32 ``[groups, D]``."""
    used = sorted({row for group in groups for row in group})
    place = {row: i for i, row in enumerate(used)}
    values = dequantise(matrix.dtype, matrix.rows()[used]).astype(np.float64)
    means = [values[[place[row] for row in group]].mean(axis=0) for group in groups]
    return np.asarray(means, dtype=np.float32).reshape(len(groups), matrix.shape[1])
