"""What every API does with a request, in one place: who asks, is there room, which model, what it took."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, cast

from fastapi import Request

from qafila.chat.client import ChatClient, ChatRequest, Event, PromptRequest, Started, Usage
from qafila.server.deadline import within
from qafila.server.models import Models


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the key, for logs and metrics. tenant: cached prompts are shared within a tenant only.
        scopes: what the key may do; see `qafila.server.keys`.
        requests_per_minute, tokens_per_minute, max_concurrent: the key's own limits; None follows the server's.
    """

    name: str = "anonymous"
    tenant: str = ""
    scopes: frozenset[str] = frozenset({"inference"})
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None


class Gate(Protocol):
    """Lets requests in: limits of a key, and the bounded queue."""

    def admit(self, caller: Caller) -> AbstractAsyncContextManager[None]:
        """Room for one request for the length of the block.

        Raises:
            ApiError: 429, with Retry-After.
        """

    def spent(self, caller: Caller, tokens: int) -> None:
        """The caller's request took so many tokens."""


class OpenGate:
    """Lets everybody in."""

    def admit(self, caller: Caller) -> AbstractAsyncContextManager[None]:
        """Room without limit."""
        return nullcontext()

    def spent(self, caller: Caller, tokens: int) -> None:
        """Nothing is counted."""


class Observer(Protocol):
    """Hears of every event of every request: metrics and traces."""

    def watch(self, caller: Caller, model: str, events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
        """The same events, seen."""


class Service:
    """The part of the server that all its APIs share.

    Args:
        models: what is served. gate: who is let in. observer: who hears of it.
        timeout: seconds that a request may take, waiting included; None for as long as it likes.
    """

    def __init__(
        self,
        models: Models,
        *,
        gate: Gate | None = None,
        observer: Observer | None = None,
        timeout: float | None = None,
    ) -> None:
        self.models = models
        self.gate: Gate = gate or OpenGate()
        self.observer = observer
        self.timeout = timeout

    async def run(
        self, caller: Caller, model: str, request: ChatRequest | PromptRequest, *, admitted: bool = False
    ) -> tuple[Started, AsyncGenerator[Event, None]]:
        """A request that was accepted, and the events that follow.

        Whoever gets them closes them (``aclose``), which cancels what is still under way. Whoever runs several for one
        request of HTTP holds room for it (``gate.admit``) and says ``admitted``: if each waited for room of its own,
        the first would keep the last from getting any.

        Raises:
            ApiError: no such model, no room. QafilaError: what is wrong with the request.
        """
        self.models.find(model)  # before it waits for room
        events = self._events(caller, model, request, admitted)
        if self.timeout is not None:
            events = within(events, self.timeout)
        try:
            started = await anext(events)
        except BaseException:
            await events.aclose()
            raise
        assert isinstance(started, Started)
        return started, events

    @asynccontextmanager
    async def lease(self, caller: Caller, model: str) -> AsyncIterator[ChatClient]:
        """The client of a model, and room for a request that generates nothing, for the length of the block.

        Raises:
            ApiError: no such model, no room.
        """
        self.models.find(model)
        async with self.gate.admit(caller), self.models.lease(model) as client:
            yield client

    async def _events(
        self, caller: Caller, model: str, request: ChatRequest | PromptRequest, admitted: bool
    ) -> AsyncGenerator[Event, None]:
        request = replace(request, generation=replace(request.generation, tenant=caller.tenant))
        room: AbstractAsyncContextManager[None] = nullcontext() if admitted else self.gate.admit(caller)
        async with room, self.models.lease(model) as client:
            source = client.chat(request) if isinstance(request, ChatRequest) else client.complete(request)
            if self.observer is not None:
                source = self.observer.watch(caller, model, source)
            prompt = generated = 0
            try:
                async with aclosing(cast("AsyncGenerator[Event, None]", source)) as events:
                    async for event in events:
                        if isinstance(event, Usage):
                            prompt, generated = event.prompt, event.generated
                        elif isinstance(event, Started):
                            prompt = event.prompt_tokens
                        else:
                            generated += 1  # at least; who leaves before the end pays for what was made until then
                        yield event
            finally:
                self.gate.spent(caller, prompt + generated)


def service_of(request: Request) -> Service:
    """The app's service."""
    return cast(Service, request.app.state.service)


def caller_of(request: Request) -> Caller:
    """Who asks, as the doorkeeper found out."""
    return cast(Caller, request.scope.get("caller") or Caller())
