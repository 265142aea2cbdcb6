"""How fast texts become ids, beside the original libraries, one thread, in one run, alternating.

    python benchmarks/tokenizers_speed.py [--data ../shared/data] [--llama3 tokenizer.model]
        [--llama4 tokenizer.model] [--json]

For each vocabulary and language it prints MB/s (10^6 bytes of UTF-8): ours, the original (tiktoken or sentencepiece),
Hugging Face's tokenizers on our exported tokenizer.json. Texts are passages of about 2,000 characters of the books in
the data folder. Medians of five rounds; the ids are checked to be equal before the clock runs.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from qafila.text.tokenizer import Tokenizer, load_tokenizer
from qafila.weights.hub import resolve
from qafila.weights.load import gguf_tokenizer

ROUNDS = 5
Encode = Callable[[str], list[int]]


def passages(path: Path, books: int, size: int = 2000) -> list[str]:
    """Passages of the first books, two megabytes of text at most."""
    found: list[str] = []
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in islice(file, books):
            text = json.loads(line)["text"]
            found += [text[i : i + size] for i in range(0, len(text), size)]
    return found[:1000]


def hugging_face(tokenizer: Tokenizer) -> Encode:
    """The exported tokenizer.json on Hugging Face's library, special tokens as plain text."""
    from tokenizers import Tokenizer as HfTokenizer

    made = HfTokenizer.from_str(json.dumps(tokenizer.to_tokenizer_json()))
    made.encode_special_tokens = True
    return lambda text: list(made.encode(text, add_special_tokens=False).ids)


def rates(encoders: dict[str, Encode], texts: list[str]) -> dict[str, float]:
    """MB/s of each, the median of several rounds in which they take turns."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    seen: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(ROUNDS):
        for name, encode in encoders.items():
            start = time.perf_counter()
            for text in texts:
                encode(text)
            seen[name].append(size / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    """Measure what the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama3", type=Path, help="Llama 3's tokenizer.model")
    parser.add_argument("--llama4", type=Path, help="Llama 4's tokenizer.model")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(__file__).resolve().parents[2] / "shared" / "data",
        help="folder with books_en.jsonl.xz, books_ar.jsonl.xz, models/",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    texts = {name: passages(options.data / f"books_{name}.jsonl.xz", 8) for name in ("en", "ar")}
    vocabularies: dict[str, tuple[Tokenizer, Encode | None]] = {}
    vocabularies["default"] = gguf_tokenizer(resolve("default")), None
    for name in ("llama3", "llama4"):
        path = getattr(options, name)
        if path:
            import tiktoken
            from tiktoken.load import load_tiktoken_bpe

            ours = load_tokenizer(path)
            pattern = ours.pre.pattern  # type: ignore[attr-defined]
            original = tiktoken.Encoding(
                name, pat_str=pattern, mergeable_ranks=load_tiktoken_bpe(str(path)), special_tokens={}
            )
            vocabularies[name] = ours, original.encode_ordinary
    path = options.data / "models" / "llama2_tokenizer.model"
    if path.is_file():
        import sentencepiece

        vocabularies["llama2"] = load_tokenizer(path), sentencepiece.SentencePieceProcessor(model_file=str(path)).encode

    results: dict[str, dict[str, dict[str, float]]] = {}
    if not options.json:
        print(f"{'MB/s':10}{'text':6}{'qafila':>10}{'original':>10}{'tokenizers':>12}")
    for name, (tokenizer, original_encode) in vocabularies.items():
        encoders = {"qafila": tokenizer.encode, "tokenizers": hugging_face(tokenizer)}
        if original_encode is not None:
            encoders["original"] = original_encode
        for language, lines in texts.items():
            for text in lines:
                expected = encoders["qafila"](text)
                assert all(encode(text) == expected for encode in encoders.values()), f"{name}: other ids"
            speed = rates(encoders, lines)
            results.setdefault(name, {})[language] = speed
            if options.json:
                continue
            shown = "".join(
                f"{speed[k]:{w}.1f}" if k in speed else " " * w
                for k, w in (("qafila", 10), ("original", 10), ("tokenizers", 12))
            )
            print(f"{name:10}{language:6}{shown}", flush=True)
    if options.json:
        print(json.dumps({"megabytes_per_second": results}))


if __name__ == "__main__":
    main()
