"""The one interface to every vocabulary a Llama has: text to token ids and back, exactly as the original library does.

`load_tokenizer` opens a file or a folder, `tokenizer_from_gguf` takes the ``tokenizer.ggml.*`` metadata of a GGUF file.
What they return is one of

* `qafila.text.bpe.ByteLevelBPE` (Llama 3, Llama 4, the default model), on tiktoken's core;
* `qafila.text.sentencepiece_bpe.SentencePieceBPE` (Llama 1, 2, Code Llama), on the same core;
* `qafila.text.tokenizer_hf.HuggingFaceTokenizer`: any other ``tokenizer.json``, on Hugging Face's ``tokenizers``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qafila.errors import TokenizerError


@dataclass(frozen=True)
class Roles:
    """Which ids have a part to play, and whether prompts begin with the BOS; see `Tokenizer`."""

    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    add_bos: bool = False


class StreamDecoder(ABC):
    """Turns ids into text as they come, never showing half a character.

    The pieces that `push` and `finish` return join to what `Tokenizer.decode` gives for all the ids at once.
    """

    @abstractmethod
    def push(self, token_id: int) -> str:
        """Take one id; return the text that is certain now (perhaps none)."""

    @abstractmethod
    def finish(self) -> str:
        """Return what was held back (bytes that became no character are U+FFFD); the decoder is as new afterwards."""


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        vocab_size: ids are ``0 .. vocab_size - 1``.
        bos_id: the id that begins a sequence, if there is one.
        eos_id: the id that ends a sequence, if there is one.
        unk_id: the id for what the vocabulary cannot write, if there is one.
        pad_id: the id that fills a batch, if there is one.
        add_bos: the checkpoint asks for a BOS in front of a prompt.
        special_tokens: the control tokens, by their text.
        roles: the same ids and `add_bos` in one.
    """

    roles: Roles
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    pad_id: int | None
    add_bos: bool
    special_tokens: Mapping[str, int]

    def __init__(self, vocab_size: int, special_tokens: Mapping[str, int], roles: Roles) -> None:
        for name in ("bos", "eos", "unk", "pad"):
            value: int | None = getattr(roles, f"{name}_id")
            if value is not None and not 0 <= value < vocab_size:
                raise TokenizerError(
                    f"tokenizer: the {name} id {value} is outside the vocabulary of {vocab_size} tokens"
                )
        if roles.add_bos and roles.bos_id is None:
            raise TokenizerError("tokenizer: it asks for a BOS in front of every prompt but names no BOS token")
        self.roles = roles
        self.vocab_size = vocab_size
        self.special_tokens = MappingProxyType(dict(special_tokens))
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = roles.bos_id, roles.eos_id, roles.unk_id, roles.pad_id
        self.add_bos = roles.add_bos

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """Ids of ``text``.

        Args:
            text: any text that has a UTF-8 form.
            bos: begin with the BOS, once, if the checkpoint asks for one (`add_bos`); never twice.
            special: text that spells a special token becomes that token; without it, such text is plain text.

        Raises:
            TokenizerError: ``text`` holds half a surrogate pair, so it is no Unicode text.
        """
        return self._with_bos(self._encode(check_text(text), special, False), bos, special)

    def encode_continuation(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of text that goes on from earlier tokens: as `encode`, without SentencePiece's dummy space in front."""
        return self._encode(check_text(text), special, True)

    def _with_bos(self, ids: list[int], bos: bool, special: bool) -> list[int]:
        if bos and self.add_bos and self.bos_id is not None and not (special and ids[:1] == [self.bos_id]):
            ids.insert(0, self.bos_id)
        return ids

    @abstractmethod
    def _encode(self, text: str, special: bool, continuation: bool) -> list[int]: ...

    @abstractmethod
    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of ``ids``, exactly; bytes that are no UTF-8 become U+FFFD.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token (of a special token: its text in UTF-8)."""

    @abstractmethod
    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for ids that come one by one."""

    @abstractmethod
    def token_id(self, text: str) -> int | None:
        """The id of the special or ordinary token whose text is ``text``, if there is one."""

    @abstractmethod
    def to_tokenizer_json(self) -> dict[str, object]:
        """Hugging Face's ``tokenizer.json``, with equal ids.

        Raises:
            TokenizerError: that format cannot express this vocabulary.
        """

    def to_tokenizer_config(self) -> dict[str, object]:
        """Hugging Face's ``tokenizer_config.json`` (without the chat template), for ``AutoTokenizer``."""
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": self.add_bos,
            "add_eos_token": False,
        }
        for name in ("bos", "eos", "unk", "pad"):
            token_id: int | None = getattr(self, f"{name}_id")
            if token_id is not None:
                config[f"{name}_token"] = self.token_text(token_id)
        return config

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """How the vocabulary itself writes a token (``Ġthe``, ``▁the``, ``<0x0A>``, ``<|eot_id|>``)."""

    def to_gguf(self) -> dict[str, object]:
        """The ``tokenizer.ggml.*`` metadata, with equal ids.

        Raises:
            TokenizerError: GGUF has no name for this kind of vocabulary.
        """
        raise TokenizerError(f"tokenizer: GGUF cannot express {self._kind}; export to Hugging Face's format instead")

    def to_sentencepiece(self) -> bytes:
        """A SentencePiece ``.model`` file.

        Raises:
            TokenizerError: this is no SentencePiece vocabulary.
        """
        raise TokenizerError(f"tokenizer: {self._kind} is no SentencePiece vocabulary; export it as tokenizer.json")

    def to_tiktoken(self) -> bytes:
        """A tiktoken file (Meta's ``tokenizer.model`` of Llama 3 and 4).

        Raises:
            TokenizerError: this is no Llama 3 or Llama 4 vocabulary.
        """
        raise TokenizerError(f"tokenizer: {self._kind} cannot be a tiktoken file; export it as tokenizer.json")

    @property
    @abstractmethod
    def _kind(self) -> str:
        """A few words for messages."""


def check_text(text: str) -> str:
    """Return ``text``, or raise `TokenizerError` where it has no UTF-8 form (half a surrogate pair)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text: character {error.start} is U+{ord(text[error.start]):04X}, half a surrogate pair and no character;"
            " decode the text as UTF-8 first"
        ) from None
    return text


def load_tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer: a ``tokenizer.json``, a ``tokenizer.model`` (SentencePiece or tiktoken), or a folder with one.

    The kind is told by what is in the file, not by its name.

    Raises:
        ModelNotFoundError: nothing is there.
        TokenizerError: the file is damaged, or of a kind that cannot be used.
    """
    from qafila.text.tokenizer_files import open_tokenizer

    return open_tokenizer(Path(path))


def tokenizer_from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer that a GGUF file carries.

    Args:
        metadata: the ``tokenizer.ggml.*`` keys with plain Python values (other keys are ignored).

    Raises:
        TokenizerError: a key is missing or of the wrong type, or the vocabulary is of a kind that is not known.
    """
    from qafila.text.tokenizer_gguf import tokenizer_from_metadata

    return tokenizer_from_metadata(metadata)
