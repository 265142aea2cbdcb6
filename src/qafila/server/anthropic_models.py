"""What is served, as Anthropic's clients ask for it: at the same address as OpenAI's, with a header that tells."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from qafila.server.errors import ApiError
from qafila.server.models import Entry, Models

_MOST = 1000


def asked_by_anthropic(request: Request) -> bool:
    """Whether it was Anthropic's client that sent a request."""
    return "anthropic-version" in request.headers


def model_info(entry: Entry) -> dict[str, Any]:
    """One model, as anthropic-python's ``ModelInfo``."""
    length = None if entry.client is None else entry.client.context_length
    return {
        "type": "model",
        "id": entry.name,
        "display_name": entry.name,
        "created_at": datetime.fromtimestamp(entry.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": length,
        "max_tokens": length,
    }


def model_page(request: Request, models: Models) -> dict[str, Any]:
    """A page of the models, from the query's ``after_id`` on or up to its ``before_id``, at most ``limit`` of them.

    Raises:
        ApiError: one of these makes no sense.
    """
    query = request.query_params
    names = list(models.entries)
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:5]) <= _MOST):
        raise ApiError(400, f"limit: {limit!r:.40} is no number between 1 and {_MOST}", param="limit")
    for name in ("after_id", "before_id"):
        if name in query and query[name] not in names:
            raise ApiError(400, f"{name}: there is no model {query[name]!r:.120}", param=name)
    first = names.index(query["after_id"]) + 1 if "after_id" in query else 0
    last = names.index(query["before_id"]) if "before_id" in query else len(names)
    found = names[first:last]
    page = found[-int(limit) :] if "before_id" in query else found[: int(limit)]
    return {
        "data": [model_info(models.entries[name]) for name in page],
        "has_more": len(page) < len(found),
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }
