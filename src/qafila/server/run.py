"""Runs an application until a signal stops it: what is running is finished first, a second signal ends it at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from qafila.errors import QafilaError, UsageError
from qafila.server.errors import ApiError
from qafila.server.health import Lifecycle
from qafila.server.settings import Settings

# Seconds that an idle connection is kept: longer than usual proxies and clients keep theirs, so that they close first.
_KEEP_ALIVE = 75
# The engine's thread and the event loop share one interpreter. When both have work, each waits so many seconds for the
# other at most; Python's default of 5 ms is as long as a token takes.
_SWITCH_INTERVAL = 0.0005
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; who connects waits until it is served.

    Raises:
        UsageError: the address is not this machine's, or taken, or not allowed; the message names the option.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"--host: {host!r:.80} is no address of this machine; try 127.0.0.1") from None
    # Clients that are told "localhost" try both kinds; most servers listen on the older.
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # A second server on the same port is told so here, not when the first one has gone.
        listener.listen(0)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"--host {host} --port {port}: {reason}; choose another port (0 for a free one)") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds what listens there."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 (a comparison)
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn, with our way to stop."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self.signal = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops in order; the next one, or one while nothing but loading goes on, at once."""
        if self.signal or self._lifecycle.loading:
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h")  # a progress bar had hidden the cursor
            sys.stderr.flush()
            # Everything that is kept is written whole or not at all, and a thread that loads cannot be stopped.
            os._exit(128 + sig)
        self.signal = sig
        self._lifecycle.stopping = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals come to `handle_exit` meanwhile, and are not raised again afterwards."""
        before = {sig: signal.signal(sig, self.handle_exit) for sig in _SIGNALS}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def run(
    app: FastAPI, listener: socket.socket, settings: Settings, *, preload: str | None, ready: Callable[[], None]
) -> int:
    """Serve until a signal comes; the exit status: 0 after SIGTERM, 130 after Ctrl-C.

    Args:
        app: from `qafila.server.assemble`. listener: from `listen`. settings: its grace.
        preload: the model to load first; /healthz answers meanwhile, /readyz says no. None: all on first use.
        ready: called when requests are welcome.

    Raises:
        QafilaError: the model cannot be loaded.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    # What was imported stays for good: looking through it for garbage again and again would hold everybody up for a
    # tenth of a second. Models come later, so that those which go are still found.
    gc.collect()
    gc.freeze()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE,
        # In whole seconds, it says; any number will do.
        timeout_graceful_shutdown=settings.grace,  # type: ignore[arg-type]
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(_serve(config, app, listener, preload, ready))


async def _serve(
    config: uvicorn.Config, app: FastAPI, listener: socket.socket, preload: str | None, ready: Callable[[], None]
) -> int:
    lifecycle: Lifecycle = app.state.lifecycle
    server = _Server(config, lifecycle)
    lifecycle.loading = preload is not None
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    if preload is not None:
        try:
            await _preload(app, preload)
        except BaseException:
            lifecycle.stopping = server.should_exit = True
            await asyncio.wait({serving})
            raise
        finally:
            lifecycle.loading = False
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if not serving.done():
        ready()
        _tell_systemd("READY=1")
    await serving
    return 130 if server.signal == signal.SIGINT else 0


async def _preload(app: FastAPI, name: str) -> None:
    # What goes wrong here ends the server with one line, so the log need not say it too.
    log = logging.getLogger("qafila.server.models")
    log.disabled = True
    try:
        await app.state.service.models.preload(name)
    except ApiError as error:
        if isinstance(error.__cause__, QafilaError):
            raise error.__cause__ from None
        raise UsageError(error.message) from None
    finally:
        log.disabled = False


def _tell_systemd(state: str) -> None:
    """Tell the service manager, if one started us and asked to be told (sd_notify(3))."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(state.encode(), address)
