"""`qafila tokenize`: lines of text to token ids, and back."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from qafila.cli import stdin
from qafila.errors import UsageError
from qafila.text.tokenizer import Tokenizer


def open_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a model, or of a tokenizer file alone (tokenizer.json, SentencePiece, tiktoken, GGUF)."""
    from qafila.text.tokenizer import load_tokenizer
    from qafila.weights.hub import resolve
    from qafila.weights.load import gguf_file, gguf_tokenizer, open_checkpoint, sniff_format

    path = Path(source)
    if path.is_file() and path.suffix in (".json", ".model"):
        return load_tokenizer(path)
    if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")) and not any(
        (path / name).is_file() for name in ("config.json", "params.json")
    ):
        return load_tokenizer(path)
    path = resolve(source)
    if sniff_format(path) == "gguf":
        return gguf_tokenizer(gguf_file(path))
    return open_checkpoint(path).tokenizer


def _ids(line: str, number: int, vocab_size: int) -> list[int]:
    words = re.split(r"[\s,\[\]]+", line.strip(" \t\r,[]"))
    if not all(re.fullmatch(r"[0-9]{1,20}", word) for word in words if word):
        raise UsageError(f"line {number}: expected token ids, not {line[:40]!r}")
    values = [int(word) for word in words if word]
    for value in values:
        if value >= vocab_size:
            raise UsageError(f"line {number}: {value} is not a token id (the vocabulary has {vocab_size})")
    return values


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, or a tokenizer file alone.")],
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="Text; without it, lines on standard input.")
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Ids to text: one line of ids gives one text.")] = False,
    bos: Annotated[
        bool, typer.Option("--bos", help="Put the checkpoint's BOS in front, where it asks for one.")
    ] = False,
    special: Annotated[bool, typer.Option("--special", help="Read text like <|eot_id|> as the special token.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array of ids (or one JSON string) a line.")] = False,
) -> None:
    """Turn lines of text into token ids, one line each; with --decode the other way."""
    tokenizer = open_tokenizer(model)
    lines = iter([text]) if text is not None else stdin.lines()
    for number, line in enumerate(lines, 1):
        if decode:
            decoded = tokenizer.decode(_ids(line, number, tokenizer.vocab_size))
            print(json.dumps(decoded, ensure_ascii=False) if as_json else decoded)
            continue
        ids = tokenizer.encode(line, bos=bos, special=special)
        if as_json:
            print(json.dumps(ids))
        elif text is not None and sys.stdout.isatty():
            for token in ids:
                print(f"{token:>8}  {tokenizer.token_bytes(token).decode('utf-8', 'backslashreplace')!r}")
        else:
            print(*ids)
