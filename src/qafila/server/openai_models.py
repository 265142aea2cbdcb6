"""``GET /v1/models``: what is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from qafila.server.anthropic_models import asked_by_anthropic, model_info, model_page
from qafila.server.models import Entry
from qafila.server.service import service_of

router = APIRouter()


@router.get("/v1/models", summary="List the models")
async def list_models(request: Request) -> dict[str, Any]:
    """All models that requests may name, the default one first."""
    models = service_of(request).models
    if asked_by_anthropic(request):
        return model_page(request, models)
    return {"object": "list", "data": [_model(entry) for entry in models.entries.values()]}


@router.get("/v1/models/{name:path}", summary="One model")
async def get_model(request: Request, name: str) -> dict[str, Any]:
    """One model by name."""
    entry = service_of(request).models.find(name)
    return model_info(entry) if asked_by_anthropic(request) else _model(entry)


def _model(entry: Entry) -> dict[str, Any]:
    # The last two as vLLM tells of adapters.
    base = entry.base.name if entry.base is not None else None
    told = {"id": entry.name, "object": "model", "created": entry.created, "owned_by": "qafila"}
    return {**told, "root": base or entry.name, "parent": base}
