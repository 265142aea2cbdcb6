"""The application: every route over one service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from qafila import __version__
from qafila.server import (
    agent_memory,
    agent_routes,
    anthropic_messages,
    errors,
    health,
    ollama_chat,
    ollama_embed,
    ollama_generate,
    ollama_models,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_models,
    openai_responses,
    tokenize,
)
from qafila.server.guard import Guard
from qafila.server.keys import Keyring
from qafila.server.limits import Limits
from qafila.server.metrics import Metrics
from qafila.server.openapi import document
from qafila.server.responses_store import ResponseStore
from qafila.server.service import Service
from qafila.server.settings import Settings
from qafila.server.static import Pages
from qafila.server.traces import Tracer

if TYPE_CHECKING:
    from qafila.server.agent_runs import Agents

#: Every endpoint, in the order in which the documentation tells of them.
ROUTERS = (
    openai_chat.router,
    openai_responses.router,
    openai_completions.router,
    openai_embeddings.router,
    openai_models.router,
    anthropic_messages.router,
    ollama_chat.router,
    ollama_generate.router,
    ollama_embed.router,
    ollama_models.router,
    tokenize.router,
    agent_routes.router,
    agent_memory.router,
)


class _Guarded(FastAPI):
    """An application behind its `Guard`, which stands before everything, error pages too."""

    def build_middleware_stack(self) -> ASGIApp:
        """The stack, called once."""
        state = self.state
        gate = state.service.gate
        return Guard(
            super().build_middleware_stack(),
            state.settings,
            keyring=state.keyring,
            limits=gate if isinstance(gate, Limits) else None,
            metrics=state.metrics,
            lifecycle=state.lifecycle,
        )

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = document(self)
        return self.openapi_schema


def create_app(
    service: Service,
    settings: Settings | None = None,
    *,
    keyring: Keyring | None = None,
    metrics: Metrics | None = None,
    responses: ResponseStore | None = None,
    tracer: Tracer | None = None,
    agents: Agents | None = None,
) -> FastAPI:
    """An ASGI application over a service; it closes the service's models, store, tracer and agents at shutdown.

    Args:
        service: what answers. settings: how it guards itself; by default, as on a machine of one's own.
        keyring: the keys it knows; None for none. metrics: what ``/metrics`` tells; None for nothing.
        responses: where ``/v1/responses`` keeps what it answered; None keeps nothing.
        tracer: of the service's observer, if it has one. agents: what ``/v1/agent`` works with; None for no agent.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if agents is not None:
            await agents.start()
        yield
        if agents is not None:
            await agents.close()  # before the models that its runs ask
        await service.models.close()
        if responses is not None:
            await asyncio.to_thread(responses.close)
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    app = _Guarded(title="Qafila", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.settings = service, settings or Settings()
    app.state.keyring, app.state.metrics, app.state.lifecycle = keyring, metrics, health.Lifecycle()
    app.state.responses, app.state.agents = responses, agents
    errors.install(app)
    for router in (*ROUTERS, health.router, Pages().router()):
        app.include_router(router)
    return app
