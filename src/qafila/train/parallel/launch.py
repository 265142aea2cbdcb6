"""Several processes of one command on this machine, as torchrun would start them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO, Final

from qafila.errors import TrainingError

_GRACE: Final = 60.0  # seconds to finish a step and save, once one process has ended badly
_TOLD: Final = 2.0  # seconds in which the first process may tell of the same error itself


def launch(command: Sequence[str], processes: int) -> int:
    """Run ``command`` ``processes`` times; they find each other by environment variables, on the loopback interface.

    The first one has the terminal. SIGINT and SIGTERM go to all of them. When one ends with an error, the others are
    ended too.

    Returns:
        0 when all went well; else the exit status of the first process, where it told why itself.

    Raises:
        TrainingError: another process failed: its number and the last line it wrote.
    """
    from torch._C._distributed_c10d import TCPStore  # as torch.distributed has it; type checkers find it here only

    # The launcher keeps the meeting point, on a port that the system chooses: two runs cannot get the same one.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes)]
        running = []
        try:
            for rank in range(processes):
                running.append(_start(command, rank, processes, store.port, logs[rank]))
            with _forwarding(running):
                return _watch(running, logs)
        finally:
            _end(running)


def _start(command: Sequence[str], rank: int, processes: int, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there already: no process opens one
    }
    environment.setdefault("OMP_NUM_THREADS", "1")
    if rank == 0:
        # A session of its own: Ctrl-C comes from here only, once, and not from the terminal besides.
        return subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603
    return subprocess.Popen(  # noqa: S603
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


@contextlib.contextmanager
def _forwarding(running: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def forward(number: int, _frame: FrameType | None) -> None:
        for process in running:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(running: Sequence[subprocess.Popen[bytes]], logs: Sequence[IO[bytes]]) -> int:
    while True:
        codes = [process.poll() for process in running]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is None:
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.05)
            continue
        # 128 + signal: asked to stop, as the others are; the first one leaves the model, however long it takes.
        asked = (running[failed].returncode or 0) > 128
        with contextlib.suppress(subprocess.TimeoutExpired):
            told = running[0].wait(None if asked else _TOLD)
            if told > 128:
                _wait(running, _GRACE)
            if told > 0:
                return told
        code = running[failed].returncode
        raise TrainingError(f"process {failed} of {len(running)} {_ending(code)}: {_last_line(logs[failed])}")


def _ending(code: int) -> str:
    if code >= 0:
        return f"failed with status {code}"
    return f"was ended by {signal.Signals(-code).name}"


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").splitlines()
    # torch's own threads may complain after the error that ended the process.
    told = [line for line in lines if line.startswith("error: ")]
    left = [line for line in lines if line.strip()]
    return " ".join((told or left or ["it wrote nothing"])[-1].removeprefix("error: ").split())[:500]


def _wait(running: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()
    _wait(running, 5.0)
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


def own_command(arguments: Sequence[str]) -> list[str]:
    """`qafila` with ``arguments``, in the Python that runs this."""
    return [sys.executable, "-P", "-m", "qafila", *arguments]
