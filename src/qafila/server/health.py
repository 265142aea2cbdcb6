"""``/healthz``: the process lives. ``/readyz``: requests are welcome. ``/metrics``: what it counted."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qafila.server.metrics import CONTENT_TYPE, Metrics

router = APIRouter(include_in_schema=False)


@dataclass(slots=True)
class Lifecycle:
    """Where a server is in its life.

    Attributes:
        loading: the default model is not there yet. stopping: no more requests are taken.
    """

    loading: bool = False
    stopping: bool = False


@router.get("/healthz")
async def healthz() -> JSONResponse:
    """Always 200: that it is answered is the answer."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """200 where requests are welcome, 503 while the default model is being loaded, and when the server stops."""
    life: Lifecycle = request.app.state.lifecycle
    status = "stopping" if life.stopping else "loading" if life.loading else "ready"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503, {"Cache-Control": "no-store"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """All metrics, as Prometheus reads them."""
    counted: Metrics | None = request.app.state.metrics
    if counted is None:
        raise HTTPException(404, "no metrics are kept here")
    return Response(counted.text(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})
