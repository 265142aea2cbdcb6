"""What a trained model does: whether it stops, how well it predicts, whether its exports say the same elsewhere.

    python benchmarks/train_results.py stops MODEL PROMPTS.jsonl [--prompts 100] [--max-tokens 512] [--json]
    python benchmarks/train_results.py bits MODEL TEXT.jsonl ... [--json]
    python benchmarks/train_results.py same RUN PROMPTS.jsonl [--prompts 20] [--tokens 32] [--quant F32] [--json]

MODEL is whatever `qafila chat` opens. PROMPTS are instructions in Alpaca's form, shown to the model as training shows
them; TEXT has a field ``text``. ``same`` needs transformers and llama-cpp-python (`make bench-peers`).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qafila.chat.llama import Llama
from qafila.data.encode_chat import as_shown
from qafila.data.forms import Example, example
from qafila.data.records import read_records
from qafila.text.messages import Message

WINDOW = 512
"""Tokens that are read at once for bits per byte, the one that begins the text among them."""
TIE = 0.1
"""Two implementations may choose differently where the reference's top two logits are closer than this."""


@dataclass(frozen=True, slots=True)
class Stops:
    """How greedy answers end.

    Attributes:
        answers: how many were asked for. stopped: how many ended by themselves within ``most`` tokens.
        median: tokens of an answer, its end token included. most: tokens after which an answer was cut.
        longest: tokens of the longest that ended by itself; 0 if none did.
        unstopped: the prompts whose answers were cut. seconds: for all of them together.
    """

    answers: int
    stopped: int
    median: float
    most: int
    longest: int
    unstopped: list[str]
    seconds: float


def stops(llama: Llama, path: Path, prompts: int, most: int) -> Stops:
    """Greedy answers to the first prompts of a file, all of them under way at once."""
    asked = conversations(llama, path, prompts)
    started = time.perf_counter()
    streams = [llama.chat(messages, stream=True, temperature=0.0, max_tokens=most) for messages in asked]
    answers = [stream.result for stream in streams]
    ended = [len(answer.ids) for answer in answers if answer.finish_reason == "stop"]
    return Stops(
        answers=len(answers),
        stopped=len(ended),
        median=statistics.median(len(answer.ids) for answer in answers),
        most=most,
        longest=max(ended, default=0),
        unstopped=[a[-1].text for a, b in zip(asked, answers, strict=True) if b.finish_reason != "stop"],
        seconds=time.perf_counter() - started,
    )


def conversations(llama: Llama, path: Path, most: int) -> list[Sequence[Message]]:
    """What stands before the answer in each of the first examples of a file."""
    found = [as_shown(one, one.messages[:-1], llama.format) for one in _examples(path, "alpaca", most)]
    if len(found) < most:
        raise SystemExit(f"error: {path}: has {len(found)} prompts, {most} are needed")
    return found


def _examples(path: Path, form: str, most: int | None = None) -> list[Example]:
    made: list[Example] = []
    for record in read_records(path):
        if len(made) == most:
            break
        made.append(example(json.loads(record.raw), record.origin, form))
    return made


@dataclass(frozen=True, slots=True)
class Bits:
    """What a text costs: ``bits`` are -log2 of the probability of its ``tokens`` together, ``bytes`` those of UTF-8."""

    file: str
    bits: float
    bytes: int
    tokens: int

    @property
    def per_byte(self) -> float:
        """Bits per byte."""
        return self.bits / self.bytes


def bits(llama: Llama, path: Path) -> Bits:
    """Bits of the texts of a file, each cut into windows that are read independently of each other.

    A window is the token that begins a text (BOS, or the one that ends texts where there is no BOS) and the next
    ``WINDOW - 1`` tokens. It sees nothing of the window before, so that models with any length of context are asked
    the same; every token of the text is counted once, a token that ends it is not.
    """
    first = llama.tokenizer.bos_id
    if first is None:
        first = next(iter(llama.checkpoint.generation.stop_ids), None)
    if first is None:
        raise SystemExit("error: the model has no token that begins a text, and none that ends one")
    total, size, count = 0.0, 0, 0
    for one in _examples(path, "text"):
        ids = llama.tokenizer.encode(one.text)
        for start in range(0, len(ids), WINDOW - 1):
            total -= llama.score([first, *ids[start : start + WINDOW - 1]]).total
        size += len(one.text.encode())
        count += len(ids)
    return Bits(str(path), total / math.log(2), size, count)


@dataclass(frozen=True, slots=True)
class Difference:
    """A prompt that is answered differently.

    Attributes:
        prompt: its number, from 0. at: the first token that differs, from 0.
        reference, token: what the reference has there, and what this side has; None for nothing.
        gap: how far apart the reference's two highest logits are there; None where it has none, because one of the two
            ends and the other goes on.
    """

    prompt: int
    at: int
    reference: int | None
    token: int | None
    gap: float | None


@dataclass(frozen=True, slots=True)
class Side:
    """One engine on one file, beside the reference: equal prompts, and those that differ, at a tie or not."""

    name: str
    prompts: int
    differences: list[Difference] = field(default_factory=list)

    @property
    def ties(self) -> list[Difference]:
        """Differences where the reference's top two are closer than `TIE`: equal by our definition."""
        return [each for each in self.differences if each.gap is not None and each.gap < TIE]


@dataclass(frozen=True, slots=True)
class Greedy:
    """Tokens of a greedy answer, and how far apart the two highest logits were at each."""

    ids: list[int]
    gaps: list[float]


def same(run: str, path: Path, prompts: int, tokens: int, folder: Path, threads: int, quant: str | None) -> list[Side]:
    """Export a run, and answer greedily from the run and both files, here and in the peers.

    The reference is transformers in float32 on the Hugging Face folder. Every side gets the ids of our chat format and
    ends where the run's own stop tokens are.
    """
    files = {"hf": folder / "hf", "gguf": folder / "model.gguf"}
    for to, target in files.items():
        command = [sys.executable, "-m", "qafila", "export", run, str(target), "--to", to, "--force"]
        subprocess.run(command + (["--quant", quant] if quant else []), check=True, stdout=sys.stderr)
    with Llama.load(run, threads=threads) as llama:
        asked = [list(llama.format.render(each).ids) for each in conversations(llama, path, prompts)]
        ends = frozenset((*llama.format.stop_ids, *llama.checkpoint.generation.stop_ids))
        found = {"ours, the run": ours(llama, asked, tokens)}
    for to, target in files.items():
        with Llama.load(target, threads=threads) as llama:
            found[f"ours, {to}"] = ours(llama, asked, tokens)
    reference = transformers_greedy(files["hf"], asked, tokens, ends, threads)
    found["llama.cpp, gguf"] = [each.ids for each in llama_cpp_greedy(files["gguf"], asked, tokens, ends, threads)]
    return [compare(name, reference, answers) for name, answers in found.items()]


def ours(llama: Llama, asked: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Greedy tokens of our engine, the stop token included."""
    streams = [
        llama.complete(ids, stream=True, temperature=0.0, repetition_penalty=1.0, max_tokens=tokens) for ids in asked
    ]
    return [list(stream.result.ids) for stream in streams]


def transformers_greedy(
    folder: Path, asked: Sequence[list[int]], tokens: int, ends: frozenset[int], threads: int
) -> list[Greedy]:
    """Greedy tokens of transformers in float32, by its own ``generate``."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    made = []
    for ids in asked:
        given = torch.tensor([ids])
        told = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=sorted(ends),
            pad_token_id=min(ends),
            return_dict_in_generate=True,
            output_logits=True,
        )
        made.append(
            Greedy(told.sequences[0, len(ids) :].tolist(), [_gap(row[0].float().numpy()) for row in told.logits])
        )
    return made


def llama_cpp_greedy(
    path: Path, asked: Sequence[list[int]], tokens: int, ends: frozenset[int], threads: int
) -> list[Greedy]:
    """Greedy tokens of llama.cpp with its default settings (its cache is f16)."""
    import llama_cpp

    longest = max(map(len, asked)) + tokens
    made = []
    peer: Any = llama_cpp.Llama(
        str(path), n_ctx=longest, logits_all=True, verbose=False, n_threads=threads, n_threads_batch=threads
    )
    with closing(peer) as model:
        for ids in asked:
            model.reset()
            model.eval(ids)
            answer = Greedy([], [])
            while True:
                row = np.array(model.scores[model.n_tokens - 1], dtype=np.float32)
                answer.ids.append(int(row.argmax()))
                answer.gaps.append(_gap(row))
                if answer.ids[-1] in ends or len(answer.ids) == tokens:
                    break
                model.eval(answer.ids[-1:])
            made.append(answer)
    return made


def _gap(logits: np.ndarray) -> float:
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)


def compare(name: str, reference: Sequence[Greedy], answers: Sequence[list[int]]) -> Side:
    """Where each answer first differs from the reference's."""
    side = Side(name, len(answers))
    for number, (theirs, mine) in enumerate(zip(reference, answers, strict=True)):
        if theirs.ids == mine:
            continue
        shorter = min(len(theirs.ids), len(mine))
        at = next((i for i in range(shorter) if theirs.ids[i] != mine[i]), shorter)
        gap = theirs.gaps[at] if at < shorter else None
        expected = theirs.ids[at] if at < len(theirs.ids) else None
        side.differences.append(Difference(number, at, expected, mine[at] if at < len(mine) else None, gap))
    return side


def main() -> int:
    """Measure and print; 1 where an engine differs from the reference at no tie."""
    options = _parser().parse_args()
    if options.what == "stops":
        with Llama.load(options.model, threads=options.threads) as llama:
            found = stops(llama, options.data, options.prompts, options.max_tokens)
        if options.json:
            print(json.dumps({"model": options.model, **asdict(found)}, ensure_ascii=False))
        else:
            print(
                f"{options.model}: {found.stopped} of {found.answers} stop within {found.most} tokens, "
                f"median length {found.median:g}, longest that stops {found.longest}, {found.seconds:.0f} s"
            )
        return 0
    if options.what == "bits":
        with Llama.load(options.model, threads=options.threads) as llama:
            costs = [bits(llama, path) for path in options.data]
        if options.json:
            print(json.dumps([{**asdict(cost), "per_byte": cost.per_byte} for cost in costs], ensure_ascii=False))
        for cost in () if options.json else costs:
            print(f"{cost.file}: {cost.per_byte:.4f} bits per byte ({cost.bytes:,} bytes, {cost.tokens:,} tokens)")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        to = options.to or Path(folder)
        sides = same(options.model, options.data, options.prompts, options.tokens, to, options.threads, options.quant)
    if options.json:
        print(json.dumps([{**asdict(side), "ties": len(side.ties)} for side in sides]))
    for side in () if options.json else sides:
        equal = side.prompts - len(side.differences)
        print(f"{side.name:16} {equal} of {side.prompts} equal, {len(side.ties)} more differ at a tie")
        for each in side.differences:
            apart = "one ends" if each.gap is None else f"the reference's top two are {each.gap:.4f} apart"
            print(f"    prompt {each.prompt}, token {each.at}: {each.token} for {each.reference}, {apart}")
    return int(any(len(side.ties) < len(side.differences) for side in sides))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    for name, model in (("stops", "MODEL"), ("bits", "MODEL"), ("same", "RUN")):
        part = parts.add_parser(name)
        part.add_argument("model", metavar=model)
        part.add_argument("--threads", type=int, default=1)
        part.add_argument("--json", action="store_true")
        if name == "bits":
            part.add_argument("data", type=Path, nargs="+", metavar="TEXT.jsonl")
            continue
        part.add_argument("data", type=Path, metavar="PROMPTS.jsonl")
        part.add_argument("--prompts", type=int, default=100 if name == "stops" else 20)
        if name == "stops":
            part.add_argument("--max-tokens", type=int, default=512)
            continue
        part.add_argument("--tokens", type=int, default=32)
        part.add_argument("--to", type=Path, metavar="FOLDER", help="keep the exported files here")
        part.add_argument("--quant", help="type of the exported matrices (default: as `qafila export` chooses)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
