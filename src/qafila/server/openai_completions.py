"""``POST /v1/completions``: texts continued outside any chat format, as OpenAI's clients expect it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from qafila.chat.client import Event, Finished, PromptRequest, TextPiece, TokenInfo, Usage
from qafila.server.completion_logprobs import Logprobs
from qafila.server.errors import ApiError, as_api_error, error_body
from qafila.server.json_response import Json
from qafila.server.openai_bodies import Sampling
from qafila.server.openai_chat import data, usage_dict
from qafila.server.service import Caller, Service, caller_of, service_of
from qafila.server.streaming import EVENT_STREAM, Streamed, unless_gone

router = APIRouter()

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Prompt = str | tuple[int, ...]

# OpenAI's own limit is not told; the engine would take more, and a client that sends more means to run a batch.
_MOST_ANSWERS = 128


class CompletionBody(Sampling):
    """The body of ``POST /v1/completions``."""

    model_config = ConfigDict(title="CompletionRequest")

    harmless: ClassVar = {"user": "for the operator's records; limits follow the key"}

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        "", description="What is continued: a text, token ids, or a list of either. Without it a text is begun."
    )
    suffix: str | None = Field(None, description="What follows the gap to be filled, for models with infill tokens.")
    max_tokens: int = Field(16, ge=0, description="0 only with echo: the prompt comes back and nothing is added.")
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = Field(None, ge=1, description="Must equal n.")

    def prompts(self) -> list[Prompt]:
        """The prompts, one or several.

        Raises:
            ApiError: an empty list.
        """
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if not given:
            raise ApiError(400, "prompt: the list is empty; give at least one text or token", param="prompt")
        if isinstance(given[0], int):
            return [tuple(given)]
        listed: list[Prompt] = [one if isinstance(one, str) else tuple(one) for one in given]
        for i, one in enumerate(listed):
            if one == ():
                raise ApiError(400, f"prompt[{i}]: the list is empty; give at least one token", param=f"prompt[{i}]")
        return listed

    def check(self) -> None:
        """Raise ApiError for options that do not go together."""
        if self.best_of is not None and self.best_of != self.n:
            raise ApiError(400, f"best_of: must equal n ({self.n}): every answer is given", param="best_of")
        if self.echo and self.suffix:
            raise ApiError(400, "echo: does not go with suffix", param="echo")
        if not self.max_tokens and not self.echo:
            raise ApiError(400, "max_tokens: 0 asks for nothing; give more, or echo", param="max_tokens")


@router.post("/v1/completions", summary="Continue a text")
async def completions(request: Request, body: CompletionBody) -> Response:
    """Continue texts, or fill the gaps in them, whole or as a stream of server-sent events.

    The choices of prompt ``p`` are those with index ``p * n`` to ``p * n + n - 1``.
    """
    service, caller = service_of(request), caller_of(request)
    body.check()
    prompts = body.prompts()
    if len(prompts) * body.n > _MOST_ANSWERS:
        message = f"prompt: {len(prompts)} of them with n {body.n} ask for more than {_MOST_ANSWERS} answers at once"
        raise ApiError(400, message, param="prompt")
    # At least one, which is then not waited for: what is wrong with the request is found all the same.
    generation = body.generation(max_tokens=body.max_tokens or 1, logprobs=body.logprobs)
    asked = [PromptRequest(prompt, body.suffix or None, generation) for prompt in prompts]
    begun = await unless_gone(request, _begin(service, caller, body, asked))
    head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
            "model": body.model}  # fmt: skip
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        pieces = _stream(request, head, begun, body, usage=usage)
        await anext(pieces)  # from here on, closing it frees what was begun, even if nothing is ever sent
        return Streamed(pieces, EVENT_STREAM)
    return Json(await unless_gone(request, _whole(head, begun, body)))


class _Begun:
    """Requests that were accepted, one a prompt, and how their answers begin."""

    def __init__(self, n: int, logprobs: int | None) -> None:
        self.events: list[AsyncGenerator[Event, None]] = []
        self.n = n
        self.fronts: list[tuple[str, Sequence[TokenInfo]]] = []
        self.room = AsyncExitStack()
        self._logprobs = logprobs

    def choices(self) -> list[_Choice]:
        """A choice for each answer that there will be."""
        return [_Choice(i, *self.fronts[i // self.n], self._logprobs) for i in range(len(self.fronts) * self.n)]

    async def close(self) -> None:
        """Cancel what is under way."""
        async with self.room:
            for events in self.events:
                await events.aclose()


async def _begin(service: Service, caller: Caller, body: CompletionBody, asked: Sequence[PromptRequest]) -> _Begun:
    begun = _Begun(body.n, body.logprobs)
    try:
        service.models.find(body.model)
        await begun.room.enter_async_context(service.gate.admit(caller))
        started = []
        # They are begun one after the other, and run together.
        for one in asked:
            accepted, events = await service.run(caller, body.model, one, admitted=True)
            begun.events.append(events)
            started.append(accepted)
        for one in asked:
            begun.fronts.append(await _front(service, body, one.prompt) if body.echo else ("", ()))
        if not body.max_tokens:
            for i, events in enumerate(begun.events):
                await events.aclose()
                begun.events[i] = _nothing(started[i].prompt_tokens)
    except BaseException:
        await begun.close()
        raise
    return begun


async def _nothing(prompt_tokens: int) -> AsyncGenerator[Event, None]:
    """What a request for no tokens gives."""
    yield Usage(prompt_tokens, 0, 0)


async def _front(service: Service, body: CompletionBody, prompt: Prompt) -> tuple[str, Sequence[TokenInfo]]:
    """A prompt as it is echoed: its text, and its tokens if log-probabilities are asked for."""
    async with service.models.lease(body.model) as client:
        text = prompt if isinstance(prompt, str) else await client.detokenize(prompt)
        if body.logprobs is None:
            return text, ()
        tokens = await client.score(prompt, body.logprobs)
        if isinstance(prompt, str):
            # The model reads a BOS that is not in the text; it is not told of.
            tokens = tokens[len(tokens) - len(await client.tokenize(prompt)) :]
        return text, tokens


class _Choice:
    """One answer on its way."""

    def __init__(self, index: int, front: str, front_tokens: Sequence[TokenInfo], logprobs: int | None) -> None:
        self.index = index
        self.text = [front] if front else []
        self.reason: str | None = None
        self.logprobs = None if logprobs is None else Logprobs()
        self.front = front
        if self.logprobs is not None:
            self.logprobs.add(front_tokens)

    def add(self, event: TextPiece) -> None:
        self.text.append(event.text)
        if self.logprobs is not None:
            self.logprobs.add(event.tokens)

    def take(self) -> dict[str, Any]:
        """What came since it was last taken, as a choice of a response."""
        text = "".join(self.text)
        self.text.clear()
        told = None if self.logprobs is None else self.logprobs.take()
        return {"index": self.index, "text": text, "logprobs": told, "finish_reason": self.reason}


async def _merged(begun: _Begun) -> AsyncGenerator[Event, None]:
    """The events of all prompts as they come, answers numbered through; one `Usage` for all at the end.

    Raises:
        Exception: what failed first; the others are given up.
    """
    if len(begun.events) == 1:
        try:
            async for event in begun.events[0]:
                yield event
        finally:
            await begun.close()
        return
    queue: asyncio.Queue[Event | Exception] = asyncio.Queue(64)

    async def follow(number: int, events: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, TextPiece | Finished):
                        await queue.put(replace(event, answer=number * begun.n + event.answer))
                    else:
                        await queue.put(event)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.ensure_future(follow(i, events)) for i, events in enumerate(begun.events)]
    usages: list[Usage] = []
    try:
        while len(usages) < len(tasks):
            news = await queue.get()
            if isinstance(news, Exception):
                raise news
            if isinstance(news, Usage):
                usages.append(news)
            else:
                yield news
        yield Usage(*(sum(getattr(usage, name) for usage in usages) for name in ("prompt", "cached", "generated")))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await begun.close()


async def _whole(head: dict[str, Any], begun: _Begun, body: CompletionBody) -> dict[str, Any]:
    choices = begun.choices()
    usage: dict[str, Any] | None = None
    async with aclosing(_merged(begun)) as events:
        async for event in events:
            if isinstance(event, TextPiece):
                choices[event.answer].add(event)
            elif isinstance(event, Finished):
                choices[event.answer].reason = event.reason
            elif isinstance(event, Usage):
                usage = usage_dict(event)
    for choice in choices:
        choice.reason = choice.reason or "length"  # none was asked for
    return {**head, "choices": [choice.take() for choice in choices], "usage": usage}


async def _stream(
    request: Request, head: dict[str, Any], begun: _Begun, body: CompletionBody, *, usage: bool
) -> AsyncGenerator[bytes, None]:
    choices = begun.choices()
    tail: dict[str, Any] = {"usage": None} if usage else {}

    def chunk(choice: _Choice) -> bytes:
        return data({**head, "choices": [choice.take()], **tail})

    async with aclosing(_merged(begun)) as events:
        try:
            yield b""
            for choice in choices:
                if not body.max_tokens:
                    choice.reason = "length"
                if choice.front or not body.max_tokens:
                    yield chunk(choice)
            async for event in events:
                if isinstance(event, TextPiece):
                    choices[event.answer].add(event)
                    yield chunk(choices[event.answer])
                elif isinstance(event, Finished):
                    choices[event.answer].reason = event.reason
                    yield chunk(choices[event.answer])
                elif isinstance(event, Usage) and usage:
                    yield data({**head, "choices": [], "usage": usage_dict(event)})
        except Exception as error:
            yield data(error_body(request.url.path, as_api_error(error)))
            return
        yield b"data: [DONE]\n\n"
