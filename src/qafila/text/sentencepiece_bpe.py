"""SentencePiece BPE (Llama 1, 2, Code Llama): ids and texts equal to the ``sentencepiece`` library's, without it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from qafila.errors import TokenizerError
from qafila.text.bpe_core import checked_ids
from qafila.text.bpe_merges import canonical_merges, ranked_tokens
from qafila.text.sentencepiece_merge import SPACE, Encode, RankedPieces, ScoredPieces, byte_ids, piece_order
from qafila.text.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
    write_model,
)
from qafila.text.tokenizer import Roles, StreamDecoder, Tokenizer
from qafila.text.tokenizer_special import TokenFinder, looks_like_control

_ESCAPED = re.compile("[\udc80-\udcff]")
_RUNS = re.compile(" {2,}")


class SentencePieceBPE(Tokenizer):
    """A SentencePiece BPE vocabulary.

    Args:
        model: what a ``.model`` file says.
        roles: BOS, EOS and so on.
        source: the file's own bytes, where there is one.
    """

    def __init__(self, model: SentencePieceModel, roles: Roles, source: bytes | None = None) -> None:
        pieces = tuple(
            replace(piece, type=CONTROL) if piece.type == USER_DEFINED and looks_like_control(piece.text) else piece
            for piece in model.pieces
        )
        model = replace(model, pieces=pieces)
        control = {piece.text: i for i, piece in enumerate(pieces) if piece.type in (CONTROL, UNKNOWN)}
        super().__init__(len(pieces), control, roles)
        self.model = model
        self._source = source
        self._hidden = frozenset(i for i, piece in enumerate(pieces) if piece.type == CONTROL)
        self._ids = {piece.text: i for i, piece in enumerate(pieces) if piece.type not in (CONTROL, UNKNOWN)}
        self._table = [_bytes_of(piece, model.unk_surface) for piece in pieces]
        unk_id = next((i for i, piece in enumerate(pieces) if piece.type == UNKNOWN), -1)
        if unk_id < 0:
            if byte_ids(pieces) is None:
                raise TokenizerError("SentencePiece vocabulary: neither an unknown piece nor the 256 byte pieces")
            unk_id = 0
        order = piece_order(pieces)
        self._ranked = None if order is None else RankedPieces(pieces, order, unk_id)
        self._merge: Encode = ScoredPieces(pieces, unk_id).encode if self._ranked is None else self._ranked.encode
        self._always = TokenFinder({p.text: i for i, p in enumerate(pieces) if p.type == USER_DEFINED})
        self._asked = TokenFinder(control)

    @classmethod
    def from_model(cls, model: SentencePieceModel, source: bytes | None = None) -> SentencePieceBPE:
        """The vocabulary of a ``.model`` file; prompts begin with the BOS, which the file itself does not say.

        Raises:
            TokenizerError: two pieces have the same text, or a role falls to no piece.
        """
        if len({piece.text for piece in model.pieces}) != len(model.pieces):
            raise TokenizerError("SentencePiece model: two pieces have the same text; the file is damaged")

        def there(token_id: int) -> int | None:
            # The library takes a role's piece by its name, so an id beyond the vocabulary is one that was left out.
            return token_id if 0 <= token_id < len(model.pieces) else None

        bos = there(model.bos_id)
        roles = Roles(bos, there(model.eos_id), there(model.unk_id), there(model.pad_id), add_bos=bos is not None)
        return cls(model, roles, source)

    @classmethod
    def from_merges(
        cls, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], special: Mapping[str, int], roles: Roles
    ) -> SentencePieceBPE | None:
        """The vocabulary of a ``tokenizer.json``, whose merges become scores; None where they cannot be shown to."""
        ids = {**vocab, **special}
        if len(set(ids.values())) != len(ids) or sorted(ids.values()) != list(range(len(ids))):
            return None
        ranked = ranked_tokens(merges, dict(vocab))
        if ranked is None:
            return None
        scores = {text: -float(place) for place, text in enumerate(ranked[0])}
        pieces = []
        for text, token_id in sorted(ids.items(), key=lambda item: item[1]):
            if text in special:
                pieces.append(Piece(text, 0.0, UNKNOWN if token_id == roles.unk_id else CONTROL))
            elif re.fullmatch("<0x[0-9A-F]{2}>", text):
                pieces.append(Piece(text, 0.0, BYTE))
            else:
                pieces.append(Piece(text, scores.get(text, -float(len(scores) + token_id))))
        made = cls(SentencePieceModel(tuple(pieces)), roles)
        unbuilt = {p.text for p in pieces if p.type == NORMAL and len(p.text) > 1 and p.text not in scores} | ranked[1]
        if made._ranked is None or made._ranked.unbuilt != {text.encode() for text in unbuilt}:
            return None
        # A character that is in longer tokens only does not merge there, in this library it would.
        alone = {p.text for p in pieces if p.type == NORMAL}
        return made if all(letter in alone for text in scores for letter in text) else None

    def _encode(self, text: str, special: bool, continuation: bool) -> list[int]:
        if not special:
            return self._plain(text, self.model.add_dummy_prefix and not continuation)
        ids: list[int] = []
        prefix = self.model.add_dummy_prefix and not continuation
        for part in self._asked.parts(text):
            if isinstance(part, int):
                ids.append(part)
                prefix = self.model.add_dummy_prefix
            else:
                ids += self._plain(part, prefix)
        return ids

    def _plain(self, text: str, prefix: bool) -> list[int]:
        if self.model.remove_extra_whitespaces:
            text = _RUNS.sub(" ", text.lstrip(" "))
        if not text:
            return []
        text = (SPACE if prefix else "") + text.replace(" ", SPACE)
        if self.model.remove_extra_whitespaces:
            text = text.rstrip(SPACE)
        ids: list[int] = []
        for part in self._always.parts(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._merge(part)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """See `Tokenizer.decode`; the dummy space in front goes, as SentencePiece has it.

        With ``skip_special`` this is what ``sentencepiece`` decodes (it never shows control pieces).
        """
        known = checked_ids(ids, self.vocab_size)
        start = _Start(self, skip_special)
        data, at = [], 0
        while at < len(known) and start.open:
            data.append(start.take(known[at]))
            at += 1
        hidden = self._hidden if skip_special else frozenset[int]()
        data += [b"" if i in hidden else self._table[i] for i in known[at:]]
        if hidden.isdisjoint(known):
            return _text_of(b"".join(data))
        # A control piece shows nothing, but no character goes on behind it.
        cuts = [0, *(i + 1 for i, token_id in enumerate(known) if token_id in hidden), len(known)]
        return "".join(_text_of(b"".join(data[begin:end])) for begin, end in pairwise(cuts))

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        return self._table[checked_ids((token_id,), self.vocab_size)[0]]

    def token_text(self, token_id: int) -> str:
        """See `Tokenizer.token_text`."""
        return self.model.pieces[checked_ids((token_id,), self.vocab_size)[0]].text

    def token_id(self, text: str) -> int | None:
        """See `Tokenizer.token_id`."""
        found = self.special_tokens.get(text)
        return self._ids.get(text.replace(" ", SPACE)) if found is None else found

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """See `Tokenizer.stream`."""
        return SentencePieceStream(self, skip_special)

    def to_sentencepiece(self) -> bytes:
        """See `Tokenizer.to_sentencepiece`."""
        if self._source is not None:
            return self._source
        if len({piece.text for piece in self.model.pieces}) != len(self.model.pieces):
            raise TokenizerError("tokenizer: two pieces have the same text, which a SentencePiece file cannot hold")
        roles = (self.unk_id, self.bos_id, self.eos_id, self.pad_id)
        unk, bos, eos, pad = (-1 if i is None else i for i in roles)
        return write_model(replace(self.model, unk_id=unk, bos_id=bos, eos_id=eos, pad_id=pad))

    def to_tokenizer_json(self) -> dict[str, object]:
        """See `Tokenizer.to_tokenizer_json`."""
        if self._ranked is None:
            raise TokenizerError(
                "tokenizer: pieces of equal score merge leftmost first, which tokenizer.json cannot say"
            )
        pieces = self.model.pieces
        if any(piece.type == USER_DEFINED for piece in pieces) or byte_ids(pieces) is None:
            raise TokenizerError(
                "tokenizer: tokenizer.json cannot say what user-defined pieces, or a vocabulary without byte pieces,"
                " mean here; export to GGUF or to a SentencePiece model"
            )
        merges = [(a.decode(), b.decode()) for a, b in canonical_merges(self._piece_ranks(), characters=True)]
        from qafila.text.sentencepiece_json import sentencepiece_json

        return sentencepiece_json(self, merges)

    def _piece_ranks(self) -> dict[bytes, int]:
        assert self._ranked is not None
        partial = self._ranked.characters
        return {token: rank for token, rank in self._ranked.ranks.items() if token not in partial}

    def to_gguf(self) -> dict[str, object]:
        """See `Tokenizer.to_gguf`."""
        from qafila.text.tokenizer_gguf import sentencepiece_metadata

        return sentencepiece_metadata(self)

    @property
    def _kind(self) -> str:
        return "a SentencePiece vocabulary"


def _bytes_of(piece: Piece, unk_surface: str) -> bytes:
    if piece.type == BYTE:
        if not re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece.text):
            raise TokenizerError(f"SentencePiece vocabulary: {piece.text[:20]!r} is no byte piece")
        return bytes.fromhex(piece.text[3:5])
    if piece.type == UNKNOWN:
        return unk_surface.encode()
    text = piece.text if piece.type == CONTROL else piece.text.replace(SPACE, " ")
    return text.encode("utf-8", "replace")


def _text_of(data: bytes) -> str:
    return _one_by_one(data.decode("utf-8", "surrogateescape"))


def _one_by_one(text: str) -> str:
    """One U+FFFD for each byte that is part of no character: SentencePiece's way."""
    return text if text.isascii() else _ESCAPED.sub("\ufffd", text)


class _Start:
    """The begin of a text, where a space goes: open until something was seen of the text or that space has gone."""

    def __init__(self, tokenizer: SentencePieceBPE, skip_special: bool) -> None:
        model = tokenizer.model
        self.open = model.add_dummy_prefix or model.remove_extra_whitespaces
        self._pieces, self._table = model.pieces, tokenizer._table
        self._once, self._skip = not model.remove_extra_whitespaces, skip_special

    def take(self, token_id: int) -> bytes:
        """The bytes of one piece."""
        piece = self._pieces[token_id]
        if piece.type == CONTROL:
            return b"" if self._skip else self._table[token_id]
        data = self._table[token_id]
        if self.open and piece.type not in (BYTE, UNKNOWN) and piece.text.startswith(SPACE):
            data = data[1:]
            self.open = not (data or self._once)
        elif data:
            self.open = False
        return data


class SentencePieceStream(StreamDecoder):
    """Streams a SentencePiece vocabulary."""

    def __init__(self, tokenizer: SentencePieceBPE, skip_special: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._start = _Start(tokenizer, skip_special)

    def push(self, token_id: int) -> str:
        """See `StreamDecoder.push`."""
        checked_ids((token_id,), self._tokenizer.vocab_size)
        ends = self._skip and self._tokenizer.model.pieces[token_id].type == CONTROL
        return _one_by_one(self._decoder.decode(self._start.take(token_id), ends))

    def finish(self) -> str:
        """See `StreamDecoder.finish`."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        self._start = _Start(self._tokenizer, self._skip)
        return _one_by_one(text)
