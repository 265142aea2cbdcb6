"""A child process watched from outside: its output bounded, its time limited, all of it ended."""

from __future__ import annotations

import contextlib
import os
import re
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

_CHUNK = 1 << 16
_PATIENCE_SECONDS = 2.0  # for what was told to end


@dataclass(frozen=True)
class Ended:
    """What is known of a process that ended: its own exit status, what it reported, and its output."""

    code: int
    report: bytes
    output: str
    timed_out: bool
    truncated: bool
    seconds: float


class _Output:
    """The beginning and the end of a stream, with what lies between left out, in bounded memory."""

    def __init__(self, most: int) -> None:
        self._head_most = most - most // 2
        self._tail_most = most // 2
        self._head, self._tail = bytearray(), bytearray()
        self._all = 0

    def add(self, chunk: bytes) -> None:
        self._all += len(chunk)
        room = self._head_most - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        if len(self._tail) > self._tail_most:
            del self._tail[: len(self._tail) - self._tail_most]

    @property
    def left_out(self) -> int:
        return self._all - len(self._head) - len(self._tail)

    def text(self) -> str:
        between = f"\n[{self.left_out} bytes left out]\n".encode() if self.left_out else b""
        return bytes(self._head + between + self._tail).decode("utf-8", "replace")


def watch(command: Callable[[int, int], list[str]], *, stdin: bytes, seconds: float, output_bytes: int) -> Ended:
    """Run a jail in a session of its own until it ends or its time is over, and end whatever is left of it.

    Args:
        command: gives the command line, told two descriptors of one pipe: for the jail, and for what is around it.
        stdin: what it reads. seconds: of wall time. output_bytes: how much of its output is held.

    Raises:
        OSError: it cannot be started.
    """
    report, write_end = os.pipe()
    other_end = os.dup(write_end)
    started = time.monotonic()
    try:
        child = subprocess.Popen(  # noqa: S603 - the very command that is confined
            command(write_end, other_end),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[write_end, other_end],
            start_new_session=True,
            cwd="/",
            env={"LANG": "C.UTF-8"},
        )
    except BaseException:
        os.close(report)
        raise
    finally:
        os.close(write_end)
        os.close(other_end)
    try:
        output = _Output(output_bytes)
        timed_out = _pump(child, stdin, output, started + seconds)
        took = time.monotonic() - started
        _end(child)
        os.set_blocking(report, False)
        told = b""
        with contextlib.suppress(BlockingIOError):
            told = os.read(report, 4096)
        if first := re.search(rb'"child-pid": (\d+)', told):  # from bubblewrap's --info-fd
            _gone(int(first[1]))
        _drain(child, output)
        return Ended(child.returncode, told, output.text(), timed_out, output.left_out > 0, took)
    finally:
        _end(child)
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        os.close(report)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the jail, which ends what is in it; asked first, for it knows what to wait for."""
    if child.returncode is not None:
        return
    child.terminate()
    try:
        child.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        # Not reaped yet, so its number is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _gone(process: int) -> None:
    """Wait for the end of a process that is not our child: the first of a PID namespace, which is the last to go."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [], _PATIENCE_SECONDS)
    finally:
        os.close(descriptor)


def _pump(child: subprocess.Popen[bytes], stdin: bytes, output: _Output, deadline: float) -> bool:
    """Feed and read until the child ends (False) or the time is over (True)."""
    assert child.stdin is not None
    assert child.stdout is not None
    ended = os.pidfd_open(child.pid)
    left = memoryview(stdin)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            selector.register(child.stdout, selectors.EVENT_READ)
            if left:
                os.set_blocking(child.stdin.fileno(), False)
                selector.register(child.stdin, selectors.EVENT_WRITE)
            else:
                child.stdin.close()
            while True:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                names = {key.fileobj for key, _ in ready}
                if child.stdout in names:
                    chunk = os.read(child.stdout.fileno(), _CHUNK)
                    output.add(chunk)
                    if not chunk:
                        selector.unregister(child.stdout)
                if child.stdin in names:
                    try:
                        left = left[os.write(child.stdin.fileno(), left) :]
                    except BrokenPipeError:
                        left = left[:0]
                    if not left:
                        selector.unregister(child.stdin)
                        child.stdin.close()
                if ended in names:
                    return False
                if time.monotonic() >= deadline:
                    return True
    finally:
        os.close(ended)


def _drain(child: subprocess.Popen[bytes], output: _Output) -> None:
    """What was written before the end; bounded, for the pipe's other end may still be somewhere."""
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        try:
            chunk = os.read(child.stdout.fileno(), _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            return
        output.add(chunk)
