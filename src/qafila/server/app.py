"""The application: every route over one service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from qafila import __version__
from qafila.server import errors, openai_chat, openai_models
from qafila.server.service import Service

#: Every endpoint, in the order in which the documentation tells of them.
ROUTERS = (openai_chat.router, openai_models.router)


def create_app(service: Service) -> FastAPI:
    """An ASGI application over a service, which it closes at shutdown."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.models.close()

    app = FastAPI(title="Qafila", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    return app
