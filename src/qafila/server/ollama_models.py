"""What is served, as Ollama's clients ask for it; and the endpoints that would change it, which are refused."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi import APIRouter, Request, Response

from qafila.chat.client import ChatClient
from qafila.parameters import text_parameters
from qafila.server.errors import ApiError
from qafila.server.json_response import Json
from qafila.server.models import Entry, Models
from qafila.server.ollama_answers import written
from qafila.server.ollama_bodies import OllamaShowBody
from qafila.server.service import Caller, Service, caller_of, service_of
from qafila.server.streaming import unless_gone

if TYPE_CHECKING:
    from qafila.chat.llama import Llama

router = APIRouter()

#: The Ollama whose API this is: clients compare it with what they need. It is the first that tells log-probabilities.
API_VERSION = "0.12.11"

_LATEST = ":latest"


def registered(models: Models, name: str) -> Entry:
    """The entry of a model; the tag ``latest`` is as good as none, and none as good as it.

    Raises:
        ApiError: 404, there is none.
    """
    other = name.removesuffix(_LATEST) if name.endswith(_LATEST) else name + _LATEST
    return models.find(other if name not in models.entries and other in models.entries else name)


async def load(service: Service, caller: Caller, name: str) -> None:
    """Open a model if it is not.

    Raises:
        ApiError: no such model, no room.
    """
    async with service.lease(caller, name):
        pass


@router.get("/api/tags", summary="List the models, as Ollama's API does")
async def tags(request: Request) -> Response:
    """All models that requests may name. Sizes and details are known of those that are loaded."""
    return Json({"models": [_listed(entry) for entry in service_of(request).models.entries.values()]})


@router.get("/api/ps", summary="List the models that are loaded, as Ollama's API does")
async def loaded_models(request: Request) -> Response:
    """The models that are loaded."""
    models = service_of(request).models
    return Json(
        {
            "models": [
                {
                    **_listed(entry),
                    "size": entry.held,
                    "size_vram": 0,
                    "expires_at": _expires(entry, models.idle_unload),
                    "context_length": entry.client.context_length or 0,
                }
                for entry in models.entries.values()
                if entry.client is not None
            ]
        }
    )


@router.post("/api/show", summary="Describe a model, as Ollama's API does")
async def show(request: Request, body: OllamaShowBody) -> Response:
    """What a model is and can do; it is loaded for that if it is not."""
    service, caller = service_of(request), caller_of(request)
    name = body.model or body.name
    if not name:
        raise ApiError(400, "model: missing", param="model")
    entry = registered(service.models, name)

    async def describe() -> dict[str, Any]:
        async with service.lease(caller, entry.name) as client:
            return _shown(entry, client)

    return Json(await unless_gone(request, describe()))


@router.get("/api/version", summary="The version of Ollama's API")
async def version() -> Response:
    """The version of Ollama whose API this is."""
    return Json({"version": API_VERSION})


async def operators_only() -> NoReturn:
    """Refuse: requests cannot change what is served."""
    raise ApiError(403, "models are registered by the operator of this server, when it is started; see `qafila serve`")


for _method, _path in (
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/{digest}"),
):
    router.add_api_route(
        _path, operators_only, methods=[_method], response_model=None, summary="Refused: the operator registers models"
    )


def _model_of(client: ChatClient | None) -> Llama | None:
    """The model behind a client, where it is in this process."""
    return getattr(client, "llama", None)


def _listed(entry: Entry) -> dict[str, Any]:
    llama = _model_of(entry.client)
    return {
        "name": entry.name,
        "model": entry.name,
        "modified_at": written(datetime.fromtimestamp(entry.created, UTC)),
        "size": 0 if llama is None else llama.checkpoint.weights_bytes,
        # Of the registration: reading all weights for their hash would take seconds.
        "digest": hashlib.sha256(f"{entry.name}\0{entry.source}".encode("utf-8", "replace")).hexdigest(),
        "details": _details(llama),
    }


def _details(llama: Llama | None) -> dict[str, Any]:
    if llama is None:
        return {
            "parent_model": "",
            "format": "",
            "family": "",
            "families": None,
            "parameter_size": "",
            "quantization_level": "",
        }
    checkpoint = llama.checkpoint
    family = _architecture(checkpoint.details)
    held: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        held[tensor.dtype.name] += prod(tensor.shape)
    return {
        "parent_model": "",
        "format": "gguf" if checkpoint.format == "gguf" else "safetensors" if checkpoint.format == "hf" else "pth",
        "family": family,
        "families": [family],
        "parameter_size": _human(text_parameters(checkpoint.config)),
        "quantization_level": held.most_common(1)[0][0],
    }


def _architecture(details: Mapping[str, object]) -> str:
    return str(details.get("general.architecture", "llama"))


def _human(count: int) -> str:
    """A number of parameters as Ollama writes it (format.HumanNumber)."""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            return f"{count / unit:.1f}{letter}" if unit == 10**9 else f"{count / unit:.2f}{letter}"
    return str(count)


def _expires(entry: Entry, idle_unload: float | None) -> str:
    if idle_unload is None:
        return "9999-12-31T23:59:59Z"
    idle = 0.0 if entry.users else time.monotonic() - entry.used
    return written(datetime.now(UTC) + timedelta(seconds=max(0.0, idle_unload - idle)))


def _shown(entry: Entry, client: ChatClient) -> dict[str, Any]:
    able = client.abilities
    capabilities = {"completion": able.completes, "tools": able.tools, "insert": able.infills}
    told: dict[str, Any] = {
        "modelfile": f"FROM {entry.name}",
        "parameters": "",
        "template": "",
        "details": _details(_model_of(client)),
        "model_info": {"general.architecture": "llama", "llama.context_length": client.context_length},
        "capabilities": [name for name, can in capabilities.items() if can],
        "modified_at": written(datetime.fromtimestamp(entry.created, UTC)),
    }
    llama = _model_of(client)
    if llama is None:
        return told
    checkpoint, config = llama.checkpoint, llama.config
    family = _architecture(checkpoint.details)
    licence = checkpoint.details.get("general.license")
    return {
        **told,
        **({"license": licence} if isinstance(licence, str) else {}),
        "template": checkpoint.chat_template or "",
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": text_parameters(config),
            **({"general.basename": config.name} if config.name else {}),
            f"{family}.context_length": client.context_length,
            f"{family}.embedding_length": config.dim,
            f"{family}.block_count": config.n_layers,
            f"{family}.feed_forward_length": config.ffn_dim,
            f"{family}.attention.head_count": config.n_heads,
            f"{family}.attention.head_count_kv": config.n_kv_heads,
            f"{family}.attention.layer_norm_rms_epsilon": config.norm_eps,
            f"{family}.rope.freq_base": config.rope_theta,
            f"{family}.vocab_size": config.vocab_size,
        },
    }
