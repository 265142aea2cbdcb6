"""What is measured on the way: validation loss, perplexity, bits per byte, stopping, and answers to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qafila.data.batch import Batch
from qafila.errors import QafilaError
from qafila.model.generate import generate
from qafila.model.llama import LlamaModel
from qafila.sampling import SamplingParams
from qafila.text.messages import Message
from qafila.text.tokenizer import Tokenizer
from qafila.train.loop import Trainer
from qafila.train.subject import Subject


def measure(trainer: Trainer, batches: Sequence[Batch], text_bytes: int | None) -> dict[str, float]:
    """The objective's figures over ``batches``, and what follows from them.

    ``text_bytes`` is how many bytes of text the targets stand for, where that makes sense: then there are bits per
    byte, which unlike perplexity can be compared between tokenizers.
    """
    found = trainer.validate(batches)
    if not found:
        return {}
    found |= _by_margin(found)
    ends, met = found.pop("ends", 0.0), found.pop("ends_met", 0.0)
    if ends:
        found["ends_met"] = met / ends
    if text_bytes:
        targets = sum(batch.n_targets for batch in batches)
        found["bits_per_byte"] = found["loss"] * targets / math.log(2) / text_bytes
    if trainer.executor.objective.per_token:
        found["perplexity"] = math.exp(min(found["loss"], 700.0))
    return found


def _by_margin(found: dict[str, float]) -> dict[str, float]:
    """Takes the counts of pairs out of ``found``; gives the accuracy of each range of margins that there are pairs of.

    Where all pairs are of one range, its accuracy is that of all, and nothing is given.
    """
    counted = {key.removeprefix("pairs at "): found.pop(key) for key in list(found) if key.startswith("pairs at ")}
    right = {name: found.pop(f"right at {name}") for name in counted}
    told = {f"accuracy at {name}": right[name] / pairs for name, pairs in counted.items() if pairs}
    return told if len(told) > 1 else {}


def bytes_of_targets(batches: Sequence[Batch], tokenizer: Tokenizer) -> int:
    """Bytes of text that the batches' targets stand for; special tokens stand for none."""
    special = set(tokenizer.special_tokens.values())
    sizes = np.array(
        [0 if i in special else len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], dtype=np.int64
    )
    return sum(int(sizes[batch.targets[batch.targets >= 0]].sum()) for batch in batches)


class Answerer(Protocol):
    """Something faster than the training model that answers out of a folder with a model in it: the native engine."""

    def __call__(self, folder: Path, prompts: Sequence[str], *, chat: bool, max_tokens: int) -> list[dict[str, Any]]:
        """Greedy answers in the model's chat format, or continuations, each as `answers` gives them."""


def answers(model: LlamaModel, subject: Subject, prompts: Sequence[str], max_tokens: int) -> list[dict[str, Any]]:
    """Greedy answers to prompts (or continuations of them, for objectives on text), as people would see them.

    Each has ``prompt``, ``answer``, and ``stopped``: whether the model ended it by itself.
    """
    chat = subject.chat if subject.recipe.objective not in ("pretrain", "fim") else None
    found: list[dict[str, Any]] = []
    was_training = model.training
    model.eval()
    try:
        for prompt in prompts:
            if chat is not None:
                ids = chat.render([Message("user", prompt)]).ids
            else:
                ids = subject.tokenizer.encode(prompt, bos=True)
            try:
                tokens = list(
                    generate(
                        model,
                        ids,
                        params=SamplingParams(temperature=0.0),
                        max_tokens=max_tokens,
                        stop_ids=subject.end_ids,
                        text_stream=subject.tokenizer.stream(),
                    )
                )
            except QafilaError as error:
                found.append({"prompt": prompt, "answer": f"({error})", "stopped": False})
                continue
            text = "".join(token.text for token in tokens)
            stopped = bool(tokens) and tokens[-1].finish_reason == "stop"
            found.append({"prompt": prompt, "answer": text, "stopped": stopped})
    finally:
        model.train(was_training)
    return found
