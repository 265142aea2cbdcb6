"""``POST /api/embed`` and the older ``/api/embeddings``, as Ollama's clients expect them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from qafila.chat.client import ChatClient, Embedded
from qafila.server.errors import ApiError
from qafila.server.json_response import Json
from qafila.server.ollama_answers import since
from qafila.server.ollama_bodies import OllamaEmbedBody, OllamaEmbeddingsBody
from qafila.server.ollama_models import load, registered
from qafila.server.service import Caller, Service, caller_of, service_of
from qafila.server.streaming import unless_gone

router = APIRouter()

# A text that was cut is tokenised again, to get its BOS; it may come to a few tokens more than were kept.
_MARGIN = 8


@router.post("/api/embed", summary="Embed texts, as Ollama's API does")
async def embed(request: Request, body: OllamaEmbedBody) -> Response:
    """A vector of length one for each text; without a text: load the model."""
    began = time.perf_counter()
    service, caller = service_of(request), caller_of(request)
    name = registered(service.models, body.model).name
    texts = [body.input] if isinstance(body.input, str) else body.input
    if texts in ([], [""]):
        await unless_gone(request, load(service, caller, name))
        return Json({"model": body.model, "embeddings": []})
    for i, text in enumerate(texts):
        if not text:
            raise ApiError(400, f"input[{i}]: it is empty; leave it out", param=f"input[{i}]")
    embedded, ready = await unless_gone(request, _embed(service, caller, name, texts, truncate=body.truncate))
    answer: dict[str, Any] = {
        "model": body.model,
        "embeddings": [_cut(vector, body.dimensions) for vector in embedded.vectors],
        "total_duration": since(began),
        "load_duration": round((ready - began) * 1e9),
        "prompt_eval_count": embedded.tokens,
    }
    return Json(answer)


@router.post("/api/embeddings", summary="Embed a text, as Ollama's older API does")
async def embeddings(request: Request, body: OllamaEmbeddingsBody) -> Response:
    """A vector of length one for a text; without a text: load the model."""
    service, caller = service_of(request), caller_of(request)
    name = registered(service.models, body.model).name
    if not body.prompt:
        await unless_gone(request, load(service, caller, name))
        return Json({"embedding": []})
    embedded, _ = await unless_gone(request, _embed(service, caller, name, [body.prompt], truncate=True))
    return Json({"embedding": embedded.vectors[0]})


async def _embed(
    service: Service, caller: Caller, name: str, texts: Sequence[str], *, truncate: bool
) -> tuple[Embedded, float]:
    """The vectors, and when the model was ready, by `time.perf_counter`."""
    async with service.lease(caller, name) as client:
        ready = time.perf_counter()
        fitting = [await _fitting(client, text) for text in texts] if truncate else texts
        embedded = await client.embed(fitting)
    service.gate.spent(caller, embedded.tokens)
    return embedded, ready


async def _fitting(client: ChatClient, text: str) -> str:
    """As much of a text's beginning as the context holds."""
    most = client.context_length
    # A token is a byte at least.
    if most is None or not client.abilities.tokenizes or len(text.encode("utf-8", "replace")) < most:
        return text
    ids = await client.tokenize(text)
    return text if len(ids) < most else await client.detokenize(ids[: max(1, most - _MARGIN)])


def _cut(vector: Sequence[float], dimensions: int | None) -> list[float]:
    if dimensions is None or dimensions >= len(vector):
        return list(vector)
    length = math.hypot(*vector[:dimensions])
    return [value / length if length else 0.0 for value in vector[:dimensions]]
