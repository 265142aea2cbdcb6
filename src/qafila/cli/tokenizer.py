"""`qafila tokenizer`: learn a vocabulary, extend a model's for another language, and compare vocabularies."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qafila.errors import UsageError

if TYPE_CHECKING:
    from qafila.text.extend_tokenizer import Extension
    from qafila.text.fertility import Fertility
    from qafila.text.text_sources import TextSource
    from qafila.text.train_tokenizer import Progress

command = typer.Typer(
    name="tokenizer", no_args_is_help=True, rich_markup_mode=None, add_completion=False,
    help="Train a tokenizer on your text, extend a model's, and compare how they cut text.",
)  # fmt: skip

_Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Text, .jsonl, .json (.gz, .xz), .parquet, or folders.")
]
_To = Annotated[Path, typer.Option("--to", metavar="FOLDER", help="The folder to write.")]
_Bytes = Annotated[
    str | None, typer.Option("--bytes", metavar="SIZE", help="Read at most this much text: 500000, 10M, 2G.")
]
_Weights = Annotated[
    list[float] | None,
    typer.Option("--weight", help="Share of the bytes, one for each FILE in order; may be repeated."),
]
_Field = Annotated[str | None, typer.Option("--field", metavar="NAME", help="The field of records that has the text.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace what is at FOLDER.")]
_AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
# Enough text to see an old vocabulary's every way of cutting, and seconds to check.
_CHECKED_BYTES = 4_000_000


@command.command()
def train(
    files: _Files,
    to: _To,
    vocab: Annotated[int, typer.Option("--vocab", min=1, help="Ids in all, special tokens among them.")],
    pattern: Annotated[
        str, typer.Option(help="How text is cut before merging: llama-3, llama-4, gpt-2, digits or tekken.")
    ] = "llama-3",
    chat: Annotated[str, typer.Option(help="Special tokens and template: llama-3, chatml or plain.")] = "llama-3",
    reserved: Annotated[
        int | None, typer.Option(min=0, help="Reserved tokens (default: 256 or 16 special tokens in all).")
    ] = None,
    weight: _Weights = None,
    nbytes: _Bytes = None,
    field: _Field = None,
    force: _Force = False,
    as_json: _AsJson = False,
) -> None:
    """Learn a byte-level BPE tokenizer from text and write it as a Hugging Face folder."""
    from qafila.text.train_tokenizer import train_tokenizer

    started = time.perf_counter()
    _check_free(to, force)
    with _shown(quiet=as_json) as progress:
        trained = train_tokenizer(
            _sources(files, weight, field),
            vocab,
            pattern=pattern,
            specials=chat,
            reserved=reserved,
            limit=size(nbytes),
            weighted=bool(weight),
            progress=progress,
        )
        written = trained.save(to, overwrite=force)
    seconds = time.perf_counter() - started
    read = sum(source.nbytes for source in trained.sources)
    if as_json:
        told = {
            "path": str(written),
            "vocab_size": trained.tokenizer.vocab_size,
            "special_tokens": len(trained.specials.tokens),
            "bytes": read,
            "seconds": round(seconds, 3),
            "sources": [vars(source) for source in trained.sources],
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    for source in trained.sources:
        again = f", read {source.passes} times" if source.passes > 1 else ""
        print(f"{source.name}: {source.nbytes / 1e6:,.1f} MB ({source.nbytes / max(1, read):.0%}){again}")
    count = f"{trained.tokenizer.vocab_size:,} tokens, {len(trained.specials.tokens)} of them special"
    print(f"{written}: {count}, in {seconds:,.1f} s")


@command.command()
def extend(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="`default`, `hf:owner/name`, a path, or a pulled name.")
    ],
    files: _Files,
    to: _To,
    pieces: Annotated[int, typer.Option("--pieces", min=1, max=100_000, help="How many new tokens.")],
    script: Annotated[
        str | None, typer.Option(help="What they are written in (default: what most of the text is, but Latin).")
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option("--check", metavar="FILE", help="Text that must keep its tokens; may be repeated."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of the matrices: F32, F16 or BF16 (default: as they are).")
    ] = None,
    weight: _Weights = None,
    nbytes: _Bytes = None,
    field: _Field = None,
    force: _Force = False,
    as_json: _AsJson = False,
) -> None:
    """Add tokens for a script to a model and write it as a Hugging Face folder; what other text becomes stays the same.

    The new tokens' embeddings start as the mean of those of the pieces they replace; then train the model on that text.
    """
    from qafila.text.extend_tokenizer import compare_texts, extend_tokenizer
    from qafila.text.scripts import script_named
    from qafila.text.text_sources import Mixture
    from qafila.weights.export import dtype_named, export, writable_types
    from qafila.weights.extend import extend_checkpoint
    from qafila.weights.hub import resolve
    from qafila.weights.load import open_checkpoint

    started = time.perf_counter()
    quant = dtype_named(dtype) if dtype is not None else None
    if quant is not None and quant not in writable_types("hf"):
        raise UsageError(f"--dtype {quant.name}: hf takes {', '.join(t.name for t in writable_types('hf'))}")
    wanted = script_named(script) if script is not None else None
    sources = _sources(files, weight, field)
    _check_free(to, force)
    checkpoint = open_checkpoint(resolve(model))
    with _shown(quiet=as_json) as progress:
        mixture = Mixture(sources, size(nbytes), weighted=bool(weight))
        extension = extend_tokenizer(checkpoint.tokenizer, mixture, pieces, script=wanted, progress=progress)
        agreements = []
        for source in [*sources, *_sources(check or [], None, field)]:
            progress(f"checking {source.name}", mixture.nbytes)
            agreements.append(compare_texts(extension, _first(source.texts(), _CHECKED_BYTES)))
        progress("writing", mixture.nbytes)
        written = export(extend_checkpoint(checkpoint, extension), to, "hf", dtype=quant, overwrite=force)
    same = sum(found.same_lines for found in agreements)
    before = sum(found.tokens_before for found in agreements)
    after = sum(found.tokens_after for found in agreements)
    if as_json:
        told = {
            "path": str(written),
            "script": extension.script.name,
            "pieces": len(extension.replaces),
            "vocab_size": extension.new.vocab_size,
            "bytes": mixture.nbytes,
            "lines_unchanged": same,
            "script_tokens_before": before,
            "script_tokens_after": after,
            "seconds": round(time.perf_counter() - started, 3),
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    label = extension.script.label
    print(f"new {label} tokens: {len(extension.replaces):,} ({_examples(extension)} ...)")
    print(f"{same:,} lines without {label}: cut as before; lines with it: {before:,} tokens before, {after:,} now")
    print(f"{written}: {extension.new.vocab_size:,} tokens; train it on {label} text before you use it for that")


@command.command()
def fertility(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="TOKENIZER... FILE...", help="Models or tokenizer files; then texts, known by how they end."
        ),
    ],
    nbytes: _Bytes = None,
    field: _Field = None,
    as_json: _AsJson = False,
) -> None:
    """Tokens per word, bytes and characters per token, and words kept whole, by language and tokenizer."""
    from qafila.cli.tokenize import open_tokenizer
    from qafila.text.fertility import measure
    from qafila.text.text_sources import Mixture

    split = next((i for i, name in enumerate(arguments) if _is_text(name)), len(arguments))
    names, files = arguments[:split], [Path(name) for name in arguments[split:]]
    if not names:
        raise UsageError(f"{arguments[0]}: is text; name a model or tokenizer in front of it, such as default")
    if not files:
        raise UsageError(f"{arguments[-1]}: no text was named; give files that end in .txt, .md, .jsonl (.gz, .xz)")
    tokenizers = [open_tokenizer(name) for name in names]
    mixture = Mixture(_sources(files, None, field), size(nbytes))
    tables = measure(tokenizers, mixture.chunks())
    if as_json:
        rows = [
            {"tokenizer": name, "vocab_size": tokenizer.vocab_size, "languages": _reports(table)}
            for name, tokenizer, table in zip(names, tokenizers, tables, strict=True)
        ]
        print(json.dumps({"bytes": mixture.nbytes, "tokenizers": rows}, ensure_ascii=False))
        return
    _print_table(names, [tokenizer.vocab_size for tokenizer in tokenizers], tables)


def size(text: str | None) -> int | None:
    """Bytes that an option says: digits, and k, M or G behind them.

    Raises:
        UsageError: it says something else.
    """
    if text is None:
        return None
    plain = text.strip().lower().removesuffix("b")
    digits = plain.rstrip("kmg")
    try:
        found = int(float(digits) * _UNITS[plain[len(digits) :]])
    except (ValueError, KeyError, OverflowError):
        found = 0
    if found < 1:
        raise UsageError(f"--bytes {text}: is written as a number of bytes, or like 500k, 10M or 2G")
    return found


def _check_free(folder: Path, force: bool) -> None:
    """What would be refused after minutes of learning is refused before them."""
    if not force and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: already exists; name another folder, or use --force to replace it")


def _sources(files: Sequence[Path], weights: Sequence[float] | None, field: str | None) -> list[TextSource]:
    from qafila.text.text_sources import TextSource

    if weights and len(weights) != len(files):
        raise UsageError(f"--weight: {len(weights)} given for {len(files)} files; give one for each, in their order")

    def reader(file: Path) -> TextSource:
        return TextSource(str(file), lambda: _texts(file, field))

    made = [reader(file) for file in files]
    for file in files:
        if not file.exists():
            raise UsageError(f"{file}: no such file or folder")
    return [TextSource(s.name, s.texts, w) for s, w in zip(made, weights, strict=True)] if weights else made


def _texts(file: Path, field: str | None) -> Iterator[str]:
    """What is written in a file or folder: texts as they are; of conversations what each one said."""
    from qafila.data.examples import read_examples
    from qafila.data.problems import Problems

    problems = Problems()
    read = read_examples(file, problems=problems)
    if field is not None:
        read = read_examples(file, "text", problems, fields={"text": field})
    for example in read:
        if example.kind == "text":
            yield example.text
        else:
            yield "\n".join(message.text for message in (*example.messages, *example.chosen))
    problems.check(str(file))


def _first(texts: Iterator[str], nbytes: int) -> Iterator[str]:
    for text in texts:
        yield text[:nbytes]
        nbytes -= len(text.encode("utf-8", "surrogatepass"))
        if nbytes <= 0:
            return


def _is_text(name: str) -> bool:
    from qafila.data.records import kind_of

    path = Path(name)
    if path.is_dir():
        known = ("config.json", "params.json", "tokenizer.json", "tokenizer.model")
        return not any((path / file).exists() for file in known) and not list(path.glob("*.gguf"))
    return path.name not in ("tokenizer.json", "tokenizer.model") and path.is_file() and kind_of(path) is not None


def _examples(extension: Extension) -> str:
    new, first = extension.new, extension.old.vocab_size
    words = (new.token_bytes(i).decode("utf-8", "replace").strip() for i in range(first, new.vocab_size))
    return ", ".join(islice((word for word in words if len(word) > 2), 6))


def _reports(table: dict[str, Fertility]) -> dict[str, Any]:
    return {language: row.report() for language, row in table.items()}


def _print_table(names: Sequence[str], sizes: Sequence[int], tables: Sequence[dict[str, Fertility]]) -> None:
    head = ("LANGUAGE", "TOKENIZER", "VOCABULARY", "TOKENS/WORD", "BYTES/TOKEN", "CHARS/TOKEN", "WHOLE WORDS")
    lines: list[tuple[str, ...]] = [head]
    for language in sorted(tables[0], key=lambda name: -tables[0][name].nbytes):
        for name, count, table in zip(names, sizes, tables, strict=True):
            row = table[language]
            ratios = (row.tokens_per_word, row.bytes_per_token, row.chars_per_token)
            lines.append(
                (language, name, f"{count:,}", *(f"{ratio:.3f}" for ratio in ratios), f"{row.whole_share:.1%}")
            )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        left = (cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True))
        right = (cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True))
        print("  ".join((*left, *right)).rstrip())


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Progress]:
    """A line on a terminal that says what is done; silence elsewhere."""
    from qafila.text.train_tokenizer import silent

    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as status:
        yield lambda stage, nbytes: status.update(f"{stage.replace('[', '(')}: {nbytes / 1e6:,.0f} MB of text")
