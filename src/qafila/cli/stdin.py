"""Standard input as text: UTF-8, whatever the locale, and one clear line where it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import BinaryIO

from qafila.errors import UsageError


def lines() -> Iterator[str]:
    """Lines without their newline. Only a newline ends a line: a carriage return is text like any other.

    Raises:
        UsageError: a line is not UTF-8; the message has its number.
    """
    for number, line in enumerate(_stream(), 1):
        yield _decoded(line.removesuffix(b"\n"), f"line {number}")


def whole() -> str:
    """All of standard input.

    Raises:
        UsageError: it is not UTF-8.
    """
    return _decoded(_stream().read(), "standard input")


async def typed() -> str:
    """The next line that is typed at the terminal, "" at the end; whoever stops waiting for it has read nothing."""
    import asyncio

    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    return sys.stdin.buffer.readline().decode("utf-8", "replace")


def is_terminal() -> bool:
    """Whether a person is typing."""
    return sys.stdin is not None and sys.stdin.isatty()


def _stream() -> BinaryIO:
    if sys.stdin is None:  # closed by whoever started the program (`<&-`)
        raise UsageError("standard input is closed; give the text as an argument or on a pipe")
    return sys.stdin.buffer


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text (byte {error.start + 1})") from None
