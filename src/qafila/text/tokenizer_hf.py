"""Hugging Face's ``tokenizers``: running any ``tokenizer.json`` on it, and writing that file for our vocabularies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from qafila.errors import TokenizerError
from qafila.text.bpe_core import checked_ids, is_panic, one_line, spell, unspell
from qafila.text.tokenizer import Roles, StreamDecoder, Tokenizer

if TYPE_CHECKING:
    import tokenizers

T = TypeVar("T")


def hf_from_json(document: Mapping[str, object]) -> tokenizers.Tokenizer:
    """A ``tokenizers`` object for a ``tokenizer.json``, without truncation and padding.

    Raises:
        TokenizerError: the library does not take it.
    """
    import tokenizers

    def make() -> tokenizers.Tokenizer:
        made = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", **document}))
        made.no_truncation()
        made.no_padding()
        return made

    return _ask(make, "tokenizer.json: the tokenizers library does not take it")


def _ask(call: Callable[[], T], refusal: str) -> T:
    """What the library answers; its errors and panics become a `TokenizerError`."""
    try:
        return call()
    except BaseException as error:
        if isinstance(error, Exception) or is_panic(error):
            raise TokenizerError(f"{refusal}: {one_line(error)}") from None
        raise


class HuggingFaceTokenizer(Tokenizer):
    """Any ``tokenizer.json``, on ``tokenizers``.

    Args:
        document: the parsed file.
        roles: BOS, EOS and so on.
        gguf: the metadata that it was made of, if it was.
    """

    def __init__(self, document: Mapping[str, Any], roles: Roles, gguf: Mapping[str, object] | None = None) -> None:
        self._document = dict(document)
        self._gguf = gguf
        self._asked = hf_from_json(document)
        self._plain = hf_from_json(document)
        self._plain.encode_special_tokens = True
        vocab: dict[str, int] = self._asked.get_vocab(with_added_tokens=True)
        added = self._asked.get_added_tokens_decoder()
        size = max(vocab.values(), default=-1) + 1
        # An id far beyond the number of tokens is a damaged file, not a vocabulary.
        if size > 16 * len(vocab) + 65_536:
            raise TokenizerError(f"tokenizer.json: {len(vocab)} tokens, but ids up to {size - 1}")
        special = {str(token.content): i for i, token in added.items() if token.special}
        super().__init__(size, special, roles)
        self._vocab = vocab
        self._control = frozenset(special.values())
        self._added = frozenset(added)
        self._texts = [""] * size
        for text, token_id in vocab.items():
            self._texts[token_id] = text
        types = _types(document.get("decoder"))
        self._bytes_decoder = types == {"ByteLevel"}
        self._spaces_decoder = "ByteFallback" in types

    def _encode(self, text: str, special: bool, continuation: bool) -> list[int]:
        run = self._asked if special else self._plain
        if continuation and self._document.get("normalizer") and self._spaces_decoder:
            raise TokenizerError(
                "tokenizer.json: this vocabulary cannot go on from earlier tokens without a space in front"
            )
        encoded = _ask(
            lambda: run.encode(text, add_special_tokens=False), "text: the tokenizers library cannot encode it"
        )
        return encoded.ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """See `Tokenizer.decode`."""
        known = checked_ids(ids, self.vocab_size)
        if self._bytes_decoder:
            hidden = self._control if skip_special else frozenset()
            return b"".join([self._table[i] for i in known if i not in hidden]).decode("utf-8", "replace")
        return self._show(list(known), skip_special)

    def _show(self, ids: list[int], skip_special: bool) -> str:
        return _ask(
            lambda: self._asked.decode(ids, skip_special_tokens=skip_special),
            "decode: the tokenizers library fails at these ids",
        )

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        text = self._texts[checked_ids((token_id,), self.vocab_size)[0]]
        if token_id in self._added:
            return text.encode()
        if self._bytes_decoder:
            data = unspell(text)
            return text.encode() if data is None else data
        if self._spaces_decoder:
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                return bytes.fromhex(text[3:5])
            return text.replace("\u2581", " ").encode()
        return self._show([token_id], False).encode()

    def token_text(self, token_id: int) -> str:
        """See `Tokenizer.token_text`."""
        return self._texts[checked_ids((token_id,), self.vocab_size)[0]]

    def token_id(self, text: str) -> int | None:
        """See `Tokenizer.token_id`."""
        if text in self.special_tokens:
            return self.special_tokens[text]
        spelled = text
        if self._bytes_decoder:
            spelled = spell(text.encode("utf-8", "surrogatepass"))
        elif self._spaces_decoder:
            spelled = text.replace(" ", "\u2581")
        return self._vocab.get(spelled, self._vocab.get(text))

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """See `Tokenizer.stream`."""
        if self._bytes_decoder:
            from qafila.text.bpe import ByteStream

            return ByteStream(self._table, self._control if skip_special else frozenset())
        return ReplayStream(self, skip_special)

    @cached_property
    def _table(self) -> list[bytes]:
        return [self.token_bytes(i) for i in range(self.vocab_size)]

    def to_tokenizer_json(self) -> dict[str, object]:
        """See `Tokenizer.to_tokenizer_json`."""
        return dict(self._document)

    def to_gguf(self) -> dict[str, object]:
        """See `Tokenizer.to_gguf`."""
        return super().to_gguf() if self._gguf is None else dict(self._gguf)

    @property
    def _kind(self) -> str:
        return "a tokenizer.json of its own kind"


class ReplayStream(StreamDecoder):
    """Streams a decoder of which nothing is known, by decoding all ids again at each step."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token_id: int) -> str:
        """See `StreamDecoder.push`."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids, skip_special=self._skip)
        sure = text.rstrip("\ufffd")
        return self._show(sure) if sure.startswith(self._shown) else ""

    def finish(self) -> str:
        """See `StreamDecoder.finish`."""
        rest = self._show(self._tokenizer.decode(self._ids, skip_special=self._skip))
        self._ids, self._shown = [], ""
        return rest

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._shown = text
        return new


def _types(step: object) -> set[str]:
    if not isinstance(step, dict):
        return set()
    inner = step.get("decoders")
    if isinstance(inner, list):
        return set().union(*map(_types, inner))
    return {str(step.get("type"))}


def added_token(token_id: int, content: str, special: bool) -> dict[str, object]:
    """One entry of ``added_tokens``."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **plain, "special": special}


def template_with_bos(content: str, token_id: int) -> dict[str, object]:
    """The ``post_processor`` that puts a BOS in front."""

    def sequence(name: str) -> list[object]:
        kind = 0 if name == "A" else 1
        return [{"SpecialToken": {"id": content, "type_id": kind}}, {"Sequence": {"id": name, "type_id": kind}}]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A"),
        "pair": sequence("A") + sequence("B"),
        "special_tokens": {content: {"id": content, "ids": [token_id], "tokens": [content]}},
    }


def byte_level_document(
    tokens: Sequence[bytes],
    special_tokens: Mapping[str, int],
    added_tokens: Mapping[str, int],
    pre_tokenizer: Mapping[str, object],
    merges: Sequence[tuple[str, str]],
    ignore_merges: bool,
    roles: Roles,
) -> dict[str, object]:
    """The ``tokenizer.json`` of a byte-level vocabulary; the arguments are those of `qafila.text.bpe.ByteLevelBPE`."""
    added = {i: (text, True) for text, i in special_tokens.items()}
    added |= {i: (text, False) for text, i in added_tokens.items()}
    vocab = {spell(data): i for i, data in enumerate(tokens) if data and i not in added}
    # Behind the vocabulary the library numbers them itself; anywhere else they need their place in it.
    if sorted(vocab.values()) != list(range(len(vocab))) or set(added) != set(range(len(vocab), len(tokens))):
        vocab |= {text: i for i, (text, _) in added.items()}
    bos = roles.bos_id if roles.add_bos else None
    template = None
    if bos is not None:
        template = template_with_bos(added[bos][0] if bos in added else spell(tokens[bos]), bos)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, *added[i]) for i in sorted(added)],
        "normalizer": None,
        "pre_tokenizer": dict(pre_tokenizer),
        "post_processor": template,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            "merges": [list(pair) for pair in merges],
        },
    }
