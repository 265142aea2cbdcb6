"""Signed checkpoints of the audit log: notes with Ed25519 signatures, in the form that transparency logs use.

The form is C2SP's signed-note (https://c2sp.org/signed-note) around its tlog-checkpoint: lines of text, an empty line,
and lines ``— NAME BASE64`` with four bytes that stand for the key, and the signature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from qafila.errors import FormatError, StorageError, UsageError
from qafila.weights.cache import home

#: What the log calls itself: the first line of every checkpoint, and the name of its key.
ORIGIN = "qafila-agent"
#: The kind of signature in C2SP's signed-note.
_ED25519 = b"\x01"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a note says: so many leaves have this root."""

    size: int
    root: bytes


class Signer:
    """The private key of this machine's log, made when first needed and readable by its owner alone.

    Raises:
        FormatError: the file holds no key. StorageError: it cannot be read or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or home() / "agent-audit.key"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                seed = self._path.read_bytes()
            else:
                seed = os.urandom(32)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(seed)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from None
        if len(seed) != 32:
            raise FormatError(self._path, "is no key of 32 bytes; restore it, or remove it for a new one")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @property
    def public(self) -> str:
        """The public key, for those who verify: keep it where who writes the log cannot change it."""
        return base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def note(self, checkpoint: Checkpoint) -> str:
        """A signed checkpoint."""
        text = f"{ORIGIN}\n{checkpoint.size}\n{base64.b64encode(checkpoint.root).decode()}\n"
        signature = _key_hash(self._key.public_key()) + self._key.sign(text.encode())
        return f"{text}\n— {ORIGIN} {base64.b64encode(signature).decode()}\n"


def public_key(text: str) -> Ed25519PublicKey:
    """A public key as `Signer.public` writes it.

    Raises:
        UsageError: it is none.
    """
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text.strip(), validate=True))
    except (ValueError, binascii.Error):
        raise UsageError("key: is no Ed25519 public key (32 bytes in Base64); `qafila audit key` shows one") from None


def read_note(note: str, key: Ed25519PublicKey) -> Checkpoint | str:
    """What a note says, or why it is not to be believed."""
    text, _, signatures = note.partition("\n\n")
    lines = text.split("\n")
    if len(lines) != 3 or lines[0] != ORIGIN or not lines[1].isascii() or not lines[1].isdigit():
        return "a checkpoint is no note of this log"
    try:
        root = base64.b64decode(lines[2], validate=True)
    except (ValueError, binascii.Error):
        return "a checkpoint has no root"
    for line in signatures.splitlines():
        words = line.split(" ")
        if len(words) != 3 or words[0] != "—" or words[1] != ORIGIN:
            continue
        try:
            raw = base64.b64decode(words[2], validate=True)
            if raw[:4] != _key_hash(key):
                continue
            key.verify(raw[4:], f"{text}\n".encode())
        except (ValueError, binascii.Error, InvalidSignature):
            continue
        return Checkpoint(int(lines[1]), root)
    return f"the checkpoint of {lines[1]} events is not signed with this key"


def _key_hash(key: Ed25519PublicKey) -> bytes:
    return hashlib.sha256(f"{ORIGIN}\n".encode() + _ED25519 + key.public_bytes_raw()).digest()[:4]
