"""The OpenAPI document: what FastAPI finds out by itself, and how each API really tells of errors and streams."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from qafila.server.streaming import EVENT_STREAM, NDJSON

_TEXT = {"type": "string"}
_MAYBE_TEXT = {"type": ["string", "null"]}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


# The shapes of `qafila.server.errors.error_body`.
_ERRORS = {
    "OpenAIError": _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT)),
    "AnthropicError": _object(type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT)),
    "OllamaError": _object(error=_TEXT),
}

_STREAMS = {
    "/v1/chat/completions": EVENT_STREAM,
    "/v1/completions": EVENT_STREAM,
    "/v1/messages": EVENT_STREAM,
    "/v1/responses": EVENT_STREAM,
    "/api/chat": NDJSON,
    "/api/generate": NDJSON,
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of an application's routes."""
    told = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = told.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which is never sent
        schemas.pop(name, None)
    schemas |= _ERRORS
    for path, operations in told["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)
            error = {"schema": {"$ref": f"#/components/schemas/{_error_of(path)}"}}
            responses["default"] = {"description": "What is wrong.", "content": {"application/json": error}}
            if path in _STREAMS:
                responses["200"].setdefault("content", {})[_STREAMS[path].partition(";")[0]] = {"schema": _TEXT}
    return told


def _error_of(path: str) -> str:
    if path.startswith("/v1/messages"):
        return "AnthropicError"
    return "OllamaError" if path.startswith("/api/") else "OpenAIError"
