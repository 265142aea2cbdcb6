"""``POST /tokenize`` and ``/detokenize``, with the fields of vLLM's server and of llama.cpp's.

Each answer has what both servers name it: ``tokens`` with ``count``, ``max_model_len`` and ``token_strs``; ``prompt``
and ``content``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import Field

from qafila.chat.client import ChatClient
from qafila.server.body import Body
from qafila.server.errors import ApiError
from qafila.server.json_response import Json
from qafila.server.openai_chat import messages_of
from qafila.server.openai_completions import TokenId
from qafila.server.service import Service, caller_of, service_of
from qafila.server.streaming import unless_gone
from qafila.text.messages import ToolSchema

router = APIRouter()


class TokenizeBody(Body):
    """The body of ``POST /tokenize``."""

    refused: ClassVar = {
        "add_generation_prompt": "messages end where the answer begins",
        "continue_final_message": "messages end where the answer begins",
        "chat_template": "the model's own is used",
        "chat_template_kwargs": "the model's own template is used",
        "mm_processor_kwargs": "there are no images",
    }
    neutral: ClassVar = {"add_generation_prompt": (True,), "continue_final_message": (False,)}

    model: str | None = Field(None, description="By default the first that is served.")
    prompt: str | None = Field(None, description="A text (vLLM's name of it).")
    content: str | None = Field(None, description="A text (llama.cpp's name of it).")
    messages: list[dict[str, Any]] | None = Field(None, min_length=1, description="A conversation.")
    tools: list[dict[str, Any]] | None = Field(None, description="Only with messages.")
    add_special_tokens: bool | None = Field(
        None, description="Begin a text with the BOS that the model asks for; by default yes for prompt."
    )
    add_special: bool | None = Field(None, description="llama.cpp's name of the same; by default no for content.")
    parse_special: bool = Field(True, description="Text that spells a special token is that token.")
    return_token_strs: bool = Field(False, description="Tell each token's text in token_strs.")
    with_pieces: bool = Field(False, description="Tell tokens as objects of id and piece.")

    def text(self) -> str | None:
        """The text, or None where it is a conversation.

        Raises:
            ApiError: not exactly one of the three is given, or options that do not go together.
        """
        names = ("prompt", "content", "messages")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            name = given[1] if given else "prompt"
            raise ApiError(400, f"{name}: give exactly one of prompt, content and messages", param=name)
        if self.tools is not None and self.messages is None:
            raise ApiError(400, "tools: only with messages", param="tools")
        if self.messages is not None:
            for name in ("add_special_tokens", "add_special"):
                if getattr(self, name):
                    message = f"{name}: a conversation has its special tokens already; leave it out"
                    raise ApiError(400, message, param=name)
        return self.prompt if self.content is None else self.content

    def bos(self) -> bool:
        """Whether a text begins with the BOS."""
        given = self.add_special if self.add_special_tokens is None else self.add_special_tokens
        return self.prompt is not None if given is None else given


class DetokenizeBody(Body):
    """The body of ``POST /detokenize``."""

    model: str | None = Field(None, description="By default the first that is served.")
    tokens: list[TokenId]


@router.post("/tokenize", summary="Text to tokens")
async def tokenize(request: Request, body: TokenizeBody) -> Response:
    """The tokens of a text, or of the prompt that a conversation becomes."""
    service, caller, text = service_of(request), caller_of(request), body.text()

    async def work() -> dict[str, Any]:
        async with service.lease(caller, _model(service, body.model)) as client:
            if text is None:
                tools = tuple(ToolSchema.from_dict(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ()))
                ids = await client.render(messages_of(body.messages or ()), tools)
            else:
                ids = await client.tokenize(text, special=body.parse_special, bos=body.bos())
            pieces = await _pieces(client, ids) if body.return_token_strs or body.with_pieces else None
            told: list[Any] = list(ids)
            if body.with_pieces and pieces is not None:
                told = [{"id": i, "piece": piece} for i, piece in zip(ids, pieces, strict=True)]
            return {
                "tokens": told,
                "count": len(ids),
                "max_model_len": client.context_length,
                "token_strs": pieces if body.return_token_strs else None,
            }

    return Json(await unless_gone(request, work()))


@router.post("/detokenize", summary="Tokens to text")
async def detokenize(request: Request, body: DetokenizeBody) -> Response:
    """The text of tokens; special tokens are told as they are written."""
    service, caller = service_of(request), caller_of(request)

    async def work() -> dict[str, str]:
        async with service.lease(caller, _model(service, body.model)) as client:
            text = await client.detokenize(body.tokens)
            return {"prompt": text, "content": text}

    return Json(await unless_gone(request, work()))


def _model(service: Service, name: str | None) -> str:
    return next(iter(service.models.entries)) if name is None else name


async def _pieces(client: ChatClient, ids: list[int]) -> list[str]:
    known: dict[int, str] = {}
    for i in ids:
        if i not in known:
            known[i] = await client.detokenize([i])
    return [known[i] for i in ids]
