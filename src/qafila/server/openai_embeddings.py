"""``POST /v1/embeddings``, as OpenAI's clients expect it."""

from __future__ import annotations

import base64
import struct
from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from qafila.chat.client import ChatClient
from qafila.server.body import Body
from qafila.server.errors import ApiError
from qafila.server.json_response import Json
from qafila.server.openai_completions import TokenId
from qafila.server.service import caller_of, service_of
from qafila.server.streaming import unless_gone

router = APIRouter()

# OpenAI's limit.
_MOST_INPUTS = 2048


class EmbeddingBody(Body):
    """The body of ``POST /v1/embeddings``."""

    model_config = ConfigDict(title="EmbeddingRequest")

    harmless: ClassVar = {"user": "for the operator's records; limits follow the key"}

    model: str
    input: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        description="A text, token ids, or a list of up to 2048 of either."
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: of little-endian 32-bit floats, which is what OpenAI's clients ask for."
    )
    dimensions: int | None = Field(None, ge=1, description="Must be the model's own width: vectors are not cut.")

    def inputs(self) -> list[str | list[int]]:
        """What is embedded, one or several.

        Raises:
            ApiError: nothing is, something empty is, or too much is.
        """
        given = self.input
        listed: list[str | list[int]]
        if isinstance(given, str):
            listed = [given]
        elif given and isinstance(given[0], int):
            listed = [[i for i in given if isinstance(i, int)]]
        else:
            listed = [one for one in given if not isinstance(one, int)]
        if not listed:
            raise ApiError(400, "input: the list is empty; give at least one text", param="input")
        if len(listed) > _MOST_INPUTS:
            raise ApiError(400, f"input: {len(listed)} are too many; give at most {_MOST_INPUTS}", param="input")
        for i, one in enumerate(listed):
            if not one:
                name = "input" if isinstance(given, str) else f"input[{i}]"
                raise ApiError(400, f"{name}: it is empty; leave it out", param=name)
        return listed


@router.post("/v1/embeddings", summary="Embed texts")
async def embeddings(request: Request, body: EmbeddingBody) -> Response:
    """A vector of length one for each input: the mean of what the model makes of its tokens."""
    service, caller, inputs = service_of(request), caller_of(request), body.inputs()

    async def work() -> dict[str, Any]:
        async with service.lease(caller, body.model) as client:
            vectors, tokens = await _embed(client, inputs, body.dimensions)
        service.gate.spent(caller, tokens)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format)}
                for i, vector in enumerate(vectors)
            ],
            "model": body.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    return Json(await unless_gone(request, work()))


async def _embed(
    client: ChatClient, inputs: list[str | list[int]], dimensions: int | None
) -> tuple[list[tuple[float, ...]], int]:
    # The width is known from the first vector: a wrong one is refused before the others are computed.
    first = await client.embed(inputs[:1])
    width = len(first.vectors[0])
    if dimensions is not None and dimensions != width:
        message = f"dimensions: this model's vectors have {width}; leave it out, or ask for {width}"
        raise ApiError(400, message, param="dimensions")
    if len(inputs) == 1:
        return list(first.vectors), first.tokens
    rest = await client.embed(inputs[1:])
    return [*first.vectors, *rest.vectors], first.tokens + rest.tokens


def _written(vector: tuple[float, ...], encoding: str) -> list[float] | str:
    if encoding == "float":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
