"""``manifest.json`` of a pack: what its tokens are, where they come from, and how to know that they are whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qafila.errors import DataError, FormatError

MANIFEST: Final = "manifest.json"
VERSION: Final = 1
_MOST_BYTES: Final = 1 << 28  # a manifest of a million shards; anything larger is no manifest

_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class PackFacts(_Facts):
    """What has to be known before the first document is added."""

    sequence: int = Field(ge=2, le=1 << 27)
    """Tokens of a row."""
    vocab_size: int = Field(ge=1, le=1 << 31)
    """Ids are below this."""
    tokenizer: _Sha256
    """SHA-256 of the tokenizer, so that no model reads ids that are not its own."""
    objective: str = Field(max_length=100)
    """What the pack was made for: pretrain, sft, fim, dpo or reward."""
    chat_format: str | None = Field(None, max_length=200)
    """Name of the chat format, for chats."""
    mask_rule: str = Field("", max_length=1000)
    """In words: which tokens are learned."""
    pad_id: int = Field(0, ge=0)
    """The id in the unused end of a row; nothing sees it."""
    settings: dict[str, Any] = {}
    """The other settings of the encoder, as plain values."""


class SourceFacts(_Facts):
    """One file that documents came from."""

    path: str = Field(max_length=4096)
    """As the user named it."""
    sha256: _Sha256 | None = None
    """Of the file."""
    bytes: _Count = 0
    """Size of the file."""
    examples: _Count = 0
    """Records that were taken."""
    refused: _Count = 0
    """Records that were malformed, empty, too long, or without anything to learn."""
    documents: _Count = 0
    """Documents made of them. The writer counts these and the next two."""
    tokens: _Count = 0
    """Tokens of those."""
    targets: _Count = 0
    """How many of them are learned."""


class ShardFacts(_Facts):
    """One file of rows."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.bin$")
    """Inside the pack's folder."""
    sha256: _Sha256
    """Of the file."""
    bytes: _Count
    """Size of the file."""
    rows: int = Field(ge=1, lt=1 << 48)
    """Rows in it."""
    documents: int = Field(ge=1, lt=1 << 48)
    """Documents in it, unused ends of rows among them."""


class Manifest(_Facts):
    """All of it; ``tokens + padding = rows * sequence``."""

    version: Literal[1] = 1
    """Of the format."""
    facts: PackFacts
    """What the tokens are."""
    sources: tuple[SourceFacts, ...]
    """Where they come from; a document names its source by number."""
    rows: _Count
    """Rows in all."""
    documents: _Count
    """Documents in all, without unused ends of rows."""
    tokens: _Count
    """Tokens in all, without padding."""
    targets: _Count
    """How many of them are learned."""
    padding: _Count
    """Unused tokens at the ends of rows."""
    shards: tuple[ShardFacts, ...]
    """The files, in order."""

    @model_validator(mode="after")
    def _adds_up(self) -> Manifest:
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("shards: a file is named twice")
        if sum(shard.rows for shard in self.shards) != self.rows:
            raise ValueError("rows: is not the sum over the shards")
        if self.tokens + self.padding != self.rows * self.facts.sequence:
            raise ValueError("tokens and padding do not add up to rows of this sequence")
        if self.targets > self.tokens or self.facts.pad_id >= self.facts.vocab_size:
            raise ValueError("targets: are more than tokens, or pad_id is outside the vocabulary")
        return self

    @property
    def sequence(self) -> int:
        """Tokens of a row."""
        return self.facts.sequence

    @property
    def padding_share(self) -> float:
        """Unused part of the rows, 0 to 1."""
        return self.padding / max(1, self.rows * self.sequence)

    @property
    def identity(self) -> str:
        """SHA-256 of what a training run depends on: the rows and their meaning, not where they lie or came from."""
        facts = self.facts.model_dump(exclude={"settings"})
        content = [VERSION, facts, [(shard.sha256, shard.rows) for shard in self.shards]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """As written to ``manifest.json``."""
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n"

    def check_tokenizer(self, sha256: str, vocab_size: int, *, pack: object, model: str) -> None:
        """Refuse a model that would read other text in these ids.

        Args:
            sha256, vocab_size: of the model's tokenizer.
            pack, model: what the message calls the two.

        Raises:
            DataError: the tokenizers differ.
        """
        if (sha256, vocab_size) != (self.facts.tokenizer, self.facts.vocab_size):
            mine = f"{self.facts.vocab_size} tokens, {self.facts.tokenizer[:12]}"
            raise DataError(
                f"{pack}: was made with another tokenizer ({mine}) than {model} has ({vocab_size} tokens, "
                f"{sha256[:12]}); pack the data again with the right --tokenizer"
            )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the pack in ``folder``.

    Raises:
        DataError: there is no pack.
        FormatError: the manifest is damaged, or of another version: names the file and the field.
    """
    path = folder / MANIFEST
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not be waited for
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder}: holds no pack (no {MANIFEST}); make one with `qafila data pack`") from None
    except (OSError, ValueError) as error:
        raise FormatError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > _MOST_BYTES:
        raise FormatError(path, "is too large for a manifest")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        told = " ".join(first["msg"].removeprefix("Value error, ").split())
        raise FormatError(path, f"{field + ': ' if field else ''}{told}; pack the data again") from None
