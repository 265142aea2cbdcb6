"""A served model as an agent's run sees it, which works in a thread of its own: what it asks is answered as chats are.

So an agent's steps and people's chats wait for the same room, are counted together, share cached prompts and are
computed in one batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from qafila.chat.client import (
    ChatClient,
    ChatRequest,
    Embedded,
    Event,
    Pooling,
    PromptRequest,
    TokenInfo,
    ToolOdds,
)
from qafila.errors import AgentError
from qafila.server.errors import ApiError
from qafila.server.record import CURRENT, Record
from qafila.server.service import Caller, Service
from qafila.text.messages import Message, ToolSchema

T = TypeVar("T")

# Seconds that a step waits for room, or for a model that is being loaded: nobody sits before it, so it may be long.
_PATIENCE = 600.0
_ENDPOINT = "/v1/agent/runs"


class ServedModel:
    """A model of a service as a `ChatClient`, from whichever event loop; see `served_model`.

    Attributes:
        run: whose steps it answers, for traces.
    """

    def __init__(self, service: Service, caller: Caller, name: str, client: ChatClient) -> None:
        self._service, self._caller = service, caller
        self._loop = asyncio.get_running_loop()
        self.run = ""
        self.name, self.abilities = name, client.abilities
        self.fingerprint, self.context_length = client.fingerprint, client.context_length

    async def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        """Answer a conversation; all events come when the answer is whole."""
        for event in await self._there(self._events(request)):
            yield event

    async def complete(self, request: PromptRequest) -> AsyncIterator[Event]:
        """Continue a text; all events come when it is whole."""
        for event in await self._there(self._events(request)):
            yield event

    async def score(self, prompt: str | Sequence[int], top: int = 0) -> list[TokenInfo]:
        """The tokens of a text with their log-probabilities."""
        return await self._ask(lambda client: client.score(prompt, top))

    async def tool_odds(self, request: ChatRequest) -> ToolOdds:
        """How likely the model is to call each tool."""
        own = replace(request, generation=replace(request.generation, tenant=self._caller.tenant))
        return await self._ask(lambda client: client.tool_odds(own))

    async def embed(self, texts: Sequence[str | Sequence[int]], pooling: Pooling = "mean") -> Embedded:
        """A vector a text."""
        return await self._ask(lambda client: client.embed(texts, pooling))

    async def count(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> int:
        """Tokens of a conversation's prompt."""
        return await self._ask(lambda client: client.count(messages, tools))

    async def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """A conversation's prompt."""
        return await self._ask(lambda client: client.render(messages, tools))

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Ids of a text."""
        return await self._ask(lambda client: client.tokenize(text, special=special, bos=bos))

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return await self._ask(lambda client: client.detokenize(ids))

    async def close(self) -> None:
        """Nothing: the model is the service's."""

    async def _ask(self, what: Callable[[ChatClient], Awaitable[T]]) -> T:
        """What needs the model and no room of its own: it belongs to a step that has some, or soon will."""

        async def asked() -> T:
            async with self._service.models.lease(self.name) as client:
                return await what(client)

        return await self._there(_patient(asked))

    async def _events(self, request: ChatRequest | PromptRequest) -> list[Event]:
        async def asked() -> list[Event]:
            # Each step is a request for itself: its times begin now.
            record = Record(self.run, "POST", _ENDPOINT, self._caller.name, _ENDPOINT)
            token = CURRENT.set(record)
            try:
                started, events = await self._service.run(self._caller, self.name, request)
                async with aclosing(events):
                    return [started, *[event async for event in events]]
            finally:
                CURRENT.reset(token)

        return await _patient(asked)

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of work in the service's event loop; whoever is cancelled here cancels it there."""
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


async def served_model(service: Service, caller: Caller, name: str) -> ServedModel:
    """A model of a service, loaded if need be. To be called in the service's event loop.

    Args:
        service: what serves it. caller: for whom: room, rates and cached prompts are theirs. name: of the model.

    Raises:
        ApiError: there is no such model, or it cannot be loaded now.
    """
    async with service.models.lease(name) as client:
        return ServedModel(service, caller, name, client)


async def _patient(asked: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result, after as many tries as the service asks for.

    Raises:
        AgentError: what the service says, if it says no for good or for too long.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return await asked()
        except ApiError as error:
            wait = error.headers.get("Retry-After")
            if error.status not in (429, 503) or wait is None or time.monotonic() > until:
                raise AgentError(error.message) from None
            await asyncio.sleep(float(wait))
