"""``POST /api/generate``, as Ollama's clients expect it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from qafila.chat.client import ChatRequest, PromptRequest
from qafila.server.errors import ApiError
from qafila.server.ollama_answers import answer, loaded
from qafila.server.ollama_bodies import OllamaGenerateBody
from qafila.server.ollama_models import load, registered
from qafila.server.service import Caller, Service, caller_of, service_of
from qafila.server.streaming import unless_gone
from qafila.text.messages import Message

router = APIRouter()


@router.post("/api/generate", summary="Answer or continue a prompt, as Ollama's API does")
async def generate(request: Request, body: OllamaGenerateBody) -> Response:
    """Answer a prompt as one message, continue it (``raw``), or fill the gap before ``suffix``."""
    began = time.perf_counter()
    service, caller = service_of(request), caller_of(request)
    name = registered(service.models, body.model).name
    if not body.prompt and not body.suffix:
        await unless_gone(request, load(service, caller, name))
        return loaded(body.model, response_shape)
    asked = await unless_gone(request, _asked(service, caller, name, body))
    _, events = await unless_gone(request, service.run(caller, name, asked))
    return await answer(request, body.model, began, events, response_shape, stream=body.stream)


def response_shape(text: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A piece of an answer as text."""
    return {"response": text}


async def _asked(service: Service, caller: Caller, name: str, body: OllamaGenerateBody) -> ChatRequest | PromptRequest:
    generation, prompt = body.generation(), body.prompt or ""
    if body.system and (body.raw or body.suffix):
        other = "raw" if body.raw else "suffix"
        raise ApiError(400, f"system: it does not go with {other}, which takes the prompt as it is", param="system")
    if body.suffix:
        return PromptRequest(prompt, body.suffix, generation)
    if not body.raw:
        system = (Message("system", body.system),) if body.system else ()
        return ChatRequest((*system, Message("user", prompt)), generation=generation)
    return PromptRequest(await _raw(service, caller, name, prompt), generation=generation)


async def _raw(service: Service, caller: Caller, name: str, prompt: str) -> str | tuple[int, ...]:
    """A prompt that may spell special tokens.

    With some in it, it is a chat template filled in by the client, which has a BOS where it needs one.
    """
    async with service.lease(caller, name) as client:
        if not client.abilities.tokenizes:
            return prompt
        plain, special = await client.tokenize(prompt), await client.tokenize(prompt, special=True)
    return prompt if plain == special else tuple(special)
