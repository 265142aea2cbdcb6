"""``GET /v1/models``: what is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from qafila.server.models import Entry
from qafila.server.service import service_of

router = APIRouter()


@router.get("/v1/models", summary="List the models")
async def list_models(request: Request) -> dict[str, Any]:
    """All models that requests may name, the default one first."""
    return {"object": "list", "data": [_model(entry) for entry in service_of(request).models.entries.values()]}


@router.get("/v1/models/{name:path}", summary="One model")
async def get_model(request: Request, name: str) -> dict[str, Any]:
    """One model by name."""
    return _model(service_of(request).models.find(name))


def _model(entry: Entry) -> dict[str, Any]:
    return {"id": entry.name, "object": "model", "created": entry.created, "owned_by": "qafila"}
