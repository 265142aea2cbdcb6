"""Perplexity of both sides on the same windows of text, and how far each is from the float32 reference."""

from __future__ import annotations

import json
import lzma
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qafila.weights.load import open_checkpoint

#: Public-domain books beside the checkout; see ../shared/data/README.md there.
BOOKS = Path(__file__).resolve().parents[2] / "shared/data/books_en.jsonl.xz"


def windows(path: Path, text: Path, tokens: int, width: int) -> list[list[int]]:
    """``tokens`` tokens of a text, cut into windows that are read independently of each other."""
    if text.suffix == ".xz":
        with lzma.open(text, "rt", encoding="utf-8") as lines:
            words = "\n\n".join(json.loads(next(lines))["text"] for _ in range(2))
    else:
        words = text.read_text(encoding="utf-8")
    # The first pages are title and contents.
    words = words[5000 : 5000 + 8 * tokens]
    checkpoint = open_checkpoint(path)
    ids = checkpoint.tokenizer.encode(words)[:tokens]
    if len(ids) < tokens:
        raise SystemExit(f"error: {text}: has {len(ids)} tokens, {tokens} are needed")
    return [ids[i : i + width] for i in range(0, tokens, width)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def compare(sides: dict[str, Callable[..., Any]], texts: list[list[int]]) -> dict[str, dict[str, float]]:
    """Perplexity of each side, and mean KL(reference || side) per token in nats.

    ``sides`` maps a name, ``reference`` among them, to what asks its worker.
    """
    loss = dict.fromkeys(sides, 0.0)
    divergence = dict.fromkeys(sides, 0.0)
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "logits.npy")
        for ids in texts:
            found = {}
            for name, ask in sides.items():
                ask(call="logits", ids=ids, to=target)
                found[name] = np.load(target)
            following = np.array(ids[1:])
            # A few rows at a time: float64 of a whole window would go through memory again and again.
            for begin in range(0, len(following), 64):
                rows = slice(begin, min(begin + 64, len(following)))
                logs = {name: log_softmax(logits[rows]) for name, logits in found.items()}
                reference = logs["reference"]
                probabilities = np.exp(reference)
                for name, mine in logs.items():
                    loss[name] -= float(np.take_along_axis(mine, following[rows, None], -1).sum())
                    divergence[name] += float((probabilities * (reference - mine)).sum())
            count += len(ids) - 1
    return {name: {"perplexity": math.exp(loss[name] / count), "kl": divergence[name] / count} for name in sides}
