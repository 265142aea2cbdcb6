"""A whole server out of its models and settings."""

from __future__ import annotations

from fastapi import FastAPI

from qafila.server.app import create_app
from qafila.server.keys import Keyring
from qafila.server.limits import Limits
from qafila.server.metrics import Metrics, Watcher
from qafila.server.models import Models
from qafila.server.responses_store import ResponseStore
from qafila.server.service import Service
from qafila.server.settings import AgentSettings, Settings
from qafila.server.traces import Tracer


def assemble(
    models: Models,
    settings: Settings,
    *,
    keyring: Keyring | None = None,
    tracer: Tracer | None = None,
    responses: ResponseStore | None = None,
    agent: AgentSettings | None = None,
) -> FastAPI:
    """An application with limits, metrics and, if there are settings for one, an agent; see `create_app` for the rest.

    Raises:
        QafilaError: the agent's settings cannot be followed.
    """
    limits = Limits(settings)
    metrics = Metrics(models, limits)
    watcher = Watcher(metrics, tracer, texts=settings.log_prompts)
    service = Service(models, gate=limits, observer=watcher, timeout=settings.timeout)
    agents = None
    if agent is not None:
        from qafila.server.agent_runs import Agents

        agents = Agents(service, agent, keyring=keyring, metrics=metrics)
    return create_app(
        service, settings, keyring=keyring, metrics=metrics, responses=responses, tracer=tracer, agents=agents
    )
