"""Opening tokenizer files: which kind a file is, and the tiktoken format itself, both ways."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qafila.errors import ModelNotFoundError, TokenizerError
from qafila.text.bpe_patterns import pre_tokenizer_named
from qafila.text.tokenizer_special import llama3_family, llama4_family

if TYPE_CHECKING:
    from qafila.text.bpe import ByteLevelBPE
    from qafila.text.tokenizer import Tokenizer

# The largest published (Llama 4's tokenizer.json) has 28 MB.
_MAX_BYTES = 512 << 20
_LLAMA4_RANKS = 200_000


def open_tokenizer(path: Path) -> Tokenizer:
    """See `qafila.text.tokenizer.load_tokenizer`."""
    try:
        if path.is_dir():
            for name in ("tokenizer.json", "tokenizer.model"):
                if (path / name).is_file():
                    return open_tokenizer(path / name)
            raise ModelNotFoundError(f"{path}: the folder has neither a tokenizer.json nor a tokenizer.model")
        if not path.exists():
            raise ModelNotFoundError(
                f"{path}: no such file; give a tokenizer.json, a tokenizer.model or a folder with one"
            )
        if path.stat().st_size > _MAX_BYTES:
            raise TokenizerError(f"{path}: {path.stat().st_size} bytes are too many for a tokenizer file")
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        return tokenizer_from_bytes(data, read_config(path.parent))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def tokenizer_from_bytes(data: bytes, config: Mapping[str, object] | None = None) -> Tokenizer:
    """Open what a tokenizer file holds.

    Args:
        data: the whole file.
        config: the ``tokenizer_config.json`` beside it, if there is one.
    """
    config = config or {}
    if not data.strip():
        raise TokenizerError("the file is empty")
    if data.startswith(b"GGUF"):
        raise TokenizerError("this is a GGUF file: its tokenizer is read with the model's metadata")
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        from qafila.text.tokenizer_json import tokenizer_from_document

        return tokenizer_from_document(parse_json(data, "tokenizer.json"), config)
    if data.startswith(b"\n"):
        from qafila.text.sentencepiece_bpe import SentencePieceBPE
        from qafila.text.sentencepiece_model import parse_model

        return SentencePieceBPE.from_model(parse_model(data), data)
    return tokenizer_from_tiktoken(data)


def read_config(folder: Path) -> dict[str, object]:
    """A folder's ``tokenizer_config.json``, with ``special_tokens_map.json`` for what it leaves out; {} without."""
    merged: dict[str, object] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        try:
            if file.is_file() and file.stat().st_size <= _MAX_BYTES:
                merged |= {k: v for k, v in parse_json(file.read_bytes(), str(file)).items() if v is not None}
        except OSError as error:
            raise TokenizerError(f"{file}: cannot be read: {error.strerror or error}") from None
    return merged


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        TokenizerError: the bytes are none.
    """
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{name}: damaged, not JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise TokenizerError(f"{name}: expected an object, found {type(document).__name__}")
    return document


def tokenizer_from_tiktoken(data: bytes) -> ByteLevelBPE:
    """Meta's ``tokenizer.model`` of Llama 3 and 4: a base64 token and its rank a line.

    Which of the two it is, and so the pattern and the special tokens, is told by the number of ranks: 200,000 for
    Llama 4; any other is taken for Llama 3's (128,000).
    """
    from qafila.text.bpe import ByteLevelBPE

    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split()
        try:
            if len(fields) != 2 or len(fields[1]) > 9:
                raise ValueError
            token, rank = base64.b64decode(fields[0], validate=True), int(fields[1])
        except (ValueError, binascii.Error):
            raise TokenizerError(
                f"line {number} is no base64 token and rank; expected a tokenizer.json, SentencePiece or tiktoken file"
            ) from None
        if not token or token in ranks:
            raise TokenizerError(f"line {number}: an empty token, or one that was there before")
        ranks[token] = rank
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"the ranks of the {len(ranks)} tokens are not 0 to {len(ranks) - 1}; the file is damaged")
    if any(bytes([b]) not in ranks for b in range(256)):
        raise TokenizerError("a byte has no token of its own; the file is damaged")
    family = llama4_family() if len(ranks) == _LLAMA4_RANKS else llama3_family()
    return ByteLevelBPE.from_tiktoken(ranks, family, pre_tokenizer_named(family.pre))


def tiktoken_file(tokenizer: ByteLevelBPE, ids: Mapping[bytes, int]) -> bytes:
    """The file for a vocabulary whose ids are its ranks.

    Raises:
        TokenizerError: it would read back as another vocabulary.
    """
    family = llama4_family() if len(ids) == _LLAMA4_RANKS else llama3_family()
    if tokenizer.pre.pattern != pre_tokenizer_named(family.pre).pattern or tokenizer.added_tokens:
        raise TokenizerError("tokenizer: only vocabularies of the Llama 3 and Llama 4 kind can be tiktoken files")
    fixed = {text: len(ids) + i for i, text in enumerate(family.specials)}
    # The reserved ones are named differently from checkpoint to checkpoint, and nothing is written with them.
    moved = [t for t, i in tokenizer.special_tokens.items() if "reserved" not in t and fixed.get(t) != i]
    if sorted(ids.values()) != list(range(len(ids))) or moved or len(tokenizer.special_tokens) > len(fixed):
        raise TokenizerError(
            f"tokenizer: a tiktoken file fixes the ids of the special tokens, and {(moved or ['these'])[0]} has another"
        )
    lines = (base64.b64encode(token) + b" %d" % i for token, i in sorted(ids.items(), key=lambda item: item[1]))
    return b"\n".join(lines) + b"\n"
