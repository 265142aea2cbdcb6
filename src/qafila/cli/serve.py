"""`qafila serve`: the model behind an OpenAI-compatible API and a chat page."""

from __future__ import annotations

from typing import Annotated

import typer

from qafila.cli import options as opt


def command(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="What is served.")] = "default",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    threads: opt.Threads = None,
    context: opt.Context = None,
    kv_type: opt.KvType = None,
) -> None:
    """Serve a model."""
    import uvicorn

    from qafila.server.app import create_app
    from qafila.server.local_models import local_entry
    from qafila.server.models import Models
    from qafila.server.service import Service

    options = {"threads": threads, "context": context, "kv_type": kv_type}
    service = Service(Models({model: local_entry(model, model, options)}))
    uvicorn.run(create_app(service), host=host, port=port, log_level="warning")
