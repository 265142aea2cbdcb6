"""SentencePiece's ``.model`` file, both ways, without protobuf.

The messages and field numbers are those of `sentencepiece_model.proto` (google/sentencepiece). Only what encoding and
decoding need is read; a file that is written again unchanged keeps all its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from qafila.errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
_BPE = 2


@dataclass(frozen=True)
class Piece:
    """One piece: its text (U+2581 for a space), its score (higher merges first), its type."""

    text: str
    score: float = 0.0
    type: int = NORMAL


@dataclass(frozen=True)
class SentencePieceModel:
    """What a ``.model`` file says.

    Attributes:
        pieces: by id.
        unk_id, bos_id, eos_id, pad_id: -1 for none.
        unk_surface: what an unknown piece decodes to.
        add_dummy_prefix: a space is put in front of every text.
        remove_extra_whitespaces: spaces in front, behind and beyond the first of a run go.
    """

    pieces: tuple[Piece, ...] = field(repr=False)
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    unk_surface: str = " \u2047 "
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False


def parse_model(data: bytes) -> SentencePieceModel:
    """Read a ``.model`` file.

    Raises:
        TokenizerError: it is damaged, or not a BPE model with the identity normaliser, as all of Llama's are.
    """
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise TokenizerError(f"SentencePiece model: damaged (field {number} is no message)")
        if number == 1 and isinstance(value, bytes):
            pieces.append(_piece(value, len(pieces)))
        elif number == 2 and isinstance(value, bytes):
            trainer |= dict(_fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalizer |= dict(_fields(value))
    if not pieces:
        raise TokenizerError("SentencePiece model: no pieces in it; the file is damaged or of another kind")
    kind = _integer(trainer, 3, 1)
    if kind != _BPE:
        raise TokenizerError(f"SentencePiece model: of the type {MODEL_TYPES.get(kind, kind)}; Llama's are BPE")
    if normalizer.get(2):
        raise TokenizerError("SentencePiece model: it normalises text with a character map; Llama's do not")
    if not _integer(normalizer, 5, 1) or _integer(trainer, 24, 0):
        raise TokenizerError(
            "SentencePiece model: it writes spaces in a way of its own; Llama's put U+2581 in front of words"
        )
    surface = trainer.get(44)
    return SentencePieceModel(
        tuple(pieces),
        _integer(trainer, 40, 0),
        _integer(trainer, 41, 1),
        _integer(trainer, 42, 2),
        _integer(trainer, 43, -1),
        surface.decode("utf-8", "replace") if isinstance(surface, bytes) else SentencePieceModel.unk_surface,
        bool(_integer(normalizer, 3, 1)),
        bool(_integer(normalizer, 4, 1)),
    )


def write_model(model: SentencePieceModel) -> bytes:
    """The ``.model`` file of a BPE vocabulary."""
    out = bytearray()
    for piece in model.pieces:
        body = _message(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score)
        out += _message(1, body if piece.type == NORMAL else body + _number(3, piece.type))
    byte_fallback = any(piece.type == BYTE for piece in model.pieces)
    trainer = _number(3, _BPE) + _number(4, len(model.pieces)) + _number(35, byte_fallback)
    for number, value in ((40, model.unk_id), (41, model.bos_id), (42, model.eos_id), (43, model.pad_id)):
        trainer += _number(number, value)
    trainer += _message(44, model.unk_surface.encode())
    for number, token_id in ((45, model.unk_id), (46, model.bos_id), (47, model.eos_id)):
        if token_id >= 0:
            trainer += _message(number, model.pieces[token_id].text.encode())
    normalizer = _message(1, b"identity") + _message(2, b"") + _number(3, model.add_dummy_prefix)
    normalizer += _number(4, model.remove_extra_whitespaces) + _number(5, 1)
    return bytes(out + _message(2, trainer) + _message(3, normalizer))


def _piece(data: bytes, index: int) -> Piece:
    fields = dict(_fields(data))
    text, score = fields.get(1), fields.get(2, b"\0\0\0\0")
    try:
        if not isinstance(text, bytes) or not text or not isinstance(score, bytes) or len(score) != 4:
            raise ValueError
        value: float = struct.unpack("<f", score)[0]
        kind = _integer(fields, 3, NORMAL)
        if value != value or not NORMAL <= kind <= BYTE:
            raise ValueError
        return Piece(text.decode(), value, kind)
    except ValueError:
        raise TokenizerError(f"SentencePiece model: piece {index} is damaged") from None


def _integer(fields: dict[int, int | bytes], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise TokenizerError(f"SentencePiece model: damaged (field {number} is no number)")
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message: an integer for a varint, bytes for anything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise TokenizerError(f"SentencePiece model: damaged (wire type {wire} at byte {at})")
        if size > len(data) - at:
            raise TokenizerError(f"SentencePiece model: damaged or cut short (a field of {size} bytes at byte {at})")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise TokenizerError(f"SentencePiece model: damaged or cut short at byte {at}")


def _encode_varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _encode_varint(number << 3) + _encode_varint(int(value))


def _message(number: int, body: bytes) -> bytes:
    return _encode_varint(number << 3 | 2) + _encode_varint(len(body)) + body
