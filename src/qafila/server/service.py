"""What every API does with a request, in one place: who asks, is there room, which model, what it took."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, cast

from fastapi import Request

from qafila.chat.client import ChatRequest, Event, PromptRequest, Started
from qafila.server.models import Models


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the key, for logs and metrics. tenant: cached prompts are shared within a tenant only.
        scopes: what the key may do; see `qafila.server.keys`.
    """

    name: str = "anonymous"
    tenant: str = ""
    scopes: frozenset[str] = frozenset({"inference"})


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
    """

    def __init__(self, models: Models, *, gate: Gate | None = None, observer: Observer | None = None) -> None:
        self.models = models
        self.gate: Gate = gate or OpenGate()
        self.observer = observer

    async def run(
        self, caller: Caller, model: str, request: ChatRequest | PromptRequest
    ) -> tuple[Started, AsyncGenerator[Event, None]]:
        """A request that was accepted, and the events that follow.

        Whoever gets them closes them (``aclose``), which cancels what is still under way.

        Raises:
            ApiError: no such model, no room. QafilaError: what is wrong with the request.
        """
        self.models.find(model)  # before it waits for room
        events = self._events(caller, model, request)
        try:
            started = await anext(events)
        except BaseException:
            await events.aclose()
            raise
        assert isinstance(started, Started)
        return started, events

    async def _events(
        self, caller: Caller, model: str, request: ChatRequest | PromptRequest
    ) -> AsyncGenerator[Event, None]:
        request = replace(request, generation=replace(request.generation, tenant=caller.tenant))
        async with self.gate.admit(caller), self.models.lease(model) as client:
            source = client.chat(request) if isinstance(request, ChatRequest) else client.complete(request)
            if self.observer is not None:
                source = self.observer.watch(caller, model, source)
            async with aclosing(cast("AsyncGenerator[Event, None]", source)) as events:
                async for event in events:
                    yield event


def service_of(request: Request) -> Service:
    """The app's service."""
    return cast(Service, request.app.state.service)


def caller_of(request: Request) -> Caller:
    """Who asks, as the doorkeeper found out."""
    return cast(Caller, request.scope.get("caller") or Caller())
