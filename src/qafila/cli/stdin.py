"""Standard input as text: UTF-8, whatever the locale, and one clear line where it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from qafila.errors import UsageError


def lines() -> Iterator[str]:
    """Lines without their newline. Only a newline ends a line: a carriage return is text like any other.

    Raises:
        UsageError: a line is not UTF-8; the message has its number.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield _decoded(line.removesuffix(b"\n"), f"line {number}")


def whole() -> str:
    """All of standard input.

    Raises:
        UsageError: it is not UTF-8.
    """
    return _decoded(sys.stdin.buffer.read(), "standard input")


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text (byte {error.start + 1})") from None
