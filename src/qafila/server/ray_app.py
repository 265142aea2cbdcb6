"""Replicas of a whole server under Ray Serve: the same application in each, behind one address.

Ray's proxy gives each request to the less loaded of two replicas (its "power of two choices" router). So a conversation
may come to a replica that has not read its beginning, and reads it again; the answer is the same. Ray has a router that
follows prefixes, in ``ray.serve.llm``, for the requests of that API alone. Each replica has its own engine, models,
limits and metrics: limits of keys and of requests under way count within a replica.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qafila.errors import QafilaError, UsageError

_NAME = "qafila"


@contextmanager
def replicas(
    build: Callable[[], Any],
    *,
    count: int,
    host: str = "127.0.0.1",
    port: int = 8000,
    cpus: float = 1.0,
    max_ongoing: int = 256,
    address: str | None = None,
) -> Iterator[str]:
    """Serve as many copies of an application as asked for, for the length of the block; the URL.

    Args:
        build: makes the application, in each replica; a function that cloudpickle can send there. What it opens must be
            there on every machine of the cluster.
        count: of replicas. cpus: that each replica takes; the threads of its engine are the application's own choice.
        host, port: where Ray's proxy listens.
        max_ongoing: requests that one replica is given at once; the others wait in the proxy.
        address: of a Ray cluster (``auto``: this machine's); None for one of its own, which ends with the block.

    Raises:
        UsageError: Ray is not installed, or a number makes no sense. QafilaError: the replicas do not come up.
    """
    if count < 1:
        raise UsageError(f"--replicas: must be 1 or more, not {count}")
    try:
        # By name: Ray may not be there when types are checked, and its own are partial.
        ray: Any = importlib.import_module("ray")
        serve: Any = importlib.import_module("ray.serve")
    except ModuleNotFoundError:
        raise UsageError("--ray: Ray is not installed; `pip install 'ray[serve]'` brings it") from None
    # Ray would tell its makers of every cluster.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = not ray.is_initialized()
    if own:
        options: dict[str, Any] = {"address": address}
        if address is None:
            # One replica a part, the controller and the proxy need no processor of their own for scheduling.
            options = {"num_cpus": max(1, round(count * cpus)), "include_dashboard": False}
        ray.init(log_to_driver=False, configure_logging=False, **options)
    try:
        serve.start(http_options={"host": host, "port": port})
        deployment = serve.deployment(
            name=_NAME,
            num_replicas=count,
            ray_actor_options={"num_cpus": cpus},
            max_ongoing_requests=max_ongoing,
        )(serve.ingress(build)())
        try:
            serve.run(deployment.bind(), name=_NAME, route_prefix="/")
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise QafilaError(f"--ray: the replicas do not come up ({lines[0]:.300})") from error
        yield f"http://{host}:{port}"
    finally:
        if own:
            serve.shutdown()
            ray.shutdown()
        else:
            serve.delete(_NAME)


def serve_replicas(
    build: Callable[[], Any],
    announce: Callable[[str], None],
    *,
    count: int,
    host: str,
    port: int,
    cpus: float,
    address: str | None,
) -> int:
    """`replicas` until SIGTERM or Ctrl-C; the exit status: 0 or 130.

    Args:
        announce: called with the URL when all replicas are there. The rest is as in `replicas`.

    Raises:
        UsageError, QafilaError: as `replicas`; or the port is 0, which Ray's proxy cannot choose.
    """
    if port == 0:
        raise UsageError("--port 0 does not go with --ray; name a port")
    with replicas(build, count=count, host=host, port=port, cpus=cpus, address=address) as url:
        announce(url)
        stopped = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        try:
            stopped.wait()
        except KeyboardInterrupt:
            return 130
        finally:
            signal.signal(signal.SIGTERM, before)
    return 0
