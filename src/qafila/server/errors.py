"""What goes wrong with a request, and the shape in which each API tells it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from qafila.errors import (
    ContextLengthError,
    ModelClosedError,
    ModelNotFoundError,
    QafilaError,
    StorageError,
    UpstreamError,
)
from qafila.server.json_response import Json
from qafila.server.streaming import ClientGoneError

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP. message: one line: what is wrong, and the way out.
        param: the field it is about, as OpenAI writes it (``messages[0].content``).
        code: OpenAI's short name of it. headers: that go with it, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})


# OpenAI's and Anthropic's names of the kinds of errors (openai-python's and anthropic-python's exception classes).
_OPENAI_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "invalid_request_error",
    429: "rate_limit_error", 500: "server_error", 502: "server_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 500: "api_error", 502: "api_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip

# What each endpoint calls the text that may be too long; elsewhere it is ``messages``.
_PROMPTS = {"/v1/completions": "prompt", "/v1/embeddings": "input", "/v1/responses": "input"}


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The body in the shape of the API that ``path`` belongs to."""
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    if path.startswith("/api/"):
        return {"error": error.message}
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error")
    param = error.param
    if error.code == "context_length_exceeded":
        param = _PROMPTS.get(path, "messages")
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}


def as_api_error(error: BaseException) -> ApiError:
    """What a failure is to the client; what nobody foresaw tells nothing of the server's inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, ModelNotFoundError):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, UpstreamError):
        return _upstream_error(error)
    if isinstance(error, ModelClosedError):
        return ApiError(503, str(error), code="model_closed", headers={"Retry-After": "1"})
    if isinstance(error, StorageError):  # the server's trouble; it tells no client where its files are
        _log.error("%s", error)
        message = "the server cannot store or read this now; its log says more"
        return ApiError(503, message, code="storage_error", headers={"Retry-After": "5"})
    if isinstance(error, QafilaError):
        return ApiError(400, str(error), param=_named(str(error)))
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed on this request; its log says more", code="internal_error")


def _upstream_error(error: UpstreamError) -> ApiError:
    """What another server said about a request is the client's to know, about its operator's key or itself is not."""
    status, headers = error.status, {} if error.retry_after is None else {"Retry-After": error.retry_after}
    if status in (429, 503):
        return ApiError(status, str(error), code=error.code, headers=headers)
    if status == 408 or status == 504:
        return ApiError(504, str(error), code="upstream_timeout")
    if status in (400, 413, 422):
        return ApiError(413 if status == 413 else 400, str(error), param=error.param, code=error.code)
    return ApiError(502, str(error), code="upstream_error")


def _named(message: str) -> str | None:
    """The field that a message of ours begins with, as in ``messages[0].role: ...``."""
    name, colon, _ = message.partition(":")
    return name if colon and name and len(name) < 80 and " " not in name else None


def _field(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def validation_error(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body, naming its field."""
    first = error.errors()[0]
    location = tuple(part for part in first["loc"] if part not in ("body", "query", "path"))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first.get('ctx', {}).get('error', 'it does not parse')}")
    # A part of a union names the member that was tried ("str", "list[str]", "NamedTool"): a client knows none of those.
    location = tuple(p for p in location if isinstance(p, int) or (p.islower() and p.isidentifier() and p != "str"))
    name = _field(location)
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown option"
    if message.startswith(f"{name}:") or not name:  # options that are refused name themselves
        return ApiError(400, message, param=name or _named(message))
    return ApiError(400, f"{name}: {message}", param=name)


def install(app: FastAPI) -> None:
    """Answer every failure of a handler in its API's own shape."""

    def respond(request: Request, error: Exception) -> Json:
        told = as_api_error(error)
        return Json(error_body(request.url.path, told), told.status, headers=told.headers)

    def invalid(request: Request, error: Exception) -> Json:
        assert isinstance(error, RequestValidationError)
        return respond(request, validation_error(error))

    def plain(request: Request, error: Exception) -> Json:
        assert isinstance(error, HTTPException)
        return respond(request, ApiError(error.status_code, str(error.detail), headers=error.headers))

    def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(ApiError, respond)
    app.add_exception_handler(QafilaError, respond)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, respond)
