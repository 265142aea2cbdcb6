"""How fast text becomes packed tokens, beside ``datasets`` and ``transformers``, and how fast packs are read.

    python benchmarks/data_speed.py [--peer PYTHON] [--data ../shared/data] [--megabytes 40] [--rounds 3] [--json]

PYTHON is the interpreter of an environment with ``datasets`` and ``transformers`` in it (`python -m venv peer;
peer/bin/pip install datasets transformers`); without it only our figures are shown. Both read one JSONL file of English
and Arabic passages of log-normal length, with two processes, in turns; medians. Ours goes on to pack rows of 2048
tokens, hash and write them; the peer stops at token ids in its cache. The same tokens must come
out, but for what no row of ours can teach (a last token alone).

The loader is measured alone, on one thread: rows of that pack, and of one with rows of 512, from disk (in the page
cache) to batches with targets.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qafila.data.encode import EncoderSettings
from qafila.data.loader import Loader, Source
from qafila.data.pack import RawSource, pack_sources
from qafila.data.shards import Pack
from qafila.text.tokenizer import Tokenizer
from qafila.weights.hub import resolve
from qafila.weights.load import gguf_tokenizer

PROCESSES = 2


def write_passages(data: Path, target: Path, megabytes: float) -> float:
    """Half English, half Arabic (by bytes), in random order; gives the size of the text in MB."""
    random = np.random.default_rng(0)
    passages: list[str] = []
    for name in ("en", "ar"):
        left = megabytes * 5e5
        with lzma.open(data / f"books_{name}.jsonl.xz", "rt", encoding="utf-8") as file:
            for line in file:
                text, at = json.loads(line)["text"], 0
                while at < len(text) and left > 0:
                    size = int(np.exp(random.normal(np.log(1500), 1.0))) + 1
                    passages.append(text[at : at + size])
                    left -= len(passages[-1].encode())
                    at += size
    order = random.permutation(len(passages))
    with target.open("w", encoding="utf-8") as out:
        for number in order.tolist():
            out.write(json.dumps({"text": passages[number]}, ensure_ascii=False) + "\n")
    return sum(len(text.encode()) for text in passages) / 1e6


def ours(source: Path, folder: Path, tokenizer: Tokenizer, sequence: int) -> dict[str, Any]:
    """Seconds from the file to a pack, and what is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.perf_counter()
    settings = EncoderSettings("pretrain", sequence)
    made = pack_sources([RawSource(source)], folder, settings, tokenizer, workers=PROCESSES).manifest
    return {"seconds": time.perf_counter() - begin, "tokens": made.tokens, "padding": made.padding_share}


def peer(python: str, source: Path, folder: Path, cache: Path, eos: int) -> dict[str, Any]:
    """The same of the peer; its cache is new each time."""
    shutil.rmtree(cache, ignore_errors=True)
    script = Path(__file__).with_name("data_peer.py")
    command = [python, str(script), str(source), str(folder), str(cache), str(eos), str(PROCESSES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the peer failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def loader_rate(folder: Path, sources: int, rows: int, micro_rows: int) -> float:
    """Tokens a second, the median of five."""
    pack = Pack.open(folder)
    mixture = [Source(pack, 1.0 + number, f"source {number}") for number in range(sources)]
    loader = Loader(mixture, rows=rows, micro_rows=micro_rows)
    loader.next_step()
    tokens = rows * pack.manifest.sequence
    steps = max(1, 8_000_000 // tokens)

    def once() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            loader.next_step()
        return steps * tokens / (time.perf_counter() - begin)

    return statistics.median(once() for _ in range(5))


def main() -> None:
    """Measure what the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python with datasets and transformers")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    tokenizer = gguf_tokenizer(resolve("default"))
    assert tokenizer.eos_id is not None
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source, theirs = work / "texts.jsonl", work / "tokenizer"
        megabytes = write_passages(options.data, source, options.megabytes)
        theirs.mkdir()
        (theirs / "tokenizer.json").write_text(json.dumps(tokenizer.to_tokenizer_json()), encoding="utf-8")
        (theirs / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        runs: dict[str, Callable[[], dict[str, Any]]] = {"ours": lambda: ours(source, work / "2048", tokenizer, 2048)}
        if options.peer:
            eos = tokenizer.eos_id
            runs["peer"] = lambda: peer(options.peer, source, theirs, work / "cache", eos)
        seen: dict[str, list[dict[str, Any]]] = {key: [] for key in runs}
        for _ in range(options.rounds):
            for key, run in runs.items():
                seen[key].append(run())
        tokens = [one["tokens"] for key in runs for one in seen[key]]
        # A text one token longer than so many rows loses that token: alone in a document, nothing predicts it.
        assert max(tokens) - min(tokens) < 1e-5 * max(tokens), f"the two disagree on the number of tokens: {tokens}"
        found["text"] = {"megabytes": round(megabytes, 1), "tokens": tokens[0]}
        for key, results in seen.items():
            seconds = statistics.median(one["seconds"] for one in results)
            found[key] = {**results[0], "seconds": round(seconds, 2), "mb_per_second": round(megabytes / seconds, 2)}
        if "peer" in found:
            found["times"] = round(found["peer"]["seconds"] / found["ours"]["seconds"], 2)
        ours(source, work / "512", tokenizer, 512)
        found["loader"] = {
            f"{sequence} x {rows}, {count} sources": round(
                loader_rate(work / str(sequence), count, rows, micro) / 1e6, 1
            )
            for sequence in (512, 2048)
            for count, rows, micro in ((1, 8, 4), (3, 8, 4), (3, 64, 8))
        }
    if options.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
